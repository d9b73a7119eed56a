"""Autocast: an operation that ran under it says so, as the keyword argument ``autocast`` that replay understands.

Nothing is done per operation: the moments at which the state changes are noted, and the rows of the tape in between
are marked when the trace ends.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import get_ident
from typing import Any

import torch

from lens.capture.patches import Entries
from lens.capture.regions import Sight
from lens.ir.elements import AUTOCAST
from lens.ir.tape import OpRow

_DEVICES = ("cpu", "cuda")


def watch_autocast(sight: Sight) -> None:
    """Mark the operations that run under autocast, when the trace ends."""
    rows, changes = sight.recorder.tape.ops, [(0, _state())]
    sight.stack.callback(_mark_all, rows, changes)
    for name in ("__enter__", "__exit__"):
        sight.patch(torch.autocast, name, _wrap, (rows, changes))


def _mark_all(rows: list[OpRow], changes: list[tuple[int, str]]) -> None:
    """Mark the rows between the moments at which autocast changed, given with what it changed to."""
    stops = [position for position, _ in changes[1:]]
    for (start, state), stop in zip(changes, [*stops, len(rows)], strict=True):
        for place in range(start, stop if state else start):
            rows[place] = _mark(rows[place], state)


def _mark(row: OpRow, state: str) -> OpRow:
    """The row with the keyword argument, if the operation has operands, which autocast may cast."""
    function, interior, operands, args, kwargs, *rest = row
    return (function, interior, operands, args, {**(kwargs or {}), AUTOCAST: state}, *rest) if operands else row


def _state() -> str:
    """Devices and types of the autocast that is on, such as ``cpu:bfloat16``; empty if none is."""
    on = [device for device in _DEVICES if torch.is_autocast_enabled(device)]
    return ",".join(f"{d}:{str(torch.get_autocast_dtype(d)).removeprefix('torch.')}" for d in on)


def _wrap(original: Callable[..., Any], entries: Entries) -> Callable[..., Any]:
    def change(self: Any, *args: Any) -> Any:
        result = original(self, *args)
        for rows, changes in entries.get(get_ident()) or ():
            changes.append((len(rows), _state()))
        return result

    return change
