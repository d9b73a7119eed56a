"""Memory: who shares it with whom, what a write does to them, and writes that lens did not see.

A write makes a new value of the tensor written. The others that share the memory get theirs when they are looked at
next, as effects of the writing op; a tensor that is never looked at again costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from lens.capture.footprint import EVERYWHERE, Footprint
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
        self,
        written: Sequence[torch.Tensor],
        operands: list[int],
        given: Iterable[torch.Tensor],
        function: Function | None,
        resizes: bool,
    ) -> None:
        """Copy the held values that a write is about to destroy, and note where in memory it goes.

        ``operands`` are values of the tensors ``given`` to the call. ``resizes`` says that the write may go beyond the
        elements that a tensor has now (``out=``).
        """
        moves, reaches = (False, False) if function is None else (function.moves, function.reaches)
        reached: set[int | None] = set()
        for tensor in written:
            record = self.tensors.find(tensor)
            if record is None:
                continue
            alone = self.tensors.is_alone(record)
            if not alone:
                self.check_members(record, None if resizes else tensor, operands)
            if record.held:
                self.keeper.copy(record)
            if moves:
                if reaches:
                    self.place(record.value, record, tensor)
                continue
            if record.storage in self.leaf_storages:
                self._meet_model(record)
            elif alone:
                continue
            if self._copy_reached(record, tensor, EVERYWHERE if resizes else Footprint.of(tensor)):
                reached.add(record.storage)
        if reached:
            self._place_given(reached, set(operands), given)

    def _copy_reached(self, record: TensorRecord, tensor: torch.Tensor, where: Footprint) -> bool:
        """Copy what is held of those that a write will reach; whether any tensor shares the memory."""
        aliases = self.tensors.aliases(record, tensor)
        if aliases is None:
            return False
        self.place(record.value, record, tensor)
        for member in aliases.take_held(where):
            self.keeper.copy(member)
        return True

    def _place_given(self, storages: set[int | None], operands: set[int], given: Iterable[torch.Tensor]) -> None:
        """Note where the operands lie whose memory is written to."""
        for tensor in given:
            member = self.tensors.find(tensor)
            if member is not None and member.storage in storages and member.value in operands:
                self.place(member.value, member, tensor)

    def copy_held(self, written: Sequence[torch.Tensor]) -> None:
        """What ``protect`` does for a write that another thread makes; what nobody saw is left for this thread."""
        for tensor in written:
            where, record = Footprint.of(tensor), self.tensors.find(tensor)
            if record is None:  # a view that the other thread has made
                for member in self.tensors.held_on(storage_of(tensor), where):
                    self.keeper.copy(member)
                continue
            if record.held:
                self.keeper.copy(record)
            self._copy_reached(record, tensor, where)

    def copy_exposed(self, tensor: torch.Tensor) -> None:
        """Copy all that is held of a memory that another thread exposes."""
        for record in self.tensors.records_on(storage_of(tensor)):
            if record.held:
                self.keeper.copy(record)

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

    def place(self, value: int, record: TensorRecord, tensor: torch.Tensor) -> None:
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
        function, _, operands, _, _, _, written, _ = call
        if self._is_all_told(function, written, results):
            return
        returned = bool(results)
        records = {id(r): (r, tensor) for tensor in written if (r := self.tensors.find(tensor)) is not None}
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
            reached = [pair for pair in records.values() if not self.tensors.is_alone(pair[0])]
            for record, tensor in reached:
                self.spread([(position, Footprint.of(tensor))], record, tensor)
            for record, _ in reached:
                self.drop_pending(record)

    def _is_all_told(self, function: Function, written: Sequence[torch.Tensor], results: list[int]) -> bool:
        """Whether all that a call wrote to is a tensor that it returned, and that shares its memory with no other."""
        if len(written) > 1 or function.moves or function.reaches or self.exposed:
            return False
        record = self.tensors.find(written[0])
        return record is not None and record.value in results and self.tensors.is_alone(record)

    def spread(self, writes: Iterable[tuple[int, Footprint]], record: TensorRecord, tensor: torch.Tensor) -> None:
        """Note writes for those that share the memory of a tensor: by which op, and where."""
        aliases = self.tensors.aliases(record, tensor)
        if aliases is None:
            return
        aliases.count_all()
        for position, where in writes:
            aliases.write(position, where)
            if record.storage in self.exposed:
                for member, other in self.touched(record, where):
                    self.snap(member, other)

    def note_unseen_write(self, position: int, tensor: torch.Tensor) -> None:
        """Note that a tensor was written to out of sight, as the op at this position, whose result it is, tells."""
        record = self.tensors.find(tensor)
        assert record is not None
        self.snap(record, tensor)
        self.spread([(position, Footprint.of(tensor))], record, tensor)
        self.drop_pending(record)

    def _move(self, record: TensorRecord, tensor: torch.Tensor) -> bool:
        """Note that a tensor lies elsewhere, maybe in other memory, and that the others lie and are as they were."""
        left = record.storage
        mates = self.tensors.members(record)
        for member, other in mates:
            member.seen(other)  # torch counts a write to them
        if record.aliases is not None:
            record.aliases.count_all()
        others = self.tensors.on(storage_of(tensor), record)
        if storage_of(tensor) == left:
            return False
        if mates or others or record.exposed:  # torch counts their writes for those who left, and not for one another
            self.watch(mates + others)
            self.exposed |= {left, storage_of(tensor)}
        self.tensors.move(record, tensor)
        self.watch_one(record, tensor)
        return True

    def _mark_moved(self, record: TensorRecord, operands: list[int]) -> None:
        """Say whose memory a tensor has been given."""
        aliases = record.aliases
        found = [v for v in operands if aliases is not None and aliases.standing_for(v, record) is not None]
        row = self.tape.values[record.value]
        self.tape.values[record.value] = (*row[:4], found[0] if found else None, row[5])

    def catch_up(self, record: TensorRecord, tensor: torch.Tensor) -> None:
        """Take in what happened to a tensor's memory since it was last looked at, seen by lens or not."""
        if not record.has_seen(tensor):
            self.look(record, tensor)
        if not record.settled:
            self.settle(record, tensor)
        record.seen(tensor)

    def settle(self, record: TensorRecord, tensor: torch.Tensor) -> None:
        """Turn writes through other tensors into values, now that this tensor is looked at."""
        if record.exposed and self.has_changed(record, tensor):
            self.look(record, tensor)
        self.take_in(record, tensor)

    def take_in(self, record: TensorRecord, tensor: torch.Tensor) -> None:
        """Turn writes through other tensors into values, and leave it at that."""
        pending = self.pending(record, tensor)
        self.drop_pending(record)
        for position in pending:
            old = record.value
            self.place(old, record, tensor)
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
        self.place(record.value, record, tensor)
        shown = layouts[record.value]
        shape, size = tuple(tensor.shape), tensor.element_size()
        for value in operands:
            operand = None if record.aliases is None else record.aliases.standing_for(value, record)
            other = None if operand is None else operand()
            if operand is not None and other is not None:
                self.place(value, operand, other)
            layout = layouts.get(value)
            if layout is None or layout.memory != shown.memory or values[value][1] != tensor.dtype:
                continue
            if layout.shows(tuple(values[value][0]), shown, shape):
                return
        in_bytes = shown.in_bytes(size)
        for member, other in self.tensors.members(record):
            layout = Layout.of(other, 0)
            if layout is None:
                continue
            its_size = other.element_size()
            if layout.in_bytes(its_size).shows((*other.shape, its_size), in_bytes, (*shape, size)):
                self.recorder.value_of(other)
                self._join(position, member, other)
                return
        low, high = shown.extent(shape)
        flat = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        flat.set_(tensor.untyped_storage(), low, (high - low,), (1,))
        self.recorder.leaf(flat, "external", (), self.recorder.site())
        found = self.tensors.find(flat)
        if found is not None:
            self._join(position, found, flat)

    def _join(self, position: int, member: TensorRecord, other: torch.Tensor) -> None:
        """Make an op depend on a tensor as if it wrote to it what is there already."""
        old = member.value
        self.place(old, member, other)
        self.tape.effects.append((position, old, self.new_version(member, other)))
        if self.keeper.everything:
            self.keeper.hold(member, member.value, other)
