"""A second opinion on what lens records: the same calls, watched by something that shares no code with it.

Each call runs three times on equal copies of its arguments: plainly; under a ``TorchFunctionMode`` that writes down
which torch functions were called with what (the witness); and traced. ``examine`` gives what lens recorded otherwise
than the witness saw it, as findings of a few kinds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from attrs import field, frozen
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

import lens
from lens import registry
from lens.capture.unseen import odd_type
from lens.errors import LensError
from lens.functions import resolve
from lens.history import ModelHistory
from lens.ir.elements import Op, ValueId
from lens.ir.parser import parse
from lens.ir.printer import print_graph
from lens.ir.types import TensorType
from lens.ir.verifier import find_problems
from lens.passes.manager import PassManager
from lens.passes.pipeline import parse_pipeline
from lens.replay import Interpreter
from lens.replay.arguments import build
from lens.session import DEFAULT_PIPELINE
from lens.validate.check import check
from lens.validate.comparing import same

#: Set before every run of a call.
SEED = 7


#: Layouts of tensors that have no memory of their own, which ``deepcopy`` would ask for.
_NO_STORAGE = frozenset({torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc})


@frozen(eq=False)
class Call:
    """A function, or a module, with its arguments; ``variant`` and ``dtype`` are for the reader."""

    variant: str
    dtype: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(factory=dict)

    def __str__(self) -> str:
        return f"{self.variant} {self.dtype}"

    def fresh(self) -> Call:
        """The same call on copies of its tensors, which share memory as the originals do."""
        given = (t for t in tensors_in((self.args, self.kwargs)) if t.layout in _NO_STORAGE)
        args, kwargs = copy.deepcopy((self.args, self.kwargs), {id(t): t.clone() for t in given})
        function = copy.deepcopy(self.function) if isinstance(self.function, nn.Module) else self.function
        return Call(self.variant, self.dtype, function, args, kwargs)

    def run(self, function: Callable[..., Any] | None = None) -> Any:
        torch.default_generator.manual_seed(SEED)
        return (function or self.function)(*self.args, **self.kwargs)


@frozen
class Finding:
    """Something recorded otherwise than it happened: its kind (a key of ``KINDS``), in which call, and how."""

    kind: str
    call: str
    what: str

    def __str__(self) -> str:
        return f"[{self.kind}] {self.call}: {self.what}"


KINDS = {
    "unsteady": "torch itself does not compute the same twice",
    "result": "the traced call gives another result, or leaves other arguments or generator state, than the plain one",
    "calls": "not the operations that torch was asked for",
    "operands": "an operation with other arguments than it got",
    "results": "an operation with other results than it gave",
    "writes": "a write in place that is not recorded, or one recorded that did not happen",
    "external": "a tensor of unknown origin",
    "structure": "the graph breaks a structural rule, or its text does not give it back",
    "replay": "an operation that run again from its saved operands does not give its saved results",
}


# The witness


@frozen(eq=False)
class Seen:
    """A call of a torch function, as the witness saw it.

    Args:
        function: What was called.
        args, kwargs: Its arguments; the tensors among them may have changed since.
        before: What the tensors among the arguments held, in order.
        result: What it returned.
        after: What the tensors in the result held, in order.
        written: The tensors among the arguments that it wrote to, and what they held then.
    """

    function: Callable[..., Any]
    args: Sequence[Any]
    kwargs: dict[str, Any]
    before: tuple[Any, ...]
    result: Any
    after: tuple[Any, ...]
    written: tuple[tuple[torch.Tensor, Any], ...]


class Witness(TorchFunctionMode):
    """Writes down the outermost calls of torch functions that made a tensor or wrote to one."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Seen] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tensors_in((args, kwargs))
        before = tuple(contents(t) for t in given)
        versions = [t._version for t in given]
        result = func(*args, **kwargs)
        changed = {
            id(t): (t, contents(t))
            for t, was, version in zip(given, before, versions, strict=True)
            if t._version != version or contents(t) != was
        }
        made = tensors_in(result)
        if made or changed:
            after = tuple(contents(t) for t in made)
            self.seen.append(Seen(func, args, kwargs, before, result, after, tuple(changed.values())))
        return result


