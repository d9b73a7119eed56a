"""Wrapper subclasses: tensors that keep other tensors in their attributes and compute with those, out of sight.

When such a wrapper, or a tensor taken out of one, is met for the first time, an operation is written down that says
only this: it came from that other tensor. So it is again when a wrapper has been written to.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from lens.capture.keeping import MODES_OFF, UNSEEN
from lens.capture.tensor_table import storage_of
from lens.capture.unseen import same_bits
from lens.functions import PLAIN_TYPES, Function, Kind, call_opaque
from lens.ir.elements import FnRef

if TYPE_CHECKING:
    from lens.capture.recorder import Recorder

#: Those of less than a byte: torch cannot copy them.
_PACKED = {getattr(torch, f"{kind}{bits}", None) for kind in ("int", "uint") for bits in range(1, 8)}
WRAP = Function(call_opaque, FnRef("lens", "wrap", opaque=True), Kind.OP)
UNWRAP = Function(call_opaque, FnRef("lens", "unwrap", opaque=True), Kind.OP)


def parts_of(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors that one of a subclass keeps in its attributes."""
    if type(tensor) in PLAIN_TYPES:
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


def value_by_wrapping(recorder: Recorder, tensor: torch.Tensor) -> int | None:
    """The value of an unknown tensor that holds a known one, or is held by one; None if it is neither.

    Linear in the number of live tensors if the trace has met a subclass, else constant.
    """
    inner = [part for part in parts_of(tensor) if recorder.knows(part)]
    if inner:
        return derive(recorder, WRAP, inner, tensor)
    if not recorder.encoder.has_met_subclass:
        return None
    for record in recorder.tensors.records():
        outer = record()
        if outer is not None and any(part is tensor for part in parts_of(outer)):
            return derive(recorder, UNWRAP, [outer], tensor)
    return None


class _Watched(list[torch.Tensor]):
    """What a call writes to, with copies of what the wrappers among it compute with, by id."""

    def __init__(self, written: Iterable[torch.Tensor], copies: dict[int, torch.Tensor]) -> None:
        super().__init__(written)
        self.copies = copies


def copy_parts(recorder: Recorder, written: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """Copy what is held of the memory of parts, because their wrappers are about to be written to.

    What comes back are the same tensors, for ``renew_parts``.
    """
    parts = [part for part, _ in _computing(written)]
    for part in filter(parts_of, parts):
        recorder.value_of(part)  # what it is made of is not there any more after the write
    recorder.protect(parts)  # those that were met; what lies in the memory of others:
    recorder.memory.copy_held([part for part in parts if recorder.tensors.find(part) is None])
    innermost = [part for part in parts if not _has_dispatch(part)]
    if len(innermost) < 2:
        return written
    with recorder.keeper.unseen(), MODES_OFF():  # torch counts no write in a dispatch
        return _Watched(written, {id(part): part.detach().clone() for part in filter(_is_comparable, innermost)})


def renew_parts(recorder: Recorder, written: Sequence[torch.Tensor]) -> None:
    """Let parts come out of their wrappers anew, which have been written to, but for those that are as they were.

    What else lies in their memory is an effect of that, for who looks at it.
    """
    pairs = _computing(written)
    kept = _unchanged(recorder, pairs, written.copies) if isinstance(written, _Watched) else set()
    for part, wrapper in pairs:
        is_known = recorder.tensors.find(part) is not None or recorder.tensors.records_on(storage_of(part))
        if is_known and id(part) not in kept:
            derive(recorder, UNWRAP, [wrapper], part)
            recorder.memory.note_unseen_write(len(recorder.tape.ops) - 1, part)


def _unchanged(
    recorder: Recorder, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], copies: dict[int, torch.Tensor]
) -> set[int]:
    """The ids of the parts that a write has left as they were; of none, if it shows in no part."""
    ids = {id(part) for part, _ in pairs}
    with recorder.keeper.unseen(), MODES_OFF():
        same = {id(part) for part, _ in pairs if id(part) in copies and same_bits(part, copies[id(part)])}
    for part, _ in reversed(pairs):  # what a part keeps stands after it
        inside = [id(inner) for inner in parts_of(part) if id(inner) in ids]
        if inside and same.issuperset(inside):
            same.add(id(part))
    return set() if same == ids else same


def _is_comparable(part: torch.Tensor) -> bool:
    odd = part.is_meta or part.is_quantized or part.is_nested or part.dtype in _PACKED
    return part.layout is torch.strided and not odd


def _has_dispatch(tensor: torch.Tensor) -> bool:
    return type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__


def _computing(wrappers: Iterable[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The tensors, at any depth, that those with a dispatch of their own compute with, each after what keeps it."""
    reached = list(wrappers)
    met = set(map(id, reached))
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for tensor in reached:
        for part in parts_of(tensor) if _has_dispatch(tensor) else ():
            if id(part) not in met:  # wrappers may refer to each other
                met.add(id(part))
                found.append((part, tensor))
                reached.append(part)
    return found
