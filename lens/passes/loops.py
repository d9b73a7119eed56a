"""Sequences of operations without parameters that repeat back to back (rule 3 of the paper's recurrence).

Two ops a period apart correspond if their keys are equal and every operand of the one relates to that of the other:
the same value from outside the loop, or values made one period apart. In the first round an operand may come from
anywhere if in the second it comes from the first round: that is what the loop carries on. And it must be a
loop: what a round makes depends on what the round before made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import frozen

from lens.ir.graph import Graph


@frozen
class Loop:
    """Ops ``start`` to ``stop - 1``, round after round of ``period`` ops; the last round may be broken off."""

    start: int
    stop: int
    period: int


@frozen
class _Match:
    """How an op corresponds to the one a period later.

    Args:
        earliest: The earliest op that the later one reads where the two do not read the same value.
        loose: The ops that it reads without the first reading their counterparts: what a loop carries on.
    """

    earliest: int
    loose: tuple[int, ...]


def find_loops(graph: Graph, keys: Sequence[int], free: Sequence[bool]) -> list[Loop]:
    """The loops among the free ops, none overlapping; of those that overlap the longest, then the shortest period,
    then the earliest.

    Args:
        graph: The graph.
        keys: Per op, a number that is equal for ops of equal function and non-tensor arguments.
        free: Per op, whether it may be part of a loop; the others end a sequence.

    Takes n log n steps for a stretch of n free ops, and the length of the loops found.
    """
    found: list[Loop] = []
    for start, stop in _stretches(free):
        if stop - start > 1:
            found += _disjoint(_Stretch(graph, keys, start, stop).loops())
    return found


def _stretches(free: Sequence[bool]) -> Iterator[tuple[int, int]]:
    start = 0
    for place, is_free in enumerate([*free, False]):
        if not is_free:
            yield start, place
            start = place + 1


def _disjoint(loops: list[Loop]) -> list[Loop]:
    taken: set[int] = set()
    chosen = []
    for loop in sorted(loops, key=lambda x: (x.start - x.stop, x.period, x.start)):
        ops = range(loop.start, loop.stop)
        if taken.isdisjoint((ops[0], ops[-1])) and taken.isdisjoint(ops):
            taken.update(ops)
            chosen.append(loop)
    return sorted(chosen, key=lambda x: x.start)


class _Stretch:
    """Free ops that follow each other in order of execution."""

    def __init__(self, graph: Graph, keys: Sequence[int], start: int, stop: int) -> None:
        self.graph = graph
        self.keys = keys
        self.start = start
        self.stop = stop
        #: Per op, the repetition around it whose keys differ from what comes before and after, and no multiple of
        #: whose period needs to be looked at: it is a loop, or none of them is.
        self.around: dict[int, Loop] = {}

    def loops(self) -> list[Loop]:
        """All maximal loops. A loop of period p has two rounds, so it holds two neighbours among every p-th op."""
        found: dict[Loop, None] = {}
        for period in range(1, (self.stop - self.start) // 2 + 1):
            anchor = self.start
            barrier = anchor - 1  # the last anchor that corresponds to none: no loop goes across it
            while anchor + period < self.stop:
                step = anchor + period
                if self._known(anchor, period):
                    anchor = step
                    continue
                match = self._match(anchor, period)
                if match is None:
                    barrier = anchor
                elif self._may_hold(match, barrier, period):
                    run_start, run_stop = self._run(anchor, period)
                    for loop in self._loops_in(run_start, run_stop, period):
                        found[loop] = None
                    step = max(step, anchor + period * ((run_stop - anchor) // period))
                anchor = step
        return list(found)

    def _known(self, anchor: int, period: int) -> bool:
        """Whether a loop whose period divides this one is around both anchors already."""
        loop = self.around.get(anchor)
        return loop is not None and period % loop.period == 0 and anchor + period < loop.stop

    def _may_hold(self, match: _Match, barrier: int, period: int) -> bool:
        """Whether a loop can reach back to what an anchor reads: all ops from there on have to correspond."""
        earliest = match.earliest
        return earliest > barrier and self.keys[earliest] == self.keys[earliest + period]

    def _ends_by_keys(self, loop: Loop) -> bool:
        """Whether the keys alone stop a loop at both ends: then no multiple of its period reaches further."""
        before, after = loop.start - 1, loop.stop
        first = before < self.start or self.keys[before] != self.keys[before + loop.period]
        return first and (after >= self.stop or self.keys[after] != self.keys[after - loop.period])

    def _run(self, anchor: int, period: int) -> tuple[int, int]:
        """The ops around an anchor that correspond, strictly or loosely, to those a period later."""
        first, last = anchor, anchor
        while first > self.start and self._match(first - 1, period) is not None:
            first -= 1
        while last + period < self.stop and self._match(last, period) is not None:
            last += 1
        return first, last

    def _loops_in(self, first: int, last: int, period: int) -> Iterator[Loop]:
        """The maximal loops among ops that all correspond to those a period later."""
        matches = {op: self._match(op, period) for op in range(first, last)}
        start = first
        while start + period <= last:
            broken = start
            while broken < last and self._holds(matches[broken], broken, start, period):
                broken += 1
            if broken - start < period:
                start += 1
                continue
            loop = Loop(start, broken + period, period)
            feeds_itself = self._has_cycle(start, start + period, start, period)
            if self._ends_by_keys(loop) and (feeds_itself or not self._has_cycle(start, broken, start, period)):
                self.around.update(dict.fromkeys(range(loop.start, loop.stop), loop))
            if feeds_itself:
                yield loop
            # The next one that is not inside this: what broke it is in its first round, or before it.
            start = max(start + 1, broken - period + 1)

    def _holds(self, match: _Match | None, op: int, start: int, period: int) -> bool:
        """Whether a correspondence holds in a loop that starts here: what comes from far away must be the same."""
        if match is None or match.earliest < start:
            return False
        if not match.loose:
            return True
        return op < start + period and max(match.loose) < start + period

    def _match(self, op: int, period: int) -> _Match | None:
        """How an op corresponds to the one a period later; None if it does not."""
        if self.keys[op] != self.keys[op + period]:
            return None
        here, there = self.graph.ops[op].reads, self.graph.ops[op + period].reads
        if len(here) != len(there):
            return None
        earliest = op
        loose = []
        for a, b in zip(here, there, strict=True):
            if a == b:
                continue
            source, later = self.graph.values[a], self.graph.values[b]
            if later.producer is None or later.producer < self.start:
                return None
            earliest = min(earliest, later.producer)
            same_place = source.producer is not None and source.index == later.index
            if same_place and later.producer - (source.producer or 0) == period:
                continue
            if later.producer == source.producer or later.producer <= op - period:
                return None  # two results of one op; or too far back to be of the first round
            loose.append(int(later.producer))
        return _Match(earliest, tuple(loose))

    def _has_cycle(self, first: int, last: int, start: int, period: int) -> bool:
        """Whether the places of a body depend on each other in a circle, by what is read one period after some ops.

        With the ops of the first round: whether what a round makes depends on what the round before made. Rounds side
        by side, each from the same value or from none, have no such cycle and are no loop. With the ops of all rounds:
        whether a loop of a multiple of the period can have one. It has no dependence whose places, modulo the period,
        are not among these.

        Args:
            first: The first op.
            last: The op after the last.
            start: Where the body starts.
            period: Its length.
        """
        readers: list[list[int]] = [[] for _ in range(period)]
        waiting = [0] * period
        for op in range(first, last):
            here, there = self.graph.ops[op].reads, self.graph.ops[op + period].reads
            for a, b in zip(here, there, strict=True):
                producer = self.graph.values[b].producer
                if a != b and producer is not None and producer >= start:
                    readers[(producer - start) % period].append((op - start) % period)
                    waiting[(op - start) % period] += 1
        ready = [place for place in range(period) if not waiting[place]]
        for place in ready:  # grows while it is walked: a topological order
            for reader in readers[place]:
                waiting[reader] -= 1
                if not waiting[reader]:
                    ready.append(reader)
        return len(ready) < period
