"""From an operation to the ``torch.fx`` node that does the same.

Methods are nodes of methods and operators are those of Python, because that is what can be written out as source.
"""

from __future__ import annotations

import cmath
import operator
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx

from lens.errors import RenderError
from lens.functions import describe, resolve
from lens.ir.elements import FnRef, Op
from lens.ir.templates import Map, Node, Seq, Slot, Template, map_nodes
from lens.replay.arguments import build, find_class

#: Methods that are operators of Python; ``__radd__`` and its like are these with their arguments exchanged.
_OPERATORS = frozenset(
    {"add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift", "rshift"}
    | {"neg", "pos", "invert", "lt", "le", "eq", "ne", "gt", "ge", "getitem", "setitem"}
)
#: Python names whose functions stand in ``operator`` with an underscore.
_KEYWORDS = frozenset({"and", "or"})
#: What can be done with an op that no program can have.
_ELSE = "to_onnx_structure and the other exports of the graph need no program"


def add_call(graph: fx.Graph, op: Op, operands: list[fx.Node], objects: Mapping[int, Any], name: str) -> fx.Node:
    """Append the node that does what an op does.

    Args:
        graph: The graph.
        op: The operation; of an opaque one, the first argument names the module that does it.
        operands: The nodes of its operands.
        objects: The nodes of its opaque arguments.
        name: The name of the node.

    Raises:
        RenderError: what an opaque operation calls is not there.
        ReplayError: its function or an argument is not there.
    """
    args = [as_written(graph, build(plain_sizes(arg), operands, objects)) for arg in op.args]
    kwargs = {key: as_written(graph, build(plain_sizes(arg), operands, objects)) for key, arg in op.keywords}
    function = op.function
    if function.opaque:
        if not isinstance(args[0], fx.Node):
            raise unfit(op, "what it calls is not in the trace")
        kwargs.pop("closed_over", None)
        return graph.create_node("call_module", args[0].target, tuple(args[1:]), kwargs, name)
    if function.namespace != "torch.Tensor":
        return graph.create_node("call_function", _target(function), tuple(args), kwargs, name)
    if function.name.endswith(".__get__"):
        return graph.create_node("call_function", getattr, (args[0], function.name.removesuffix(".__get__")), {}, name)
    if function.name.endswith(".__set__"):
        attribute = function.name.removesuffix(".__set__")
        return graph.create_node("call_function", setattr, (args[0], attribute, args[1]), {}, name)
    dunder = function.name[2:-2] if function.name.startswith("__") and function.name.endswith("__") else ""
    if not kwargs and dunder:
        reflected, in_place = (dunder[:1] == sign and dunder[1:] in _OPERATORS for sign in "ri")
        if dunder in _OPERATORS or reflected or in_place:
            target = getattr(operator, f"{dunder[reflected:]}{'_' if dunder[reflected:] in _KEYWORDS else ''}")
            return graph.create_node("call_function", target, tuple(reversed(args) if reflected else args), {}, name)
    resolve(function)  # a method that is not there is an error now, not when the program runs
    if args:
        if isinstance(vars(torch._C.TensorBase).get(function.name), staticmethod):  # of a class, its first argument too
            args.insert(0, args[0])
        return graph.create_node("call_method", function.name, tuple(args), kwargs, name)
    rest = dict(kwargs)
    return graph.create_node("call_method", function.name, (rest.pop(next(iter(kwargs))),), rest, name)


def unfit(op: Op, why: str, hint: str = _ELSE) -> RenderError:
    """What to raise for an op that no program can have."""
    where = str(op.location or f"op {op.id}")
    return RenderError(f"{op.function} cannot be part of a program: {why}", where=where, hint=hint)


def as_written(graph: fx.Graph, arg: Any) -> Any:
    """An argument as source code can say it, which has no word for a complex number with an infinite part."""

    def written(item: Any) -> Any:
        if isinstance(item, complex) and not cmath.isfinite(item):
            return graph.call_function(complex, (item.real, item.imag))
        return item

    return fx.node.map_aggregate(arg, written)


