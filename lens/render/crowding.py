"""How much arrows crowd a drawing: how many of them pass by nodes that they do not touch."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import NamedTuple, TypeVar

_Node = TypeVar("_Node", bound=Hashable)


class Crowd(NamedTuple):
    """The arrows that pass by nodes, about.

    Attributes:
        passing: Over all ranks of the layout, how many arrows cross a rank without a node there. What makes the layout
            of a drawing slow: each is a place that graphviz has to find, and curves must avoid all nodes.
        ranks: How many ranks there are.
    """

    passing: int
    ranks: int

    @property
    def mean(self) -> float:
        """How many arrows pass by a rank, on average."""
        return self.passing / self.ranks


def crowd(nodes: Iterable[_Node], arrows: Iterable[tuple[_Node, _Node]]) -> Crowd:
    """The crowd in a drawing of these nodes, in order of execution, with these arrows. Linear.

    A node stands one rank after the last of those that point to it, but for arrows that go backwards (in rolled
    drawings). Several arrows from one node to another are one.
    """
    ranks = dict.fromkeys(nodes, 0)
    places = {node: place for place, node in enumerate(ranks)}
    distinct = dict.fromkeys(arrows)
    for source, target in distinct:
        if places[source] < places[target]:
            ranks[target] = max(ranks[target], ranks[source] + 1)
    passing = sum(max(0, abs(ranks[target] - ranks[source]) - 1) for source, target in distinct)
    return Crowd(passing, 1 + max(ranks.values(), default=0))
