"""Writes to a storage as such, which no function mode sees: from then on its memory is one that others write to."""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from typing import Any

import torch

from lens.capture.keeping import UNSEEN
from lens.capture.patches import Entries
from lens.capture.recorder import Recorder
from lens.capture.regions import Sight


def watch_storages(sight: Sight) -> None:
    """Expose the memory of every storage that is written to without a tensor."""
    for name in ("fill_", "copy_", "__setitem__"):
        sight.patch(torch.UntypedStorage, name, _wrap_write)


def _wrap_write(original: Callable[..., Any], entries: Entries) -> Callable[..., Any]:
    def write(self: Any, *args: Any) -> Any:
        for sight in entries.get(get_ident()) or ():
            recorder: Recorder = sight.recorder
            for record in recorder.tensors.records_on(self._cdata):
                tensor = record()
                if tensor is not None:
                    with UNSEEN():
                        recorder.memory.expose(tensor)
        return original(self, *args)

    return write
