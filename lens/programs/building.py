"""From a graph to a ``torch.fx`` program.

A program runs the recorded functions on real tensors in the recorded order, writes included, so memory is shared as
it was in the run, and the node of a value that a write made anew is that of the tensor written to.
"""

from __future__ import annotations

import cmath
import operator
import re
from collections.abc import Mapping
from itertools import chain, takewhile
from keyword import iskeyword
from typing import Any

import torch
from attrs import define, field
from torch import fx, nn

from lens.errors import RenderError
from lens.functions import describe, resolve
from lens.ir.elements import Leaf, Op, Read, ValueId
from lens.ir.facets import Labels
from lens.ir.graph import Graph
from lens.ir.payloads import PayloadStore
from lens.ir.templates import Map, Opaque, Seq, Slot, Template, children, holds_slots, opaques, slots
from lens.programs.autocast import State, switch_autocast
from lens.programs.calls import add_call, as_written, parts, places_written, plain_sizes, put_together, unfit
from lens.programs.data_sizes import shape_guards
from lens.programs.fx_module import Program
from lens.programs.gradients import detached_operands, is_trainable
from lens.programs.guards import GUARDED, ArgumentGuard, ReadGuard, SharedGuard
from lens.programs.leaves import Caller, free_name, leaf_tensor, place, registered, tensors_by_address
from lens.programs.node_meta import node_meta
from lens.programs.noise import recorded_noise, with_noise
from lens.programs.sizes import Form, Size
from lens.render.renderer import Traced
from lens.replay.arguments import build
from lens.replay.interpreter import why_not_run
from lens.replay.operation import DEFAULTS
from lens.schemas import schemas_of

_NAME = re.compile(r"\W+")
#: Names that the code of a ``GraphModule`` takes for something else.
_GLOBALS = frozenset({"inf", "nan", "NoneType", "torch", "device", "fx_pytree", "pytree"})
_FIRST_WORD = re.compile(r"[A-Za-z_]\w*")


def make_program(history: Traced, model: nn.Module | None, *, guards: bool, noise: str, flat: bool = False) -> Program:
    """The program of a trace; the arguments are those of ``Builder``, and ``noise`` is ``draw`` or ``recorded``.

    Raises:
        RenderError: an option is wrong, the trace is not whole, or the program needs a tensor that is not there.
        ReplayError: a function or argument of the run is not there.
        StaleValueError: a tensor was changed since the trace.
    """
    graph = history.graph
    if noise not in ("draw", "recorded"):
        raise RenderError(f"noise cannot be {noise!r}", where="noise=", hint='give "draw" or "recorded"')
    if model is not None and not isinstance(model, nn.Module):
        raise RenderError(f"model is a {type(model).__name__}", where="model=", hint="give a torch.nn.Module")
    if graph.meta.fault is not None:
        raise RenderError(
            "the forward pass of this trace raised: it is no whole program",
            where=str(graph.meta.fault.location or graph.meta.fault.type),
            hint="trace a call that returns; the structure can be exported as it is",
        )
    if graph.meta.stopped:
        raise RenderError(
            f"the forward pass of this trace was ended at {graph.meta.stopped}: it is no whole program",
            where="stop_at=",
            hint="trace without stop_at; the structure can be exported as it is",
        )
    recorded = recorded_noise(graph, history.payloads) if noise == "recorded" else {}
    return Builder(graph, history.payloads, model, guards, flat, recorded).build()


