"""Which way a test went, as far as it follows from one value that was read in it."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any

from lens.ir.elements import Op, Read
from lens.ir.graph import Graph
from lens.ir.naming import layer_type
from lens.passes.constructs import Role

_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
#: What comparing tensors is called: of the one with the other, and of the other with the one.
_COMPARING: dict[type[ast.cmpop], frozenset[str]] = {
    ast.Gt: frozenset({"gt", "lt"}),
    ast.GtE: frozenset({"ge", "le"}),
    ast.Lt: frozenset({"gt", "lt"}),
    ast.LtE: frozenset({"ge", "le"}),
    ast.Eq: frozenset({"eq"}),
    ast.NotEq: frozenset({"ne"}),
}
#: Python asks for these by itself: to look for an item, to compare lists.
_COMPARES = frozenset().union(*_COMPARING.values())
#: Calls whose value is what they read, made into this.
_CONVERSIONS: dict[str, Callable[[Any], Any]] = {
    "bool": bool,
    "truth": bool,
    "not": operator.not_,
    "isnonzero": bool,
    "int": int,
    "float": float,
    **dict.fromkeys(("item", "tolist", "equal", "allclose"), lambda known: known),
}
#: Builtins that read several values on their way to a result.
_READING_CALLS = frozenset({"any", "all", "min", "max", "sorted", "next", "list", "tuple", "set", "filter", "sum"})
_DISPLAYS = (ast.List, ast.Tuple, ast.Set, ast.Dict)


def arm_of(graph: Graph, read: Read, role: Role) -> bool | None:
    """The outcome of the whole test: climbing from the read outwards. None if it is open."""
    if not role.path or role.construct == "match" or not isinstance(read.result, (bool, int, float)):
        return None
    inner = role.path[0]
    known = _known(graph, read, inner)
    for outer in role.path[1:]:
        if known is None:
            return None
        known = _outcome(outer, inner, known)
        inner = outer
    return None if known is None else bool(known)


def _known(graph: Graph, read: Read, node: ast.expr) -> Any:
    """The value of the expression in which something was read, or one of equal truth; None if it is open.

    Much reads on its way to a value that is another: ``math.isnan(t)``, ``t in [a, b]``, ``0 < t < 1``, ``table[t]``.
    """
    producer = graph.producer(read.value)
    maker = producer if producer is not None and producer.location == read.location else None
    match node:
        case ast.Call():
            return _called(node, read, producer, maker)
        case ast.Compare(ops=[ast.In()]):
            return read.result or None
        case ast.Compare(ops=[ast.NotIn()]):
            return False if read.result else None
        case ast.Compare():
            return _compared(graph, node, read, maker)
        case ast.UnaryOp(op=ast.Not()):
            return not read.result
        case ast.Name() | ast.Attribute():
            return read.result
        case ast.Subscript() | ast.BinOp() | ast.UnaryOp() if maker is not None or read.kind == "bool":
            return read.result
    return None


def _called(node: ast.Call, read: Read, producer: Op | None, maker: Op | None) -> Any:
    """The value of a call in which something was read: what it returned, or what it looked at."""
    match node.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            name = name.replace("_", "")
        case _:
            name = ""
    if name in _CONVERSIONS:
        return _converted(name, read.result)
    if maker is not None:
        kind = layer_type(maker.function)
        return read.result if kind not in _COMPARES or kind == name else None
    if producer is None or producer.location is None or read.location is None or read.kind != "bool":
        return None
    here = read.location.file, read.location.function
    is_returned = (producer.location.file, producer.location.function) != here
    return read.result if is_returned and name not in _READING_CALLS else None


def _compared(graph: Graph, node: ast.Compare, read: Read, maker: Op | None) -> bool | None:
    """The value of a comparison in which the outcome of one was read: of this one, of a part of it, or of items."""
    if maker is None or not all(type(comparison) in _COMPARING for comparison in node.ops):
        return None
    kind, outcome = layer_type(maker.function), bool(read.result)
    if len(node.ops) > 1:
        return None if outcome else False
    if kind not in _COMPARING[type(node.ops[0])]:
        return None
    may_go_on = outcome and kind == "eq" and _goes_on(graph, node, read)
    return None if may_go_on else outcome


def _goes_on(graph: Graph, node: ast.Compare, read: Read) -> bool:
    """Whether these may be lists, of which the next items are compared."""
    if any(isinstance(part, _DISPLAYS) for part in (node.left, *node.comparators)):
        return True
    following = graph.ops[read.position : read.position + 1]
    return any(op.location == read.location for op in following)


def _outcome(outer: ast.expr, inner: ast.expr, known: Any) -> Any:
    """The value of an expression, or one of equal truth, of which one part is known; None if it is open."""
    match outer:
        case ast.UnaryOp(op=ast.Not()):
            return not known
        case ast.UnaryOp(op=ast.USub()):
            return -known
        case ast.BoolOp(op=ast.And(), values=values):
            return known if not known or inner is values[-1] else None
        case ast.BoolOp(op=ast.Or(), values=values):
            return known if known or inner is values[-1] else None
        case ast.Compare(left=left, ops=[comparison], comparators=[right]) if type(comparison) in _COMPARISONS:
            compare = _COMPARISONS[type(comparison)]
            if inner is left and isinstance(right, ast.Constant) and isinstance(right.value, (int, float)):
                return compare(known, right.value)
            if inner is right and isinstance(left, ast.Constant) and isinstance(left.value, (int, float)):
                return compare(left.value, known)
        case ast.Call(func=ast.Name(id="bool" | "int" | "float" as name), args=[_]):
            return _converted(name, known)
    return None


def _converted(name: str, known: Any) -> Any:
    try:
        return _CONVERSIONS[name](known)
    except (ValueError, OverflowError):  # int(nan): here the run has ended
        return None
