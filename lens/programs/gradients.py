"""Where a program lets no gradient through.

A trace does not tell where ``torch.no_grad`` was on. It shows where autograd must not follow: what only writes, with
``out=`` or to a tensor that outlives the call and has no autograd node afterwards. There autograd would refuse, also
that ``out=`` gives a tensor that the program, unlike the model, made with gradients; or the graph of one call would
reach into the next. Everywhere else a program lets gradients through.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lens.ir.elements import Op, ValueId
from lens.ir.graph import Graph

#: Kinds of leaves that outlive a call of the model.
_LASTING = ("parameter", "buffer", "constant")


def detached_operands(trace: Graph, op: Op, roots: Sequence[ValueId], written: Sequence[int]) -> set[int]:
    """The positions of the operands of an op that a program detaches.

    Args:
        trace: The graph.
        op: The op.
        roots: Per value the first one with its memory.
        written: The positions of the operands that it writes to.
    """
    if not _stops_gradients(trace, op, roots, {roots[op.operands[i]] for i in written}):
        return set()
    found = set()
    targets = {op.operands[i] for i in written}  # one may be read, too: as the same object, or torch may refuse
    for i, value in enumerate(op.operands):
        dtype = getattr(torch, trace.values[value].type.dtype)
        if (dtype.is_floating_point or dtype.is_complex) and (value not in targets or _may_ask(trace, value, roots)):
            found.add(i)
    return found


def is_trainable(trace: Graph, root: ValueId) -> bool:
    """Whether the memory of a value, the first with it, is that of a leaf that asks for a gradient."""
    leaf = trace.leaf_of(root)
    return leaf is not None and leaf.trainable


def _may_ask(trace: Graph, target: ValueId, roots: Sequence[ValueId]) -> bool:
    """Whether what is written to may ask for a gradient in a program: as a leaf, or as made of other tensors."""
    if trace.leaf_of(roots[target]) is not None:
        return is_trainable(trace, roots[target])
    producer = trace.producer(target)
    return producer is not None and bool(producer.operands)


def _stops_gradients(trace: Graph, op: Op, roots: Sequence[ValueId], targets: set[ValueId]) -> bool:
    if not targets or any(roots[value] not in targets for value in op.results):
        return False
    if any(name == "out" for name, _ in op.kwargs):
        return True
    leaves = map(trace.leaf_of, targets)
    lasting = any(leaf is not None and leaf.kind in _LASTING for leaf in leaves)
    return lasting and all(trace.values[value].grad_fn is None for value in op.results)
