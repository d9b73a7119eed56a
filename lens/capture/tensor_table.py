"""Which value a tensor object stands for at the moment, and who shares memory with whom."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence

import torch


class TensorRecord(weakref.ref[torch.Tensor]):
    """The state of one live tensor object; a weak reference to it, so that calling the record gives the tensor.

    Attributes:
        value: The value that it stands for.
        pending: Ops that wrote to its memory through another tensor since it was last looked at.
        storage: Identity of its memory; None where it has none that can be told.
        held: Values whose payload is this tensor, by reference.
    """

    __slots__ = ("held", "pending", "storage", "value")

    value: int
    storage: int | None
    pending: tuple[int, ...]
    held: tuple[int, ...]




class TensorTable:
    """Records of all tensors that the trace has met and that are still alive.

    Tensors are known by ``id`` together with a weak reference: no attribute is left on any tensor, and an id that
    Python uses again is recognised.
    """

    def __init__(self) -> None:
        self.by_id: dict[int, TensorRecord] = {}
        self._by_storage: dict[int, list[TensorRecord]] = {}

    def find(self, tensor: torch.Tensor) -> TensorRecord | None:
        """The record of a tensor, if it was met before."""
        record = self.by_id.get(id(tensor))
        return record if record is not None and record() is tensor else None

    def add(self, tensor: torch.Tensor, value: int) -> tuple[TensorRecord, Sequence[TensorRecord]]:
        """A new record, and the live records that share its memory (usually none)."""
        record = TensorRecord(tensor)
        record.value = value
        record.pending = record.held = ()
        try:
            storage = record.storage = tensor.untyped_storage()._cdata
        except (RuntimeError, NotImplementedError):  # sparse tensors, wrappers
            storage = record.storage = None
        self.by_id[id(tensor)] = record
        if storage is not None and storage not in self._by_storage:
            self._by_storage[storage] = [record]
            return record, ()
        return record, self._join(record)

    def move(self, record: TensorRecord, tensor: torch.Tensor) -> None:
        """Note that a tensor may have been given other memory (``set_``, ``.data = ...``)."""
        storage = storage_of(tensor)
        if storage != record.storage:
            record.storage = storage
            self._join(record)

    def _join(self, record: TensorRecord) -> list[TensorRecord]:
        if record.storage is None:
            return []
        members = self._by_storage.get(record.storage)
        if members is None:
            self._by_storage[record.storage] = [record]
            return []
        alive = [m for m in members if m.storage == record.storage and m() is not None]
        self._by_storage[record.storage] = [*alive, record]
        return alive

    def sharing(self, record: TensorRecord, tensor: torch.Tensor) -> Iterator[tuple[TensorRecord, bool]]:
        """The other live records on the same memory, each with: does it overlap with this tensor."""
        if record.storage is None:
            return
        members = self._by_storage[record.storage]
        if len(members) == 1:
            return
        low, high = _extent(tensor)
        for member in members:
            other = member()
            if member is not record and other is not None and member.storage == record.storage:
                start, stop = _extent(other)
                yield member, start < high and low < stop


def storage_of(tensor: torch.Tensor) -> int | None:
    """An identity of a tensor's memory, good while the tensor lives; None for tensors without a storage."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):
        return None


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """First byte and end of the part of the storage that a tensor can touch."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        return 0, 1 << 62
    if tensor.numel() == 0:
        return 0, 0
    size = tensor.element_size()
    start = tensor.storage_offset() * size
    reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return int(start), int(start + (reach + 1) * size)
