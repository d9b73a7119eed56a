"""Where values lie in memory that they share with others: what replay needs of a write to see whom it reaches."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from attrs import evolve, frozen

#: Of up to so many elements it is found out whether a tensor with gaps has all that another one has.
_MOST_ELEMENTS = 1 << 12


@frozen
class Layout:
    """The place of a value in its memory, in elements of its own dtype.

    Args:
        memory: A number of the memory; equal for the values of one op that share it.
        offset: Where the first element lies.
        strides: The step of each dimension.
        conj, neg: Whether what lies there is the conjugate, or the negative, of the value.
    """

    memory: int
    offset: int
    strides: tuple[int, ...]
    conj: bool = False
    neg: bool = False

    @classmethod
    def of(cls, tensor: Any, memory: int) -> Layout | None:
        """The layout that a tensor has now; None for sparse and nested ones, and for those quantized by channel."""
        if tensor.is_nested or str(tensor.layout) != "torch.strided":
            return None
        if tensor.is_quantized and str(tensor.qscheme()) != "torch.per_tensor_affine":
            return None
        return cls(memory, tensor.storage_offset(), tuple(tensor.stride()), tensor.is_conj(), tensor.is_neg())

    def covers(self, shape: tuple[int, ...], low: int, high: int) -> bool:
        """Whether a tensor of this shape has all the elements from ``low`` to ``high``: it leaves none out."""
        dense = 1
        for step, n in sorted(zip(self.strides, shape, strict=True)):
            if step != dense and n != 1:
                return False
            dense *= n
        return self.offset <= low and high <= self.offset + dense

    def shows(self, shape: tuple[int, ...], other: Layout, other_shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape has every element that another one in the same memory has, of the same dtype.

        Linear in the elements where it is not clear at once; for many elements, then, the answer is no.
        """
        low, high = other.extent(other_shape)
        first, end = self.extent(shape)
        if low == high:
            return True
        if low < first or high > end:
            return False
        if self.covers(shape, low, high) or (self.offset, self.strides, shape) == (
            other.offset,
            other.strides,
            other_shape,
        ):
            return True
        is_small = max(prod(shape), prod(other_shape)) <= _MOST_ELEMENTS
        return is_small and self._places(shape).issuperset(other._places(other_shape))

    def _places(self, shape: Sequence[int]) -> set[int]:
        found = [self.offset]
        for step, n in zip(self.strides, shape, strict=True):
            found = [place + i * step for place in found for i in range(n)]
        return set(found)

    def in_bytes(self, size: int) -> Layout:
        """The layout of the same tensor taken as one of bytes: its last dimension is an element of this size."""
        return evolve(self, offset=self.offset * size, strides=(*(step * size for step in self.strides), 1))

    def extent(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """First element and end of what a tensor of this shape can touch; equal if it has no elements."""
        if 0 in shape:
            return self.offset, self.offset
        reach = sum((n - 1) * step for n, step in zip(shape, self.strides, strict=True))
        return self.offset, self.offset + reach + 1
