"""Step four of the paper: the module that every operation and leaf belongs to."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from lens.ir.elements import ScopeId
from lens.ir.facets import Containment, Facet
from lens.ir.graph import Graph
from lens.passes.protocol import PassContext, PassResult


@frozen
class ContainmentPass:
    """Module containment: recorded scopes are facts; what has none gets that of its consumers. Linear.

    Backends record the live module stack, so this concerns leaves, ops outside any scope, and all ops of a backend
    that sees no scopes. The scope travels backwards from consumer to producer (paper, step four).
    """

    name: ClassVar[str] = "containment"
    requires: ClassVar[tuple[type[Facet], ...]] = ()
    provides: ClassVar[tuple[type[Facet], ...]] = (Containment,)
    preserves: ClassVar[tuple[type[Facet], ...]] = ()

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        wanted: list[ScopeId | None] = [None] * len(graph.values)
        ops: list[ScopeId | None] = [None] * len(graph.ops)
        for op in reversed(graph.ops):
            scope = op.scope
            if scope is None:
                scope = next((wanted[v] for v in op.writes if wanted[v] is not None), None)
            ops[op.id] = scope
            if scope is not None:
                for value in op.reads:  # in reverse order, so that the first consumer has the last word
                    wanted[value] = scope
        leaves = tuple([wanted[leaf.value] for leaf in graph.leaves])
        return PassResult((Containment(tuple(ops), leaves),))
