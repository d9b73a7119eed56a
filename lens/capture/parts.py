"""The tensors inside of wrappers: what a write to a wrapper does to them, out of sight."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from lens.capture.footprint import Footprint
from lens.capture.keeping import UNSEEN
from lens.capture.tensor_table import storage_of
from lens.functions import Function, Kind, call_opaque
from lens.ir.elements import FnRef

if TYPE_CHECKING:
    from lens.capture.recorder import Recorder

_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})
WRAP = Function(call_opaque, FnRef("lens", "wrap", opaque=True), Kind.OP)
UNWRAP = Function(call_opaque, FnRef("lens", "unwrap", opaque=True), Kind.OP)


def parts_of(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors that one of a subclass keeps in its attributes."""
    if type(tensor) in _PLAIN:
        return []
    return [part for part in getattr(tensor, "__dict__", {}).values() if isinstance(part, torch.Tensor)]


def derive(recorder: Recorder, function: Function, sources: Sequence[torch.Tensor], tensor: torch.Tensor) -> int:
    """Write down that a tensor came from others, and no more; its value."""
    with UNSEEN():
        call = recorder.start(function, (None, *sources), None, sys._getframe(2))
        recorder.finish(call, tensor, 0.0)
    record = recorder.tensors.find(tensor)
    assert record is not None
    return record.value


def copy_parts(recorder: Recorder, written: Iterable[torch.Tensor]) -> None:
    """Copy what is held of the memory of parts, because their wrappers are about to be written to."""
    for wrapper in written:
        parts = [part for part, _ in _computing(wrapper)]
        for part in filter(parts_of, parts):
            recorder.value_of(part)  # what it is made of is not there any more after the write
        recorder.memory.copy_held(parts)


def renew_parts(recorder: Recorder, written: Iterable[torch.Tensor]) -> None:
    """Give what lies in the memory of parts new values: their wrappers have been written to."""
    for outermost in written:
        for part, wrapper in _computing(outermost):
            where = Footprint.of(part)
            for record in recorder.tensors.records_on(storage_of(part)):
                tensor = record()
                if tensor is part:
                    derive(recorder, UNWRAP, [wrapper], part)
                elif tensor is not None and Footprint.of(tensor).meets(where):
                    recorder.memory.renew(record, tensor)


def _computing(tensor: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The tensors, at any depth, that one with a dispatch of its own computes with, each with what keeps it."""
    if type(tensor).__torch_dispatch__ is torch.Tensor.__torch_dispatch__:
        return
    for part in parts_of(tensor):
        yield part, tensor
        yield from _computing(part)
