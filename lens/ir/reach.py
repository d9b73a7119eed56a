"""What can be reached in a graph whose edges all go one way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TypeAlias

#: Per node, the nodes that its edges lead to.
Edges: TypeAlias = Sequence[tuple[int, ...]]
#: So many marks are looked up for all nodes at once, in memory that is proportional to the nodes.
_FEW = 64


def reached(start: int, edges: Edges) -> list[int]:
    """The nodes that can be reached over edges, in order, the start left out. Linear."""
    seen = {start}
    stack = [start]
    while stack:
        for near in edges[stack.pop()]:
            if near not in seen:
                seen.add(near)
                stack.append(near)
    return sorted(seen - {start})


class MarkedReach:
    """Which of some marked nodes each node reaches.

    Few marks are found for all nodes in one go, so that asking every pass of a long loop takes linear time; for many
    it is a walk for each.

    Args:
        edges: The edges.
        marked: The marked nodes, in order.
        order: All nodes, each after those that its edges lead to.
    """

    def __init__(self, edges: Edges, marked: Sequence[int], order: Iterable[int]) -> None:
        self._edges = edges
        self._marked = marked
        self._order = order

    def of(self, node: int) -> list[int]:
        """The marked nodes that this one reaches, in order."""
        if len(self._marked) > _FEW:
            marked = set(self._marked)
            return [near for near in reached(node, self._edges) if near in marked]
        bits = self._bits[node]
        return [near for place, near in enumerate(self._marked) if bits >> place & 1]

    @cached_property
    def _bits(self) -> list[int]:
        """Per node, the places of the marks that it reaches."""
        own = {node: 1 << place for place, node in enumerate(self._marked)}
        found = [0] * len(self._edges)
        for node in self._order:
            for near in self._edges[node]:
                found[node] |= found[near] | own.get(near, 0)
        return found
