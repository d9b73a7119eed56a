"""The protocol of capture backends, and the lookup of a backend by name."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import torch
from attrs import frozen

from lens import registry
from lens.capture.recorder import Recorder
from lens.errors import BackendError, InputError, PluginError


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
        backend: CaptureBackend = registry.find("backends", name)()
    except PluginError as error:
        return BackendInfo(name, reason=error.what)
    return BackendInfo(name, backend.capabilities, backend.unavailable())


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
    _check(backend.name, backend.unavailable())
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
    return registry.find("backends", name)()  # type: ignore[no-any-return]


def _check(name: str, reason: str | None) -> None:
    if reason is not None:
        raise BackendError(
            f"the backend {name!r} cannot be used here: {reason}",
            where=f"torch {torch.__version__}",
            hint="choose another backend; `lens backends` lists them",
        )
