"""Facets: frozen results of analyses, kept beside a graph and keyed by their type.

The types live here and not with the passes that make them, so that a renderer can read a facet without knowing
its pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, TypeVar

from attrs import frozen

from lens.ir.elements import Location, OpId, ScopeId

if TYPE_CHECKING:
    from lens.ir.graph import Graph
    from lens.ir.rewrite import GraphMap

T = TypeVar("T")
#: What the text form takes for one word.
_NAME = re.compile(r"[\w.-]+")
#: The form of labels (paper, "Layer nomenclature").
_LABEL, _LEAF_LABEL = re.compile(r"[^_]+_[0-9]{1,18}_[0-9]{1,18}"), re.compile(r"[^_]+_[0-9]{1,18}")


class Facet:
    """What every facet has. Subclasses are frozen attrs classes with a class variable ``name``."""

    name: ClassVar[str] = ""

    def verify(self, graph: Graph) -> Iterator[str]:
        """Say what in this facet contradicts the graph, beginning with ``op 3:`` if that is one op; else nothing."""
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
        for op, (low, high) in enumerate(zip(self.min_from_input, self.max_from_input, strict=False)):
            if (low is None) != (high is None) or (low or 0) > (high or 0):
                yield f"op {op}: distance from input is {low} to {high}"

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
        for op, names, number, total in zip(graph.ops, self.results, self.pass_num, self.pass_total, strict=False):
            if len(names) != len(op.results):
                yield f"op {op.id}: {len(names)} labels for {len(op.results)} results"
            if not 1 <= number <= total:
                yield f"op {op.id}: pass {number} of {total}"
        if len(self.leaves) != len(graph.leaves) or len(self.outputs) != len(graph.outputs.values):
            yield f"labels of {len(self.leaves)} leaves and {len(self.outputs)} outputs"
        if any(not _LABEL.fullmatch(name) for names in self.results for name in names):
            yield "a label is not of the form type_1_2"
        if any(name is not None and not _LEAF_LABEL.fullmatch(name) for name in (*self.leaves, *self.outputs)):
            yield "a label of a leaf or an output is not of the form type_1"


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


@frozen
class Recurrence(Facet):
    """Which ops are passes of one layer (paper, "Handling of recurrent operations").

    Args:
        layer: Per op, the number of its layer, in order of first execution.
        rule: Per op, why it is a pass of its layer: ``parameters``, ``adjacent``, ``loop``; empty if it is alone.
    """

    name: ClassVar[str] = "recurrence"
    layer: tuple[int, ...]
    rule: tuple[str, ...]

    def verify(self, graph: Graph) -> Iterator[str]:
        yield from misaligned(self, graph, layer=self.layer, rule=self.rule)
        highest = -1
        for op, layer in enumerate(self.layer):
            if not 0 <= layer <= highest + 1:
                yield f"op {op}: layer {layer} is not numbered in order of first execution"
                return
            highest = max(highest, layer)

    def passes(self) -> list[list[OpId]]:
        """Per layer, its ops in order of execution. Linear."""
        found: list[list[OpId]] = [[] for _ in range(max(self.layer, default=-1) + 1)]
        for op, layer in enumerate(self.layer):
            found[layer].append(OpId(op))
        return found


@frozen
class Condition:
    """One read that steers, or may steer, the Python control flow.

    Args:
        read: Its position among the reads of the graph.
        construct: if, elif, while, assert, ternary, comprehension, match, and, or, not; ``unknown`` where the source
            is not to be had or does not show it.
        line: The line of the read; 0 if unknown.
        arm: Which way the test went as far as it follows from this value: True, False, or None if that is open.
    """

    read: int
    construct: str
    line: int = 0
    arm: bool | None = None


@frozen
class Conditionals(Facet):
    """Conditional branching (paper, step three).

    Args:
        conditions: The reads that steer, in order; empty reads for heuristic finds.
        in_branch: Per op, whether it only serves to evaluate a condition.
        starts: Per op, whether it is the first such op, at which the branch leaves the model's computation.
        final: Per op, whether it made the value that was read.
    """

    name: ClassVar[str] = "conditionals"
    conditions: tuple[Condition, ...]
    in_branch: tuple[bool, ...]
    starts: tuple[bool, ...]
    final: tuple[bool, ...]

    def verify(self, graph: Graph) -> Iterator[str]:
        columns = {"in_branch": self.in_branch, "starts": self.starts, "final": self.final}
        yield from misaligned(self, graph, **columns)
        for condition in self.conditions:
            if not 0 <= condition.read < len(graph.reads):
                yield f"a condition names read {condition.read}, which does not exist"


@frozen
class Containment(Facet):
    """The module call of every op and leaf (paper, step four); None for what belongs to the model itself.

    Args:
        ops: Per op: the scope recorded; for an op outside any scope that no input led to, or whose backend sees no
            scopes, the one of its consumers.
        leaves: Per leaf: the scope of its first consumer.
    """

    name: ClassVar[str] = "containment"
    ops: tuple[ScopeId | None, ...]
    leaves: tuple[ScopeId | None, ...]

    def verify(self, graph: Graph) -> Iterator[str]:
        yield from misaligned(self, graph, ops=self.ops)
        if len(self.leaves) != len(graph.leaves):
            yield f"containment.leaves has {len(self.leaves)} rows for {len(graph.leaves)} leaves"
        for op, scope in zip(graph.ops, self.ops, strict=False):
            if op.scope is not None and scope != op.scope:
                yield f"op {op.id}: contained in scope {scope}, recorded in {op.scope}"
        if any(scope is not None and scope not in range(len(graph.scopes)) for scope in (*self.ops, *self.leaves)):
            yield "containment names a scope that does not exist"


BUILT_IN: tuple[type[Facet], ...] = (
    Ancestry,
    Conditionals,
    Containment,
    Distances,
    Granularity,
    Labels,
    Orphans,
    Recurrence,
)


def why_no_facet(kind: object) -> str:
    """Why this cannot be the type of a facet; empty if it can."""
    if not isinstance(kind, type) or not issubclass(kind, Facet):
        return "it is no subclass of lens.ir.facets.Facet"
    if not isinstance(kind.name, str) or not kind.name:
        return "it has no name"
    if not _NAME.fullmatch(kind.name):
        return f"its name {kind.name!r:.60} is not made of letters, digits, '_', '-' and '.'"
    if kind not in BUILT_IN and kind.name in {known.name for known in BUILT_IN}:
        return f"lens itself has a facet {kind.name!r}"
    return ""


def why_no_facets(kinds: object) -> str:
    """Why this cannot be several types of facets; empty if it can."""
    if not isinstance(kinds, (tuple, list, set, frozenset)):
        return f"no tuple of facet types, but {kinds!r:.60}"
    return next((f"no tuple of facet types: {kind!r:.60} ({why})" for kind in kinds if (why := why_no_facet(kind))), "")
