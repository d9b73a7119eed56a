"""Everything besides plain function calls that a Python-level backend watches."""

from __future__ import annotations

import torch

from lens.capture.autocast import watch_autocast
from lens.capture.autograd_functions import watch_autograd_functions
from lens.capture.backward import watch_backward
from lens.capture.compiled import watch_compiled
from lens.capture.functorch import watch_transforms
from lens.capture.parts import value_by_wrapping
from lens.capture.regions import Sight
from lens.capture.scripted import watch_scripts
from lens.capture.storages import watch_storages
from lens.capture.subclasses import watch_subclasses
from lens.capture.threads import Record, watch_threads


def watch_regions(sight: Sight, record: Record) -> None:
    """Watch for regions of every kind in this thread, until the trace ends.

    Args:
        sight: What the backend sees in this thread.
        record: How the backend records in another thread.
    """
    watch_autocast(sight)
    watch_scripts(sight)
    watch_transforms(sight)
    watch_compiled(sight)
    watch_autograd_functions(sight)
    watch_backward(sight)
    watch_subclasses(sight)
    watch_storages(sight)
    watch_threads(sight, record)
    recorder = sight.recorder

    def recognise(tensor: torch.Tensor) -> int | None:
        if sight.jobs.collect():
            return recorder.value_of(tensor)
        return value_by_wrapping(recorder, tensor)

    recorder.recognise = recognise
    recorder.collect = sight.jobs.collect
