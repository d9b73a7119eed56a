"""Whether ops that are called passes of one layer are that, and no pass is missing: the rules, one group at a time."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from lens.ir.elements import Op, OpId
from lens.ir.facets import Labels, Recurrence
from lens.ir.graph import Graph

if TYPE_CHECKING:
    from lens.history import ModelHistory


def grouping_violations(history: ModelHistory) -> Iterator[str]:
    """What in the recurrence, or in the labels that follow it, breaks a rule (paper, "recurrent layers")."""
    graph = history.graph
    facet, labels = graph.get(Recurrence), graph[Labels]
    if facet is None:
        return
    layers: dict[int, list[OpId]] = defaultdict(list)
    for op, layer in enumerate(facet.layer):
        layers[layer].append(OpId(op))
    for ops in layers.values():
        for place, op in enumerate(ops):
            if (labels.pass_num[op], labels.pass_total[op]) != (place + 1, len(ops)):
                yield f"op {op} is labelled as another pass than the recurrence says"
    grouping = _Grouping(graph, facet, list(layers.values()))
    for ops in layers.values():
        yield from grouping.unlike(ops)
        yield from grouping.unfounded(ops)
    yield from grouping.parameters_apart()
    yield from grouping.left_out()
    yield from grouping.unfolded()


class _Grouping:
    def __init__(self, graph: Graph, facet: Recurrence, layers: list[list[OpId]]) -> None:
        self.graph, self.facet, self.layers = graph, facet, layers
        self.passes = {op: ops for ops in layers for op in ops}
        self.size = {op: len(ops) for op, ops in self.passes.items()}
        parameters = {leaf.value for leaf in graph.leaves if leaf.kind == "parameter"}
        self.owns = [tuple((i, v) for i, v in enumerate(op.operands) if v in parameters) for op in graph.ops]
        #: Per op the number of its function, non-tensor arguments and parameters.
        self.keys: list[int] = []
        numbers: dict[Hashable, int] = {}  # a long argument takes long to hash
        for op, own in zip(graph.ops, self.owns, strict=True):
            constants = repr((op.args, op.kwargs))  # 1, 1.0 and True are three, NaN is one
            self.keys.append(numbers.setdefault((op.function, constants, own), len(numbers)))

    def unlike(self, ops: list[OpId]) -> Iterator[str]:
        """Passes of one layer call one function, with equal arguments and parameters."""
        if len({self.keys[op] for op in ops}) > 1:
            yield f"ops {ops[:4]} are passes of one layer and are not alike"

    def unfounded(self, ops: list[OpId]) -> Iterator[str]:
        """Each layer of several passes has a rule that holds."""
        for op in ops:
            rule = self.facet.rule[op]
            if bool(rule) != (len(ops) > 1):
                yield f"op {op} has rule {rule!r} and {len(ops)} passes"
            elif rule == "parameters" and not self.owns[op]:
                yield f"op {op} is folded for its parameters and has none"
        if len(ops) > 1 and self.facet.rule[ops[0]] == "loop":
            steps = {b - a for a, b in pairwise(ops)}
            inside = range(ops[0], ops[-1])
            if len(steps) > 1 or any(self.facet.rule[op] != "loop" for op in inside):
                yield f"ops {ops[:4]} are folded as a loop and do not repeat back to back"

    def parameters_apart(self) -> Iterator[str]:
        """Ops with equal parameters and arguments are never two layers."""
        first: dict[Hashable, int] = {}
        for op in self.graph.ops:
            if self.owns[op.id]:
                layer = self.facet.layer[op.id]
                if first.setdefault(self.keys[op.id], layer) != layer:
                    yield f"op {op.id} has the parameters of layer {first[self.keys[op.id]]} and is another layer"

    def left_out(self) -> Iterator[str]:
        """Rule two has nothing left to do and did nothing else: of ops without parameters that stand in one place
        beside passes of a layer, and are alike, none is alone; and only such ops are folded as adjacent."""
        founded: set[OpId] = set()
        for ops in self.layers:
            if len(ops) > 1 and self.facet.rule[ops[0]] == "loop":  # nothing joins loops
                yield from self.broken_off(ops)
            elif len(ops) > 1:
                found: dict[Hashable, set[OpId]] = defaultdict(set)
                for op in ops:
                    for place, near in self.beside(self.graph.ops[op]):
                        if not self.owns[near]:
                            found[place, self.keys[near]].add(near)
                founded.update(*(near for near in found.values() if len(near) > 1))
        for op in sorted(founded):
            if self.size[op] == 1:
                yield f"op {op} stands beside a pass of a layer as a like one does, and is no pass with it"
        for number, rule in enumerate(self.facet.rule):
            if rule == "adjacent" and number not in founded:
                yield f"op {number} is folded as adjacent and stands beside no other repeated layer as a like one does"

    def beside(self, op: Op) -> Iterator[tuple[Hashable, OpId]]:
        """The ops that use its results or make its operands, and where they stand: of those that use one result in
        one way the first, the second, and so on."""
        for index, value in enumerate(op.writes):
            count: Counter[Hashable] = Counter()
            for user in self.graph.users(value):
                way = self.graph.ops[user].reads.index(value), self.keys[user]
                count[way] += 1
                yield ("user", index, way[0], count[way]), user
        for place, value in enumerate(op.reads):
            record = self.graph.values[value]
            if record.producer is not None:
                yield ("maker", place, record.index), record.producer

    def broken_off(self, ops: list[OpId]) -> Iterator[str]:
        """The op where the next pass of a loop would be is not just like it."""
        period = ops[1] - ops[0]
        following = ops[-1] + period
        if following >= len(self.graph.ops) or self.size[OpId(following)] > 1:
            return
        if any(OpId(op - period) not in self.passes[OpId(op)] for op in range(ops[-1] + 1, following)):
            return  # the last round breaks off before
        if self.goes_on(ops[-1], OpId(following), period):
            yield f"op {following} goes on the loop of op {ops[-1]}, and is no pass of its layer"

    def goes_on(self, here: OpId, there: OpId, period: int) -> bool:
        """Whether an op does at one place of the code to later values what another does to earlier ones."""
        first, second = self.graph.ops[here], self.graph.ops[there]
        if self.keys[here] != self.keys[there] or first.location != second.location:
            return False
        pairs = list(zip(first.reads, second.reads, strict=False))
        return len(first.reads) == len(second.reads) and all(a == b or self.apart(a, b) == period for a, b in pairs)

    def unfolded(self) -> Iterator[str]:
        """No op is alone that does again, right away, to its own result what it did; unless a loop that is as long won
        against the one of these ops, and left them over."""
        for run in self.runs():
            if any(self.length_of_loop(op) >= len(run) for op in run):
                continue
            for op, again in pairwise(run):
                if self.size[op] == self.size[again] == 1 and self.repeats(op, again):
                    yield f"op {again} does again what op {op} did, and is no pass of its layer"

    def runs(self) -> Iterator[list[OpId]]:
        """The longest stretches of ops that could be loops of one op a round. They may share their ends."""
        run: list[OpId] = []
        for op in self.graph.ops:
            if len(run) > 1 and not self.goes_on(run[-1], op.id, 1):
                yield run
                run = run[-1:]
            if len(run) == 1 and not self.repeats(run[0], op.id):
                run = []
            run.append(op.id)
        if len(run) > 1:
            yield run

    def repeats(self, before: OpId, after: OpId) -> bool:
        """Whether an op does to the result of the one before what that did, in the same place of the code."""
        first, second = self.graph.ops[before], self.graph.ops[after]
        if self.owns[before] or first.location != second.location or self.keys[before] != self.keys[after]:
            return False
        if len(first.reads) != len(second.reads):  # one wrote to another tensor, too, that shares the memory
            return False
        others = [b for a, b in zip(first.reads, second.reads, strict=True) if a != b]
        return bool(others) and all(self.graph.values[b].producer == before for b in others)

    def length_of_loop(self, op: OpId) -> int:
        """How many ops the loop around an op has, a broken-off last round taken for a whole one; 0 if none is."""
        ops = self.passes[op]
        if self.facet.rule[op] != "loop" or len(ops) < 2:
            return 0
        return ops[-1] - ops[0] + ops[1] - ops[0]

    def apart(self, a: int, b: int) -> int | None:
        """How many ops apart two values were made in the same place; None if in another."""
        first, second = self.graph.values[a], self.graph.values[b]
        if first.producer is None or second.producer is None or first.index != second.index:
            return None
        return second.producer - first.producer
