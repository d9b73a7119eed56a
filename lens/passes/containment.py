"""Step four of the paper: the module that every operation and leaf belongs to."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from lens.ir.elements import OpId, ScopeId
from lens.ir.facets import Containment, Facet
from lens.ir.graph import Graph
from lens.passes.protocol import PassContext, PassResult


@frozen
class ContainmentPass:
    """Module containment: recorded scopes are facts; what has none gets that of its consumers. Linear.

    Backends record the live module stack, so this concerns leaves, ops outside any scope, and all ops of a backend
    that sees no scopes. The scope travels backwards from consumer to producer (paper, step four); where the stack was
    seen, only to what was not computed from an input: that the rest ran outside is a fact, too.
    """

    name: ClassVar[str] = "containment"
    requires: ClassVar[tuple[type[Facet], ...]] = ()
    provides: ClassVar[tuple[type[Facet], ...]] = (Containment,)
    preserves: ClassVar[tuple[type[Facet], ...]] = ()

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        wanted: list[ScopeId | None] = [None] * len(graph.values)
        ops: list[ScopeId | None] = [None] * len(graph.ops)
        outside = _seen_outside(graph)
        for op in reversed(graph.ops):
            scope = op.scope
            if scope is None and op.id not in outside:
                scope = next((wanted[v] for v in op.writes if wanted[v] is not None), None)
            ops[op.id] = scope
            if scope is not None:
                for value in op.reads:  # in reverse order, so that the first consumer has the last word
                    wanted[value] = scope
        leaves = tuple([wanted[leaf.value] for leaf in graph.leaves])
        return PassResult((Containment(tuple(ops), leaves),))


def _seen_outside(graph: Graph) -> set[OpId]:
    """The ops computed from an input that a backend which sees module calls saw outside of all of them."""
    if "scopes" not in graph.meta.capabilities or all(op.scope is not None for op in graph.ops):
        return set()
    from_input = set(graph.inputs.values)
    outside = set()
    for op in graph.ops:
        if not from_input.isdisjoint(op.reads):
            from_input.update(op.writes)
            if op.scope is None:
                outside.add(op.id)
    return outside
