"""The rolled drawing: all passes of a layer as one node (paper, Figure 3)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from attrs import evolve

from lens.render.drawing import Cluster, Cost, Drawing, Edge, Node, in_few_words, pass_ranges
from lens.render.joining import joined


def roll(drawing: Drawing) -> Drawing:
    """The rolled form of an unrolled drawing. Linear.

    A layer's node says how many passes it has. Where its inputs or outputs differ by pass, the edges say which passes
    take them. All calls of a module share a box; a module called in several others, and a layer whose passes ran in
    several modules, stands in the innermost box that encloses them all.
    """
    groups: dict[str, list[Node]] = defaultdict(list)
    for node in drawing.nodes:
        groups[node.label if node.passes > 1 else node.id].append(node)
    boxes = _rolled_clusters(drawing)
    box_of: dict[str | None, str | None] = {None: None, **{box.address: box.id for box in boxes}}
    around = (box_of[_innermost(drawing, (node.cluster for node in passes))] for passes in groups.values())
    nodes = tuple(map(_rolled_node, groups.values(), around))
    home = {node.id: passes[0].id for passes in groups.values() for node in passes}
    edges = _rolled_edges(drawing, home)
    return evolve(drawing, nodes=nodes, edges=edges, clusters=without_empty(boxes, nodes), rolled=True)


def without_empty(clusters: Sequence[Cluster], nodes: Iterable[Node]) -> tuple[Cluster, ...]:
    """The clusters that have a node, directly or further in."""
    parents = {cluster.id: cluster.parent for cluster in clusters}
    used: set[str | None] = set()
    for node in nodes:
        inside = node.cluster
        while inside is not None and inside not in used:
            used.add(inside)
            inside = parents[inside]
    return tuple(cluster for cluster in clusters if cluster.id in used)


def _rolled_clusters(drawing: Drawing) -> list[Cluster]:
    """One cluster per module, in that of the innermost module that is around all its calls."""
    calls: dict[str, list[Cluster]] = defaultdict(list)
    for cluster in drawing.clusters:
        calls[cluster.address].append(cluster)
    boxes = []
    for found in calls.values():
        around = _innermost(drawing, (cluster.parent for cluster in found))
        parent = None if around is None else calls[around][0].id
        boxes.append(evolve(found[0], parent=parent, suffix=_rolled_suffix(found, found[0].calls)))
    return boxes


def _innermost(drawing: Drawing, clusters: Iterable[str | None]) -> str | None:
    """The address of the innermost module with a box that all these clusters are, or are in."""
    first, *others = ([cluster.address for cluster in drawing.chains[c]] for c in dict.fromkeys(clusters))
    shared = set(first).intersection(*others)
    return next((address for address in reversed(first) if address in shared), None)


def _rolled_suffix(found: Sequence[Node | Cluster], calls: int) -> str:
    """How many passes or calls stand here: all, or, where others are collapsed elsewhere, some."""
    if len(found) == 1:
        return found[0].suffix
    return f" (x{calls})" if len(found) == calls else f" ({len(found)} of {calls})"


def _rolled_node(passes: list[Node], cluster: str | None) -> Node:
    first, last = passes[0], passes[-1]
    if len(passes) == 1:
        return evolve(first, cluster=cluster, call="")
    modules = dict.fromkeys(node.module for node in passes if node.module)
    return evolve(
        first,
        suffix=_rolled_suffix(passes, first.passes),
        size=first.size if all(node.size == first.size for node in passes) else f"{first.size} ... {last.size}",
        weights=tuple(dict.fromkeys(w for node in passes for w in node.weights)),
        module=in_few_words(list(modules)),
        call="",
        role=next((n.role for n in passes if n.role != "plain"), "plain"),
        dashed=all(node.dashed for node in passes),
        cluster=cluster,
        tests=_rolled_tests(passes),
        head=next((n.head for n in passes if n.head), ""),
        notes=tuple(dict.fromkeys(note for node in passes for note in node.notes)),
        mark=next((n.mark for n in passes if n.mark), ""),
        cost=sum((node.cost for node in passes), Cost()),
    )


def _rolled_tests(passes: list[Node]) -> tuple[tuple[str, str], ...]:
    """Per construct the outcome, with the passes where it differs, as ``True 1-9, False 10``."""
    found: dict[str, dict[str, list[int]]] = {}
    for node in passes:
        for construct, outcome in node.tests:
            found.setdefault(construct, {}).setdefault(outcome, []).append(node.pass_num)
    tests = []
    for construct, outcomes in found.items():
        parts = [f"{outcome or 'open'} {pass_ranges(tuple(numbers))}" for outcome, numbers in outcomes.items()]
        tests.append((construct, next(iter(outcomes)) if len(outcomes) == 1 else ", ".join(parts)))
    return tuple(tests)


def _rolled_edges(drawing: Drawing, home: dict[str, str]) -> tuple[Edge, ...]:
    nodes = {node.id: node for node in drawing.nodes}
    moved = (((home[e.source], home[e.target], e.branch, e.after), e.argument, e) for e in drawing.edges)
    total: dict[str, set[int]] = defaultdict(set)
    for node in drawing.nodes:
        total[home[node.id]].add(node.pass_num)
    edges = []
    for new, found in joined(moved):
        leaving = {nodes[edge.source].pass_num for edge in found}
        entering = {nodes[edge.target].pass_num for edge in found}
        some_leave = () if leaving == total[new.source] else tuple(sorted(leaving))
        some_enter = () if entering == total[new.target] else tuple(sorted(entering))
        edges.append(evolve(new, leaving=some_leave, entering=some_enter))
    return tuple(edges)
