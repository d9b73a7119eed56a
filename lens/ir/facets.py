"""Facets: frozen results of analyses, kept beside a graph and keyed by their type.

The types live here and not with the passes that make them, so that a renderer can read a facet without knowing
its pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, TypeVar

from attrs import frozen

from lens.ir.elements import Location, OpId

if TYPE_CHECKING:
    from lens.ir.graph import Graph
    from lens.ir.rewrite import GraphMap

T = TypeVar("T")


class Facet:
    """What every facet has. Subclasses are frozen attrs classes with a class variable ``name``."""

    name: ClassVar[str] = ""

    def verify(self, graph: Graph) -> Iterator[str]:
        """Say what in this facet contradicts the graph; nothing if all is well."""
        return iter(())

    def remap(self, graph_map: GraphMap) -> Facet | None:
        """This facet for a restructured graph, or None if it does not survive."""
        return None


def column(values: Sequence[T], graph_map: GraphMap) -> tuple[T, ...]:
    """A per-op column carried over to the ops that survive a restructuring."""
    return tuple(values[old] for old in graph_map.surviving_ops)


def misaligned(facet: Facet, graph: Graph, **columns: Sequence[object]) -> Iterator[str]:
    """Complain about columns that do not have one row per op."""
    for name, values in columns.items():
        if len(values) != len(graph.ops):
            yield f"{facet.name}.{name} has {len(values)} rows for {len(graph.ops)} ops"


@frozen
class Ancestry(Facet):
    """Per op: does it descend from an input of the model, does an output of the model descend from it."""

    name: ClassVar[str] = "ancestry"
    from_input: tuple[bool, ...]
    to_output: tuple[bool, ...]

    def verify(self, graph: Graph) -> Iterator[str]:
        return misaligned(self, graph, from_input=self.from_input, to_output=self.to_output)

    def remap(self, graph_map: GraphMap) -> Ancestry:
        return Ancestry(column(self.from_input, graph_map), column(self.to_output, graph_map))


@frozen
class Distances(Facet):
    """Per op: minimum and maximum number of ops from any input and to any output, itself counted; None if none."""

    name: ClassVar[str] = "distances"
    min_from_input: tuple[int | None, ...]
    max_from_input: tuple[int | None, ...]
    min_to_output: tuple[int | None, ...]
    max_to_output: tuple[int | None, ...]

    def verify(self, graph: Graph) -> Iterator[str]:
        yield from misaligned(
            self,
            graph,
            min_from_input=self.min_from_input,
            max_from_input=self.max_from_input,
            min_to_output=self.min_to_output,
            max_to_output=self.max_to_output,
        )
        for op, low, high in zip(graph.ops, self.min_from_input, self.max_from_input, strict=False):
            if (low is None) != (high is None) or (low or 0) > (high or 0):
                yield f"op {op.id}: distance from input is {low} to {high}"

    def remap(self, graph_map: GraphMap) -> Distances:
        rows = (self.min_from_input, self.max_from_input, self.min_to_output, self.max_to_output)
        return Distances(*(column(row, graph_map) for row in rows))


@frozen
class Labels(Facet):
    """The names that users see (paper, "Layer nomenclature").

    Args:
        results: Per op, the layer label of each result, without pass, such as ``conv2d_2_4``.
        pass_num: Per op, which pass of its layer it is, from 1.
        pass_total: Per op, how many passes its layer has.
        leaves: Per leaf, its label; None for parameters, which are not layers.
        outputs: Per output tensor of the model, its label.
    """

    name: ClassVar[str] = "labels"
    results: tuple[tuple[str, ...], ...]
    pass_num: tuple[int, ...]
    pass_total: tuple[int, ...]
    leaves: tuple[str | None, ...]
    outputs: tuple[str, ...]

    def verify(self, graph: Graph) -> Iterator[str]:
        yield from misaligned(
            self,
            graph,
            results=self.results,
            pass_num=self.pass_num,
            pass_total=self.pass_total,
        )
        for op, names in zip(graph.ops, self.results, strict=False):
            if len(names) != len(op.results):
                yield f"op {op.id}: {len(names)} labels for {len(op.results)} results"


@frozen
class OrphanOp:
    """An operation that was pruned: what the reader needs to recognise it."""

    op: OpId
    function: str
    address: str
    location: Location | None


@frozen
class Orphans(Facet):
    """The ops that neither came from an input, nor led to an output, nor fed a read (paper, step one)."""

    name: ClassVar[str] = "orphans"
    ops: tuple[OrphanOp, ...]

    def remap(self, graph_map: GraphMap) -> Orphans:
        return self


@frozen
class Granularity(Facet):
    """At which level of composite functions the graph stands: ``leaf`` or ``api``."""

    name: ClassVar[str] = "granularity"
    level: str

    def remap(self, graph_map: GraphMap) -> Granularity:
        return self


@frozen
class UnknownFacet(Facet):
    """A facet read from a text or file whose type is not installed; kept so that nothing is lost."""

    name: ClassVar[str] = "unknown"
    original: str
    fields: str


BUILT_IN: tuple[type[Facet], ...] = (Ancestry, Distances, Granularity, Labels, Orphans)
