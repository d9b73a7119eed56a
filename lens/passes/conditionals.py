"""Step three of the paper: conditional branching."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from attrs import frozen

from lens.ir.elements import OpId, Read, ValueId
from lens.ir.facets import Ancestry, Condition, Conditionals, Facet
from lens.ir.graph import Graph
from lens.passes.arms import arm_of
from lens.passes.constructs import UNKNOWN, Role, SourceReader
from lens.passes.protocol import PassContext, PassResult

#: Reads that are a decision by themselves; the others steer only where the source shows it.
_DECISIONS = frozenset({"bool", "equal", "allclose"})
#: How many operations after a read are looked at for the arm that ran.
_NEAR = 64
#: Reads that give a number, which a test may compare.
_NUMBERS = frozenset({"item", "int", "float", "index", "tolist", "complex", *_DECISIONS})


@frozen
class ConditionalsPass:
    """Find the reads that steer Python control flow, and the operations that only serve to evaluate them.

    Evidence first: a recorded ``bool(t)``, or a ``t.item()`` and the like inside a test, found in the source by the
    exact position of the running instruction. A branch starts where the way back from the value read meets an
    ancestor of the model's output. Where the backend claims to see no reads, the paper's heuristic: a childless
    single Boolean. Linear, plus the parsing of the source files concerned.
    """

    name: ClassVar[str] = "conditionals"
    requires: ClassVar[tuple[type[Facet], ...]] = (Ancestry,)
    provides: ClassVar[tuple[type[Facet], ...]] = (Conditionals,)
    preserves: ClassVar[tuple[type[Facet], ...]] = ()

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        sources = SourceReader()
        conditions = []
        for number, read in enumerate(graph.reads):
            condition = _condition(graph, number, read, sources)
            if condition is not None:
                conditions.append(condition)
        values = [graph.reads[condition.read].value for condition in conditions]
        if "reads" not in graph.meta.capabilities and not graph.reads:
            values += _childless_booleans(graph)
        return PassResult((_facet(graph, tuple(conditions), values),))


def _condition(graph: Graph, number: int, read: Read, sources: SourceReader) -> Condition | None:
    if read.kind not in _NUMBERS:
        return None
    role = sources.role(read.location)
    line = read.location.line if read.location is not None else 0
    if role is None:
        return Condition(number, UNKNOWN, line) if read.kind in _DECISIONS else None
    arm = arm_of(graph, read, role)
    return Condition(number, role.construct, line, _arm_seen(graph, number, role) if arm is None else arm)


def _arm_seen(graph: Graph, number: int, role: Role) -> bool | None:
    """Which arm ran, from where the operations between this read and the next one of its function stand."""
    read = graph.reads[number]
    assert read.location is not None
    place = read.location.file, read.location.function
    following = graph.reads[number + 1].position if number + 1 < len(graph.reads) else len(graph.ops)
    for op in graph.ops[read.position : min(following, read.position + _NEAR)]:
        if op.location is not None and (op.location.file, op.location.function) == place:
            return role.arm_of(op.location)
    return None


def _childless_booleans(graph: Graph) -> list[ValueId]:
    """The paper's heuristic for "if" conditions."""
    outputs = set(graph.outputs.values)
    return [
        value
        for op in graph.ops
        for value in op.results
        if graph.values[value].type.dtype == "bool"
        and graph.values[value].type.numel == 1
        and not graph.users(value)
        and value not in outputs
    ]


def _facet(graph: Graph, conditions: tuple[Condition, ...], values: list[ValueId]) -> Conditionals:
    goes_on = graph[Ancestry].to_output if graph.outputs.values else _leads_elsewhere(graph, values)
    producers = {op for v in values if (op := graph.values[v].producer) is not None}
    in_branch: set[OpId] = set()
    stack = [op for op in producers if not goes_on[op]]
    while stack:
        op = stack.pop()
        if op in in_branch:
            continue
        in_branch.add(op)
        for value in graph.ops[op].reads:
            producer = graph.values[value].producer
            if producer is not None and not goes_on[producer]:
                stack.append(producer)
    starts = {op for op in in_branch if _leaves_the_model(graph, op, goes_on)}
    columns = ([op in found for op in range(len(graph.ops))] for found in (in_branch, starts, producers))
    return Conditionals(conditions, *map(tuple, columns))


def _leads_elsewhere(graph: Graph, asked: list[ValueId]) -> list[bool]:
    """For a run without outputs (it ended before, or gave no tensor): per op, whether something descends from it that
    no op reads and no condition asked for."""
    conditions = set(asked)
    found = [False] * len(graph.ops)
    for op in reversed(graph.ops):
        users = [user for value in op.writes for user in graph.users(value)]
        found[op.id] = any(found[user] for user in users) if users else conditions.isdisjoint(op.writes)
    return found


def _leaves_the_model(graph: Graph, op: OpId, goes_on: Sequence[bool]) -> bool:
    """Whether an op of a branch reads something of the model's own computation, or nothing at all."""
    producers = [graph.values[v].producer for v in graph.ops[op].reads]
    outside = any(producer is None or goes_on[producer] for producer in producers)
    return outside or not producers
