"""Autograd's nodes: of which class the one is that has made a tensor."""

from __future__ import annotations

import torch
from torch.autograd.graph import Node
from torch.nn.parameter import is_lazy

#: Of so many values of a run the nodes are asked for. Where Python has seen each node of a chain, torch 2.13 frees the
#: chain by recursion, and some 40,000 exhaust a stack of 8 MB. Afterwards ``Node`` stands for all classes.
MOST_NODES = 10_000


def node_class(tensor: torch.Tensor, value: int) -> type | None:
    """The class of a tensor's node, by the number of its value in the run; None if it has no node.

    Raises:
        RuntimeError: if torch cannot tell, as of a view that was written to under ``no_grad``.
    """
    if value >= MOST_NODES:
        return None if tensor.is_leaf else Node
    grad = tensor.grad_fn
    return None if grad is None else type(grad)


def harmless_node_class(tensor: torch.Tensor, value: int) -> type | None:
    """The class of a tensor's node, if asking does no harm.

    A view whose memory was written to makes its node when it is asked for it, and torch then allows writes that it
    had refused.
    """
    return None if is_lazy(tensor) or tensor._is_view() else node_class(tensor, value)
