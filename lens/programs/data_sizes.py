"""Operations whose results have a shape that follows from data.

What Python reads of a shape (``len(kept)``, ``rows.shape[0] == 0``) is no read of the trace: a constant of the program
may come from it, or the way that it goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache

from lens.functions import resolve
from lens.ir.elements import FnRef, Op, ValueId
from lens.ir.graph import Graph
from lens.ir.templates import Slice, Template, children, slots
from lens.ir.types import RAGGED
from lens.programs.guards import ShapeGuard
from lens.schemas import has_dynamic_shape_tag, schemas_of

_INDEXING = frozenset({"__getitem__", "index", "_unsafe_index"})
_MASKS = ("bool", "uint8")
#: Made of others in torch, or of no tag: their results are sized by data whatever they are given.
_UNMARKED = frozenset({"unique", "nonzero_numpy", "_pack_padded_sequence", "_pad_packed_sequence", "nms"})
#: Marked, but what is sized by data serves the backward pass alone.
_FOR_BACKWARD = frozenset({"_ctc_loss"})
#: Take numbers that size what they make; each may be a tensor, of which torch reads the number out of sight.
_MAKE_OF_NUMBERS = frozenset(
    [
        *("arange", "range", "linspace", "logspace", "zeros", "ones", "full", "empty", "eye"),
        *("rand", "randn", "randint", "randperm", "tril_indices", "triu_indices"),
    ]
)
#: The same, after a tensor.
_CHANGE_BY_NUMBERS = frozenset(
    [
        *("new_zeros", "new_ones", "new_full", "new_empty", "view", "reshape", "expand", "broadcast_to", "repeat"),
        *("tile", "pad", "constant_pad_nd", "narrow", "unflatten", "unfold", "as_strided"),
        *("split", "split_with_sizes", "tensor_split", "repeat_interleave"),
    ]
)
#: Show the elements that a sparse tensor holds.
_HELD = frozenset({"indices", "_indices", "values", "_values", "col_indices", "row_indices"})


def shape_guards(trace: Graph, op: Op, other: Graph | None) -> Iterator[tuple[ShapeGuard, list[ValueId]]]:
    """Per result of an op that is sized by data, its guard, and what that is given.

    Args:
        trace: The graph.
        op: The op.
        other: The graph at other sizes; what differs there is not checked.
    """
    if not _is_sized_by_data(trace, op):
        return
    shapes = {v: trace.values[v].type.shape for v in (*op.operands, *op.results)}
    operands = [v for v in op.operands if RAGGED not in shapes[v]]
    for value in op.results:
        again = shapes[value] if other is None else other.values[value].type.shape
        if RAGGED not in shapes[value]:
            expected = tuple(a if a == b else None for a, b in zip(shapes[value], again, strict=True))
            made_of = tuple(shapes[v] for v in operands)
            yield ShapeGuard(expected, made_of, str(op.function), str(op.location or "")), [value, *operands]


def _is_sized_by_data(trace: Graph, op: Op) -> bool:
    """Whether the shapes of the results of an op may follow from more than the shapes of its operands."""
    name = op.function.name.partition(".")[0]
    given = (*op.args, *(arg for _, arg in op.keywords))
    if name in _INDEXING:
        masks = any(trace.values[op.operands[i]].type.dtype in _MASKS for i in _tensors(op, given[1:]))
        parts = (part for key in given[1:] for part in (key, *children(key)))
        return masks or bool(_tensors(op, (part for part in parts if isinstance(part, Slice))))
    if name == "where":
        return len(given) == 1
    if name in _MAKE_OF_NUMBERS:
        return bool(op.operands)
    if name in _CHANGE_BY_NUMBERS:
        return len(given) == 1 or bool(_tensors(op, given[1:]))
    if name in _HELD:
        return trace.values[op.operands[0]].type.layout.startswith("sparse")
    return name in _UNMARKED or _is_marked(op.function)


def _tensors(op: Op, given: Iterable[Template]) -> list[int]:
    """The positions of the operands in these arguments; the slots after them are integers."""
    return [i for arg in given for i in slots(arg) if i < len(op.operands)]


@lru_cache(maxsize=4096)
def _is_marked(function: FnRef) -> bool:
    name = function.name.partition(".")[0]
    return name not in _FOR_BACKWARD and has_dynamic_shape_tag(schemas_of(resolve(function), name))
