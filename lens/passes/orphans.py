"""Step one of the paper: operations that have nothing to do with the model's work are trimmed."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from lens.ir.elements import OpId
from lens.ir.facets import Ancestry, Distances, Facet, Granularity, OrphanOp, Orphans
from lens.ir.graph import Graph
from lens.ir.rewrite import keep_ops
from lens.passes.protocol import PassContext, PassResult


@frozen
class OrphansPass:
    """Prune every op without an input ancestor, an output descendant, or a read that it leads to (paper, step one).

    What an op that stays reads stays too: no operand dangles.
    So BatchNorm's batch counter goes, and labels are the same in train and eval mode. What went is in the
    ``Orphans`` facet. Linear.
    """

    name: ClassVar[str] = "orphans"
    requires: ClassVar[tuple[type[Facet], ...]] = ()
    provides: ClassVar[tuple[type[Facet], ...]] = (Orphans,)
    preserves: ClassVar[tuple[type[Facet], ...]] = (Granularity, Ancestry, Distances)

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        descend = _from_input(graph)
        if len(descend) == len(graph.ops):
            return PassResult((Orphans(()),))
        useful = _ancestors_of(graph, descend)
        useful |= _interiors_of(graph, useful)
        kept = [op for op in graph.ops if op.id in useful]
        orphans = tuple(
            OrphanOp(
                op.id,
                str(op.function),
                "" if op.scope is None else graph.scopes[op.scope].address,
                op.location,
            )
            for op in graph.ops
            if op.id not in useful
        )
        changed = keep_ops(graph, kept) if orphans else None
        return PassResult((Orphans(orphans),), changed)


def _from_input(graph: Graph) -> set[OpId]:
    reached = bytearray(len(graph.values))
    for value in graph.inputs.values:
        reached[value] = True
    ops = set()
    for op in graph.ops:
        for value in op.reads:
            if reached[value]:
                ops.add(op.id)
                for made in op.writes:
                    reached[made] = True
                break
    return ops


def _ancestors_of(graph: Graph, ops: set[OpId]) -> set[OpId]:
    """These ops, and all that an output, a read or one of them descends from."""
    needed = set(graph.outputs.values) | {read.value for read in graph.reads}
    found = set()
    for op in reversed(graph.ops):
        if op.id in ops or any(value in needed for value in op.writes):
            found.add(op.id)
            needed.update(op.reads)
            needed.update(value for value in op.yields if value is not None)
    return found


def _interiors_of(graph: Graph, useful: set[OpId]) -> set[OpId]:
    """The interiors of useful composites, and the composites around useful ops: a composite stays whole."""
    whole: set[OpId] = set()
    for op in graph.ops:
        if op.interior:
            family = range(op.id - op.interior, op.id + 1)
            if any(i in useful or i in whole for i in family):
                whole.update(OpId(i) for i in family)
    return whole