def _target(ref: FnRef) -> Callable[..., Any]:
    """The callable of a name, one that ``torch.fx`` writes out as itself.

    It writes what is in C as ``torch.stft``, though that may be a function in Python with other arguments: the operator
    is named instead.
    """
    found = resolve(ref)
    shadowed = ref.namespace == "torch._C._VariableFunctions" and getattr(torch, ref.name, found) is not found
    return getattr(torch.ops.aten, ref.name, found) if shadowed else found


def plain_sizes(template: Template) -> Template:
    """A template whose ``torch.Size`` is a tuple: nodes have no constants of that class."""

    def plain(node: Node) -> Template | None:
        return Seq("tuple", node.items) if isinstance(node, Seq) and node.kind == "size" else None

    return map_nodes(template, plain)


def parts(
    graph: fx.Graph, form: Template, whole: fx.Node, key_of: Callable[[Template], Any]
) -> Iterator[tuple[int, fx.Node]]:
    """Per slot of a form, its number and a node that takes it out of the container that a node made.

    ``key_of`` gives a key of a mapping as an argument of a node.
    """
    entries: Any
    take: Callable[..., Any] = operator.getitem
    if isinstance(form, Slot):
        yield form.index, whole
        return
    if isinstance(form, Seq):
        entries = enumerate(form.items)
    elif isinstance(form, Map):
        entries = form.items
        if form.kind != "dict" and not hasattr(find_class(form.kind), "__getitem__"):  # a dataclass
            take = getattr
    else:
        return
    for key, item in entries:
        if isinstance(item, (Slot, Seq, Map)):
            yield from parts(graph, item, graph.call_function(take, (whole, key_of(key))), key_of)


def put_together(
    form: Template, nodes: list[fx.Node], make: Callable[..., fx.Node], key_of: Callable[[Template], Any]
) -> Any:
    """What a template describes, as an argument of a node. Opaque objects are None.

    Args:
        form: The template.
        nodes: What stands in its slots.
        make: Gives the node that calls a class with these arguments.
        key_of: Gives a key of a mapping as an argument of a node.
    """
    match form:
        case Slot(index):
            return nodes[index]
        case Seq(kind, items):
            inner = [put_together(item, nodes, make, key_of) for item in items]
            if kind in ("tuple", "list", "size"):
                return inner if kind == "list" else tuple(inner)
            cls = find_class(kind)
            return make(cls, *inner) if hasattr(cls, "_make") else make(cls, inner)
        case Map(kind, pairs):
            entries: Any = {key_of(k): put_together(v, nodes, make, key_of) for k, v in pairs}
            if any(isinstance(key, (Node, complex)) for key, _ in pairs):  # source code has no word for such keys
                entries = make(dict, list(entries.items()))
            elif kind != "dict" and all(isinstance(key, str) for key in entries):
                return make(find_class(kind), **entries)
            if kind == "collections.defaultdict":  # what made its missing values is not known
                return make(defaultdict, None, entries)
            return entries if kind == "dict" else make(find_class(kind), entries)
        case complex() if not cmath.isfinite(form):
            return make(complex, form.real, form.imag)
        case _:
            return build(form, [], _Nothing())


class _Nothing(dict[int, Any]):
    """Opaque objects of a run that is over: None."""

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: int) -> None:
        return None


def places_written(op: Op, objects: Mapping[int, Any], more: int) -> list[int]:
    """The positions of the operands that an op writes to; ``more`` slots after them hold integers."""
    function = describe(resolve(op.function))
    if not function.may_write and not op.keywords:
        return []
    stand_ins: list[Any] = [*(torch.empty(0) for _ in op.operands), *[0] * more]
    known = _Nothing(objects)
    args = [build(arg, stand_ins, known) for arg in op.args]
    kwargs = {key: build(arg, stand_ins, known) for key, arg in op.keywords}
    places = {id(tensor): place for place, tensor in enumerate(stand_ins)}
    return [places[id(tensor)] for tensor in function.written(args, kwargs) if id(tensor) in places]
