"""Saved parameters: a training step or a conversion of the model may change them after the trace."""

from __future__ import annotations

from typing import TypeAlias

import torch
from attrs import frozen

from lens.ir.payloads import Held, Stale

#: Type, shape, memory and place in it.
Place: TypeAlias = tuple[torch.dtype, torch.Size, int, int]


@frozen(eq=False)
class HeldParameter(Held):
    """A parameter kept by reference.

    Args:
        place: Where it lay when it was right: ``.data = ...``, as in ``model.double()``, counts as no write.
    """

    place: Place | None = None

    @property
    def stale(self) -> Stale | None:
        """What is left of it if it has been given other data, or something has written to it."""
        if self.place is not None and place_of(self.tensor) != self.place:
            return Stale(f"a tensor of shape {tuple(self.place[1])}", "after")
        return super().stale


def place_of(tensor: torch.Tensor) -> Place | None:
    """Where a parameter lies; None of one that has no memory of its own."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        return None
    # Not its address: a trace that is open now would take it for handed out.
    return tensor.dtype, tensor.shape, tensor.untyped_storage()._cdata, int(tensor.storage_offset())
