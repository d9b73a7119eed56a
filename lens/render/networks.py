"""Histories as networkx graphs, and GraphML from these."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import frozen

from lens.ir.entry_index import EntryRow
from lens.ir.naming import layer_type
from lens.ir.op_arguments import argument_names, parameters_of
from lens.render.graphviz_text import without_control
from lens.render.renderer import Renderer, Traced, optional

if TYPE_CHECKING:
    import networkx


def network(history: Traced) -> networkx.MultiDiGraph:
    """The entries of a history as nodes, by their labels; an edge per tensor that one reads from another. Linear.

    Nodes and edges carry attributes of Python's own types; what does not apply is left out.

    Raises:
        RenderError: networkx is not installed.
    """
    meta = history.graph.meta
    made: networkx.MultiDiGraph = optional("networkx", "to_networkx").MultiDiGraph()
    made.graph.update(name=meta.model, backend=meta.backend, training=meta.training, lens=meta.lens)
    for row in history.index.rows:
        made.add_node(row.name, **_node(history, row))
    for row in history.index.rows:
        for source, attributes in _sources(history, row):
            made.add_edge(source.name, row.name, **attributes)
    return made


def _node(history: Traced, row: EntryRow) -> dict[str, Any]:
    graph, kind = history.graph, history.graph.values[row.value].type
    facts: dict[str, Any] = {
        "layer": row.label,
        "pass_num": row.pass_num,
        "passes": row.pass_total,
        "dtype": kind.dtype,
        "shape": list(kind.shape),
        "nbytes": kind.nbytes,
    }
    if row.op is None:
        leaf = None if row.leaf is None else graph.leaves[row.leaf]
        addresses = [] if leaf is None else list(leaf.addresses)
        return facts | {"type": "output" if leaf is None else leaf.kind, "addresses": addresses}
    op = graph.ops[row.op]
    facts |= {
        "type": layer_type(op.function),
        "function": str(op.function),
        "seconds": op.duration,
        "parameters": [leaf.addresses[0] for leaf in parameters_of(graph, op) if leaf.addresses],
    }
    scopes = graph.modules_of(op)
    if_known = {
        "module": history.index.scope_label(scopes[-1]) if scopes else None,
        "flops": history.flop_counter and history.flop_counter(op.id),
        "file": op.location and op.location.file,
        "line": op.location and op.location.line,
    }
    return facts | {key: fact for key, fact in if_known.items() if fact is not None}


def _sources(history: Traced, row: EntryRow) -> list[tuple[EntryRow, dict[str, Any]]]:
    """What an entry reads, and where it stands in the call."""
    by_value = history.index.by_value
    if row.output is not None:
        return [(by_value[row.value], {"value": row.value, "argument": "output"})] if row.value in by_value else []
    if row.op is None:
        return []
    op = history.graph.ops[row.op]
    names = (*argument_names(op), *["memory"] * len(op.effects))
    read = zip(op.sources, names, strict=False)
    return [(by_value[v], {"value": v, "argument": name}) for v, name in read if v in by_value]


@frozen
class GraphMLRenderer(Renderer):
    """GraphML, for yEd, Gephi, Cytoscape, igraph; shapes as ``1x3x8x8``, other lists with commas."""

    name = "graphml"
    suffix = ".graphml"

    def render(self, history: Traced) -> str:
        """The text of the XML file. Raises RenderError if networkx is not installed."""
        made = network(history)
        for facts in (made.graph, *(d for _, d in made.nodes(data=True)), *(d for *_, d in made.edges(data=True))):
            flat = [(key, _flat(value)) for key, value in facts.items() if value not in ([], "")]
            facts.clear()
            facts.update(flat)
        return "\n".join(optional("networkx", self.name).generate_graphml(made)) + "\n"


def _flat(value: Any) -> Any:
    """An attribute that GraphML can hold."""
    if isinstance(value, list):
        value = ("x" if value and isinstance(value[0], int) else ", ").join(map(str, value))
    return without_control(value) if isinstance(value, str) else value
