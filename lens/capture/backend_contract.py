"""Holding a backend to its contract: it begins and ends without a fault of its own, and what it tells makes a graph."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from math import inf
from types import TracebackType
from typing import NoReturn

from lens.capture.backend import MEND, CaptureBackend
from lens.capture.recorder import Recorder
from lens.capture.trace_modes import finish_pops
from lens.errors import BackendError, LensError
from lens.foreign import Raised, attempt, origin
from lens.ir.graph import Graph
from lens.ir.verifier import verify
from lens.registry import BUILT_IN
from lens.user_warnings import warn_user

_RECORDER_FILE = Recorder.start.__code__.co_filename


def recording(backend: CaptureBackend, emit: Recorder) -> AbstractContextManager[None]:
    """What lets a backend record while it is entered. Raises BackendError if it gives nothing of the kind.

    What the block raises comes out of it unchanged. What the backend raises when it begins or ends is a BackendError.
    """

    def refuse(error: Exception) -> NoReturn:
        if isinstance(error, LensError):
            raise error
        what = f"the backend {backend.name!r} cannot record: {Raised.of(error)}"
        raise BackendError(what, where=origin(error), hint=MEND) from error

    made = attempt(lambda: backend.record(emit), refuse)
    if not isinstance(made, AbstractContextManager):
        raise BackendError(
            f"record of the backend {backend.name!r} gave a {type(made).__name__}, not a context manager",
            where=f"class {type(backend).__qualname__}",
            hint="write @contextmanager above it; docs/writing-backends.md shows one",
        )
    return _Held(backend, made)


class _Held(AbstractContextManager[None]):
    """What ``record`` of a backend gave, held to its contract. No generator, for the reason of ``InterruptsWait``."""

    def __init__(self, backend: CaptureBackend, made: AbstractContextManager[None]) -> None:
        self._backend = backend
        self._made = made

    def __enter__(self) -> None:
        attempt(self._made.__enter__, lambda error: self._fail("when it began", error))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        def tell(raised: Exception) -> None:
            if error is None:
                self._fail("when it ended", raised)
            if raised is not error:  # which comes first
                warn_user(f"{_broke(self._backend)} when the model had raised: {Raised.of(raised)}")

        if error is not None:
            finish_pops(error)
        attempt(lambda: self._made.__exit__(kind, error, traceback), tell)
        if isinstance(error, Exception) and not _is_own(self._backend) and _is_of_recorder(error):
            _refuse(self._backend, "in what it told the recorder", error)

    def _fail(self, when: str, error: Exception) -> NoReturn:
        if isinstance(error, LensError):  # such as of traces across each other: no fault of the backend
            raise error
        _refuse(self._backend, when, error)


def sealed(backend: CaptureBackend, seal: Callable[[], tuple[Graph, list[int]]]) -> tuple[Graph, list[int]]:
    """The graph of what a backend has told, and the ids of its values.

    What no backend of lens's own has told is verified. Raises BackendError if it makes no graph.
    """
    if _is_own(backend):
        return seal()

    def run() -> tuple[Graph, list[int]]:
        graph, ids = seal()
        for op in graph.ops:
            if not (isinstance(op.duration, (int, float)) and 0 <= op.duration < inf):
                raise BackendError(f"op {op.id}, {op.function}, took {op.duration!r} seconds")
        verify(graph)
        return graph, ids

    def refuse(error: Exception) -> NoReturn:
        _refuse(backend, "in what it told the recorder", error)

    return attempt(run, refuse)


def _is_own(backend: CaptureBackend) -> bool:
    kind = type(backend)
    return f"{kind.__module__}:{kind.__qualname__}" in BUILT_IN.backends.values()


def _is_of_recorder(error: Exception) -> bool:
    """Whether an error came up while the recorder took in what it was told."""
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == _RECORDER_FILE:
            return True
        traceback = traceback.tb_next
    return False


def _broke(backend: CaptureBackend) -> str:
    return f"the backend {backend.name!r} broke its contract"


def _refuse(backend: CaptureBackend, when: str, error: Exception) -> NoReturn:
    told, where = (error.what, error.where) if isinstance(error, LensError) else (Raised.of(error), origin(error))
    raise BackendError(f"{_broke(backend)} {when}: {told}", where=where, hint=MEND) from error
