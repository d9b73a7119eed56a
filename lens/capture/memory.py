"""Memory: who shares it with whom, what a write does to them, and writes that lens did not see.

A write makes a new value of the tensor written. The others that share the memory get theirs when they are looked at
next, as effects of the writing op; a tensor that is never looked at again costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lens.capture.tensor_table import TensorRecord, storage_of
from lens.capture.unseen import UnseenWrites
from lens.functions import Function
from lens.ir.layouts import Layout

if TYPE_CHECKING:
    from lens.capture.recorder import Call, Recorder


class Memory(UnseenWrites):
    """The writes in place of one run.

    Args:
        recorder: Whose run it is. It numbers the values and decides what is held.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        #: Storages that leaves lie in: other tensors of the model may lie there too, unmet so far.
        self.leaf_storages: set[int | None] = set()
        self._model_tensors: dict[int | None, list[torch.Tensor]] | None = None
        self.numbers: dict[int | None, int] = {}

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
            alone = self.tensors.is_alone(record)
            if not alone:
                self.check_members(record, operands)
            if record.held:
                self.keeper.copy(record)
            if moves:
                if reaches:
                    self._place(record.value, record, tensor)
                continue
            if record.storage in self.leaf_storages:
                self._meet_model(record)
            elif alone:
                continue
            self._protect_members(record, tensor, operands, resizes)

    def _protect_members(self, record: TensorRecord, tensor: torch.Tensor, operands: list[int], resizes: bool) -> None:
        for member, other, overlaps in self._shown_to(record, tensor):
            if not overlaps and not resizes:
                continue
            if member.value in operands:
                self._place(member.value, member, other)
            if member.held:
                self.keeper.copy(member)

    def _shown_to(self, record: TensorRecord, tensor: torch.Tensor) -> list[tuple[TensorRecord, torch.Tensor, bool]]:
        """Who shares the memory of a tensor that will be written to; where it lies is noted if anybody does."""
        members = list(self.tensors.sharing(record, tensor))
        if members:
            self._place(record.value, record, tensor)
        return members

    def copy_held(self, written: Sequence[torch.Tensor]) -> None:
        """What ``protect`` does for a write that another thread makes; what nobody saw is left for this thread."""
        for tensor in written:
            record = self.tensors.find(tensor)
            if record is None:
                continue
            if record.held:
                self.keeper.copy(record)
            for member, _, overlaps in self._shown_to(record, tensor):
                if overlaps and member.held:
                    self.keeper.copy(member)

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
        function, operands = call[0], call[2]
        if self._is_all_told(function, call[6], results):
            return
        returned = bool(results)
        records = {id(r): (r, tensor) for tensor in call[6] if (r := self.tensors.find(tensor)) is not None}
        for record, tensor in records.values():
            moved = self._move(record, tensor) if function.moves else False
            record.seen(tensor)
            if self.exposed:
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
                if not self.tensors.is_alone(record):
                    self._spread(position, record, tensor, records)

    def _is_all_told(self, function: Function, written: Sequence[torch.Tensor], results: list[int]) -> bool:
        """Whether all that a call wrote to is a tensor that it returned, and that shares its memory with no other."""
        if len(written) > 1 or function.moves or function.reaches or self.exposed:
            return False
        record = self.tensors.find(written[0])
        return record is not None and record.value in results and self.tensors.is_alone(record)

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
            self.watch(mates + others)
            self.exposed |= {left, storage_of(tensor)}
        self.tensors.move(record, tensor)
        self.watch_one(record, tensor)
        return True

    def _mark_moved(self, record: TensorRecord, operands: list[int]) -> None:
        """Say whose memory a tensor has been given."""
        found = [m.value for m, _ in self.tensors.members(record) if m.value in operands]
        row = self.tape.values[record.value]
        self.tape.values[record.value] = (*row[:4], found[0] if found else None, row[5])

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

    # Memory that is shown again

    def reach(self, position: int, operands: Sequence[int], record: TensorRecord, tensor: torch.Tensor) -> None:
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
