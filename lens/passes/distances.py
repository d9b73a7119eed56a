"""Step two of the paper: how far each operation is from the model's inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from attrs import frozen

from lens.ir.elements import ValueId
from lens.ir.facets import Ancestry, Distances, Facet
from lens.ir.graph import Graph
from lens.passes.protocol import PassContext, PassResult

Range = tuple[int, int] | None


@frozen
class DistancesPass:
    """Minimum and maximum number of ops from any input and to any output; who descends from whom. Linear.

    An op counts itself: one that reads an input is at distance 1, and so is one whose result is an output.
    """

    name: ClassVar[str] = "distances"
    requires: ClassVar[tuple[type[Facet], ...]] = ()
    provides: ClassVar[tuple[type[Facet], ...]] = (Ancestry, Distances)
    preserves: ClassVar[tuple[type[Facet], ...]] = ()

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        behind = _from_input(graph)
        ahead = _to_output(graph)
        ancestry = Ancestry(tuple(r is not None for r in behind), tuple(r is not None for r in ahead))
        distances = Distances(
            tuple(r and r[0] for r in behind),
            tuple(r and r[1] for r in behind),
            tuple(r and r[0] for r in ahead),
            tuple(r and r[1] for r in ahead),
        )
        return PassResult((ancestry, distances))


def _from_input(graph: Graph) -> list[Range]:
    at: dict[ValueId, Range] = dict.fromkeys(graph.inputs.values, (0, 0))
    rows: list[Range] = []
    for op in graph.ops:
        row = _one_further(at.get(value) for value in op.reads)
        rows.append(row)
        at.update(dict.fromkeys(op.writes, row))
    return rows


def _to_output(graph: Graph) -> list[Range]:
    at: dict[ValueId, Range] = dict.fromkeys(graph.outputs.values, (0, 0))
    rows: list[Range] = [None] * len(graph.ops)
    for op in reversed(graph.ops):
        row = _one_further(at.get(value) for value in op.writes)
        rows[op.id] = row
        if row is not None:
            for value in op.reads:
                at[value] = _hull(at.get(value), row)
    return rows


def _one_further(ranges: Iterable[Range]) -> Range:
    total: Range = None
    for item in ranges:
        if item is not None:
            total = _hull(total, item)
    return None if total is None else (total[0] + 1, total[1] + 1)


def _hull(a: Range, b: tuple[int, int]) -> tuple[int, int]:
    return b if a is None else (min(a[0], b[0]), max(a[1], b[1]))
