"""Where values lie in memory that they share with others: what replay needs of a write to see whom it reaches."""

from __future__ import annotations

from typing import Any

from attrs import frozen


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
        """The layout that a tensor has now; None for sparse, nested and quantized ones."""
        if tensor.is_nested or tensor.is_quantized or str(tensor.layout) != "torch.strided":
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

    def extent(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """First element and end of what a tensor of this shape can touch; equal if it has no elements."""
        if 0 in shape:
            return self.offset, self.offset
        reach = sum((n - 1) * step for n, step in zip(shape, self.strides, strict=True))
        return self.offset, self.offset + reach + 1