def tensors_in(tree: Any) -> list[torch.Tensor]:
    """The tensors in nested containers, in order."""
    found = []
    for leaf in tree_leaves(tree):
        if isinstance(leaf, torch.Tensor):
            found.append(leaf)
        elif isinstance(leaf, slice):
            found += [part for part in (leaf.start, leaf.stop, leaf.step) if isinstance(part, torch.Tensor)]
    return found


def contents(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Kind, shape and every bit of a tensor, as something that can be compared."""
    with torch._C.DisableTorchFunction():
        head: tuple[Any, ...] = (tensor.dtype, tensor.layout)
        if tensor.is_nested:
            return (*head, *(contents(part) for part in tensor.unbind()))
        head += (tuple(tensor.size()),)
        if tensor.is_quantized:
            return (*head, tensor.qscheme(), contents(tensor.int_repr()))
        if tensor.layout is torch.strided:
            # A copy, because numpy() forbids torch to resize the memory from then on.
            plain = torch.empty(tensor.size(), dtype=tensor.dtype).copy_(tensor.detach())
            return (*head, plain.flatten().view(torch.uint8).numpy().tobytes())
        if tensor.layout is torch.sparse_coo:
            return (*head, contents(tensor._indices()), contents(tensor._values()))
        return (*head, contents(tensor.to_dense()))


_ATOMS = (bool, int, float, complex, str)


def alike(one: Any, other: Any) -> bool:
    """Whether two values are the same; tensors are not looked into, objects without equality need only one type."""
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        same = type(one) is type(other) and len(one) == len(other)
        return same and all(alike(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, slice) and isinstance(other, slice):
        return alike((one.start, one.stop, one.step), (other.start, other.stop, other.step))
    if isinstance(one, _ATOMS):
        return isinstance(other, _ATOMS) and repr(one) == repr(type(one)(other))
    return one is other or type(one) is type(other)


# The traced run


class Step(nn.Module):
    """One call; a module of its own, so that the graph tells which operations belong to it."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call
        #: An attribute of the module, so that decoration, too, finds what was bound before the trace.
        self.function = call.function
        self.result: Any = None
        self.generator: Any = None

    def forward(self, args: Any, kwargs: Any) -> Any:
        self.result = self.call.run(self.function)
        self.generator = torch.get_rng_state()
        return self.result

    @property
    def end(self) -> tuple[Any, ...]:
        return _end(self.call, self.result, self.generator)


def _end(call: Call, result: Any, generator: torch.Tensor | None = None) -> tuple[Any, ...]:
    """What a call has left: its result, its arguments and module state, and the state of the generator."""
    generator = torch.get_rng_state() if generator is None else generator
    state = call.function.state_dict() if isinstance(call.function, nn.Module) else {}
    tensors = (result, call.args, call.kwargs, state, generator)
    plain = [leaf for leaf in tree_leaves(result) if isinstance(leaf, _ATOMS)]
    return (*map(contents, tensors_in(tensors)), repr(plain))


def _given(call: Call) -> list[torch.Tensor]:
    return tensors_in((call.args, call.kwargs))


def _type(tensor: torch.Tensor) -> TensorType:
    shape, *names = odd_type(tensor)
    dtype, device, layout = (str(name).removeprefix("torch.") for name in names)
    return TensorType(dtype, tuple(shape), device, layout)


class Program(nn.Module):
    """Several calls, one after the other."""

    def __init__(self, calls: Sequence[Call]) -> None:
        super().__init__()
        self.steps = nn.ModuleList([Step(call) for call in calls])

    def forward(self, inputs: Any) -> Any:
        """The results and, so that what was written to them is read, arguments and module state afterwards."""
        return [step(*given) for step, given in zip(self.steps, inputs, strict=True)], inputs, list(self.buffers())


def examine(calls: Sequence[Call], backend: str = "torch_function") -> list[Finding]:
    """Trace calls that torch can do, in one run, and tell what is recorded otherwise than it happened."""
    copies = [call.fresh() for call in calls]
    program = Program(copies)
    history = lens.trace(program, ([(call.args, call.kwargs) for call in copies],), backend=backend, passes=())
    by_level = {level: _analysed(history, f"granularity{{level={level}}},labels") for level in ("api", "leaf")}
    findings = list(_unsound(history, *by_level.values()))
    api = by_level["api"]
    scopes = [scope for scope in api.graph.scopes if scope.cls == "Step"]
    leaves = iter(api.graph.inputs.values)
    for call, step, scope in zip(calls, program.steps, scopes, strict=True):
        inputs = list(islice(leaves, len(_given(call))))
        comparison = _Comparison(api, call, inputs, api.graph.ops[scope.start : scope.stop])
        findings += [Finding(kind, str(call), what) for kind, what in comparison.against_witness(step)]
        recorded = scope.stop > scope.start or any(read.scope == scope.id for read in api.graph.reads)
        if not recorded and not isinstance(call.function, nn.Module):
            findings.append(Finding("calls", str(call), "nothing is recorded, neither an operation nor a read"))
    return findings


def _analysed(history: ModelHistory, pipeline: str) -> ModelHistory:
    manager = PassManager(parse_pipeline(pipeline, registry.pass_classes()), registry.providers())
    result = manager.run(history.graph, history.payloads)
    return ModelHistory(result.graph, result.payloads)


def _unsound(raw: ModelHistory, api: ModelHistory, leaf: ModelHistory) -> Iterator[Finding]:
    """What is wrong with the graph as a whole, at any level, and with the operations run again."""
    full = _analysed(raw, DEFAULT_PIPELINE)
    for level, history in {"raw": raw, "api": api, "leaf": leaf, "default": full}.items():
        for problem in find_problems(history.graph):
            yield Finding("structure", level, str(problem))
        if level in ("raw", "default"):
            text = print_graph(history.graph)
            again = parse(text)
            if again != history.graph and print_graph(again) != text:  # NaN is not equal to itself
                yield Finding("structure", level, "the text does not give the graph back")
    for found in raw.graph.leaves:
        if found.kind == "external":
            yield Finding("external", str(found.location), str(raw.graph.values[found.value].type))
    yield from _replayed_as_a_whole(raw)
    has_composites = leaf.graph.ops != api.graph.ops  # without them both levels are one graph
    for level, history in {"leaf": leaf, **({"api": api} if has_composites else {})}.items():
        for verdict in check(history).failed:
            yield Finding("replay", f"{level} {verdict.layer}", verdict.detail)


def _replayed_as_a_whole(history: ModelHistory) -> Iterator[Finding]:
    """Run from its inputs, the graph gives every saved value bit for bit."""
    interpreter = Interpreter(history.graph, history.payloads)
    if any(leaf.value not in history.payloads for leaf in history.graph.leaves):
        return  # a parameter of a lazy module, which has no contents when it is first met
    try:
        made = interpreter.run(interpreter.sources())
    except LensError as error:
        yield Finding("replay", "whole", str(error))
        return
    for value, tensor in made.items():
        if value in history.payloads and not same(tensor, history.payloads.read(value).detach()):
            producer = history.graph.producer(value)
            yield Finding("replay", "whole", f"%{value} of {producer and producer.function} is another one")


class _Comparison:
    """One call as the witness saw it, and the operations that lens recorded of it.

    Args:
        history: The trace, with composites closed.
        call: The call as it was before it ran.
        inputs: The values of the graph's inputs that are its tensors, in order.
        ops: What was recorded while it ran.
    """

    def __init__(self, history: ModelHistory, call: Call, inputs: Sequence[ValueId], ops: Sequence[Op]) -> None:
        self.values, self.payloads = history.graph.values, history.payloads
        self.call, self.inputs, self.ops = call, inputs, ops
        #: The value that each tensor of the witness stands for at the moment.
        self.current: dict[int, ValueId] = {}

    def against_witness(self, step: Step) -> Iterator[tuple[str, str]]:
        plain, watched, witness = self.call.fresh(), self.call.fresh(), Witness()
        expected = _end(plain, plain.run())
        self.current = {id(t): v for t, v in zip(_given(watched), self.inputs, strict=True)}
        with witness:
            result = watched.run()
        if _end(watched, result) != expected:
            yield "unsteady", "run twice without lens it leaves other results"
        if step.end != expected:
            yield "result", "the result, the arguments afterwards or the generator differ"
        functions = [resolve(op.function) for op in self.ops]
        if functions != [seen.function for seen in witness.seen]:
            names = [torch.overrides.resolve_name(seen.function) or str(seen.function) for seen in witness.seen]
            yield "calls", f"{[str(op.function) for op in self.ops]} instead of {names}"
            return
        for op, seen in zip(self.ops, witness.seen, strict=True):
            yield from self.operands(op, seen)
            yield from self.results(op, seen)
            yield from self.writes(op, seen)

    def operands(self, op: Op, seen: Seen) -> Iterator[tuple[str, str]]:
        unshaped = nn.UninitializedParameter()  # of a lazy module: not saved
        saved = [self.payloads.read(v) if v in self.payloads else unshaped for v in op.operands]
        args = [build(arg, saved, self.payloads.objects) for arg in op.args]
        kwargs = {name: build(arg, saved, self.payloads.objects) for name, arg in op.kwargs}
        if not alike((args, kwargs), (list(seen.args), seen.kwargs)):
            yield "operands", f"{op.function} with {op.args} {op.kwargs}, not {seen.args} {seen.kwargs}"
            return
        given = tensors_in((seen.args, seen.kwargs))
        expected = [self.current.get(id(t)) for t in given]
        for place, (value, known) in enumerate(zip(op.operands, expected, strict=True)):
            if known is None and self.values[value].leaf is not None:  # of the module
                self.current[id(given[place])] = value
            elif value != known:
                yield "operands", f"{op.function}: operand {place} is %{value}, not %{known}"
        if tuple(map(contents, saved)) != seen.before:
            yield "operands", f"{op.function}: saved operands differ from those that it got"

    def results(self, op: Op, seen: Seen) -> Iterator[tuple[str, str]]:
        saved = [self.payloads.read(v) for v in op.results]
        returned = build(op.form, saved, self.payloads.objects)
        made = tensors_in(seen.result)
        if not alike(returned, seen.result):
            yield "results", f"{op.function}: {op.form} instead of {seen.result}"
        elif tuple(map(contents, tensors_in(returned))) != seen.after:
            yield "results", f"{op.function}: saved results differ from those that it gave"
        for value, tensor in zip(op.results, saved, strict=True):
            if self.values[value].type != _type(tensor):
                yield "results", f"{op.function}: {self.values[value].type} for a tensor {_type(tensor)}"
        self.current.update({id(t): value for t, value in zip(made, op.results, strict=False)})

    def writes(self, op: Op, seen: Seen) -> Iterator[tuple[str, str]]:
        """Every tensor written to has a new value, which holds what was written; no other argument has."""
        returned = {id(t) for t in tensors_in(seen.result)}
        written = {id(t): after for t, after in seen.written if id(t) not in returned}
        if written and not (op.function.mutates or op.function.composite or "out" in seen.kwargs):
            yield "writes", f"{op.function} is not said to write"
        new = {**dict(op.effects), **{self.values[v].alias_of: v for v in op.results if op.form is None}}
        for tensor in {id(t): t for t in tensors_in((seen.args, seen.kwargs))}:
            version = new.get(self.current.get(tensor))
            if version is None and tensor in written:
                yield "writes", f"{op.function}: a write to %{self.current.get(tensor)} is missing"
            elif version is not None and tensor not in written:
                yield "writes", f"{op.function}: %{self.current[tensor]} was not written to"
            elif version in self.payloads and contents(self.payloads.read(version)) != written[tensor]:
                yield "writes", f"{op.function}: %{version} is not what was written"
        self.current = {tensor: new.get(value, value) for tensor, value in self.current.items()}
