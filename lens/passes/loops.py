"""How loops without parameters are found (rule 3 of the paper's recurrence); ``lens.passes.rounds`` says what one is.

For each period, starts are tried from left to right. A loop has two rounds, so a start has to be allowed for every op
of its first round. An op for which it is not forbids all starts up to some place, the more of them the later in the
round it is (as in Boyer and Moore's search for words): few are looked at if the right ones are looked at first.

Inside of a loop that was found, none of a longer period is looked for that cannot leave it: the first is longer, or
of a shorter period, and will be chosen. If it is not, since a still longer one overlaps it, the search is made up for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

from attrs import define

from lens.ir.graph import Graph
from lens.passes.rounds import Loop, Rounds

#: How many irregular ops are looked at first. With 3, programs that begin irregularly take twice as many looks.
_FEW = 6


def find_loops(graph: Graph, keys: Sequence[int], free: Sequence[bool]) -> list[Loop]:
    """The loops among the free ops, none overlapping; of those that overlap the longest, then the shortest period,
    then the earliest.

    Args:
        graph: The graph.
        keys: Per op, a number that is equal for ops of equal function and non-tensor arguments.
        free: Per op, whether it may be part of a loop; the others end a sequence.

    Takes some n log n steps for a stretch of n free ops, and the length of all loops that it meets. These may be very
    many: long chains of one function, each of which goes on from somewhere in those before, are full of loops of two
    rounds and every length (docs/performance.md).
    """
    found: list[Loop] = []
    for start, stop in _stretches(free):
        if stop - start > 1:
            found += _Search(Rounds(graph, keys, start, stop)).loops()
    return found


def _stretches(free: Sequence[bool]) -> Iterator[tuple[int, int]]:
    start = 0
    for place, is_free in enumerate([*free, False]):
        if not is_free:
            yield start, place
            start = place + 1


def _choose(loops: Iterable[Loop]) -> tuple[list[Loop], dict[Loop, int]]:
    """The loops that are kept; and of each other one how many ops in a row are in none that went before it."""
    taken: set[int] = set()
    chosen = []
    room = {}
    for loop in sorted(loops, key=lambda x: (x.start - x.stop, x.period, x.start)):
        if taken.isdisjoint((loop.ops[0], loop.ops[-1])) and taken.isdisjoint(loop.ops):
            taken.update(loop.ops)
            chosen.append(loop)
        else:
            room[loop] = _longest_gap(loop.ops, taken)
    return sorted(chosen, key=lambda x: x.start), room


def _longest_gap(ops: range, taken: set[int]) -> int:
    longest = length = 0
    for op in ops:
        length = 0 if op in taken else length + 1
        longest = max(longest, length)
    return longest


@define(eq=False)
class _Area:
    """Rounds that were found.

    Args:
        loop: They.
        is_loop: Whether one feeds the next.
        rhythm: Of multiples of this no loop needs to be looked for that cannot leave them. None if of none.
        room: How many ops in a row no better loop takes. Up to half of that, it must be looked for other periods too.
    """

    loop: Loop
    is_loop: bool
    rhythm: int | None
    room: int = 0

    def is_settled(self, period: int) -> bool:
        """Whether no loop of this period, which is longer than theirs, needs to be looked for among them."""
        repeats = self.rhythm is not None and not period % self.rhythm
        return repeats or (self.is_loop and 2 * period > self.room)


class _Search:
    def __init__(self, rounds: Rounds) -> None:
        self.rounds = rounds
        self.areas: dict[Loop, _Area] = {}
        #: Per op the area that was found last, with a period up to the one that is searched for.
        self.around: dict[int, _Area] = {}

    def loops(self) -> list[Loop]:
        """The loops that are kept."""
        room = self.rounds.stop - self.rounds.start
        chosen: list[Loop] = []
        while room:
            self.around.clear()
            for period in range(1, room // 2 + 1):
                self._search(period)
            chosen, rest = _choose(area.loop for area in self.areas.values() if area.is_loop)
            room = self._make_room(rest)
        return chosen

    def _make_room(self, rest: dict[Loop, int]) -> int:
        """Open areas whose loop was not kept. Returns how many ops in a row another loop may have in one of them."""
        most = 0
        for loop, room in rest.items():
            area = self.areas[loop]
            if room > max(area.room, 2 * loop.period + 1):
                area.room = room
                most = max(most, room)
        return most

    def _search(self, period: int) -> None:
        """Find the loops of a period. None of them contains another."""
        start = self.rounds.start
        while start + 2 * period <= self.rounds.stop:
            allowed = self._after_area(start, period)
            if allowed == start:
                allowed = self._allowed_start(start, period)
            if allowed == start:
                loop, allowed = self._extended(start, period)
                if not self._add(loop):
                    allowed = start + 1
            start = allowed

    def _after_area(self, start: int, period: int) -> int:
        """The next start, if loops from this one cannot leave an area and no other than its own needs to be found."""
        area = self.around.get(start)
        if area is None or start + period >= area.loop.stop or not area.is_settled(period):
            return start
        return self.rounds.allowed_start(area.loop.stop - period, start, period)

    def _allowed_start(self, start: int, period: int) -> int:
        """The next start, if one of the ops in its first round forbids this one."""
        for op in self._in_good_order(start, period):
            allowed = self.rounds.allowed_start(op, start, period)
            if allowed > start:
                return allowed
        return start

    def _in_good_order(self, start: int, period: int) -> Iterator[int]:
        """All ops of a first round, some of them twice, those first that are likely to forbid many starts.

        These are the last irregular ones, and a few that are spread over the round.
        """
        if period > 2:
            for shift in (0, period):  # in the first round, and in the second
                stop = bisect_left(self._irregular, start + shift + period)
                for op in reversed(self._irregular[max(0, stop - _FEW) : stop]):
                    if op >= start + shift:
                        yield op - shift
            for place in _spread(period):
                yield start + place
        yield from range(start + period - 1, start - 1, -1)

    @cached_property
    def _irregular(self) -> list[int]:
        return self.rounds.irregular()

    def _extended(self, start: int, period: int) -> tuple[Loop, int]:
        """The longest loop of a start, of which two rounds are allowed; and the next start."""
        op = start + period
        while (allowed := self.rounds.allowed_start(op, start, period)) == start:
            op += 1
        return Loop(start, op + period, period), allowed

    def _add(self, loop: Loop) -> bool:
        """Note rounds that were found. Returns whether no loop of their period that they contain can be one instead."""
        area = self.areas.get(loop)
        if area is None:
            is_loop = self.rounds.feeds_itself(loop)
            if not is_loop and self.rounds.may_feed_itself(loop):
                return False
            area = self.areas[loop] = _Area(loop, is_loop, self.rounds.rhythm(loop))
        self.around.update(dict.fromkeys(loop.ops, area))
        return True


def _spread(period: int) -> list[int]:
    """Places in a round of this length, from the last to the first: more of them near the ends."""
    steps = [1 << power for power in range((period - 1).bit_length() - 1)]
    return [period - step for step in steps] + [step - 1 for step in reversed(steps)]
