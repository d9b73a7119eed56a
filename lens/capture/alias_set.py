"""The tensors that share one memory: who they are, what was written there, what of them is held, and torch's counts.

A write is only noted, with its footprint; a tensor asks for the writes that reached it when it is looked at next. So a
write costs the same however many tensors share the memory, and a tensor that is never looked at again costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple
from weakref import ref

import torch

from lens.capture.footprint import Footprint, FootprintIndex
from lens.functions import PLAIN_TYPES

if TYPE_CHECKING:
    from lens.capture.tensor_table import TensorRecord

#: Up to so many are looked at one by one, without an index.
_FEW = 16

#: How many of torch's counts of writes to one memory are asked when a tensor there is read: each costs 0.2 us.
_ASKED = 4

#: Stands for the count of a tensor in whose memory torch counts the writes at several places: no count is equal to it.
SEVERAL = -1


class _Count:
    """torch's count of writes, which a tensor and its views have in common: whose it is, and what lens has seen."""

    __slots__ = ("owner", "seen")

    def __init__(self, owner: torch.Tensor, seen: int) -> None:
        self.owner = ref(owner)
        self.seen = seen


class _Write(NamedTuple):
    """An op that wrote to the memory, by position, and where."""

    position: int
    footprint: Footprint


class AliasSet:
    """The records of tensors that share one memory, oldest first, and what has happened there since they share it.

    A record is no member any more when its tensor is dead or lies elsewhere.

    Args:
        tied: Whether torch has said by the time a tensor is added what it is a view of, and so whose count is its own.
    """

    __slots__ = (
        "_by_value",
        "_counts",
        "_full_at",
        "_held",
        "_indexed",
        "_near_held",
        "_near_writes",
        "_tied",
        "records",
        "several",
        "writes",
    )

    def __init__(self, tied: bool = True) -> None:
        self.records: list[TensorRecord] = []
        #: At how many records those of dead tensors are looked for.
        self._full_at = _FEW
        #: What was written, in order. A record has looked at the first ``record.looked`` of them.
        self.writes: list[_Write] = []
        self._near_writes: FootprintIndex[int] = FootprintIndex()
        self._indexed = 0
        #: Records of which something is held: the last few, and the others by footprint.
        self._held: list[TensorRecord] = []
        self._near_held: FootprintIndex[TensorRecord] = FootprintIndex()
        self._counts: dict[int, _Count] = {}
        #: Whether there was ever more than one count: a write may be in any of them, so each must be asked.
        self.several = False
        self._tied = tied
        self._by_value: dict[int, TensorRecord] = {}

    # Members

    def add(self, record: TensorRecord, tensor: torch.Tensor) -> None:
        """Make a tensor that lies in this memory a member."""
        if len(self.records) >= self._full_at:
            self._forget_dead()
        self.records.append(record)
        record.aliases, record.looked = self, len(self.writes)
        self.revalue(record)
        if record.held:
            self.hold(record)
        if record.version is not None:
            self._add_count(record, tensor)

    def _forget_dead(self) -> None:
        self.records = self.live()
        self._full_at = max(_FEW, 2 * len(self.records))
        self._by_value = {record.value: record for record in self.records}
        self._forget_dead_counts()

    def _forget_dead_counts(self) -> None:
        self._counts = {number: count for number, count in self._counts.items() if count.owner() is not None}

    def has(self, record: TensorRecord) -> bool:
        """Whether a record is that of a live tensor here."""
        return record.aliases is self and record() is not None

    def live(self) -> list[TensorRecord]:
        """The records of the live tensors, oldest first. Linear."""
        return [record for record in self.records if self.has(record)]

    def has_others(self, but: TensorRecord | None = None) -> bool:
        """Whether any other tensor lives. The dead ones that are met on the way are let go."""
        for place, record in enumerate(self.records):
            if record is not but and self.has(record):
                if place > _FEW:
                    self.records[:place] = [one for one in self.records[:place] if self.has(one)]
                return True
        self.records = self.live()
        return False

    def newest(self, but: TensorRecord) -> TensorRecord | None:
        """The youngest other live tensor."""
        return next((one for one in reversed(self.records) if one is not but and self.has(one)), None)

    def revalue(self, record: TensorRecord, old: int | None = None) -> None:
        """Note that a record stands for another value now."""
        if old is not None and self._by_value.get(old) is record:
            del self._by_value[old]
        self._by_value[record.value] = record

    def standing_for(self, value: int, but: TensorRecord) -> TensorRecord | None:
        """The other live tensor that stands for a value, if it is here."""
        record = self._by_value.get(value)
        return record if record is not None and record is not but and self.has(record) else None

    # Counts of writes

    def _add_count(self, record: TensorRecord, tensor: torch.Tensor) -> None:
        self._count_for(record, tensor)
        if self._tied and not self.several and sum(count.owner() is not None for count in self._counts.values()) > 1:
            self._part()
        if self.several:
            record.version = SEVERAL

    def _part(self) -> None:
        """From now on several counts tell of writes: no member's own is enough. Linear in the members."""
        seen: dict[_Count, list[int]] = {}
        for record in self.records[:-1]:
            tensor = record()
            if tensor is not None and self.has(record) and record.version is not None:
                seen.setdefault(self._count_for(record, tensor), []).append(record.version)
                record.version = SEVERAL
        for count, versions in seen.items():
            count.seen = max(count.seen, min(versions))
        self.several = True

    def _count_for(self, record: TensorRecord, tensor: torch.Tensor) -> _Count:
        """The count of a tensor that has one; made if it is not known yet."""
        count = self._count_of(tensor)
        if count is None:
            owner = _counted_by(tensor)
            count = self._counts[id(owner)] = _Count(owner, record.version)  # type: ignore[arg-type]
        return count

    def _count_of(self, tensor: torch.Tensor) -> _Count | None:
        owner = _counted_by(tensor)
        count = self._counts.get(id(owner))
        return count if count is not None and count.owner() is owner else None

    def has_uncounted(self, most: int | None = None) -> bool:
        """Whether there was a write that torch has counted and lens has not seen.

        Args:
            most: How many counts to ask, the oldest first. Linear in them.
        """
        dead = asked = 0
        for count in self._counts.values():
            owner = count.owner()
            if owner is None:
                dead += 1
            elif owner._version != count.seen:
                return True
            else:
                asked += 1
                if asked == most:
                    break
        if dead > _FEW:
            self._forget_dead_counts()
        return False

    def has_seen(self, tensor: torch.Tensor) -> bool:
        """Whether lens has seen the last write that torch has counted for a tensor, or for what shares its memory.

        It is asked whenever one is read: so of many counts only the tensor's own and the oldest.
        """
        count = self._count_of(tensor)
        if count is None or count.seen != tensor._version:
            return False
        return not (self.several and self.has_uncounted(_ASKED))

    def seen_version(self, tensor: torch.Tensor) -> int | None:
        """torch's count of writes to a tensor when lens last saw one; None if it was never asked."""
        count = self._count_of(tensor)
        return None if count is None else count.seen

    def count(self, tensor: torch.Tensor) -> None:
        """Note that what torch has counted for a tensor so far has been seen."""
        count = self._count_of(tensor)
        if count is not None:
            count.seen = tensor._version

    def count_all(self) -> None:
        """Note that all that was written so far has been seen: for each tensor that is not a view of another."""
        for count in self._counts.values():
            owner = count.owner()
            if owner is not None:
                count.seen = owner._version

    # Writes

    def write(self, position: int, footprint: Footprint) -> None:
        """Note what an op wrote."""
        self.writes.append(_Write(position, footprint))

    def writes_since(self, first: int, footprint: Footprint) -> list[int]:
        """The positions of the ops that wrote here, from the write with this number on, in order."""
        recent = len(self.writes) - first
        if recent > _FEW:
            for number in range(self._indexed, len(self.writes)):
                self._near_writes.add(self.writes[number].footprint, number)
            self._indexed = len(self.writes)
        if recent <= _FEW or self._near_writes.reach(footprint) >= recent:
            found = [one.position for one in self.writes[first:] if one.footprint.meets(footprint)]
        else:
            found = [self.writes[number].position for number in sorted(self._numbers(first, footprint))]
        return list(dict.fromkeys(found))  # an op may write to several tensors

    def _numbers(self, first: int, footprint: Footprint) -> Iterator[int]:
        for cell in self._near_writes.cells(footprint):
            for where, number in reversed(cell):
                if number < first:
                    break
                if where.meets(footprint):
                    yield number

    # What is held

    def hold(self, record: TensorRecord) -> None:
        """Note that something of a tensor is held."""
        self._held.append(record)

    def take_held(self, footprint: Footprint) -> list[TensorRecord]:
        """The records of live tensors of which something is held, and that a write there would reach.

        They are forgotten, for what is held of them is to be copied now.
        """
        if len(self._held) > _FEW:
            for record in self._held:
                tensor = record()
                if tensor is not None:
                    self._near_held.add(Footprint.of(tensor), record)
            self._held.clear()
        found = self._near_held.take(footprint)
        rest: list[TensorRecord] = []
        for record in self._held:
            tensor = record()
            is_reached = tensor is not None and Footprint.of(tensor).meets(footprint)
            (found if is_reached else rest).append(record)
        self._held = rest
        return [record for record in found if record.held and self.has(record)]


def _counted_by(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor whose count of writes this one has: what it is a view of, or itself."""
    base = tensor._base if type(tensor) in PLAIN_TYPES else None
    return tensor if base is None else base
