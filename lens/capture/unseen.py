"""Writes that a backend did not see: found by torch's count of writes, or by comparing what is there.

A tensor that was written to out of sight stands for a new value, an ``external`` leaf with the line that looked at it
first; what was held of the old value by reference is lost, and says so when it is read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.parameter import is_lazy

from lens.capture.footprint import EVERYWHERE, Footprint
from lens.capture.nodes import harmless_node_class
from lens.capture.tensor_table import EXPOSED, TensorRecord
from lens.ir.gaps import UNCOUNTED

if TYPE_CHECKING:
    from lens.capture.recorder import Recorder


class UnseenWrites:
    """What is known of the memory that others than recorded ops may write to.

    Args:
        recorder: Whose run it is.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.tape = recorder.tape
        self.tensors = recorder.tensors
        self.keeper = recorder.keeper
        #: Storages that others than torch can write to, and what their tensors last held, by id of the record.
        self.exposed: set[int | None] = set()
        self._snapshots: dict[int, torch.Tensor] = {}
        #: Those of them in which a write out of sight was found.
        self.overwritten: set[int | None] = set()
        #: Records, by id, of tensors whose count of writes tells nothing, as others change it.
        self._untrusted: set[int] = set()
        #: Values whose tensors were found to have been written to out of sight -> what they are now.
        self._renewed: dict[int, int] = {}

    def stop_counting(self, tensor: torch.Tensor) -> None:
        """Trust torch's count of writes no more for a tensor and those that share its memory."""
        record = self.tensors.find(tensor)
        if record is not None:
            for one in (record, *(member for member, _ in self.tensors.members(record))):
                one.version = None
                self._untrusted.add(id(one))

    def disclose(self) -> None:
        """Say so if there were tensors whose writes nobody counts, nor compares what is in them."""
        for record in self.tensors.by_id.values():  # fresh tensors have a count
            counted = record.version is not None or record.storage is None or record.exposed
            if not counted and id(record) not in self._untrusted:
                self.tape.unseen.append((UNCOUNTED, None))
                return

    def expose(self, tensor: torch.Tensor) -> None:
        """Note that others than torch can write to a tensor's memory from now on, without a trace."""
        record = self.tensors.find(tensor)
        if record is None or record.storage is None or record.exposed:  # as all that share its memory are since then
            return
        self.watch([(record, tensor), *self.tensors.members(record)])

    def watch(self, members: list[tuple[TensorRecord, torch.Tensor]]) -> None:
        """Compare what is in these tensors from now on, and hold copies."""
        unwatched = [pair for pair in members if not pair[0].exposed]
        for member, other in unwatched:
            self._check(member, other)
        self.exposed.update(member.storage for member, _ in members)
        for member, other in unwatched:
            self.watch_one(member, other)

    def watch_one(self, record: TensorRecord, tensor: torch.Tensor) -> None:
        """Do so for one tensor, if its memory is exposed."""
        if record.storage in self.exposed:
            if record.held:
                self.keeper.copy(record)
            self.snap(record, tensor)

    def expose_again(self, record: TensorRecord, tensor: torch.Tensor) -> None:
        """Note that a tensor from outside lies in exposed memory, if it does: that has come back through another
        library, as a storage of its own. Linear in the exposed memories."""
        if record.storage is None or type(tensor) is not torch.Tensor or tensor.device.type != "cpu":
            return
        address = tensor.untyped_storage().data_ptr()
        for member in [one for storage in self.exposed for one in self.tensors.records_on(storage)[:1]]:
            other = member()
            memory = None if other is None else other.untyped_storage()
            if memory is not None and memory.data_ptr() <= address < memory.data_ptr() + memory.nbytes():
                self.exposed.add(record.storage)
                return

    def snap(self, record: TensorRecord, tensor: torch.Tensor) -> None:
        """Remember what is in a tensor whose memory is exposed."""
        if record.storage not in self.exposed:
            return
        if not record.exposed:
            record.pending = (EXPOSED, *record.pending)
            record.version = None
        with self.keeper.unseen():
            self._snapshots[id(record)] = tensor.detach().clone()

    def check_members(self, record: TensorRecord, written: torch.Tensor | None, operands: list[int]) -> None:
        """Look at who shares the memory, as long as only a write out of sight can have changed it.

        Args:
            record: Of the tensor that is about to be written to.
            written: That tensor, if the write stays within it. What is in exposed memory elsewhere is left for when
                somebody looks at it.
            operands: Values given to the writing op.
        """
        self._renewed.clear()
        aliases = record.aliases
        if record.storage in self.exposed or (aliases is not None and aliases.has_uncounted()):
            where = EVERYWHERE if written is None else Footprint.of(written)
            for member, other in self.touched(record, where):
                self._check(member, other)
        if self._renewed:  # operands among them
            operands[:] = [self._renewed.get(v, v) for v in operands]

    def touched(self, record: TensorRecord, where: Footprint) -> list[tuple[TensorRecord, torch.Tensor]]:
        """Who shares the memory, but for those whose bytes are compared and that a write there leaves as they are."""
        members = self.tensors.members(record)
        return [(one, tensor) for one, tensor in members if not one.exposed or where.meets(Footprint.of(tensor))]

    def _check(self, record: TensorRecord, tensor: torch.Tensor) -> None:
        if self.has_changed(record, tensor) if record.exposed else not record.has_seen(tensor):
            self.look(record, tensor)

    def has_changed(self, record: TensorRecord, tensor: torch.Tensor) -> bool:
        """Whether there is something else in exposed memory than there was."""
        with self.keeper.unseen():
            return not same_bits(tensor, self._snapshots[id(record)])

    def look(self, record: TensorRecord, tensor: torch.Tensor) -> None:
        """Give a tensor that was written to out of sight a new value, whose origin is unknown.

        So do all that share the memory, when this happens to it for the first time: torch need not have counted the
        write for them. From then on what lies there is compared.
        """
        if self.recorder.collect() and record.version is not None and record.has_seen(tensor):
            return
        found = [(record, tensor)]
        if record.storage not in self.exposed and record.storage is not None:
            self.exposed.add(record.storage)
            found += self.tensors.members(record)
        self.overwritten.add(record.storage)
        with self.keeper.unseen():  # a module call looks at its arguments under the mode
            for member, other in found:
                self.renew(member, other)

    def look_at_all(self) -> None:
        """Compare all that is in exposed memory. Linear in the tensors met."""
        for record in self.tensors.records():
            tensor = record()
            if tensor is not None and record.exposed and self.has_changed(record, tensor):
                self.look(record, tensor)

    def expose_with(self, other: UnseenWrites, met: set[int]) -> None:
        """Watch what else lies in the memory that another thread has exposed.

        Args:
            other: Of that thread. Where it found a write out of sight, what it has not met may have been written to.
            met: The ids of the records that have been brought up to date.
        """
        for storage in other.exposed:
            for member in self.tensors.records_on(storage):
                tensor = member()
                if tensor is None or id(member) in met:
                    continue
                if storage in other.overwritten:
                    self.renew(member, tensor)
                elif not member.exposed:
                    self.watch_one(member, tensor)

    def renew(self, record: TensorRecord, tensor: torch.Tensor, found: torch.Tensor | None = None) -> None:
        """Give one tensor a new value, whose origin is unknown; ``found`` is what was there, if it is no more."""
        self.keeper.lose(record)
        self.drop_pending(record)
        self.snap(record, tensor)
        old, value = record.value, self.new_version(record, tensor)
        self._renewed[old] = value
        self.tape.leaves.append(("external", value, (), tensor.requires_grad, self.recorder.site()))
        if self.keeper.everything or self.keeper.leaves is True:
            self.keeper.hold(record, value, tensor if found is None else found)

    def pending(self, record: TensorRecord, tensor: torch.Tensor) -> list[int]:
        """The ops that wrote to a tensor through others since it was last looked at."""
        pending = list(record.pending[int(record.exposed) :])
        aliases = record.aliases
        if aliases is None or record.looked == len(aliases.writes):
            return pending
        return sorted({*pending, *aliases.writes_since(record.looked, Footprint.of(tensor))})

    def drop_pending(self, record: TensorRecord) -> None:
        """Take the ops that wrote to a tensor through others for looked at."""
        record.pending = record.pending[: int(record.exposed)]
        if record.aliases is not None:
            record.looked = len(record.aliases.writes)

    def new_version(self, record: TensorRecord, tensor: torch.Tensor) -> int:
        """A new value for a tensor whose memory was written to."""
        value = len(self.tape.values)
        self.tape.values.append((*odd_type(tensor), record.value, harmless_node_class(tensor, value)))
        record.revalue(value)
        return value


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two dense tensors hold the same, NaN compared with NaN too."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    flat = (t.detach().clone(memory_format=torch.contiguous_format).view(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(*flat)


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
