"""Which value a tensor object stands for at the moment, and who shares memory with whom."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence

import torch

#: What asking for the storage raises: sparse tensors and wrappers; parameters of lazy modules.
_NO_STORAGE = (RuntimeError, NotImplementedError, ValueError)


class TensorRecord(weakref.ref[torch.Tensor]):
    """The state of one live tensor object; a weak reference to it, so that calling the record gives the tensor.

    Attributes:
        value: The value that it stands for.
        pending: Ops that wrote to its memory through another tensor since it was last looked at.
        storage: Identity of its memory; None where it has none that can be told.
        shared: Whether other tensors had that memory when it was first met.
        held: Values whose payload is this tensor, by reference.
    """

    __slots__ = ("held", "pending", "shared", "storage", "value")

    value: int
    shared: bool
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
        self._by_storage: dict[int | None, list[TensorRecord]] = {}

    def find(self, tensor: torch.Tensor) -> TensorRecord | None:
        """The record of a tensor, if it was met before."""
        record = self.by_id.get(id(tensor))
        return record if record is not None and record() is tensor else None

    def add(self, tensor: torch.Tensor, value: int) -> TensorRecord:
        """A new record; ``shared`` says whether its memory was met before."""
        record = TensorRecord(tensor)
        record.value = value
        record.pending = record.held = ()
        self.by_id[id(tensor)] = record
        try:
            storage = record.storage = tensor.untyped_storage()._cdata
        except _NO_STORAGE:
            record.storage = None
            record.shared = False
            return record
        members = self._by_storage.get(storage)
        if members is None:
            self._by_storage[storage] = [record]
            record.shared = False
        else:
            members[:] = [m for m in members if m() is not None and m.storage == storage]
            record.shared = bool(members)
            members.append(record)
        return record

    def alias(self, record: TensorRecord, preferred: Sequence[int]) -> int | None:
        """The value that a new tensor shares memory with: one of the preferred ones, else the newest."""
        others = [m.value for m in self._by_storage[record.storage] if m is not record]
        return next((v for v in others if v in preferred), others[-1])

    def members(self, storage: int | None) -> list[TensorRecord]:
        """The records of live tensors on a memory, oldest first."""
        if storage is None:
            return []
        return [m for m in self._by_storage.get(storage, ()) if m() is not None and m.storage == storage]

    def move(self, record: TensorRecord, tensor: torch.Tensor) -> None:
        """Note that a tensor may have been given other memory (``set_``, ``.data = ...``)."""
        storage = storage_of(tensor)
        if storage is not None and storage != record.storage:
            record.storage = storage
            self._by_storage.setdefault(storage, []).append(record)

    def sharing(self, record: TensorRecord, tensor: torch.Tensor) -> Iterator[tuple[TensorRecord, bool]]:
        """The other live records on the same memory, each with: does it overlap with this tensor."""
        if record.storage is None:  # perhaps of a lazy module, and shaped since
            self.move(record, tensor)
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
    except _NO_STORAGE:
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
