"""The text form of a graph: one op per line, scopes and composites as braces.

``lens.ir.parser.parse`` reads it back; ``parse(print_graph(graph)) == graph``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from lens.ir.codec import CONVERTER, dump_facet
from lens.ir.elements import Bundle, Leaf, Location, Op, OpId, Read, Scope, ScopeId, ValueId
from lens.ir.facets import Labels
from lens.ir.graph import Graph
from lens.ir.templates import Map, Opaque, Seq, Slice, Slot, Symbol, Template, default_form

#: The flags of a function, in the order in which they are printed.
FN_FLAGS = ("mutates", "random", "view", "composite", "opaque")


def print_graph(
    graph: Graph,
    *,
    locations: bool = True,
    times: bool = True,
    meta: bool = True,
    facets: bool = True,
) -> str:
    """The text of a graph. Linear in its size.

    Args:
        graph: The graph.
        locations, times, meta, facets: Whether to print these; with all of them the text is complete.
    """
    return _Printer(graph, locations, times, meta, facets).run()


def print_window(graph: Graph, op: OpId) -> str:
    """The lines of an op and of the three before and after it, the op marked; for error messages."""
    printer = _Printer(graph, True, False, False, False)
    rows = range(max(0, op - 3), min(len(graph.ops), op + 4))
    return "\n".join(f"{'>' if i == op else ' '} {i}: {printer.op(graph.ops[i])}" for i in rows)


class _Printer:
    def __init__(self, graph: Graph, locations: bool, times: bool, meta: bool, facets: bool) -> None:
        self.graph = graph
        self.locations = locations
        self.times = times
        self.meta = meta
        self.facets = facets
        self.lines: list[str] = []
        self.open: list[tuple[Literal["scope", "composite"], int]] = []
        self.next_scope = 0
        self.names = value_names(graph)
        labels = graph.get(Labels)
        self.labels = labels.results if labels else ()

    def run(self) -> str:
        graph = self.graph
        self.lines.append("graph {")
        if self.meta:
            self.line("meta " + json.dumps(CONVERTER.unstructure(graph.meta)))
        for fn in sorted({op.function for op in graph.ops}, key=str):
            flags = [flag for flag in FN_FLAGS if getattr(fn, flag)]
            if flags:
                self.line(f"fn {fn}: {' '.join(flags)}")
        for leaf in graph.leaves:
            self.line(self.leaf(leaf))
        self.line("inputs " + self.bundle(graph.inputs))
        self.body()
        self.line("outputs " + self.bundle(graph.outputs))
        if self.facets:
            for facet in graph.facets:
                name, data = dump_facet(facet)
                self.line(f"facet {name} {json.dumps(data)}")
        self.lines.append("}\n")
        return "\n".join(self.lines)

    def line(self, text: str) -> None:
        self.lines.append("  " * (1 + len(self.open)) + text)

    def body(self) -> None:
        begins: dict[int, list[Op]] = {}
        for op in reversed(self.graph.ops):
            if op.interior:
                begins.setdefault(op.id - op.interior, []).append(op)
        reads: dict[int, list[Read]] = {}
        for read in self.graph.reads:
            reads.setdefault(read.position, []).append(read)
        for op in self.graph.ops:
            for composite in begins.get(op.id, ()):
                self.reads_before(composite, reads.get(op.id, []))
                self.enter_empty(op.id, reads.get(op.id, ()))
                self.enter(composite.scope)
                self.line("{")
                self.open.append(("composite", composite.id))
            self.reads(reads.get(op.id, ()))
            self.enter_up_to(op.id)
            self.enter(op.scope)
            self.op_line(op)
        self.reads(reads.get(len(self.graph.ops), ()))
        self.enter_up_to(len(self.graph.ops))
        self.enter(None)

    def reads_before(self, composite: Op, reads: list[Read]) -> None:
        """Print those reads, up to the last that cannot be inside a composite."""
        inside = [self.may_be_inside(read, composite) for read in reads]
        if not all(inside):
            count = len(inside) - inside[::-1].index(False)
            self.reads(reads[:count])
            del reads[:count]

    def may_be_inside(self, read: Read, composite: Op) -> bool:
        """Whether a read is in the composite's scope, or in one that was entered after the composite began."""
        outer = [scope.id for scope in self.graph.scope_chain(composite.scope)]
        chain = self.graph.scope_chain(read.scope)
        begin = composite.id - composite.interior
        same = [scope.id for scope in chain[: len(outer)]] == outer
        return same and all(scope.start >= begin for scope in chain[len(outer) :])

    def reads(self, reads: Iterable[Read]) -> None:
        for read in reads:
            self.enter(read.scope)
            result = self.template(read.result, ())
            self.line(f"read {read.kind} {self.name(read.value)} = {result}{self.at(read.location)}")

    def op_line(self, op: Op) -> None:
        text = self.op(op)
        if op.interior:
            self.open.pop()
            text = "} " + text
        if self.labels and self.labels[op.id]:
            text += "  // " + ", ".join(self.labels[op.id])
        self.line(text)

    def enter_up_to(self, position: int) -> None:
        """Open every scope that begins before the op at this position."""
        while self.next_scope < len(self.graph.scopes):
            scope = self.graph.scopes[self.next_scope]
            if scope.start > position:
                return
            self.enter(scope.id)

    def enter_empty(self, position: int, reads: Iterable[Read]) -> None:
        """Open the scopes that come next and hold nothing: they stand before a composite that begins here."""
        used = {scope.id for read in reads for scope in self.graph.scope_chain(read.scope)}
        while self.next_scope < len(self.graph.scopes):
            scope = self.graph.scopes[self.next_scope]
            if scope.start != position or scope.stop != position or scope.id in used:
                return
            self.enter(scope.id)

    def enter(self, scope: ScopeId | None) -> None:
        """Close and open scopes until this one is the innermost, earlier unopened ones first."""
        if self.open and self.open[-1] == ("scope", scope):
            return
        while scope is not None and self.next_scope <= scope:
            new = self.graph.scopes[self.next_scope]
            self.enter(new.parent)
            self.line(self.scope_head(new))
            self.open.append(("scope", new.id))
            self.next_scope += 1
        chain = {s.id for s in self.graph.scope_chain(scope)}
        while self.open and self.open[-1][0] == "scope" and self.open[-1][1] not in chain:
            self.close(self.graph.scopes[self.open[-1][1]])

    def close(self, scope: Scope) -> None:
        """Close the innermost scope, after the empty ones inside it that are still to come."""
        while self.next_scope < len(self.graph.scopes):
            following = self.graph.scopes[self.next_scope]
            if all(outer.id != scope.id for outer in self.graph.scope_chain(following.id)):
                break
            self.enter(following.id)
        if self.open[-1] == ("scope", scope.id):
            self.open.pop()
            self.line("}" + (f" -> {self.value_list(scope.outputs)}" if scope.outputs else ""))

    def scope_head(self, scope: Scope) -> str:
        address = json.dumps(scope.address)
        aliases = "".join(f" aka {json.dumps(a)}" for a in scope.aliases)
        mode = " train" if scope.training else ""
        inputs = f" {self.value_list(scope.inputs)}"
        at = self.at(scope.location)
        return f"scope {address} {json.dumps(scope.cls)} #{scope.call}{aliases}{mode}{inputs}{at} {{"

    def leaf(self, leaf: Leaf) -> str:
        addresses = "".join(f" {json.dumps(a)}" for a in leaf.addresses)
        trainable = " trainable" if leaf.trainable else ""
        declared = self.declaration(leaf.value)
        return f"leaf {declared} = {leaf.kind}{trainable}{addresses}{self.at(leaf.location)}"

    def name(self, value: ValueId) -> str:
        return self.names[value] if value < len(self.names) else f"%{value}"

    def declaration(self, value_id: ValueId) -> str:
        if value_id >= len(self.graph.values):  # a broken graph, shown in an error
            return f"%{value_id}: missing"
        value = self.graph.values[value_id]
        alias = ""
        if value.alias_of is not None:  # a leaf that is declared later has no name yet
            alias = f" ~{self.name(value.alias_of) if value.alias_of < value_id else f'%{value.alias_of}'}"
        grad = "" if value.grad_fn is None else f" ^{value.grad_fn}"
        return f"%{value_id}: {value.type}{alias}{grad}"

    def op(self, op: Op) -> str:
        results = ", ".join(self.declaration(v) for v in op.results)
        arguments = [self.template(arg, op.operands) for arg in op.args]
        arguments += [f"{name}={self.template(arg, op.operands)}" for name, arg in op.kwargs]
        parts = [f"{results} = {op.function}({', '.join(arguments)})".lstrip()]
        if op.form != default_form(len(op.results)):
            parts.append(f"-> {self.template(op.form, op.results)}")
        for old, new in op.effects:
            parts.append(f"writes {self.name(old)} => {self.declaration(new)}")
        if op.yields:
            parts.append(f"yields ({', '.join('_' if v is None else self.name(v) for v in op.yields)})")
        if self.times and op.duration:
            parts.append(f"took {op.duration!r}")
        return " ".join(parts) + self.at(op.location)

    def bundle(self, bundle: Bundle) -> str:
        return self.template(bundle.form, bundle.values)

    def value_list(self, values: Iterable[ValueId]) -> str:
        return f"({', '.join(map(self.name, values))})"

    def at(self, location: Location | None) -> str:
        if location is None or not self.locations:
            return ""
        place = f"{json.dumps(location.file)}:{location.line}"
        if location.end_line:
            place += f":{location.column}-{location.end_line}:{location.end_column}"
        return f" at {place} in {json.dumps(location.function)}"

    def template(self, template: Template, values: Sequence[ValueId]) -> str:
        return print_template(template, [self.name(v) for v in values])


