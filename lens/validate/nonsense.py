"""Nonsense in the place of tensors: other contents of the same type, made cheaply.

Noise comes from a pool that is drawn once, so most substitutes are views of it and cost nothing. Of a large tensor
some elements, spread over its memory, are changed in place and put back: no copy of it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import zip_longest
from typing import TypeAlias, TypeVar

import torch
from attrs import define, field

from lens.ir.layouts import Layout
from lens.validate.comparing import comparable

#: Elements in the pool; larger tensors are changed in place.
_POOL = 1 << 18
#: How many elements of a large tensor are changed.
_CHANGED = 1 << 16
#: Several tensors of no more elements than this may be replaced together: their substitutes need memory.
MOST_TOGETHER = 1 << 20
#: Dtypes that torch hardly computes with.
_OPAQUE = frozenset({torch.uint16, torch.uint32, torch.uint64})
#: A block in which a tensor holds nonsense.
Substitute: TypeAlias = AbstractContextManager[torch.Tensor]
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


def with_others(tensors: Mapping[_Key, _Value], others: Mapping[_Key, _Value]) -> dict[_Key, _Value]:
    """Tensors with others in place of some; these come last, for what shows the same memory is to show them."""
    new = {key: other for key, other in others.items() if other is not tensors.get(key)}
    return {**{key: tensor for key, tensor in tensors.items() if key not in new}, **new}


@define
class Nonsense:
    """Makes substitutes for tensors. The generators of the process are left alone."""

    _pools: dict[tuple[torch.dtype, torch.device], torch.Tensor] = field(factory=dict)

    def substitutes(self, tensor: torch.Tensor, shared: bool) -> Iterator[Substitute]:
        """Blocks in which a tensor holds other contents, the most telling and cheapest first; none if it has none.

        Args:
            tensor: What to replace. After each block it is what it was.
            shared: Whether something shows its memory that must not change meanwhile.
        """
        if tensor.numel() == 0 or tensor.is_quantized or tensor.dtype in _OPAQUE or tensor.is_meta:
            return
        if tensor.numel() > _POOL and not shared and tensor.dtype.is_floating_point:
            memory = _own_memory(tensor)
            if memory is not None:
                yield self._changed(tensor, memory)
        for make in self._makers(tensor):
            try:
                made = make()
            except (RuntimeError, TypeError):  # torch does not compute with every dtype and layout
                continue
            yield nullcontext(made)

    def together(self, tensors: Mapping[_Key, torch.Tensor]) -> Iterator[dict[_Key, torch.Tensor]]:
        """Other contents for several tensors, one kind after the other, by the keys of those that have such; their
        own memory stays as it is."""
        for round_ in zip_longest(*(self.substitutes(tensor, shared=True) for tensor in tensors.values())):
            with ExitStack() as stack:
                yield {
                    key: stack.enter_context(substitute)
                    for key, substitute in zip(tensors, round_, strict=True)
                    if substitute is not None
                }

    def _makers(self, tensor: torch.Tensor) -> tuple[Callable[[], torch.Tensor], ...]:
        if tensor.is_nested or tensor.layout is not torch.strided:
            return (lambda: tensor * -1.5,)
        constants = tuple(partial(torch.full_like, tensor, number) for number in _numbers(tensor))
        if tensor.dtype is torch.bool:
            return tensor.logical_not, *constants, lambda: _scattered(tensor, 2)
        if tensor.is_floating_point() or tensor.is_complex():
            return lambda: self._noise(tensor), lambda: (-3 * comparable(tensor) - 1).to(tensor.dtype), *constants
        return (
            lambda: tensor.flatten().roll(1).view(tensor.shape),
            lambda: torch.where(tensor > 0, tensor - 1, tensor + 1),
            lambda: _counted(tensor),
            lambda: -3 * tensor - 1,
            lambda: _scattered(tensor, max(1, min(int(tensor.max()), 1 << 62)) + 1),
        )

    def _noise(self, tensor: torch.Tensor) -> torch.Tensor:
        """A view of the pool; of a tensor that is larger than it the rows overlap, so that it needs no memory."""
        pool = self._pool(tensor)
        if tensor.numel() <= pool.numel():
            return pool[: tensor.numel()].view(tensor.shape)
        reach = (_POOL - 1) // tensor.dim()
        strides, dense = [], 1
        for size in reversed(tensor.shape):
            strides.append(min(dense, reach // size))
            dense *= size
        return pool.as_strided(tensor.shape, tuple(reversed(strides)))

    def _pool(self, tensor: torch.Tensor) -> torch.Tensor:
        """Noise of the tensor's dtype, at least as many elements as it has, up to the size of the pool."""
        key = tensor.dtype, tensor.device
        size = min(_POOL, max(1 << 12, 1 << (tensor.numel() - 1).bit_length()))
        pool = self._pools.get(key)
        if pool is None or pool.numel() < size:
            generator = torch.Generator(tensor.device).manual_seed(size)
            kind = torch.complex64 if tensor.is_complex() else torch.float32
            pool = torch.randn(size, generator=generator, dtype=kind, device=tensor.device).to(tensor.dtype)
            self._pools[key] = pool
        return pool

    @contextmanager
    def _changed(self, tensor: torch.Tensor, memory: torch.Tensor) -> Iterator[torch.Tensor]:
        some = memory[:: memory.numel() // _CHANGED | 1]  # an odd step, so that it meets every column of a matrix
        before = some.clone()
        some.copy_(self._pool(tensor)[: some.numel()])
        try:
            yield tensor
        finally:
            some.copy_(before)


def _numbers(tensor: torch.Tensor) -> tuple[float, ...]:
    """What a tensor may be filled with that functions treat in ways of their own."""
    return (True, False) if tensor.dtype is torch.bool else (torch.nan, 0, torch.inf, -torch.inf)


def _counted(tensor: torch.Tensor) -> torch.Tensor:
    """0, 1, 2, ... up to the largest element, over and over."""
    count = torch.arange(tensor.numel(), device=tensor.device).view(tensor.shape)
    return (count % (max(int(tensor.max()), 1) + 1)).to(tensor.dtype)


def _scattered(tensor: torch.Tensor, end: int) -> torch.Tensor:
    """Numbers from 0 to ``end - 1`` in no order, so that they differ along every dimension."""
    generator = torch.Generator(tensor.device).manual_seed(tensor.numel())
    return torch.randint(end, tensor.shape, generator=generator, device=tensor.device).to(tensor.dtype)


def _own_memory(tensor: torch.Tensor) -> torch.Tensor | None:
    """The elements of a tensor in the order of memory, for writing; None if gaps are between them, or if the memory
    is not torch's own: a file that is mapped read-only would end the process."""
    layout = Layout.of(tensor, 0)
    storage = tensor.untyped_storage()
    if layout is None or layout.conj or layout.neg or not storage.resizable():
        return None
    first, end = layout.extent(tuple(tensor.shape))
    if end - first != tensor.numel() or min(layout.strides) < 1:
        return None
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)  # counts its own writes: the tensor's stay valid
    return alias.set_(storage, first, (tensor.numel(),), (1,))
