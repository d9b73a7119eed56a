"""Memory: who shares it with whom, what a write does to them, and writes that lens did not see.

A write makes a new value of the tensor written. The others that share the memory get theirs when they are looked at
next, as effects of the writing op; a tensor that is never looked at again costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.parameter import is_lazy

from lens.capture.keeping import UNSEEN
from lens.capture.tensor_table import EXPOSED, TensorRecord, storage_of
from lens.functions import Function
from lens.ir.layouts import Layout

if TYPE_CHECKING:
    from lens.capture.recorder import Call, Recorder


class Memory:
    """The writes in place of one run.

    Args:
        recorder: Whose run it is. It numbers the values and decides what is held.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.tape = recorder.tape
        self.tensors = recorder.tensors
        self.keeper = recorder.keeper
        #: Storages that leaves lie in: other tensors of the model may lie there too, unmet so far.
        self.leaf_storages: set[int | None] = set()
        self._model_tensors: dict[int | None, list[torch.Tensor]] | None = None
        #: Storages that others than torch can write to, and what their tensors last held, by id of the record.
        self.exposed: set[int | None] = set()
        self._snapshots: dict[int, torch.Tensor] = {}
        self.numbers: dict[int | None, int] = {}
        #: Values whose tensors were found to have been written to out of sight -> what they are now.
        self._renewed: dict[int, int] = {}

    # Before a write

    def protect(
        self, written: Sequence[torch.Tensor], operands: list[int], function: Function | None, resizes: bool
    ) -> None:
        """Copy the held values that a write is about to destroy, and note where in memory it goes.

        ``resizes`` says that the write may go beyond the elements that a tensor has now (``out=``).
        """
        moves, reaches = (False, False) if function is None else (function.moves, function.reaches)
        for tensor in written:
            record = self.tensors.find(tensor)
            if record is None:
                continue
            self._check_members(record, operands)
            if record.held:
                self.keeper.copy(record)
            if moves:
                if reaches:
                    self._place(record.value, record, tensor)
                continue
            if record.storage in self.leaf_storages:
                self._meet_model(record)
            for member, other, overlaps in self.tensors.sharing(record, tensor):
                self._place(record.value, record, tensor)
                if not overlaps and not resizes:
                    continue
                if member.value in operands:
                    self._place(member.value, member, other)
                if member.held:
                    self.keeper.copy(member)

    def copy_held(self, written: Sequence[torch.Tensor]) -> None:
        """What ``protect`` does for a write that another thread makes; what nobody saw is left for this thread."""
        for tensor in written:
            record = self.tensors.find(tensor)
            if record is None:
                continue
            if record.held:
                self.keeper.copy(record)
            for member, _, overlaps in self.tensors.sharing(record, tensor):
                self._place(record.value, record, tensor)
                if overlaps and member.held:
                    self.keeper.copy(member)

    def _check_members(self, record: TensorRecord, operands: list[int]) -> None:
        """Look at who shares the memory, as long as only a write out of sight can have changed it."""
        self._renewed.clear()
        for member, other in self.tensors.members(record):
            self._check(member, other)
        if self._renewed:  # operands among them
            operands[:] = [self._renewed.get(v, v) for v in operands]

    def _meet_model(self, record: TensorRecord) -> None:
        """Meet all tensors of the model that lie in this memory, while it holds what it held at the beginning."""
        if self._model_tensors is None:
            self._model_tensors = {}
            for tensor in self.recorder.addresses.all_tensors():
                self._model_tensors.setdefault(storage_of(tensor), []).append(tensor)
        if record.storage is not None:
            for tensor in self._model_tensors.pop(record.storage, ()):
                self.recorder.value_of(tensor)

    def number(self, storage: int | None) -> int:
        """The number of a memory."""
        return self.numbers.setdefault(storage, len(self.numbers))

    def _place(self, value: int, record: TensorRecord, tensor: torch.Tensor) -> None:
        """Note where a value lies in memory."""
        layout = Layout.of(tensor, self.number(record.storage))
        if layout is not None:
            self.keeper.layouts[value] = layout

    # After a write

    def written(self, call: Call, position: int, results: list[int], yields: list[int | None]) -> None:
        """Give every written tensor a new value, and mark those that share its memory.

        A written tensor that the call returned has its new value already. One that was not returned is a result
        if the call returned nothing (``__setitem__``), else an effect (running statistics).
        """
        returned = bool(results)
        function, operands = call[0], call[2]
        records = {id(r): (r, tensor) for tensor in call[6] if (r := self.tensors.find(tensor)) is not None}
        for record, tensor in records.values():
            moved = self._move(record, tensor) if function.moves else False
            record.seen(tensor)
            self.snap(record, tensor)
            if record.value not in results:
                old = record.value
                new = self.new_version(record, tensor)
                self.recorder.hold_if_wanted(function, record, tensor)
                if returned:
                    self.tape.effects.append((position, old, new))
                else:
                    results.append(new)
                    yields.append(None)
            if moved:
                self._mark_moved(record, operands or [])
            if function.reaches:
                self.reach(position, operands or [], record, tensor)
        if not function.moves:
            for record, tensor in records.values():
                self._spread(position, record, tensor, records)

    def _spread(
        self,
        position: int,
        record: TensorRecord,
        tensor: torch.Tensor,
        written: dict[int, tuple[TensorRecord, torch.Tensor]],
    ) -> None:
        """Mark the tensors that a write reached through shared memory."""
        for member, other, overlaps in self.tensors.sharing(record, tensor):
            member.seen(other)
            if id(member) in written:
                continue
            if overlaps:
                if position not in member.pending[-1:]:
                    member.pending += (position,)
            elif member.held:
                self.keeper.refresh(member)
            self.snap(member, other)

    def _move(self, record: TensorRecord, tensor: torch.Tensor) -> bool:
        """Note that a tensor lies elsewhere, maybe in other memory, and that the others lie and are as they were."""
        left = record.storage
        mates = self.tensors.members(record)
        for member, other in mates:
            member.seen(other)  # torch counts a write to them
            if member.held:
                self.keeper.refresh(member)
        others = self.tensors.on(storage_of(tensor), record)
        if storage_of(tensor) == left:
            return False
        if mates or record.exposed:  # a write to one of them may count for the tensor that has left, and the other way
            self._watch(mates + others)
            self.exposed |= {left, storage_of(tensor)}
        self.tensors.move(record, tensor)
        self._watch_one(record, tensor)
        return True

    def _mark_moved(self, record: TensorRecord, operands: list[int]) -> None:
        """Say whose memory a tensor has been given."""
        found = [m.value for m, _ in self.tensors.members(record) if m.value in operands]
        row = self.tape.values[record.value]
        self.tape.values[record.value] = (*row[:4], found[0] if found else None, row[5])

    def new_version(self, record: TensorRecord, tensor: torch.Tensor) -> int:
        """A new value for a tensor whose memory was written to."""
        value = len(self.tape.values)
        self.tape.values.append((*odd_type(tensor), record.value, grad_name(tensor)))
        record.value = value
        return value

    def settle(self, record: TensorRecord, tensor: torch.Tensor) -> None:
        """Turn writes through other tensors into values, now that this tensor is looked at."""
        if record.exposed and self._has_changed(record, tensor):
            self.look(record, tensor)
        pending = self.drop_pending(record)
        for position in pending:
            old = record.value
            self._place(old, record, tensor)
            self.tape.effects.append((position, old, self.new_version(record, tensor)))
        if pending and self.keeper.everything:  # the last version only: the memory holds no other any more
            self.keeper.hold(record, record.value, tensor)

    def drop_pending(self, record: TensorRecord) -> tuple[int, ...]:
        """The ops that wrote to a tensor through others since it was last looked at; they are not pending any more."""
        exposed = int(record.exposed)
        pending, record.pending = record.pending[exposed:], record.pending[:exposed]
        return pending

    # Memory that is shown again

    def reach(self, position: int, operands: list[int], record: TensorRecord, tensor: torch.Tensor) -> None:
        """Make an op that shows memory anew (``as_strided``) depend on a tensor that showed this part of it.

        If none does that is still there, what lies in this memory comes from outside the graph.
        """
        if not tensor.numel() or record.storage is None:
            return
        layouts, values = self.keeper.layouts, self.tape.values
        self._meet_model(record)
        self._place(record.value, record, tensor)
        shown = layouts[record.value]
        low, high = shown.extent(tuple(tensor.shape))
        members = self.tensors.members(record)
        for member, other in members:
            if member.value in operands:
                self._place(member.value, member, other)
        for value in operands:
            layout = layouts.get(value)
            if layout is None or layout.memory != shown.memory or values[value][1] != tensor.dtype:
                continue
            if layout.covers(values[value][0], low, high):
                return
        for member, other in members:
            layout = Layout.of(other, 0)
            if layout is not None and other.dtype == tensor.dtype and layout.covers(tuple(other.shape), low, high):
                self.recorder.value_of(other)
                self._join(position, member, other)
                return
        flat = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        flat.set_(tensor.untyped_storage(), low, (high - low,), (1,))
        self.recorder.leaf(flat, "external", (), self.recorder.site())
        found = self.tensors.find(flat)
        if found is not None:
            self._join(position, found, flat)

    def _join(self, position: int, member: TensorRecord, other: torch.Tensor) -> None:
        """Make an op depend on a tensor as if it wrote to it what is there already."""
        old = member.value
        self._place(old, member, other)
        self.tape.effects.append((position, old, self.new_version(member, other)))
        if self.keeper.everything:
            self.keeper.hold(member, member.value, other)

    # Writes that lens did not see

    def stop_counting(self, tensor: torch.Tensor) -> None:
        """Trust torch's count of writes no more for a tensor and those that share its memory."""
        record = self.tensors.find(tensor)
        if record is not None:
            for one in (record, *(member for member, _ in self.tensors.members(record))):
                one.version = None

    def expose(self, tensor: torch.Tensor) -> None:
        """Note that others than torch can write to a tensor's memory from now on, without a trace."""
        record = self.tensors.find(tensor)
        if record is None or record.storage is None:
            return
        self._watch([(record, tensor), *self.tensors.members(record)])

    def _watch(self, members: list[tuple[TensorRecord, torch.Tensor]]) -> None:
        """Compare what is in these tensors from now on, and hold copies."""
        for member, other in members:
            self._check(member, other)
        self.exposed.update(member.storage for member, _ in members)
        for member, other in members:
            self._watch_one(member, other)

    def _watch_one(self, record: TensorRecord, tensor: torch.Tensor) -> None:
        if record.storage in self.exposed:
            if record.held:
                self.keeper.copy(record)
            self.snap(record, tensor)

    def snap(self, record: TensorRecord, tensor: torch.Tensor) -> None:
        """Remember what is in a tensor whose memory is exposed."""
        if record.storage not in self.exposed:
            return
        if not record.exposed:
            record.pending = (EXPOSED, *record.pending)
            record.version = None
        with UNSEEN():
            self._snapshots[id(record)] = tensor.detach().clone()

    def _check(self, record: TensorRecord, tensor: torch.Tensor) -> None:
        if record.exposed:
            changed = self._has_changed(record, tensor)
        else:
            changed = record.version is not None and record.version != tensor._version
        if changed:
            self.look(record, tensor)

    def _has_changed(self, record: TensorRecord, tensor: torch.Tensor) -> bool:
        with UNSEEN():
            return not _same_bits(tensor, self._snapshots[id(record)])

    def look(self, record: TensorRecord, tensor: torch.Tensor) -> None:
        """Give a tensor that was written to out of sight a new value, whose origin is unknown.

        So do all that share the memory, when this happens to it for the first time: torch need not have counted the
        write for them. From then on what lies there is compared.
        """
        if self.recorder.collect() and record.version == tensor._version:
            return
        found = [(record, tensor)]
        if record.storage not in self.exposed and record.storage is not None:
            self.exposed.add(record.storage)
            found += self.tensors.members(record)
        with UNSEEN():  # a module call looks at its arguments under the mode
            for member, other in found:
                self._renew(member, other)

    def _renew(self, record: TensorRecord, tensor: torch.Tensor) -> None:
        self.keeper.lose(record)
        self.drop_pending(record)
        self.snap(record, tensor)
        old, value = record.value, self.new_version(record, tensor)
        self._renewed[old] = value
        self.tape.leaves.append(("external", value, (), tensor.requires_grad, self.recorder.site()))
        if self.keeper.everything or self.keeper.leaves:
            self.keeper.hold(record, value, tensor)


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    flat = (t.detach().clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(*flat)


def grad_name(tensor: torch.Tensor) -> str | None:
    """The class of a tensor's autograd node, if it has one and asking does no harm.

    A view whose memory was written to makes its node when it is asked for it, and torch then allows writes that it
    had refused.
    """
    if is_lazy(tensor) or tensor._is_view():
        return None
    grad = tensor.grad_fn
    return None if grad is None else type(grad).__name__


def odd_type(tensor: torch.Tensor) -> tuple[tuple[int, ...], object, object, object]:
    """Shape, dtype, device and layout of any tensor.

    Ragged extents of nested tensors are -1; parameters that a lazy module has yet to shape are empty.
    """
    if is_lazy(tensor):  # it has no attribute ``shape``
        return tuple(tensor.size()), tensor.dtype, tensor.device, "strided"
    if not tensor.is_nested:
        return tuple(tensor.shape), tensor.dtype, tensor.device, tensor.layout
    parts = [tuple(part.shape) for part in tensor.unbind()]
    ragged = (next(iter(n)) if len(n) == 1 else -1 for n in map(set, zip(*parts, strict=True)))
    return (len(parts), *ragged), tensor.dtype, tensor.device, "nested"