def print_template(template: Template, slots: Sequence[str]) -> str:
    """The text of a template, with these texts in its slots."""
    match template:
        case None | bool() | int() | float():
            return repr(template)
        case complex():
            return f"complex({template.real!r}, {template.imag!r})"
        case str():
            return json.dumps(template)
        case Slot(index):
            return slots[index]
        case Seq(kind, items):
            inner = [print_template(item, slots) for item in items]
            if kind == "list":
                return f"[{', '.join(inner)}]"
            body = f"({inner[0]},)" if len(inner) == 1 else f"({', '.join(inner)})"
            return body if kind == "tuple" else f"seq {json.dumps(kind)} {body}"
        case Map(kind, pairs):
            inner = [f"{print_template(k, slots)}: {print_template(v, slots)}" for k, v in pairs]
            body = "{" + ", ".join(inner) + "}"
            return body if kind == "dict" else f"map {json.dumps(kind)} {body}"
        case Slice(start, stop, step):
            return f"slice({', '.join(print_template(x, slots) for x in (start, stop, step))})"
        case Symbol(kind, name):
            return f"<{kind} {name}>"
        case Opaque(kind, text, index):
            return f"opaque {json.dumps(kind)} {json.dumps(text)} {index}"
    raise TypeError(f"not a template: {type(template).__name__}")


def value_names(graph: Graph) -> list[str]:
    """Per value its name in the text: ``@address`` for leaves whose address is unique, else ``%id``."""
    names = [f"%{value.id}" for value in graph.values]
    counts = Counter(leaf.addresses[0] for leaf in graph.leaves if leaf.addresses)
    for leaf in graph.leaves:
        if leaf.addresses and counts[leaf.addresses[0]] == 1:
            names[leaf.value] = "@" + print_address(leaf.addresses[0])
    return names


def print_address(address: str) -> str:
    """An address as it stands after ``@``: bare if it is made of words and dots, else quoted."""
    bare = address.isascii() and address.replace(".", "_").isidentifier()
    return address if bare else json.dumps(address)
