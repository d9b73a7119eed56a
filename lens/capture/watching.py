"""Everything besides plain function calls that a Python-level backend watches."""

from __future__ import annotations

from contextlib import ExitStack

import torch

from lens.capture.autocast import watch_autocast
from lens.capture.autograd_functions import watch_autograd_functions
from lens.capture.compiled import watch_compiled
from lens.capture.functorch import watch_transforms
from lens.capture.regions import Sight
from lens.capture.scripted import watch_scripts
from lens.capture.subclasses import watch_subclasses
from lens.capture.threads import Record, watch_threads
from lens.capture.wrappers import value_by_wrapping


def watch_regions(sight: Sight, stack: ExitStack, record: Record) -> None:
    """Watch for regions of every kind in this thread, until the stack unwinds.

    Args:
        sight: What the backend sees in this thread.
        stack: Unwinds when the trace ends.
        record: How the backend records in another thread.
    """
    watch_autocast(sight, stack)
    watch_scripts(sight, stack)
    watch_transforms(sight, stack)
    watch_compiled(sight, stack)
    watch_autograd_functions(sight, stack)
    watch_subclasses(sight, stack)
    watch_threads(sight, stack, record)
    recorder = sight.recorder

    def recognise(tensor: torch.Tensor) -> int | None:
        if sight.jobs.collect():
            return recorder.value_of(tensor)
        return value_by_wrapping(recorder, tensor)

    recorder.recognise = recognise
