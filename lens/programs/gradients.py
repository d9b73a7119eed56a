"""Where a program lets no gradient through.

A trace does not tell where ``torch.no_grad`` was on. It shows where autograd must not follow: what only writes, with
``out=`` or to a tensor that outlives the call and has no autograd node afterwards. There autograd would refuse, or the
graph of one call would reach into the next. Everywhere else a program lets gradients through.
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
    for i, value in enumerate(op.operands):
        leaf = trace.leaf_of(roots[value])
        dtype = getattr(torch, trace.values[value].type.dtype)
        if leaf is not None and leaf.trainable if i in written else dtype.is_floating_point or dtype.is_complex:
            found.add(i)
    return found


def _stops_gradients(trace: Graph, op: Op, roots: Sequence[ValueId], targets: set[ValueId]) -> bool:
    if not targets or any(roots[value] not in targets for value in op.results):
        return False
    if any(name == "out" for name, _ in op.kwargs):
        return True
    leaves = map(trace.leaf_of, targets)
    lasting = any(leaf is not None and leaf.kind in _LASTING for leaf in leaves)
    return lasting and all(trace.values[value].grad_fn is None for value in op.results)
