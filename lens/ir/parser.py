"""Reads the text form of a graph back: ``parse(print_graph(graph)) == graph``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Literal, TypeVar

from attrs import define, evolve, field

from lens.errors import LensError, TextError
from lens.ir.codec import load_facet, structure
from lens.ir.elements import (
    LEAF_KINDS,
    Bundle,
    FnRef,
    Leaf,
    LeafId,
    Location,
    Meta,
    Op,
    OpId,
    Read,
    Scope,
    ScopeId,
    Value,
    ValueId,
    split_function_name,
)
from lens.ir.facets import Facet
from lens.ir.graph import Graph
from lens.ir.printer import FN_FLAGS, print_address
from lens.ir.quick import quick
from lens.ir.templates import Map, Opaque, Seq, Slice, Slot, Symbol, Template, default_form, map_nodes, one_nan
from lens.ir.tokens import Line
from lens.ir.types import parse_type

T = TypeVar("T")
_op, _value = quick(Op), quick(Value)


def parse(text: str, facets: Iterable[type[Facet]] = ()) -> Graph:
    """The graph that a text describes. Linear in its length.

    Args:
        text: What ``print_graph`` wrote, or the same written by hand; ``//`` begins a comment.
        facets: Facet types beyond the built-in ones.

    Raises:
        TextError: with the line, if the text is not a graph.
    """
    return _Parser(tuple(facets)).run(text)


@define
class _Parser:
    facet_kinds: tuple[type[Facet], ...]
    ops: list[Op] = field(factory=list)
    values: dict[int, Value] = field(factory=dict)
    scopes: list[Scope] = field(factory=list)
    leaves: list[Leaf] = field(factory=list)
    reads: list[Read] = field(factory=list)
    facets: list[Facet] = field(factory=list)
    functions: dict[str, FnRef] = field(factory=dict)
    addresses: dict[str, ValueId] = field(factory=dict)
    #: What is open, innermost last: scopes by their ids, composites by the number of ops before them.
    open: list[tuple[Literal["scope"], ScopeId] | tuple[Literal["composite"], int]] = field(factory=list)
    #: One record per place: most operations of a loop stand on a few lines.
    locations: dict[tuple[str, int, str, int, int, int], Location] = field(factory=dict)
    inputs: Bundle = Bundle()
    outputs: Bundle = Bundle()
    meta: Meta = Meta()
    #: Whether the brace of the graph itself is open.
    inside: bool = False

    def run(self, text: str) -> Graph:
        lines = text.splitlines()
        for number, raw in enumerate(lines, 1):
            stripped = raw.strip()
            if stripped.startswith(("meta ", "facet ")):
                self.json_statement(stripped, number)
                continue
            line = Line(raw, number)
            try:
                self.statement(line)
            except LensError:
                raise
            except (ValueError, TypeError, RecursionError) as error:  # of what a word stands for: too long, too deep
                line.fail(f"this cannot be read: {error}")
        if self.open or self.inside:
            Line("", len(lines)).fail("a brace is not closed")
        return self.graph()

    def graph(self) -> Graph:
        if sorted(self.values) != list(range(len(self.values))):
            raise TextError(
                "the values are not numbered from %0 without gaps",
                where="the whole text",
                hint="declare every value once, as a leaf, a result or the new value of a write",
            )
        return Graph(
            ops=tuple(self.ops),
            values=tuple(self.values[i] for i in range(len(self.values))),
            scopes=tuple(self.scopes),
            leaves=tuple(self.leaves),
            reads=tuple(self.reads),
            inputs=self.inputs,
            outputs=self.outputs,
            meta=self.meta,
            facets=tuple(self.facets),
        )

    # Statements

    def statement(self, line: Line) -> None:
        word = line.peek().text
        if line.peek().kind == "end":
            return
        if word == "graph" and line.peek(1).text == "{":
            self.inside = True
            return
        if word in _STATEMENTS and line.peek().kind in ("name", "mark"):
            line.take()
            _STATEMENTS[word](self, line)
        else:
            self.op(line, interior=0)
        line.end()

    def json_statement(self, text: str, number: int) -> None:
        kind, _, rest = text.partition(" ")
        name, _, body = ("", "", rest) if kind == "meta" else rest.partition(" ")
        try:
            data = json.loads(body)
        except ValueError as error:
            Line(text, number).fail(f"not JSON: {error}")
        if kind == "meta":
            self.meta = structure(data, Meta, f"line {number}")
        else:
            self.facets.append(load_facet(name, data, self.facet_kinds))

    def fn(self, line: Line) -> None:
        name = line.take("name")
        line.take("mark", ":")
        flags = []
        while line.peek().kind == "name":
            flags.append(line.take("name"))
        unknown = set(flags) - set(FN_FLAGS)
        if unknown:
            line.fail(f"unknown flag {unknown.pop()!r}")
        namespace, short = split_function_name(name)
        self.functions[name] = FnRef(namespace, short, **dict.fromkeys(flags, True))

    def leaf(self, line: Line) -> None:
        value = self.declaration(line, None, 0)
        line.take("mark", "=")
        kind = line.take("name")
        if kind not in LEAF_KINDS:
            line.fail(f"unknown kind of leaf {kind!r}")
        trainable = line.accept("trainable")
        addresses = []
        while line.peek().kind == "string":
            addresses.append(line.string())
        leaf = Leaf(
            LeafId(len(self.leaves)),
            kind,
            value,
            tuple(addresses),
            trainable,
            self.at(line),
        )
        self.leaves.append(leaf)
        self.values[value] = evolve(self.values[value], leaf=leaf.id)
        if addresses:
            self.addresses.setdefault("@" + print_address(addresses[0]), value)

    def input_bundle(self, line: Line) -> None:
        self.inputs = self.bundle(line)

    def output_bundle(self, line: Line) -> None:
        self.outputs = self.bundle(line)

    def scope(self, line: Line) -> None:
        address, cls = line.string(), line.string()
        line.take("mark", "#")
        call = line.integer()
        aliases = []
        while line.accept("aka"):
            aliases.append(line.string())
        training = line.accept("train")
        inputs = self.value_list(line)
        location = self.at(line)
        line.take("mark", "{")
        scope = Scope(
            ScopeId(len(self.scopes)),
            address,
            cls,
            call,
            self.current_scope(),
            tuple(aliases),
            training,
            len(self.ops),
            len(self.ops),
            inputs,
            (),
            location,
        )
        self.scopes.append(scope)
        self.open.append(("scope", scope.id))

    def composite(self, line: Line) -> None:
        self.open.append(("composite", len(self.ops)))

    def close(self, line: Line) -> None:
        if not self.open:
            if not self.inside:
                line.fail("nothing is open here")
            self.inside = False
            return
        kind, opened = self.open.pop()
        if kind == "composite":
            self.op(line, interior=len(self.ops) - opened)
        else:
            outputs = self.value_list(line) if line.accept("->") else ()
            self.scopes[opened] = evolve(self.scopes[opened], stop=len(self.ops), outputs=outputs)

    def read(self, line: Line) -> None:
        kind = line.take("name")
        value = self.value(line)
        line.take("mark", "=")
        result = self.template(line, [])
        self.reads.append(Read(value, kind, result, len(self.ops), self.current_scope(), self.at(line)))

    def op(self, line: Line, interior: int) -> None:
        op_id = OpId(len(self.ops))
        results: list[ValueId] = []
        while line.peek().kind == "value":
            results.append(self.declaration(line, op_id, len(results)))
            if not line.accept(","):
                break
        line.take("mark", "=")
        name = line.take("name")
        operands: list[ValueId] = []
        args, kwargs = self.arguments(line, operands)
        form = default_form(len(results))
        if line.accept("->"):
            returned: list[ValueId] = []
            form = self.template(line, returned)
            form = _renumber(form, {i: results.index(v) for i, v in enumerate(returned)})
        effects: list[tuple[ValueId, ValueId]] = []
        while line.accept("writes"):
            old = self.value(line)
            line.take("mark", "=>")
            effects.append((old, self.declaration(line, op_id, len(results) + len(effects))))
        yields = self.listed(line, self.value_or_none) if line.accept("yields") else ()
        duration = float(line.take("number")) if line.accept("took") else 0.0
        self.ops.append(
            _op(
                op_id,
                self.function(name),
                tuple(operands),
                args,
                kwargs,
                tuple(results),
                form,
                tuple(effects),
                self.current_scope(),
                self.at(line),
                duration,
                interior,
                yields,
            )
        )

    # Parts of statements

    def function(self, name: str) -> FnRef:
        if name not in self.functions:
            namespace, short = split_function_name(name)
            self.functions[name] = FnRef(namespace, short)
        return self.functions[name]

    def current_scope(self) -> ScopeId | None:
        return next((ScopeId(opened) for kind, opened in reversed(self.open) if kind == "scope"), None)

    def declaration(self, line: Line, producer: OpId | None, index: int) -> ValueId:
        number = ValueId(int(line.take("value")[1:]))
        if number in self.values:
            line.fail(f"%{number} is declared twice")
        line.take("mark", ":")
        tensor_type = parse_type(line.take("type"))
        alias = self.value(line, declared=False) if line.accept("~") else None
        grad = line.take("name") if line.accept("^") else None
        self.values[number] = _value(number, tensor_type, producer, index, alias, None, grad)
        return number

    def value(self, line: Line, declared: bool = True) -> ValueId:
        token = line.peek()
        if token.kind == "leaf" and token.text in self.addresses:
            line.take()
            return self.addresses[token.text]
        number = ValueId(int(line.take("value")[1:]))
        if declared and number not in self.values:
            line.fail(f"%{number} is used before it is declared")
        return number

    def value_list(self, line: Line) -> tuple[ValueId, ...]:
        return self.listed(line, self.value)

    def value_or_none(self, line: Line) -> ValueId | None:
        return None if line.accept("_") else self.value(line)

    def listed(self, line: Line, one: Callable[[Line], T]) -> tuple[T, ...]:
        """What stands in parentheses, each read by ``one``."""
        found = []
        line.take("mark", "(")
        while not line.accept(")"):
            found.append(one(line))
            line.accept(",")
        return tuple(found)

    def at(self, line: Line) -> Location | None:
        if not line.accept("at"):
            return None
        file = line.string()
        line.take("mark", ":")
        row = line.integer()
        column, end_line, end_column = -1, 0, -1
        if line.accept(":"):
            column = line.integer()
            end_line = -line.integer()
            line.take("mark", ":")
            end_column = line.integer()
        line.take("name", "in")
        key = (file, row, line.string(), end_line, column, end_column)
        found = self.locations.get(key)
        if found is None:
            found = self.locations[key] = Location(*key)
        return found

    def bundle(self, line: Line) -> Bundle:
        values: list[ValueId] = []
        form = self.template(line, values)
        return Bundle(form, tuple(values))

    def arguments(
        self, line: Line, operands: list[ValueId]
    ) -> tuple[tuple[Template, ...], tuple[tuple[str, Template], ...]]:
        args: list[Template] = []
        kwargs: list[tuple[str, Template]] = []
        line.take("mark", "(")
        while not line.accept(")"):
            if line.peek().kind == "name" and line.peek(1).text == "=":
                name = line.take("name")
                line.take("mark", "=")
                kwargs.append((name, self.template(line, operands)))
            else:
                args.append(self.template(line, operands))
            line.accept(",")
        return tuple(args), tuple(kwargs)

    def template(self, line: Line, values: list[ValueId]) -> Template:
        token = line.peek()
        if token.kind in ("value", "leaf"):
            values.append(self.value(line))
            return Slot(len(values) - 1)
        if token.kind == "string":
            return line.string()
        if token.kind == "number":
            return _number(line.take())
        if token.kind == "symbol":
            kind, _, name = line.take()[1:-1].partition(" ")
            return Symbol(kind, name)
        if token.text in ("(", "["):
            kind = "tuple" if token.text == "(" else "list"
            return Seq(kind, self.items(line, values))
        if token.text == "{":
            return Map("dict", self.pairs(line, values))
        return self.named_template(line, values)

    def named_template(self, line: Line, values: list[ValueId]) -> Template:
        word = line.take("name")
        match word:
            case "None" | "True" | "False":
                return {"None": None, "True": True, "False": False}[word]
            case "seq":
                return Seq(line.string(), self.items(line, values))
            case "map":
                return Map(line.string(), self.pairs(line, values))
            case "opaque":
                return Opaque(line.string(), line.string(), line.integer())
            case "slice":
                start, stop, step = self.items(line, values)
                return Slice(start, stop, step)
            case "complex":
                real, imag = self.items(line, values)
                return complex(float(real), float(imag))  # type: ignore[arg-type]
        return line.fail(f"not a value: {word!r}")

    def items(self, line: Line, values: list[ValueId]) -> tuple[Template, ...]:
        closing = {"(": ")", "[": "]"}.get(line.take("mark"), "")
        if not closing:
            line.fail("'(' or '[' expected")
        items = []
        while not line.accept(closing):
            items.append(self.template(line, values))
            line.accept(",")
        return tuple(items)

    def pairs(self, line: Line, values: list[ValueId]) -> tuple[tuple[Template, Template], ...]:
        line.take("mark", "{")
        pairs = []
        while not line.accept("}"):
            key = self.template(line, values)
            line.take("mark", ":")
            pairs.append((key, self.template(line, values)))
            line.accept(",")
        return tuple(pairs)


_STATEMENTS: dict[str, Callable[[_Parser, Line], None]] = {
    "fn": _Parser.fn,
    "leaf": _Parser.leaf,
    "inputs": _Parser.input_bundle,
    "outputs": _Parser.output_bundle,
    "scope": _Parser.scope,
    "read": _Parser.read,
    "{": _Parser.composite,
    "}": _Parser.close,
}


def _number(text: str) -> int | float:
    return int(text) if text.lstrip("-").isdigit() else one_nan(float(text))


def _renumber(form: Template, slots: dict[int, int]) -> Template:
    return map_nodes(form, lambda node: Slot(slots[node.index]) if isinstance(node, Slot) else None)
