"""Step two of the paper: how far each operation is from the model's inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import ClassVar, TypeAlias

from attrs import frozen

from lens.ir.elements import Op, ValueId
from lens.ir.facets import Ancestry, Distances, Facet
from lens.ir.graph import Graph
from lens.passes.protocol import PassContext, PassResult

Column: TypeAlias = "tuple[int | None, ...]"


@frozen
class DistancesPass:
    """Minimum and maximum number of ops from any input and to any output; who descends from whom. Linear.

    An op counts itself: one that reads an input is at distance 1, and so is one whose result is an output. Ways go
    from parent to child; over the memory that an op writes to only where there is no other way.
    """

    name: ClassVar[str] = "distances"
    requires: ClassVar[tuple[type[Facet], ...]] = ()
    provides: ClassVar[tuple[type[Facet], ...]] = (Ancestry, Distances)
    preserves: ClassVar[tuple[type[Facet], ...]] = ()

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        behind = _over_parents(graph, graph.inputs.values, backwards=False)
        ahead = _over_parents(graph, graph.outputs.values, backwards=True)
        reached = (tuple([low is not None for low in lows]) for lows, _ in (behind, ahead))
        return PassResult((Ancestry(*reached), Distances(*behind, *ahead)))


def _over_parents(graph: Graph, ends: Iterable[ValueId], *, backwards: bool) -> tuple[Column, Column]:
    """Per op, the least and the greatest distance from these values by ways over parents, else by any."""
    lows, highs = _ranges(graph, ends, attrgetter("reads"), backwards=backwards)
    if not any(map(attrgetter("effects"), graph.ops)):
        return lows, highs
    near, far = _ranges(graph, ends, attrgetter("sources"), backwards=backwards)
    return _first_known(near, lows), _first_known(far, highs)


def _first_known(column: Column, other: Column) -> Column:
    return tuple([b if a is None else a for a, b in zip(column, other, strict=True)])


def _ranges(
    graph: Graph, ends: Iterable[ValueId], read_by: Callable[[Op], tuple[ValueId, ...]], *, backwards: bool
) -> tuple[Column, Column]:
    """Per op, the least and the greatest distance from these values by ways over what ops read.

    Distances of values stand in lists, without a pair for each: 1.9 us per op instead of 4.6.
    """
    near: list[int | None] = [None] * len(graph.values)
    far = [0] * len(graph.values)
    for value in ends:
        near[value] = 0
    lows: list[int | None] = [None] * len(graph.ops)
    highs: list[int | None] = [None] * len(graph.ops)
    for op in reversed(graph.ops) if backwards else graph.ops:
        sources, targets = (op.writes, read_by(op)) if backwards else (read_by(op), op.writes)
        low, high = None, 0
        for value in sources:
            least = near[value]
            if least is not None:
                low = least if low is None or least < low else low
                high = far[value] if far[value] > high else high
        if low is None:
            continue
        low, high = low + 1, high + 1
        lows[op.id], highs[op.id] = low, high
        for value in targets:
            least = near[value]
            near[value] = low if least is None or low < least else least
            far[value] = high if high > far[value] else far[value]
    return tuple(lows), tuple(highs)
