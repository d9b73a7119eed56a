"""What it means for operations to be rounds of a loop (rule 3 of the paper's recurrence); docs/adr/002-recurrence.md.

Two ops a period apart correspond if their keys are equal and every operand of the one relates to that of the other:
the same value from outside the loop, or values made one period apart. In the first round an operand may come from
anywhere if in the second it comes from the first round: that is what the loop carries on. And it must be a
loop: what a round makes depends on what the round before made.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

from attrs import frozen

from lens.ir.elements import Value
from lens.ir.graph import Graph


@frozen
class Loop:
    """Ops ``start`` to ``stop - 1``, round after round of ``period`` ops; the last round may be broken off."""

    start: int
    stop: int
    period: int

    @property
    def ops(self) -> range:
        return range(self.start, self.stop)


class Rounds:
    """The ops ``start`` to ``stop - 1`` of a graph, as what may be rounds of loops.

    Args:
        graph: The graph.
        keys: Per op, a number that is equal for ops of equal function and non-tensor arguments.
        start: The first op.
        stop: The op after the last.
    """

    def __init__(self, graph: Graph, keys: Sequence[int], start: int, stop: int) -> None:
        self.graph = graph
        self.keys = keys
        self.start = start
        self.stop = stop

    def allowed_start(self, op: int, start: int, period: int) -> int:
        """The first op, from ``start`` on, with which a loop may start for all that this op has to do with it.

        It is ``start`` if the op, in a loop from there, corresponds to the one a period later; ``op + 1`` if no loop
        has the two in it. A start that is allowed for all ops from it on, up to the one that is a period away, makes
        two rounds.
        """
        if op + period >= self.stop or self.keys[op] != self.keys[op + period]:
            return op + 1
        here, there = self.graph.ops[op].reads, self.graph.ops[op + period].reads
        if len(here) != len(there):
            return op + 1
        allowed = start
        for a, b in zip(here, there, strict=True):
            if a == b:
                continue
            source, later = self.graph.values[a], self.graph.values[b]
            if later.producer is None or later.producer < start:
                return op + 1
            if _is_shifted(source, later, period):
                continue
            if later.producer == source.producer:
                return op + 1  # two results of one op
            allowed = max(allowed, op - period + 1, later.producer - period + 1)  # both are of the first round
        return allowed

    def feeds_itself(self, loop: Loop) -> bool:
        """Whether what a round makes depends on what the round before made.

        Rounds side by side, each from the same value or from none, do not, and are no loop.
        """
        return self._has_cycle(loop, loop.start + loop.period)

    def may_feed_itself(self, loop: Loop) -> bool:
        """Whether a loop among the same ops, that starts later or has a multiple of the period, may feed itself.

        It has no dependence that is not, its places taken modulo the period, one of these rounds.
        """
        return self._has_cycle(loop, loop.stop - loop.period)

    def _has_cycle(self, loop: Loop, stop: int) -> bool:
        """Whether the places of a body depend on each other in a circle, by what is read one period after some ops.

        Args:
            loop: The loop.
            stop: The op after the last that is looked at.
        """
        readers: list[list[int]] = [[] for _ in range(loop.period)]
        waiting = [0] * loop.period
        for op in range(loop.start, stop):
            place = (op - loop.start) % loop.period
            for source, later in self._operands(op, loop.period):
                if source is not later and later.producer is not None:  # so it is in the loop
                    readers[(later.producer - loop.start) % loop.period].append(place)
                    waiting[place] += 1
        ready = [place for place in range(loop.period) if not waiting[place]]
        for place in ready:  # grows while it is walked: a topological order
            for reader in readers[place]:
                waiting[reader] -= 1
                if not waiting[reader]:
                    ready.append(reader)
        return len(ready) < loop.period

    def rhythm(self, loop: Loop) -> int | None:
        """After how many ops the rounds, except for the first, already repeat: the period, or a part of it.

        ``a, b = b, a + b`` is a loop of two adds, since it carries on what is two adds old; but each add does the same.
        Multiples of the rhythm that are no shorter than the period make loops of the same ops, if there is room for
        two rounds, and feed themselves if this does. There is no rhythm if an op reads what the round before read,
        and the next time reads on. Takes steps in proportion to the length of the loop.
        """
        period = loop.period
        relations = [self._relation(op, period) for op in range(loop.start + period, loop.stop)]
        if relations[period:] != relations[:-period]:
            return None
        part = _shortest_period(relations)
        return period if period % part else part

    def _relation(self, op: int, period: int) -> Hashable:
        """What an op does, as it is to be a round later: from the same values, or from what is as old."""
        operands = tuple([
            later.id if source is later else (op - (later.producer or 0), later.index)
            for source, later in self._operands(op - period, period)
        ])  # fmt: skip
        return self.keys[op], operands

    def irregular(self) -> list[int]:
        """The ops that do otherwise than the last of their key: another distance apart, or other operands."""
        found = []
        last: dict[int, tuple[int, int]] = {}
        for op in range(self.start, self.stop):
            before, distance = last.get(self.keys[op], (op, 0))
            if op - before != distance or not distance or not self._are_alike(before, op):
                found.append(op)
            last[self.keys[op]] = op, op - before
        return found

    def _are_alike(self, op: int, other: int) -> bool:
        here, there = self.graph.ops[op], self.graph.ops[other]
        if len(here.reads) != len(there.reads):
            return False
        operands = self._operands(op, other - op)
        return all(source is later or _is_shifted(source, later, other - op) for source, later in operands)

    def _operands(self, op: int, period: int) -> Iterator[tuple[Value, Value]]:
        """What an op reads, and what the one a period later reads in its place."""
        value = self.graph.values
        here, there = self.graph.ops[op].reads, self.graph.ops[op + period].reads
        return ((value[a], value[b]) for a, b in zip(here, there, strict=True))


def _is_shifted(source: Value, later: Value, period: int) -> bool:
    """Whether two values are the same result of ops that are a period apart."""
    if source.producer is None or later.producer is None or source.index != later.index:
        return False
    return later.producer - source.producer == period


def _shortest_period(word: Sequence[Hashable]) -> int:
    """The least shift that lays a word over itself (the failure function of Knuth, Morris and Pratt)."""
    borders = [0]
    for letter in word[1:]:
        length = borders[-1]
        while length and word[length] != letter:
            length = borders[length - 1]
        borders.append(length + (word[length] == letter))
    return len(word) - borders[-1]
