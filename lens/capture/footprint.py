"""Where in memory the elements of a tensor lie, and an index of many such places: they tell whom a write reaches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Generic, NamedTuple, TypeAlias, TypeVar

import torch

_Item = TypeVar("_Item")


class Footprint(NamedTuple):
    """The bytes that a tensor can touch: from ``start`` to ``stop``, and if there is a ``period``, of each only some.

    A column of a matrix has gaps: of every ``period`` bytes, a row, it touches those from ``low`` to ``high``. So do
    the columns of a matrix not overlap, though each reaches from the first row to the last.
    """

    start: int
    stop: int
    period: int = 0
    low: int = 0
    high: int = 0

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Footprint:
        """The footprint that a tensor has now; of one without strides all that there is."""
        if tensor.layout is not torch.strided or tensor.is_nested:
            return EVERYWHERE
        if not tensor.numel():
            return _NOWHERE
        size = tensor.element_size()
        start = int(tensor.storage_offset() * size)
        if tensor.is_contiguous():  # rows of a buffer, of which there may be many
            return cls(start, start + int(tensor.numel() * size))
        return cls.strided(start, size, tensor.shape, tensor.stride())

    @classmethod
    def strided(cls, start: int, size: int, shape: Sequence[int], stride: Sequence[int]) -> Footprint:
        """The footprint of elements of this size, in bytes, from this byte on."""
        if 0 in shape:
            return _NOWHERE
        steps = sorted((int(step * size), int(n)) for step, n in zip(stride, shape, strict=True) if n > 1)
        stop = start + size + sum((n - 1) * step for step, n in steps)
        block = size
        for place, (step, n) in enumerate(steps):
            if step > block:  # a gap
                low = start % step
                is_periodic = low + block <= step and not any(more % step for more, _ in steps[place:])
                return cls(start, stop, step, low, low + block) if is_periodic else cls(start, stop)
            block += (n - 1) * step
        return cls(start, stop)

    def columns(self, period: int) -> tuple[int, int]:
        """The bytes of every so many that it can touch."""
        if period == self.period:
            return self.low, self.high
        low = self.start % period
        length = self.stop - self.start
        return (low, low + length) if low + length <= period else (0, period)

    def meets(self, other: Footprint) -> bool:
        """Whether the two can have a byte in common."""
        if self.start >= other.stop or other.start >= self.stop:
            return False
        for period in (self.period, other.period):
            if period:
                low, high = self.columns(period)
                start, stop = other.columns(period)
                if low >= stop or start >= high:
                    return False
        return True


#: What meets every tensor that has elements.
EVERYWHERE = Footprint(0, 1 << 62)
#: What meets nothing: of a tensor without elements.
_NOWHERE = Footprint(0, 0)


#: Of footprints of about one size: the period, and the powers of two that bound their widths: columns, bytes in all.
_Size: TypeAlias = "tuple[int, int, int]"
#: Of a cell: its column and its row.
_Key: TypeAlias = "tuple[int, int]"
_Grid: TypeAlias = "dict[_Key, list[tuple[Footprint, _Item]]]"


class FootprintIndex(Generic[_Item]):
    """Items by footprint, to find those that may meet another without looking at all.

    A grid for each size: an item stands in the cell where it begins, and as it is no wider than a cell, what meets a
    footprint begins within its cells or in those just before. To add is constant; to find takes time for the cells in
    reach, which are never more than there are items.
    """

    def __init__(self) -> None:
        self._grids: dict[_Size, _Grid[_Item]] = {}

    def add(self, footprint: Footprint, item: _Item) -> None:
        """Add an item. One without elements meets nothing."""
        start, stop, period, low, high = footprint
        if start >= stop:
            return
        wide, long = (high - low - 1).bit_length() if period else 0, (stop - start - 1).bit_length()
        grid = self._grids.setdefault((period, wide, long), {})
        grid.setdefault((low >> wide, start >> long), []).append((footprint, item))

    def reach(self, footprint: Footprint) -> int:
        """How many cells have to be looked at, at most."""
        return sum(
            min(len(grid), len(columns) * len(rows))
            for grid, columns, rows in (self._ranges(size, footprint) for size in self._grids)
        )

    def cells(self, footprint: Footprint) -> Iterator[list[tuple[Footprint, _Item]]]:
        """The cells where items stand that may meet a footprint; in each the items in the order they were added in."""
        return (grid[key] for grid, key in self._keys(footprint))

    def take(self, footprint: Footprint) -> list[_Item]:
        """Take out the items that may meet a footprint."""
        found: list[_Item] = []
        for grid, key in list(self._keys(footprint)):
            cell = grid.pop(key)
            found += [item for where, item in cell if where.meets(footprint)]
            rest = [(where, item) for where, item in cell if not where.meets(footprint)]
            if rest:
                grid[key] = rest
        return found

    def _keys(self, footprint: Footprint) -> Iterator[tuple[_Grid[_Item], _Key]]:
        for size in self._grids:
            grid, columns, rows = self._ranges(size, footprint)
            if len(grid) < len(columns) * len(rows):
                yield from ((grid, (c, r)) for c, r in grid if c in columns and r in rows)
            else:
                yield from ((grid, (c, r)) for c in columns for r in rows if (c, r) in grid)

    def _ranges(self, size: _Size, footprint: Footprint) -> tuple[_Grid[_Item], range, range]:
        period, wide, long = size
        low, high = footprint.columns(period) if period else (0, 1)
        return self._grids[size], _cells(low, high, wide), _cells(footprint.start, footprint.stop, long)


def _cells(start: int, stop: int, bits: int) -> range:
    """Where something no wider than a cell has to begin to meet what reaches from ``start`` to ``stop``."""
    return range((start - (1 << bits) + 1) >> bits, ((stop - 1) >> bits) + 1)
