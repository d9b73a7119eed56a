"""Granularity: at which level of composite functions the graph stands."""

from __future__ import annotations

from typing import ClassVar

from attrs import evolve, field, frozen, validators

from lens.ir.elements import Op, OpId, Scope, ValueId
from lens.ir.facets import Facet, Granularity
from lens.ir.graph import Graph
from lens.ir.rewrite import has_unread_leaves, keep_ops
from lens.passes.protocol import PassContext, PassResult


@frozen
class GranularityPass:
    """Choose between composites and the operations inside them.

    Args:
        level: ``leaf`` dissolves every composite whose results its interior is seen to make; ``api`` keeps the
            outermost composites, as the user wrote them, and drops their interior.

    A composite that returns something its interior was not seen to make stays, whatever the level, and its interior
    goes: it is opaque. Linear.
    """

    name: ClassVar[str] = "granularity"
    requires: ClassVar[tuple[type[Facet], ...]] = ()
    provides: ClassVar[tuple[type[Facet], ...]] = (Granularity,)
    preserves: ClassVar[tuple[type[Facet], ...]] = ()
    level: str = field(default="leaf", validator=validators.in_(("leaf", "api")))

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        if not any(op.interior for op in graph.ops):
            changed = keep_ops(graph, graph.ops) if has_unread_leaves(graph) else None
            return PassResult((Granularity(self.level),), changed)
        dissolved, closed = self._sort_composites(graph)
        inside = _interiors(closed)
        kept, substitute = [], {}
        escaping = _escaping_values(graph, closed)
        for op in graph.ops:
            if op.id in inside:
                continue
            if op.id in dissolved:
                substitute.update({new: old for new, old in zip(op.results, op.yields, strict=True) if old is not None})
            else:
                kept.append(_close(graph, op, escaping) if op.interior else op)
        changed = keep_ops(
            graph,
            kept,
            substitute,
            drop_scope=lambda scope: _runs_in(scope, inside),
        )
        return PassResult((Granularity(self.level),), changed)

    def _sort_composites(self, graph: Graph) -> tuple[set[OpId], list[Op]]:
        """The composites to dissolve, and the outermost ones to close."""
        dissolved: set[OpId] = set()
        closed: list[Op] = []
        closed_from = len(graph.ops)
        for op in reversed(graph.ops):
            if not op.interior or op.id >= closed_from:
                continue
            if self.level == "leaf" and op.hands_on:
                dissolved.add(op.id)
            else:
                closed.append(op)
                closed_from = op.id - op.interior
        return dissolved, closed


def _runs_in(scope: Scope, interiors: set[int]) -> bool:
    """Whether a module call was made by what ran inside; one without ops stands before the op that came next.

    Of such a one before the first op of an interior nobody knows whether it was; it goes if its parent does.
    """
    return scope.stop - 1 in interiors and (scope.start in interiors or scope.start == scope.stop)


def _interiors(composites: list[Op]) -> set[int]:
    return {i for op in composites for i in range(op.id - op.interior, op.id)}


def _escaping_values(graph: Graph, closed: list[Op]) -> dict[OpId, list[ValueId]]:
    """Per closed composite, the values of its interior that something outside depends on."""
    owner = {i: op for op in closed for i in range(op.id - op.interior, op.id)}
    escaping: dict[OpId, list[ValueId]] = {}

    def note(value: ValueId, reader: int) -> None:
        producer = graph.values[value].producer
        composite = owner.get(producer) if producer is not None else None
        if composite is None or composite.id - composite.interior <= reader <= composite.id:
            return
        found = escaping.setdefault(composite.id, [])
        if value not in found:
            found.append(value)

    for op in graph.ops:
        for value in op.reads:
            note(value, op.id)
        for yielded in op.yields:
            if yielded is not None:
                note(yielded, op.id)
    for value in graph.outputs.values:
        note(value, len(graph.ops))
    for read in graph.reads:
        note(read.value, len(graph.ops))
    return escaping


def _close(graph: Graph, op: Op, escaping: dict[OpId, list[ValueId]]) -> Op:
    """A composite as an operation of its own: what escapes from its interior is a result, or an effect, of it."""
    results, effects = list(op.results), list(op.effects)
    for value in escaping.get(op.id, ()):
        old = _overwritten(graph, op, value)
        if old is None:
            results.append(value)
        else:
            effects.append((old, value))
    return evolve(op, results=tuple(results), effects=tuple(effects), interior=0, yields=())


def _overwritten(graph: Graph, composite: Op, value: ValueId) -> ValueId | None:
    """The value from outside a composite of which a value is what its interior has written over it, if so."""
    current: ValueId | None = value
    while current is not None:
        producer = graph.values[current].producer
        if producer is None or producer < composite.id - composite.interior:
            return current
        op = graph.ops[producer]
        if current in op.results and not op.function.mutates and all(name != "out" for name, _ in op.kwargs):
            return None  # a view, or a tensor of its own
        alias = graph.values[current].alias_of
        current = next((old for old, new in op.effects if new == current), alias)
    return None
