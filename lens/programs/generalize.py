"""``lens.generalize``: from two traces of a model at two sizes to a program for any size."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any, TypeVar

import torch
from attrs import evolve, frozen
from torch import nn

from lens.errors import InputError
from lens.ir.elements import Op
from lens.ir.facets import Labels
from lens.ir.graph import Graph
from lens.ir.templates import Map, Opaque, Seq, Slice, Slot, Template, children, map_nodes
from lens.ir.types import RAGGED, TensorType
from lens.programs.building import Builder
from lens.programs.fx_module import Program
from lens.programs.onnx_file import convert, example, export_program, input_types, save
from lens.programs.sizes import Form, Size, find_form, find_sizes
from lens.render.renderer import Traced

T = TypeVar("T")
#: How many varying integers of unclear origin an error lists.
_SHOWN = 3


@frozen(eq=False)
class Generalized:
    """A trace whose sizes are open.

    Attributes:
        sizes: The extents of the inputs that may vary.
        integers: Per op, how the integers among its arguments follow from the sizes, in order of appearance.
    """

    sizes: tuple[Size, ...]
    integers: Mapping[int, tuple[Form, ...]]
    #: The first trace; in its arguments, varying integers are slots after the operands.
    trace: Graph
    other: Graph
    history: Traced

    def graph(self, **sizes: int) -> Graph:
        """The graph at given sizes, such as ``graph(s0=5)``: its arguments and the types of its values.

        Raises:
            InputError: a size is missing or unknown.
        """
        names = [size.name for size in self.sizes]
        if sorted(sizes) != sorted(names):
            hint = f"give {', '.join(f'{name}=' for name in names)}; str() of this tells what they are"
            raise InputError(f"sizes are needed for {', '.join(names)}", where=f"graph({', '.join(sizes)})", hint=hint)
        values = tuple(
            evolve(value, type=self._type_at(value.type, other.type, sizes))
            for value, other in zip(self.trace.values, self.other.values, strict=True)
        )
        ops = tuple(self._op_at(op, sizes) for op in self.trace.ops)
        return evolve(self.trace, ops=ops, values=values)

    def _type_at(self, first: TensorType, second: TensorType, sizes: Mapping[str, int]) -> TensorType:
        if first.shape == second.shape:
            return first
        extents = []
        for a, b in zip(first.shape, second.shape, strict=True):
            form = None if a == b else find_form(a, b, self.sizes)
            extents.append(a if a == b else RAGGED if form is None else form.at(sizes))
        return evolve(first, shape=tuple(extents))

    def _op_at(self, op: Op, sizes: Mapping[str, int]) -> Op:
        forms = self.integers.get(op.id, ())
        if not forms:
            return op
        count = len(op.operands)

        def settle(node: Any) -> Template | None:
            return forms[node.index - count].at(sizes) if isinstance(node, Slot) and node.index >= count else None

        args = tuple(map_nodes(arg, settle) for arg in op.args)
        return evolve(op, args=args, kwargs=tuple((name, map_nodes(arg, settle)) for name, arg in op.kwargs))

    def to_fx(self, model: nn.Module | None = None, *, guards: bool = True) -> Program:
        """The program, which takes inputs of any size.

        Args:
            model, guards: As for ``history.to_fx``; so are the errors.
        """
        return self._builder(model, guards=guards).build()

    def to_onnx(self, path: str | PathLike[str], model: nn.Module | None = None) -> str:
        """Write an ONNX model whose inputs have open sizes, and give the path. Random operations draw anew.

        Args:
            path, model: As for ``history.to_onnx``.

        Raises:
            RenderError: the model has no form in ONNX, and all that ``to_fx`` raises.
        """
        program = self._builder(model, guards=False, flat=True).build()
        first = min(size.first for size in self.sizes) >= min(size.second for size in self.sizes)
        kinds = input_types(self.trace if first else self.other)
        shapes: list[dict[int, Any]] = [{} for _ in kinds]
        for size in self.sizes:
            for number, dimension in size.places:
                shapes[number][dimension] = torch.export.Dim.DYNAMIC
        exported = export_program(program, tuple(map(example, kinds)), tuple(shapes))
        return save(convert(exported, self.trace[Labels].outputs), path)

    def _builder(self, model: nn.Module | None, *, guards: bool, flat: bool = False) -> Builder:
        return Builder(
            self.trace,
            self.history.payloads,
            model=model,
            guards=guards,
            flat=flat,
            sizes=self.sizes,
            integers=self.integers,
            other=self.other,
        )

    def __str__(self) -> str:
        lines = [
            f"{s.name}: {s.first} and {s.second}, input {p} dimension {d}" for s in self.sizes for p, d in s.places
        ]
        count = sum(map(len, self.integers.values()))
        return "\n".join([*lines, f"{count} integers in {len(self.integers)} operations follow them"])


def generalize(history_a: Traced, history_b: Traced) -> Generalized:
    """A trace with open sizes, from two traces of one model at two batch sizes or lengths. Linear.

    Args:
        history_a, history_b: The traces, which must differ in nothing but sizes and numbers. The program takes its
            tensors from the first.

    Raises:
        InputError: the traces differ in structure, or an integer does not follow from the sizes of the inputs.
    """
    for given in (history_a, history_b):
        if not isinstance(getattr(given, "graph", None), Graph):
            hint = "give lens.generalize(lens.trace(model, x), lens.trace(model, larger_x))"
            raise InputError(f"this is no history but a {type(given).__name__}", where="lens.generalize", hint=hint)
    first, second = history_a.graph, history_b.graph
    _compare_leaves(first, second)
    sizes = find_sizes(*([kind.shape for kind in input_types(graph)] for graph in (first, second)))
    for a, b in zip(first.ops, second.ops, strict=False):
        _compare_ops(a, b)
    if len(first.ops) != len(second.ops):
        shorter = min(first.ops, second.ops, key=len)
        raise InputError(
            f"the number of operations depends on the sizes: {len(first.ops)} and {len(second.ops)}",
            where=str(shorter[-1].location or "") if shorter else "",
            hint="a loop over a dimension cannot be generalized; other dimensions can",
        )
    unclear: list[str] = []
    ops, integers = [], {}
    for a, b in zip(first.ops, second.ops, strict=True):
        aligner = _Aligner(len(a.operands), sizes, [], f"{a.function} at {a.location}", unclear)
        args = tuple(aligner.align(x, y) for x, y in zip(a.args, b.args, strict=True))
        kwargs = tuple((name, aligner.align(x, y)) for (name, x), (_, y) in zip(a.kwargs, b.kwargs, strict=True))
        ops.append(evolve(a, args=args, kwargs=kwargs))
        if aligner.forms:
            integers[int(a.id)] = tuple(aligner.forms)
    if unclear:
        raise InputError(
            "numbers differ between the traces and do not follow from the sizes of the inputs:\n    "
            + "\n    ".join(unclear[:_SHOWN]),
            where=f"{len(unclear)} in all",
            hint="trace with the same inputs except for the sizes, at sizes of which none is a multiple of another",
        )
    reads = _common_reads(first, second)
    _compare_returned(first, second)
    trace = evolve(first, ops=tuple(ops), reads=reads)
    return Generalized(sizes, integers, trace, second, history_a)


def _compare_returned(first: Graph, second: Graph) -> None:
    def returned(graph: Graph) -> tuple[Any, ...]:
        # opaque objects as their types
        return graph.outputs.values, map_nodes(graph.outputs.form, lambda n: n.type if isinstance(n, Opaque) else None)

    if returned(first) != returned(second):
        raise InputError(
            "the traces differ in what they return: another tensor, or a number that depends on the sizes",
            where=f"{first.meta.model} and {second.meta.model}",
            hint="return tensors, whose sizes tell the rest; or trace at sizes at which the model takes the same way",
        )


def _compare_leaves(first: Graph, second: Graph) -> None:
    def kinds(graph: Graph) -> list[tuple[Any, ...]]:
        return [(leaf.kind, leaf.addresses, len(graph.values[leaf.value].type.shape)) for leaf in graph.leaves]

    if kinds(first) != kinds(second) or first.inputs != second.inputs:
        raise InputError(
            "the traces differ in the arguments of the model, or in the tensors that it used",
            where=f"{first.meta.model} and {second.meta.model}",
            hint="trace the same model twice, with arguments that differ in nothing but the sizes of tensors",
        )
    for a, b in zip(first.leaves, second.leaves, strict=True):
        if a.kind != "input" and first.values[a.value].type != second.values[b.value].type:
            raise InputError(
                f"a tensor that came from outside has another type: {first.values[a.value].type} and "
                f"{second.values[b.value].type}",
                where=str(a.location or " ".join(a.addresses)),
                hint="make it with operations of torch, from the sizes of the inputs",
            )


def _compare_ops(a: Op, b: Op) -> None:
    if (a.function, a.operands, a.results, a.effects, a.form) != (b.function, b.operands, b.results, b.effects, b.form):
        raise InputError(
            f"the traces differ in structure from operation {a.id} on: {a.function} and {b.function}",
            where=f"{a.location} and {b.location}",
            hint="the model takes another way at another size, or loops over a dimension that differs",
        )
    if len(a.args) != len(b.args) or [name for name, _ in a.kwargs] != [name for name, _ in b.kwargs]:
        raise InputError(
            f"the traces differ in the arguments of {a.function}",
            where=str(a.location),
            hint="trace with inputs that take the same way",
        )


def _common_reads(first: Graph, second: Graph) -> Any:
    """The reads that both traces have, with the same result. Raises InputError if they steer differently."""
    kept = []
    for a, b in zip(first.reads, second.reads, strict=False):
        if a.kind == "bool" and (a.kind, a.result) != (b.kind, b.result):
            raise InputError(
                f"a condition was {a.result} in one trace and {b.result} in the other",
                where=str(a.location),
                hint="trace with inputs that take the same way",
            )
        if (a.kind, a.value, a.result) == (b.kind, b.value, b.result):
            kept.append(a)
    return tuple(kept)


@frozen
class _Aligner:
    """Finds the integers that vary in the arguments of one op."""

    operands: int
    sizes: tuple[Size, ...]
    forms: list[Form]
    where: str
    unclear: list[str]

    def align(self, a: Template, b: Template) -> Template:
        """The template, with a slot after the operands in place of every integer that varies."""
        if a == b and type(a) is type(b):
            return a
        if type(a) is int and type(b) is int:
            form = find_form(a, b, self.sizes)
            if form is not None:
                self.forms.append(form)
                return Slot(self.operands + len(self.forms) - 1)
        elif type(a) is type(b) and len(list(children(a))) == len(list(children(b))):
            parts = tuple(self.align(x, y) for x, y in zip(children(a), children(b), strict=True))
            if isinstance(a, Seq) and isinstance(b, Seq) and a.kind == b.kind:
                return Seq(a.kind, parts)
            if isinstance(a, Slice):
                return Slice(*parts)
            if isinstance(a, Map) and isinstance(b, Map) and a.kind == b.kind:
                return Map(a.kind, tuple(zip(parts[::2], parts[1::2], strict=True)))
        self.unclear.append(f"{a} and {b} in {self.where}")
        return a
