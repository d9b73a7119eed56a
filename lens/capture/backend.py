"""The protocol of capture backends, and the lookup of a backend by name."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from lens.capture.recorder import Recorder


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
        "composites",  # Python-level functions, with the operations inside
        "reads",  # bool(t), t.item(), ...
        "scopes",  # module calls
        "sites",  # file and line of each operation
        "scripted",  # operations inside TorchScript
    }
)
