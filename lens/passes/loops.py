"""Sequences of operations without parameters that repeat back to back (rule 3 of the paper's recurrence).

Two ops a period apart correspond if their keys are equal and every operand of the one relates to that of the other:
the same value from outside the loop, or values made one period apart. In the first round an operand may come from
anywhere if in the second it comes from the first round: that is what the loop carries on.
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
        #: Per op, the loop found around it, for skipping multiples of its period.
        self.around: dict[int, Loop] = {}

    def loops(self) -> list[Loop]:
        """All maximal loops. A loop of period p has two rounds, so it holds two neighbours among every p-th op."""
        found: dict[Loop, None] = {}
        for period in range(1, (self.stop - self.start) // 2 + 1):
            anchor = self.start
            while anchor + period < self.stop:
                step = anchor + period
                if not self._known(anchor, period) and self._match(anchor, period) is not None:
                    run_start, run_stop = self._run(anchor, period)
                    for loop in self._loops_in(run_start, run_stop, period):
                        found[loop] = None
                        for op in range(loop.start, loop.stop):
                            self.around.setdefault(op, loop)
                    step = max(step, anchor + period * ((run_stop - anchor) // period))
                anchor = step
        return list(found)

    def _known(self, anchor: int, period: int) -> bool:
        """Whether a loop whose period divides this one is around both anchors already."""
        loop = self.around.get(anchor)
        return loop is not None and period % loop.period == 0 and anchor + period < loop.stop

    def _run(self, anchor: int, period: int) -> tuple[int, int]:
        """The ops around an anchor that correspond, strictly or loosely, to those a period later."""
        first, last = anchor, anchor
        while first > self.start and self._match(first - 1, period) is not None:
            first -= 1
        while last + period < self.stop and self._match(last, period) is not None:
            last += 1
        return first, last

    def _loops_in(self, first: int, last: int, period: int) -> Iterator[Loop]:
        """The maximal loops among ops that all correspond: what is carried on may be loose in the first round only."""
        loose = {op: sources for op in range(first, last) if (sources := self._match(op, period))}
        starts = {first, *(op + 1 for op in loose)}
        starts |= {source - period + 1 for sources in loose.values() for source in sources}
        for start in sorted(starts):
            if start < first:
                continue
            first_round = range(start, start + period)
            late = next((op for op in loose if op >= start + period), last)
            carried = (source for op in loose if op in first_round for source in loose[op])
            if late - start < period or any(source not in first_round for source in carried):
                continue
            if self._carries_on(start, period):
                yield Loop(start, late + period, period)

    def _match(self, op: int, period: int) -> tuple[int, ...] | None:
        """How an op corresponds to the one a period later.

        None: it does not. Otherwise the ops of the first round that the later one must have got its loose operands
        from; empty if all operands correspond strictly.
        """
        if self.keys[op] != self.keys[op + period]:
            return None
        here, there = self.graph.ops[op].reads, self.graph.ops[op + period].reads
        if len(here) != len(there):
            return None
        loose = []
        for a, b in zip(here, there, strict=True):
            if a == b:
                continue
            source, later = self.graph.values[a], self.graph.values[b]
            if later.producer is None:
                return None
            same_place = source.index == later.index
            if source.producer is not None and later.producer - source.producer == period and same_place:
                continue
            if not op - period < later.producer < op + period:
                return None
            loose.append(int(later.producer))
        return tuple(loose)

    def _carries_on(self, start: int, period: int) -> bool:
        """Whether the second round reads something that the first one made."""
        for op in range(start, min(start + period, self.stop - period)):
            for value in self.graph.ops[op + period].reads:
                producer = self.graph.values[value].producer
                if producer is not None and start <= producer < start + period:
                    return True
        return False
