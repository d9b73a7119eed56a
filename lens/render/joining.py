"""Arrows that become one where nodes become one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from lens.render.drawing import Edge

#: More arrows than this from one node to another, each for another place in the call, are drawn as one.
_MOST_PLACES = 3


#: Source, target, whether the evaluation of a condition begins there, and whether no tensor goes there.
Way: TypeAlias = tuple[str, str, bool, bool]


def joined(moved: Iterable[tuple[Way, str, Edge]]) -> Iterator[tuple[Edge, list[Edge]]]:
    """The arrows of a new drawing, each with the old ones that it stands for, without their passes. Linear.

    Arrows on the same way for the same place in the call become one. So do all on the same way, where they are many.

    Args:
        moved: Of every old arrow its new way, the place in the call, and itself.
    """
    ways: dict[Way, dict[str, list[Edge]]] = defaultdict(lambda: defaultdict(list))
    for way, place, edge in moved:
        ways[way][place].append(edge)
    for (source, target, branch, after), places in ways.items():
        if len(places) > _MOST_PLACES:
            first, *_, last = filter(None, places)
            places = {f"{first} ... {last}": [edge for edges in places.values() for edge in edges]}
        for place, edges in places.items():
            yield Edge(source, target, place, branch, after), edges
