"""Values by the place in memory where they stand: to know a tensor again that comes as another object.

Below autograd the same tensor may be two Python objects: ``nn.Parameter(t)``, tensors that autograd saved and hands
back, views that autograd wraps anew. They share memory, and what is the same part of the same memory at the same time,
read the same way, is the same value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from lens.capture.footprint import Footprint
from lens.capture.tensor_table import EXPOSED, TensorRecord, TensorTable, storage_of

#: How many parts of one memory are remembered after their tensors have died; of more, the oldest are forgotten.
_MOST_PARTS = 64
#: From how many memories on the dead ones are looked for.
_SWEEP_AT = 1024


class _Part(NamedTuple):
    """How a tensor reads its memory. Two tensors with equal parts of one memory have equal elements."""

    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    conj: bool
    neg: bool

    def footprint(self) -> Footprint:
        """The bytes that it can touch."""
        size = self.dtype.itemsize
        return Footprint.strided(self.offset * size, size, self.shape, self.stride)


def _part(tensor: torch.Tensor) -> _Part | None:
    if tensor.layout is not torch.strided or tensor.is_nested:
        return None
    conj, neg = tensor.is_conj(), tensor.is_neg()
    return _Part(tensor.dtype, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride(), conj, neg)


class MemoryPlaces:
    """The records of results, findable by memory after their tensors have died, as long as the memory lives.

    Args:
        table: The tensors of the trace.
        value_of: The recorder's: the value that a tensor stands for.
    """

    def __init__(self, table: TensorTable, value_of: Callable[[torch.Tensor], int]) -> None:
        self._table = table
        self._value_of = value_of
        #: The weak reference keeps the identity of a memory from being used again.
        self._memories: dict[int, tuple[Any, dict[_Part, TensorRecord]]] = {}
        self._sweep_at = _SWEEP_AT

    def note(self, record: TensorRecord, tensor: torch.Tensor) -> None:
        """Remember where a result stands."""
        part = None if record.storage is None else _part(tensor)
        if record.storage is None or part is None:
            return
        known = self._memories.get(record.storage)
        if known is None:
            if len(self._memories) >= self._sweep_at:
                self._sweep()
            memory: Any = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
            known = self._memories[record.storage] = (memory, {})
        parts = known[1]
        parts.pop(part, None)
        parts[part] = record
        if len(parts) > _MOST_PARTS:
            del parts[next(iter(parts))]

    def written(self, tensor: torch.Tensor, position: int) -> None:
        """Mark what stood in memory that an op has written to. Live tensors are the recorder's business."""
        known = self._memories.get(storage_of(tensor) or 0)
        written = _part(tensor) if known else None
        if known is None or written is None:
            return
        where = written.footprint()
        for part, record in known[1].items():
            if record() is None and part.footprint().meets(where):
                record.pending += (position,)

    def find(self, tensor: torch.Tensor) -> int | None:
        """The value that stands where this tensor stands; None if none does. It is known from now on."""
        storage, part = storage_of(tensor), _part(tensor)
        if storage is None or part is None:
            return None
        for member in reversed(self._table.records_on(storage)):
            owner = member()
            if owner is not None and owner is not tensor and _part(owner) == part:
                value = self._value_of(owner)
                self._table.add(tensor, value)
                return value
        known = self._memories.get(storage)
        record = known[1].get(part) if known else None
        if record is None:
            return None
        written = {op for op in record.pending if op != EXPOSED}
        if record.aliases is not None:  # while it lived
            written.update(record.aliases.writes_since(record.looked, part.footprint()))
        self._table.add(tensor, record.value).pending = tuple(sorted(written))
        return self._value_of(tensor)

    def _sweep(self) -> None:
        self._memories = {key: known for key, known in self._memories.items() if not known[0].expired()}
        self._sweep_at = max(_SWEEP_AT, 2 * len(self._memories))
