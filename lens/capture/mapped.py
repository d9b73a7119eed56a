"""Tensors inside of ``torch.func.vmap``, which nobody can read once that is over."""

from __future__ import annotations

from typing import Any

import torch
from attrs import frozen

from lens.ir.payloads import Held, Stale

#: private: tells the wrappers that vmap makes. Without it torch's own error is raised where one is read.
_FUNCTORCH: Any = getattr(torch._C, "_functorch", None)
is_mapped: Any = getattr(_FUNCTORCH, "is_batchedtensor", lambda _: False)


@frozen(eq=False)
class Mapped(Held):
    """A wrapper that vmap made, kept by reference."""

    @property
    def stale(self) -> Stale | None:
        """What is left of it once vmap is over, or something has written to it."""
        if is_over(self.tensor):
            return Stale(f"a tensor of shape {tuple(self.tensor.shape)}", "mapped")
        return super().stale


def is_over(tensor: torch.Tensor) -> bool:
    """Whether a wrapper belongs to a vmap that has ended."""
    level = _FUNCTORCH.maybe_current_level()
    return level is None or bool(level < _FUNCTORCH.maybe_get_level(tensor))
