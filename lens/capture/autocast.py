"""Autocast: an operation that ran under it says so, as the keyword argument ``autocast`` that replay understands.

Nothing is done per operation: the moments at which the state changes are noted, and the rows of the tape in between
are marked when the trace ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch

from lens.capture.patches import Entries
from lens.capture.recorder import Recorder
from lens.capture.regions import Sight
from lens.ir.elements import AUTOCAST

_DEVICES = ("cpu", "cuda")


def watch_autocast(sight: Sight) -> None:
    """Mark the operations that run under autocast, when the trace ends."""
    changes = sight.stack.enter_context(_marked(sight.recorder))
    sight.autocast_changes = changes
    for name in ("__enter__", "__exit__"):
        sight.patch(torch.autocast, name, _wrap)


@contextmanager
def _marked(recorder: Recorder) -> Iterator[list[tuple[int, str]]]:
    changes = [(0, _state())]
    try:
        yield changes
    finally:
        rows = recorder.tape.ops
        stops = [position for position, _ in changes[1:]]
        for (start, state), stop in zip(changes, [*stops, len(rows)], strict=True):
            for place in range(start, stop if state else start):
                rows[place] = _mark(rows[place], state)


def _mark(row: tuple[Any, ...], state: str) -> tuple[Any, ...]:
    """The row with the keyword argument, if the operation has operands, which autocast may cast."""
    return (*row[:4], {**(row[4] or {}), AUTOCAST: state}, *row[5:]) if row[2] else row


def _state() -> str:
    """Devices and types of the autocast that is on, such as ``cpu:bfloat16``; empty if none is."""
    on = [device for device in _DEVICES if torch.is_autocast_enabled(device)]
    return ",".join(f"{d}:{str(torch.get_autocast_dtype(d)).removeprefix('torch.')}" for d in on)


def _wrap(original: Callable[..., Any], entries: Entries) -> Callable[..., Any]:
    def change(self: Any, *args: Any) -> Any:
        result = original(self, *args)
        for sight in entries.get(get_ident()) or ():
            sight.autocast_changes.append((len(sight.recorder.tape.ops), _state()))
        return result

    return change