@define
class Builder:
    """Builds one program.

    Args:
        trace: The graph, with labels.
        payloads: What was saved.
        model: Where parameters and buffers come from; None for the trace.
        guards: Whether recorded reads, and shapes that follow from data, are checked.
        flat: Whether the program takes the input tensors one by one and gives a tuple of output tensors, instead of
            taking and giving what the model does.
        noise: Per op, the tensor that stands for what its generator gave.
        sizes: The sizes of the inputs that may vary.
        integers: Per op, how the integers in the slots after its operands follow from these.
        other: The graph at other sizes; what differs there is not checked.
    """

    trace: Graph
    payloads: PayloadStore
    model: nn.Module | None = None
    guards: bool = True
    flat: bool = False
    noise: Mapping[int, torch.Tensor] = field(factory=dict)
    sizes: tuple[Size, ...] = ()
    integers: Mapping[int, tuple[Form, ...]] = field(factory=dict)
    other: Graph | None = None
    root: nn.Module = field(init=False, factory=nn.Module)
    graph: fx.Graph = field(init=False, factory=fx.Graph)
    nodes: dict[ValueId, fx.Node] = field(init=False, factory=dict)
    #: Per value the first one with its memory; per op the operands that it writes to; the memory that is written to.
    roots: list[ValueId] = field(init=False, factory=list)
    written: dict[int, list[int]] = field(init=False, factory=dict)
    touched: set[ValueId] = field(init=False, factory=set)
    addresses: dict[str, str] = field(init=False, factory=dict)
    #: The parameters and buffers of the model, by address.
    own: dict[str, torch.Tensor] | None = field(init=False)
    #: Per opaque object that is an argument of the model, its placeholder.
    given: dict[int, fx.Node] = field(init=False, factory=dict)
    size_nodes: dict[Form | str, fx.Node] = field(init=False, factory=dict)

    @own.default
    def _own(self) -> dict[str, torch.Tensor] | None:
        return tensors_by_address(self.model)

    def build(self) -> Program:
        """The program. Linear. Raises RenderError, ReplayError or StaleValueError."""
        self._find_writes()
        self._add_inputs()
        reads: dict[int, list[Read]] = {}
        for read in self.trace.reads if self.guards else ():
            reads.setdefault(read.position, []).append(read)
        autocast: State = ((), [])
        for op in self.trace.ops:
            self._add_guards(reads.get(op.id, ()))
            autocast = switch_autocast(self.graph, op, autocast)
            self._add_op(op)
        switch_autocast(self.graph, None, autocast)
        self._add_guards(reads.get(len(self.trace.ops), ()))
        self._add_output()
        self.graph.lint()
        program = Program(self.root, self.graph, self.trace.meta.model or "Program")
        body = program.code.partition(":\n")[2]
        for name in _GLOBALS.intersection(node.target for node in self.graph.nodes if node.op == "placeholder"):
            if len(re.findall(rf"\b{name}\b(?! =)", body)) > 1:  # once the argument gets a name of its own
                raise _unusable(name)
        for alias, address in self.addresses.items():
            place(program, alias, program.get_parameter(address))
        program.train(self.trace.meta.training)
        return program

    # Writes

    def _find_writes(self) -> None:
        """Fill ``roots``, ``written`` and ``touched``. Raises RenderError where leaves share memory that is written."""
        for value in self.trace.values:
            alias = value.alias_of  # that of memory that came from outside may be a later value
            self.roots.append(value.id if alias is None or alias > value.id else self.roots[alias])
        objects = self.payloads.objects
        for op in self.trace.ops:
            may_write, integers = op.function.mutates or op.keywords, self.integers.get(op.id, ())
            written = self.written[op.id] = places_written(op, objects, len(integers)) if may_write else []
            targets = {self.roots[op.operands[i]] for i in written}
            for old, _ in op.effects:
                leaf = self.trace.leaf_of(self.roots[old])
                if targets and self.roots[old] not in targets and leaf is not None:
                    raise RenderError(
                        f"{op.function} writes to memory that {leaf.kind} {' '.join(leaf.addresses[:1])} shares with "
                        "another tensor of the model or of its inputs",
                        where=str(op.location or op.function),
                        hint="give the model tensors with memory of their own (clone)",
                    )
            self.touched |= targets

    # Inputs and leaves

    def _add_inputs(self) -> None:
        used = {v for op in self.trace.ops for v in op.reads} | {*self.trace.outputs.values}
        used |= {read.value for read in self.trace.reads}
        if self.flat:
            for leaf in self.trace.leaves:
                if leaf.kind == "input":
                    name = self._name(leaf.addresses[0])
                    given = self.graph.placeholder(f"{name}_" if name in self.trace[Labels].outputs else name)
                    written = leaf.value in self.touched  # exporters have no way to write to their inputs
                    self.nodes[leaf.value] = self.graph.call_method("clone", (given,)) if written else given
        else:
            self._add_arguments()
        inputs = [leaf.value for leaf in self.trace.leaves if leaf.kind == "input"]
        for size in self.sizes:
            number, dimension = size.places[0]
            self.size_nodes[size.name] = self.graph.call_method("size", (self.nodes[inputs[number]], dimension))
        for leaf in self.trace.leaves:
            if leaf.value not in self.nodes and leaf.value in used:
                self.nodes[leaf.value] = self._add_leaf(leaf, leaf.value in self.touched)

    def _add_leaf(self, leaf: Leaf, written: bool) -> fx.Node:
        tensor = leaf_tensor(leaf, self.payloads, self.own)
        address = leaf.addresses[0] if leaf.addresses else free_name(self.root, leaf.kind)
        address = place(self.root, address, registered(leaf, tensor, written=written))
        if leaf.kind == "parameter":
            self.addresses.update(dict.fromkeys(leaf.addresses[1:], address))
        node = self.graph.get_attr(address)
        if leaf.kind == "external" and written:  # the model makes it anew in every call
            return self.graph.call_method("clone", (node,))
        return node

    def _add_arguments(self) -> None:
        """Placeholders for the arguments of the model, and nodes that take the tensors out of them."""
        match self.trace.inputs.form:
            case Seq(_, (Seq() as positional, Map() as named)):
                pass
            case form:  # the inputs of a block
                assert isinstance(form, Seq)
                positional, named = form, Map("dict", ())
        given: list[tuple[str, Template]] = []
        for number, arg in enumerate(positional.items):
            name = _argument_name(self.trace, arg)
            taken = {n for n, _ in given} | {str(n) for n, _ in named.items}
            given.append((f"arg_{number}" if not name or name in taken | _GLOBALS else name, arg))
        given += [(str(name), arg) for name, arg in named.items]
        for name, _ in given:
            if not name.isidentifier() or iskeyword(name):
                raise _unusable(name)
        optional = len(given)
        while optional and not holds_slots(given[optional - 1][1]):
            optional -= 1
        holders = []
        for place_, (name, arg) in enumerate(given):
            default: Any = (put_together(arg, [], self.graph.call_function, self._key) if _is_constant(arg) else None,)
            args = default if place_ >= optional else ()
            holders.append((name, arg, self.graph.create_node("placeholder", self._name(name), args)))
        for name, arg, holder in holders:
            self._take_apart(name, arg, holder)

    def _take_apart(self, name: str, arg: Template, holder: fx.Node) -> None:
        if isinstance(arg, Opaque):
            self.given.setdefault(arg.index, holder)
        elif self.guards and not isinstance(arg, Slot):
            self._guard(ArgumentGuard(name, arg), holder)
        for index, node in parts(self.graph, arg, holder, self._key):
            value = self.trace.inputs.values[index]
            if value not in self.nodes:
                self.nodes[value] = node
            elif self.guards:
                self._guard(SharedGuard(name), node, self.nodes[value])

    # Operations

    def _add_op(self, op: Op) -> None:
        if op.hands_on:  # a composite of a raw graph: what is in it has run
            self.nodes.update({new: self.nodes[old] for new, old in zip(op.results, op.yields, strict=True) if old})
            return
        reason = why_not_run(op)
        if reason and not op.function.opaque:
            raise unfit(op, f"it {reason}")
        labels = self.trace[Labels].results[op.id]
        name = self._name(labels[0] if labels else op.function.name)
        before = next(iter(reversed(self.graph.nodes)), None)
        detached = detached_operands(self.trace, op, self.roots, self.written[op.id])
        self._connect(op, self._call(op, name, detached), detached)
        meta = node_meta(self.trace, op)
        for node in takewhile(lambda node: node is not before, reversed(self.graph.nodes)):
            node.meta.update(meta)
        for guard, values in shape_guards(self.trace, op, self.other) if self.guards else ():
            if values[0] in self.nodes:
                self._guard(guard, *(self.nodes[v] for v in values))

    def _call(self, op: Op, name: str, detached: set[int]) -> fx.Node:
        operands = [self.nodes[v] for v in op.operands]
        bare = {
            node: self.graph.call_method("detach", (node,))
            for node in dict.fromkeys(operands[i] for i in sorted(detached))
        }
        operands = [bare[node] if i in detached else node for i, node in enumerate(operands)]
        if op.id in self.noise:
            address = place(self.root, f"lens_noise.{name}_{op.id}", self.noise[op.id])  # each pass has its own
            return with_noise(self.graph, op, operands, self.graph.get_attr(address), name)
        if describe(resolve(op.function)).copies and self.trace.values[op.results[0]].alias_of is not None:
            return self._copied_before(op, name)
        operands += [self._size(form) for form in self.integers.get(op.id, ())]
        return self._with_dtype(op, add_call(self.graph, op, operands, self._op_objects(op), name))

    def _with_dtype(self, op: Op, node: fx.Node) -> fx.Node:
        """The node of an op; what makes a tensor of the default dtype is told that of the run, if it is another now."""
        made = self.trace.values[op.results[0]].type.dtype if op.results and not op.operands else ""
        takes = schemas_of(resolve(op.function), op.function.name.partition(".")[0]) if made in DEFAULTS else ()
        told = node.kwargs.get("dtype") is not None or DEFAULTS.get(made) is torch.get_default_dtype()
        if not told and any(one.name == "dtype" for schema in takes for one in schema._schema.arguments):
            node.kwargs = {**node.kwargs, "dtype": getattr(torch, made)}
        return node

    def _copied_before(self, op: Op, name: str) -> fx.Node:
        """The node of a deep copy of a tensor whose memory the copy of another has: a view of that copy."""
        result = self.trace.values[op.results[0]]
        other, layout = self.trace.values[result.alias_of or 0], self.payloads.layouts.get(result.id)
        if layout is None or layout.conj or layout.neg or other.type.dtype != result.type.dtype:
            raise unfit(op, "its result lies in memory that was copied before, and the trace does not tell where")
        given = (self.nodes[other.id], result.type.shape, layout.strides, layout.offset)
        return self.graph.create_node("call_method", "as_strided", given, {}, name)

    def _size(self, form: Form) -> fx.Node:
        """The node of an integer that follows from the sizes of the inputs."""
        if form not in self.size_nodes:
            call = self.graph.call_function
            node: Any = form.factor.numerator
            for name in form.sizes:
                node = self.size_nodes[name] if node == 1 else call(operator.mul, (node, self.size_nodes[name]))
            if form.factor.denominator != 1:
                node = call(operator.floordiv, (node, form.factor.denominator))
            for more in (form.offset, self.size_nodes[form.plus] if form.plus else 0):
                node = call(operator.add, (node, more)) if more else node
            self.size_nodes[form] = node
        return self.size_nodes[form]

    def _connect(self, op: Op, call: fx.Node, detached: set[int]) -> None:
        # A write to a detached leaf gives that one; what comes after reads the leaf itself.
        roots = {self.roots[op.operands[i]] for i in detached.intersection(self.written[op.id])}
        to_leaf = any(is_trainable(self.trace, root) for root in roots)
        made = {} if to_leaf else dict(parts(self.graph, op.form, call, self._key))
        missing = [i for i in range(len(op.results)) if i not in made]
        targets = list(dict.fromkeys(self.nodes[op.operands[i]] for i in self.written[op.id]))
        made.update(zip(missing, targets, strict=False))
        for index, value in enumerate(op.results):
            if index in made:
                self.nodes[value] = made[index]
        for old, new in op.effects:
            self.nodes[new] = self.nodes[old]

    def _key(self, key: Template) -> Any:
        """A key of a mapping as an argument of a node."""
        found: dict[int, Any] = {}
        for opaque in opaques(key):
            found.update(self._object(opaque))
        return as_written(self.graph, build(plain_sizes(key), [], found))

    def _op_objects(self, op: Op) -> dict[int, Any]:
        """The nodes of the opaque objects of an op; what it calls is a module.

        Raises RenderError for memory of the run.
        """
        found: dict[int, Any] = {}
        for opaque in chain.from_iterable(map(opaques, (*op.args, *(arg for _, arg in op.kwargs)))):
            if isinstance(self.payloads.objects.get(opaque.index), (torch.UntypedStorage, torch.TypedStorage)):
                hint = "give it a tensor: x.view_as(x) or x.detach() shares memory with x, as copy.copy(x) does"
                raise unfit(op, "it takes memory of the run, not a tensor", hint)
            found.update(self._object(opaque, called=op.function.opaque and op.args[0] is opaque))
        return found

    def _object(self, opaque: Opaque, *, called: bool = False) -> dict[int, fx.Node]:
        """The node of an opaque object by its index: an argument of the model as it is given, any other, and what is
        ``called``, in an attribute of the program. Empty if the trace does not have it."""
        index = opaque.index
        if index in self.given and not called:
            return {index: self.given[index]}
        if index not in self.payloads.objects:
            return {}
        name, obj = f"lens_opaque_{index}", self.payloads.objects[index]
        setattr(self.root, name, Caller(obj) if called and not isinstance(obj, nn.Module) else obj)
        return {index: self.graph.get_attr(name)}

    # Guards and outputs

    def _add_guards(self, reads: Any) -> None:
        for read in reads:
            if read.kind in GUARDED and not isinstance(read.result, str) and read.value in self.nodes:
                result = read.result.items if isinstance(read.result, Seq) else read.result
                self._guard(ReadGuard(read.kind, result, str(read.location or "")), self.nodes[read.value])

    def _guard(self, guard: nn.Module, *nodes: fx.Node) -> None:
        self._call_module("lens_guards", guard, *nodes)

    def _call_module(self, folder: str, module: nn.Module, *args: Any, **kwargs: Any) -> fx.Node:
        """A call of a module of lens's own: source code that is written out needs no import for it."""
        if folder not in self.root._modules:
            self.root.add_module(folder, nn.Module())
        owner = self.root.get_submodule(folder)
        name = f"_{len(owner._modules)}"
        owner.add_module(name, module)
        return self.graph.call_module(f"{folder}.{name}", args, kwargs)

    def _add_output(self) -> None:
        nodes = [self.nodes[v] for v in self.trace.outputs.values]
        if self.flat:
            # Exporters have one name for what is an input and an output, or two outputs.
            named = {node for node in self.graph.nodes if node.op == "placeholder"}
            for place_, node in enumerate(nodes):
                nodes[place_] = self.graph.call_method("clone", (node,)) if node in named else node
                named.add(node)
            self.graph.output(tuple(nodes))
            return

        def make(cls: Any, *args: Any, **kwargs: Any) -> fx.Node:
            return self._call_module("lens_outputs", Caller(cls), *args, **kwargs)

        self.graph.output(put_together(self.trace.outputs.form, nodes, make, self._key))

    def _name(self, text: str) -> str:
        return _NAME.sub("_", text).strip("_") or "value"


def _argument_name(trace: Graph, arg: Template) -> str:
    for index in slots(arg):
        leaf = trace.leaf_of(trace.inputs.values[index])
        word = None if leaf is None else _FIRST_WORD.match(leaf.addresses[0])
        if word is not None and word[0] != "args":
            return word[0]
    return ""


def _unusable(name: str) -> RenderError:
    return RenderError(
        f"a program cannot have an argument of the name {name!r}: its code has another use for the word",
        where=f"{name}=",
        hint="trace the model with this argument given by its position",
    )


def _is_constant(template: Template) -> bool:
    """Whether a template is of constants in plain containers, which a node may have as an argument."""
    if isinstance(template, complex) and not cmath.isfinite(template):  # source code has no word for it
        return False
    plain = not isinstance(template, (Seq, Map)) or template.kind in ("tuple", "list", "size", "dict")
    return plain and not isinstance(template, (Slot, Opaque)) and all(map(_is_constant, children(template)))
