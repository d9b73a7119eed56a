"""The verifier: the structural rules of a graph, as a table. Linear in the size of the graph."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from attrs import frozen

from lens.errors import GraphError
from lens.ir.elements import OpId, ValueId
from lens.ir.facets import Facet
from lens.ir.graph import Graph
from lens.ir.printer import print_window
from lens.ir.templates import Map, Seq, Slice, Slot, Template, slots

#: How many problems an error lists, and how much of what a facet says.
_SHOWN, _WIDTH = 5, 200


@frozen
class Problem:
    """A broken rule: which, at which op (None: the graph as a whole), and how."""

    rule: str
    op: OpId | None
    what: str


def verify(graph: Graph) -> None:
    """Check every rule. Raises GraphError with the first problems and the lines around the first op concerned."""
    problems = find_problems(graph)
    if problems:
        listed = "; ".join(f"[{p.rule}] {p.what}" for p in problems[:_SHOWN])
        raise GraphError(
            f"the graph breaks {len(problems)} structural rule(s): {listed}{_more(problems)}",
            where=_place(graph, problems),
            hint="mend the pass or backend that made this graph",
        )


def verify_facets(graph: Graph, facets: Iterable[Facet]) -> None:
    """Check facets of a graph. Raises GraphError with what contradicts it and the lines around the first op named."""
    problems = _contradictions(graph, facets)
    if problems:
        raise GraphError(
            f"{'; '.join(p.what for p in problems[:_SHOWN])}{_more(problems)}",
            where=_place(graph, problems),
        )


def _more(problems: Sequence[Problem]) -> str:
    return f" (and {len(problems) - _SHOWN} more)" if len(problems) > _SHOWN else ""


def _place(graph: Graph, problems: Sequence[Problem]) -> str:
    first = next((p.op for p in problems if p.op is not None), None)
    return f"graph of {graph.meta.model}" + ("" if first is None else "\n" + print_window(graph, first))


def find_problems(graph: Graph) -> list[Problem]:
    """All broken rules; empty for a sound graph."""
    problems: list[Problem] = []
    for rule, check in _RULES.items():
        problems += [Problem(rule, op, what) for op, what in check(graph)]
        if problems and rule == "references":
            return problems
    if not problems:
        problems = _contradictions(graph, graph.facets)
    return problems


def _contradictions(graph: Graph, facets: Iterable[Facet]) -> list[Problem]:
    found = (str(what)[:_WIDTH] for facet in facets for what in facet.verify(graph))
    return [Problem("facet", _op_named(what, graph), what) for what in found]


def _op_named(what: str, graph: Graph) -> OpId | None:
    """The op of which a complaint of a facet tells: those begin with it."""
    named = re.match(r"op ([0-9]{1,18})\b", what)
    return OpId(int(named[1])) if named and int(named[1]) < len(graph.ops) else None


Finding = tuple[OpId | None, str]


def _ids_are_positions(graph: Graph) -> Iterator[Finding]:
    for name in ("ops", "values", "scopes", "leaves"):
        for place, item in enumerate(getattr(graph, name)):
            if item.id != place:
                yield None, f"{name}[{place}] has the id {item.id}"
                break


def _references_exist(graph: Graph) -> Iterator[Finding]:
    values, scopes = range(len(graph.values)), range(len(graph.scopes))
    for op in graph.ops:
        named = (*op.operands, *op.writes, *(old for old, _ in op.effects), *op.yields)
        if any(v is not None and v not in values for v in named):
            yield op.id, f"op {op.id} names a value that does not exist"
        if op.scope is not None and op.scope not in scopes:
            yield op.id, f"op {op.id} names scope {op.scope}, which does not exist"
    ops, leaves = range(len(graph.ops)), range(len(graph.leaves))
    for value in graph.values:
        pairs = ((value.producer, ops), (value.alias_of, values), (value.leaf, leaves))
        if any(number is not None and number not in there for number, there in pairs):
            yield None, f"%{value.id} names a producer, leaf or alias that does not exist"
    for leaf in graph.leaves:
        if leaf.value not in values:
            yield None, f"leaf {leaf.id} names a value that does not exist"
    around = [*(scope.parent for scope in graph.scopes), *(read.scope for read in graph.reads)]
    if any(scope is not None and scope not in scopes for scope in around):
        yield None, "a scope or read names a scope that does not exist"
    rest = [*graph.inputs.values, *graph.outputs.values, *(read.value for read in graph.reads)]
    rest += [v for scope in graph.scopes for v in (*scope.inputs, *scope.outputs)]
    if any(v not in values for v in rest):
        yield None, "an input, output, read or scope names a value that does not exist"


def _one_producer(graph: Graph) -> Iterator[Finding]:
    made: dict[ValueId, str] = {}
    for leaf in graph.leaves:
        if made.setdefault(leaf.value, f"leaf {leaf.id}") != f"leaf {leaf.id}":
            yield None, f"%{leaf.value} is both {made[leaf.value]} and leaf {leaf.id}"
        elif graph.values[leaf.value].leaf != leaf.id:
            yield None, f"%{leaf.value} does not know that it is leaf {leaf.id}"
    for op in graph.ops:
        for index, value in enumerate(op.writes):
            if value in made:
                yield op.id, f"%{value} is made by {made[value]} and by op {op.id}"
            made[value] = f"op {op.id}"
            record = graph.values[value]
            if (record.producer, record.index) != (op.id, index):
                yield op.id, f"%{value} does not know that op {op.id} made it"
    for missing in set(range(len(graph.values))) - set(made):
        yield None, f"%{missing} is made by nothing"


def _defined_before_use(graph: Graph) -> Iterator[Finding]:
    for op in graph.ops:
        for value in op.reads:
            producer = graph.values[value].producer
            if producer is not None and producer >= op.id:
                yield op.id, f"op {op.id} reads %{value}, which op {producer} makes later"


def _slots_fit(graph: Graph) -> Iterator[Finding]:
    for op in graph.ops:
        if _slot_numbers(*op.args, *(arg for _, arg in op.kwargs)) != list(range(len(op.operands))):
            yield op.id, f"op {op.id}: the slots of its arguments are not its operands in order"
        if any(not 0 <= slot < len(op.results) for slot in slots(op.form)):
            yield op.id, f"op {op.id} returns a slot that it has no result for"
    for name, bundle in (("inputs", graph.inputs), ("outputs", graph.outputs)):
        if _slot_numbers(bundle.form) != list(range(len(bundle.values))):
            yield None, f"the slots of the {name} are not their values in order"
    for number, read in enumerate(graph.reads):
        if _slot_numbers(read.result):
            yield None, f"what read {number} gave has a slot for a tensor"


def _slot_numbers(*templates: Template) -> list[int]:
    numbers: list[int] = []
    for template in templates:
        if isinstance(template, Slot):
            numbers.append(template.index)
        elif isinstance(template, (Seq, Map, Slice)):
            numbers.extend(slots(template))
    return numbers


def _scopes_nest(graph: Graph) -> Iterator[Finding]:
    for scope in graph.scopes:
        if not 0 <= scope.start <= scope.stop <= len(graph.ops):
            yield None, f"scope {scope.id} spans ops {scope.start} to {scope.stop}"
        if scope.parent is None:
            continue
        if scope.parent >= scope.id:
            yield None, f"scope {scope.id} is inside scope {scope.parent}, which begins later"
            continue
        outer = graph.scopes[scope.parent]
        if scope.start < outer.start or scope.stop > outer.stop:
            yield None, f"scope {scope.id} reaches out of scope {outer.id}"
    for op in graph.ops:
        if op.scope is not None:
            scope = graph.scopes[op.scope]
            if not scope.start <= op.id < scope.stop:
                yield op.id, f"op {op.id} is outside its scope {op.scope}"


def _composites_nest(graph: Graph) -> Iterator[Finding]:
    open_until: list[int] = []
    for op in reversed(graph.ops):
        while open_until and op.id < open_until[-1]:
            open_until.pop()
        if op.interior:
            start = op.id - op.interior
            if start < 0 or (open_until and start < open_until[-1]):
                yield op.id, f"the interior of op {op.id} reaches out of the one around it"
            open_until.append(start)
        if op.yields and len(op.yields) != len(op.results):
            yield op.id, f"op {op.id} has {len(op.results)} results and {len(op.yields)} yields"


def _aliases_end(graph: Graph) -> Iterator[Finding]:
    walked: dict[ValueId, ValueId] = {}
    for value in graph.values:
        current: ValueId | None = value.id
        while current is not None and current not in walked:
            walked[current] = value.id
            current = graph.values[current].alias_of
        if current is not None and walked[current] == value.id:
            yield value.producer, f"%{value.id} is an alias of itself, by way of %{current}"


def _aliases_are_older(graph: Graph) -> Iterator[Finding]:
    for value in graph.values:
        if value.alias_of is None:
            continue
        source = graph.values[value.alias_of].producer
        if source is not None and value.producer is not None and source > value.producer:
            yield value.producer, f"%{value.id} is an alias of %{value.alias_of}, which is newer"


def _reads_are_placed(graph: Graph) -> Iterator[Finding]:
    for read in graph.reads:
        producer = graph.values[read.value].producer
        if producer is not None and producer >= read.position:
            yield producer, f"%{read.value} is read before op {producer} makes it"


#: Rule name -> check. The first two make sure that the others can follow ids without crashing.
_RULES: dict[str, Callable[[Graph], Iterator[Finding]]] = {
    "ids": _ids_are_positions,
    "references": _references_exist,
    "producer": _one_producer,
    "order": _defined_before_use,
    "slots": _slots_fit,
    "scopes": _scopes_nest,
    "composites": _composites_nest,
    "aliases": _aliases_are_older,
    "alias circle": _aliases_end,
    "reads": _reads_are_placed,
}
