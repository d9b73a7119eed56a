"""The protocol of capture backends, and the lookup of a backend by name."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, NoReturn, Protocol, runtime_checkable

import torch
from attrs import frozen

from lens import registry
from lens.capture.recorder import Recorder
from lens.errors import BackendError, InputError, PluginError
from lens.foreign import Raised, attempt


@runtime_checkable
class CaptureBackend(Protocol):
    """A way to watch the operations of a running model.

    Attributes:
        name: What users write in ``backend=``.
        capabilities: What it sees; a subset of ``CAPABILITIES``.
    """

    name: str
    capabilities: frozenset[str]

    def unavailable(self) -> str | None:
        """Why it cannot be used here; None if it can."""
        ...

    def record(self, emit: Recorder) -> AbstractContextManager[None]:
        """Tell the recorder of every operation of this thread while the block lasts, and restore everything."""
        ...


#: What a backend may claim to see.
CAPABILITIES = frozenset(
    {
        "functions",  # operations as the functions that Python code calls
        "composites",  # Python-level functions, with the operations inside
        "aten",  # operations as the aten operators that PyTorch dispatches
        "reads",  # bool(t), t.item(), ...
        "python_data",  # of the reads, those that are no operators: t.tolist(), t.numpy(), DLPack, t.data_ptr()
        "scopes",  # module calls
        "sites",  # file and line of each operation
        "scripted",  # operations inside TorchScript
        "regions",  # autograd functions as scopes, autocast, transforms and closed code as one operation
        "fast_paths",  # the fused eval paths of attention, which an active mode would switch off
        "untold_writes",  # Tensor.set_ and assignments to .real and .imag, of which torch tells no mode
    }
)

#: What to do about a backend that is wrong.
MEND = "docs/writing-backends.md says what a backend has; mend it, or choose another"


@frozen
class BackendInfo:
    """A backend that is known here.

    Args:
        name: What users write in ``backend=``.
        capabilities: What it claims to see; empty if it could not be loaded.
        reason: Why it cannot be used here; None if it can.
    """

    name: str
    capabilities: frozenset[str] = frozenset()
    reason: str | None = None

    def __str__(self) -> str:
        name = self.name if self.reason is None else f"{self.name} (unavailable: {self.reason})"
        return f"{name}\n    sees {', '.join(sorted(self.capabilities))}" if self.capabilities else name


def backends() -> tuple[BackendInfo, ...]:
    """Every backend of lens and of the installed plugins, those that cannot be used here included."""
    return tuple(map(_info, registry.names("backends")))


def _info(name: str) -> BackendInfo:
    try:
        backend = _made(name)
    except (PluginError, BackendError) as error:
        return BackendInfo(name, reason=error.what)
    return BackendInfo(name, frozenset(backend.capabilities), _reason(backend))


def _made(name: str) -> CaptureBackend:
    """The backend registered under a name. Raises PluginError or BackendError if it cannot be loaded or made."""

    def refuse(error: Exception) -> NoReturn:
        what = f"it cannot be made: {Raised.of(error)}"
        raise BackendError(what, where=f"backend={name!r}", hint=MEND) from error

    made = attempt(registry.find("backends", name), refuse)
    why_not = _why_no_backend(made)
    if why_not:
        raise BackendError(why_not, where=f"backend={name!r}", hint=MEND)
    return made  # type: ignore[no-any-return]


def _why_no_backend(candidate: Any) -> str:
    """Why this object does not have what a backend has; empty if it has."""
    missing = [part for part in ("name", "capabilities", "unavailable", "record") if not hasattr(candidate, part)]
    if missing:
        return f"it has no {missing[0]}"
    name, claimed = candidate.name, candidate.capabilities
    if not isinstance(name, str):
        return f"its name is a {type(name).__name__}"
    if not isinstance(claimed, (set, frozenset)):
        return f"its capabilities are a {type(claimed).__name__}, not a set"
    unknown = sorted(map(str, claimed - CAPABILITIES))
    return f"lens knows no capability {unknown[0]!r}" if unknown else ""


def _reason(backend: CaptureBackend) -> str | None:
    """Why a backend cannot be used here; None if it can."""
    answer = attempt(backend.unavailable)
    return None if answer is None else str(answer)


def chosen_backend(backend: str | CaptureBackend) -> CaptureBackend:
    """The backend that a user gave by name, or as itself.

    Raises:
        InputError: it is neither.
        BackendError: there is none of this name, or it cannot be used here.
    """
    if isinstance(backend, str):
        return _find(backend)
    if isinstance(backend, type) or not isinstance(backend, CaptureBackend):
        hint = 'give a name such as "decoration", or an instance; docs/writing-backends.md says what it needs'
        raise InputError(f"backend cannot be a {type(backend).__name__}", where="backend=", hint=hint)
    _check(backend.name, _why_no_backend(backend) or _reason(backend))
    return backend


def _find(name: str) -> CaptureBackend:
    known = registry.names("backends")
    if name not in known:
        raise BackendError(
            f"there is no capture backend {name!r}",
            where=f"backend={name!r}",
            hint=f"known backends: {', '.join(sorted(known))}",
        )
    _check(name, _info(name).reason)
    return _made(name)


def _check(name: str, reason: str | None) -> None:
    if reason is not None:
        raise BackendError(
            f"the backend {name!r} cannot be used here: {reason}",
            where=f"torch {torch.__version__}",
            hint="choose another backend; `lens backends` lists them",
        )
