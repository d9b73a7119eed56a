"""The lowering of a drawing to the objects of pydot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lens.render.drawing import Drawing
from lens.render.graphviz_text import Lowering
from lens.render.renderer import optional
from lens.render.themes import LIGHT, Theme

if TYPE_CHECKING:
    import pydot


def to_pydot(drawing: Drawing, theme: Theme = LIGHT, direction: str = "up") -> pydot.Dot:
    """The drawing as a ``pydot.Dot``, to be changed and written further. Linear.

    Raises:
        RenderError: if pydot is not installed, or the direction unknown.
    """
    make = optional("pydot", "to_pydot")
    lowering = Lowering(drawing, theme, direction)
    defaults = lowering.defaults()
    graph: Any = make.Dot("lens", graph_type="digraph", **defaults["graph"])
    graph.set_node_defaults(**defaults["node"])
    graph.set_edge_defaults(**defaults["edge"])
    homes: dict[str | None, Any] = {None: graph}
    for cluster in drawing.clusters:
        homes[cluster.id] = make.Subgraph(cluster.id, **lowering.cluster(cluster))
    for node in drawing.nodes:
        homes[node.cluster].add_node(make.Node(node.id, **lowering.node(node)))
    for cluster in reversed(drawing.clusters):
        homes[cluster.parent].add_subgraph(homes[cluster.id])
    for edge in drawing.edges:
        graph.add_edge(make.Edge(edge.source, edge.target, **lowering.edge(edge)))
    drawn: pydot.Dot = graph
    return drawn
