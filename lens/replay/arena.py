"""Memory of its own for an op that writes: its tensors, copied, lie to each other as they did in the run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch

from lens.ir.elements import ValueId
from lens.ir.layouts import Layout

#: Memory is cut out in steps of this many bytes, so that a tensor is aligned as it was.
_ALIGNMENT = 64


class Arena:
    """Copies of tensors in new memory.

    A value without a layout lies alone there, and so does one whose layout does not fit the tensor given for it.
    Where tensors overlap, the later ones win; in an unchanged run they agree.

    Args:
        tensors: What to copy.
        layouts: Where values lay in the run.
    """

    def __init__(self, tensors: Mapping[ValueId, torch.Tensor], layouts: Mapping[ValueId, Layout]) -> None:
        self.placed: dict[ValueId, torch.Tensor] = {}
        #: By number of the memory: the new memory, and the byte of the old one that it begins with.
        self._memories: dict[int, tuple[torch.UntypedStorage, int]] = {}
        groups: dict[int, dict[ValueId, Layout]] = defaultdict(dict)
        for value, tensor in tensors.items():
            layout = layouts.get(value)
            if layout is None or len(layout.strides) != tensor.dim():
                layout = Layout.of(tensor, -1 - value)
            if layout is None:
                self.placed[value] = tensor.detach().clone()
            else:
                groups[layout.memory][value] = layout
        for memory, group in groups.items():
            self._memories[memory] = _allocate([(layout, tensors[value]) for value, layout in group.items()])
            for value, layout in group.items():
                tensor = tensors[value]
                shape = tuple(tensor.shape)
                self.placed[value] = self.show(layout, tensor.dtype, shape, tensor if tensor.is_quantized else None)
                _fill(self.placed[value], tensor)

    def holds(self, layout: Layout | None) -> bool:
        """Whether the arena has the memory of this layout."""
        return layout is not None and layout.memory in self._memories

    def show(
        self, layout: Layout, dtype: torch.dtype, shape: tuple[int, ...], like: torch.Tensor | None = None
    ) -> torch.Tensor:
        """A tensor on memory that the arena has; quantized as another one is, if that is given."""
        storage, start = self._memories[layout.memory]
        offset = layout.offset - start // dtype.itemsize
        tensor = torch.empty(0, dtype=dtype, device=storage.device) if like is None else like.detach().clone()
        tensor.set_(storage, offset, shape, layout.strides)
        if layout.conj:
            tensor = tensor.conj()
        return torch._neg_view(tensor) if layout.neg else tensor  # private: only imag of a conjugate needs it


def _allocate(there: list[tuple[Layout, torch.Tensor]]) -> tuple[torch.UntypedStorage, int]:
    extents = [
        [place * tensor.element_size() for place in layout.extent(tuple(tensor.shape))] for layout, tensor in there
    ]
    start = min(low for low, _ in extents) // _ALIGNMENT * _ALIGNMENT
    size = max(high for _, high in extents) - start
    return torch.zeros(size, dtype=torch.uint8, device=there[0][1].device).untyped_storage(), start


def _fill(place: torch.Tensor, tensor: torch.Tensor) -> None:
    for dimension, step in enumerate(place.stride()):
        if step == 0 and place.shape[dimension] > 1:  # one element for all of them
            place, tensor = place.narrow(dimension, 0, 1), tensor.narrow(dimension, 0, 1)
    place.copy_(tensor)
