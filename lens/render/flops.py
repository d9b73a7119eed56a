"""Floating point operations of the operations that dominate: products of matrices and convolutions."""

from __future__ import annotations

from math import prod

from lens.ir.elements import Op
from lens.ir.graph import Graph
from lens.ir.naming import layer_type

_MATRIX_PRODUCTS = frozenset({"matmul", "mm", "bmm", "mv", "dot"})
_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})


def flops_of(graph: Graph, op: Op, result: int = 0) -> int | None:
    """Two per multiplication and addition; None for operations of other kinds, which are cheap or unknown."""
    kind = layer_type(op.function)
    shapes = [graph.values[v].type.shape for v in op.operands]
    made = graph.values[op.results[result]].type.numel if op.results else 0
    if len(shapes) < 2 or not shapes[0] or not shapes[1] or result:
        return None
    if kind in _MATRIX_PRODUCTS:
        return 2 * made * shapes[0][-1]
    if kind == "linear":
        return 2 * made * shapes[1][-1]
    if kind in ("addmm", "baddbmm", "addbmm") and len(shapes) == 3:
        return 2 * made * shapes[1][-1]
    if kind in _CONVOLUTIONS:
        return 2 * made * prod(shapes[1][1:])
    if kind == "scaleddotproductattention" and len(shapes) > 2:
        queries, keys, values = shapes[:3]
        return 2 * prod(queries[:-1]) * keys[-2] * (queries[-1] + values[-1])
    return None
