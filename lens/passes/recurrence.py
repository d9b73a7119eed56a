"""Step five of the paper: operations that are passes of one layer.

The three rules ("Handling of recurrent operations"), and how docs/adr/002-recurrence.md reads them:

1. Ops with parameters and equal keys are passes of one layer, always.
2. From these, groups grow outwards: what stands in the same position beside two or more passes of a layer, with
   equal keys, joins. An op joins once; ops with parameters are governed by rule 1 alone.
3. Among what is left, sequences of ops without parameters that repeat back to back are loops (``lens.passes.loops``).
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Iterator
from typing import Any, ClassVar

from attrs import frozen

from lens.ir.elements import Op, OpId, ValueId
from lens.ir.facets import Facet, Recurrence
from lens.ir.graph import Graph
from lens.ir.templates import Map, Opaque, Seq, Slice, Slot, Symbol
from lens.passes.loops import find_loops
from lens.passes.protocol import PassContext, PassResult
from lens.passes.rounds import Loop


@frozen
class RecurrencePass:
    """Fold the passes of recurrent layers.

    Rules one and two look at each edge of the graph a few times; what rule three takes, ``lens.passes.loops`` says.
    """

    name: ClassVar[str] = "recurrence"
    requires: ClassVar[tuple[type[Facet], ...]] = ()
    provides: ClassVar[tuple[type[Facet], ...]] = (Recurrence,)
    preserves: ClassVar[tuple[type[Facet], ...]] = ()

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        folding = _Folding(graph)
        folding.group_by_parameters()
        folding.grow()
        folding.add_loops()
        return PassResult((folding.facet(),))


#: Up to how many operands are searched through rather than numbered.
_FEW = 8


class OpKeys:
    """The keys of ops, as small numbers: equal function, non-tensor arguments and parameters give equal numbers."""

    def __init__(self, graph: Graph) -> None:
        parameters = {leaf.value for leaf in graph.leaves if leaf.kind == "parameter"}
        self.has_parameters = [not parameters.isdisjoint(op.operands) for op in graph.ops]
        number = _Numbers().of
        keys: dict[tuple[int | tuple[int, ...], ...], int] = {}
        self.of: list[int] = []
        for op in graph.ops:
            own = tuple([v if v in parameters else -1 for v in op.operands]) if self.has_parameters[op.id] else ()
            key = (number(op.function), number(op.args), number(op.kwargs) if op.kwargs else -1, own)
            self.of.append(keys.setdefault(key, len(keys)))


class _Numbers:
    """Numbers of things that live on: equal ones for things that are exactly equal.

    What was met is known by identity, for it is the hash of records that takes the time: 6 us per op without.
    """

    def __init__(self) -> None:
        self._by_value: dict[Hashable, int] = {}
        self._by_id: dict[int, int] = {}

    def of(self, thing: Hashable) -> int:
        number = self._by_id.get(id(thing))
        if number is None:
            number = self._by_id[id(thing)] = self._by_value.setdefault(_exact(thing), len(self._by_value))
        return number


def _exact(part: Any) -> Hashable:
    """What is equal only for the same: 1, 1.0 and True are three constants, 0.0 and -0.0 two, and NaN is one."""
    kind = type(part)
    if kind in _INEXACT:
        return kind, repr(part)
    if kind is tuple:
        return part if _EXACT.issuperset(map(type, part)) else tuple([_exact(item) for item in part])
    if kind in (Seq, Map):
        return kind, part.kind, _exact(part.items)
    if kind is Slice:
        return kind, _exact((part.start, part.stop, part.step))
    return part  # type: ignore[no-any-return]


#: Constants that Python takes for equal to others, or for unequal to themselves; and what it compares as it should.
_INEXACT = frozenset({bool, float, complex})
_EXACT = frozenset({int, str, type(None), Slot, Symbol, Opaque})


class _Folding:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.keys = OpKeys(graph)
        self.group: list[int | None] = [None] * len(graph.ops)
        self.members: list[list[OpId]] = []
        self.rules: list[str] = []
        self._places: dict[OpId, dict[ValueId, int]] = {}

    def group_by_parameters(self) -> None:
        """Rule 1."""
        same: dict[int, list[OpId]] = defaultdict(list)
        for op in self.graph.ops:
            if self.keys.has_parameters[op.id]:
                same[self.keys.of[op.id]].append(op.id)
        for ops in same.values():
            if len(ops) > 1:
                self._new_group(ops, "parameters")

    def grow(self) -> None:
        """Rule 2."""
        queue = deque(range(len(self.members)))
        queued = set(queue)
        while queue:
            group = queue.popleft()
            queued.discard(group)
            for candidates in self._neighbours(group):
                changed = self._join(candidates)
                if changed is not None and changed not in queued:
                    queue.append(changed)
                    queued.add(changed)

    def add_loops(self) -> None:
        """Rule 3, on the stretches of ops that are left between the others."""
        free = [g is None and not p for g, p in zip(self.group, self.keys.has_parameters, strict=True)]
        for loop in find_loops(self.graph, self.keys.of, free):
            for ops in _layers_of(loop):
                if len(ops) > 1:
                    self._new_group(ops, "loop")

    def facet(self) -> Recurrence:
        numbers: dict[int, int] = {}
        layers: list[int] = []
        count = 0
        for group in self.group:
            layer = count if group is None else numbers.setdefault(group, count)
            layers.append(layer)
            count += layer == count
        rules = tuple(["" if g is None else self.rules[g] for g in self.group])
        return Recurrence(tuple(layers), rules)

    def _new_group(self, ops: list[OpId], rule: str) -> int:
        number = len(self.members)
        self.members.append(ops)
        self.rules.append(rule)
        for op in ops:
            self.group[op] = number
        return number

    def _neighbours(self, group: int) -> list[list[OpId]]:
        """What stands in the same position beside the members of a group, with equal keys: users, then operands."""
        found: dict[Hashable, list[OpId]] = defaultdict(list)
        for side in (self._users, self._producers):
            for member in self.members[group]:
                for position, op in side(self.graph.ops[member]):
                    found[(side.__name__, position, self.keys.of[op])].append(op)
        return [list(dict.fromkeys(ops)) for ops in found.values()]

    def _users(self, op: Op) -> Iterator[tuple[Hashable, OpId]]:
        graph, keys = self.graph, self.keys
        seen: dict[Hashable, int] = {}
        for result, value in enumerate(op.writes):
            for user in graph.users(value):
                if keys.has_parameters[user]:
                    continue
                place = self._place(user, value)
                like = (result, place, keys.of[user])
                seen[like] = nth = seen.get(like, 0) + 1
                yield (result, place, nth), user

    def _place(self, user: OpId, value: ValueId) -> int:
        """The first place of a value among what an op reads. One that reads many is asked by each of their makers."""
        op = self.graph.ops[user]
        if len(op.operands) + len(op.effects) <= _FEW:
            return op.reads.index(value)
        places = self._places.get(user)
        if places is None:
            backwards = reversed([*enumerate(op.reads)])
            places = self._places[user] = {read: place for place, read in backwards}
        return places[value]

    def _producers(self, op: Op) -> Iterator[tuple[Hashable, OpId]]:
        for place, value in enumerate(op.reads):
            record = self.graph.values[value]
            producer = record.producer
            if producer is not None and not self.keys.has_parameters[producer]:
                yield (place, record.index), producer

    def _join(self, candidates: list[OpId]) -> int | None:
        """Make candidates one layer, or add the free ones to the layer that others of them are in already."""
        free = [op for op in candidates if self.group[op] is None]
        if len(candidates) < 2 or not free:
            return None
        groups = [g for op in candidates if (g := self.group[op]) is not None]
        if not groups:
            return self._new_group(sorted(free), "adjacent")
        target = min(groups)
        for op in free:
            self.group[op] = target
        self.members[target] = sorted([*self.members[target], *free])
        return target


def _layers_of(loop: Loop) -> Iterator[list[OpId]]:
    """Per place in the body of a loop, the ops that stand there."""
    for place in range(loop.period):
        yield [OpId(op) for op in range(loop.start + place, loop.stop, loop.period)]
