"""The lowering of a drawing to the DOT language of graphviz."""

from __future__ import annotations

from collections import defaultdict
from typing import ClassVar

import graphviz
from attrs import frozen

from lens.ir.facets import Facet, Labels
from lens.ir.graph import Graph
from lens.render.drawing import Cluster, Drawing, Node, make_drawing

_FILL = {
    "input": "#98fb98",
    "output": "#ff9999",
    "parameters": "#d3d3d3",
    "buffer": "#f0f0f0",
    "condition": "#ffff99",
    "plain": "white",
}


@frozen
class GraphvizRenderer:
    """A graph as DOT text."""

    name: ClassVar[str] = "graphviz"
    requires: ClassVar[tuple[type[Facet], ...]] = (Labels,)

    def render(self, graph: Graph) -> str:
        """The DOT text of the unrolled graph. Linear."""
        return to_dot(make_drawing(graph))


def to_dot(drawing: Drawing) -> str:
    """The DOT text of a drawing. Linear."""
    dot = graphviz.Digraph(
        "lens",
        graph_attr={
            "label": _lines(drawing.title, left=True),
            "labelloc": "t",
            "labeljust": "l",
            "rankdir": "BT",
            "ordering": "out",
            "compound": "true",
            "fontname": "Helvetica",
        },
        node_attr={"fontname": "Helvetica", "fontsize": "11", "style": "filled"},
        edge_attr={"fontname": "Helvetica", "fontsize": "9"},
    )
    contents = _Contents(drawing)
    _fill(dot, None, contents)
    for edge in drawing.edges:
        bold = {"fontname": "Helvetica-Bold", "penwidth": "2"} if edge.label.startswith("IF") else {}
        dot.edge(edge.source, edge.target, graphviz.escape(edge.label) if edge.label else None, **bold)
    return str(dot.source)


class _Contents:
    """What stands directly in each cluster; under None, what stands in none."""

    def __init__(self, drawing: Drawing) -> None:
        self.nodes: dict[str | None, list[Node]] = defaultdict(list)
        self.clusters: dict[str | None, list[Cluster]] = defaultdict(list)
        for node in drawing.nodes:
            self.nodes[node.cluster].append(node)
        for cluster in drawing.clusters:
            self.clusters[cluster.parent].append(cluster)


def _fill(dot: graphviz.Digraph, parent: str | None, contents: _Contents) -> None:
    for node in contents.nodes[parent]:
        _add_node(dot, node)
    for cluster in contents.clusters[parent]:
        with dot.subgraph(name=cluster.id) as inner:
            inner.attr(
                label=_lines(cluster.lines, left=True),
                labelloc="b",
                labeljust="l",
                style="rounded",
                color="#555555",
                fontsize="11",
            )
            _fill(inner, cluster.id, contents)


def _add_node(dot: graphviz.Digraph, node: Node) -> None:
    dot.node(
        node.id,
        _lines(node.lines),
        shape="box" if node.module else "ellipse",
        fillcolor=_FILL[node.role],
        style="filled,dashed" if node.dashed else "filled",
        tooltip=graphviz.escape(node.tooltip or node.lines[0]),
    )


def _lines(lines: tuple[str, ...], left: bool = False) -> str:
    r"""Lines of text as a DOT label; ``\l`` ends lines that are set to the left."""
    escaped = [str(graphviz.escape(line)) for line in lines]
    label: str = graphviz.nohtml("".join(f"{line}\\l" for line in escaped) if left else "\\n".join(escaped))
    return label
