"""The drawing: nodes, edges and clusters, made once from a graph and lowered by renderers.

The visual code is that of the paper's Figure 2.
"""

from __future__ import annotations

from collections import Counter

from attrs import frozen

from lens.ir.elements import Op, Scope
from lens.ir.entry_index import EntryIndex, EntryRow
from lens.ir.facets import Conditionals
from lens.ir.graph import Graph
from lens.ir.naming import layer_type
from lens.ir.templates import slots
from lens.render.sizes import human_bytes, human_shape

#: Layers whose result does not depend on the order of their operands.
COMMUTATIVE = frozenset({"add", "mul", "eq", "ne", "and", "or", "xor", "maximum", "minimum"})


@frozen
class Node:
    """A layer.

    Args:
        id: Unique in the drawing.
        lines: The text, first the label.
        role: input, output, parameters, buffer, condition, or plain: what decides its colour.
        module: Whether it is the one operation of a module (a box) or not (an ellipse).
        dashed: Whether it makes a tensor inside the model.
        cluster: The cluster it stands in, if any.
        tooltip: More about it.
    """

    id: str
    lines: tuple[str, ...]
    role: str = "plain"
    module: bool = False
    dashed: bool = False
    cluster: str | None = None
    tooltip: str = ""


@frozen
class Edge:
    """A tensor going from one layer to another.

    ``label`` is its argument position where that matters, after IF where the evaluation of a condition begins.
    """

    source: str
    target: str
    label: str = ""


@frozen
class Cluster:
    """The box of a module of several operations."""

    id: str
    lines: tuple[str, ...]
    parent: str | None = None


@frozen
class Drawing:
    """A picture before it is laid out."""

    title: tuple[str, ...]
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    clusters: tuple[Cluster, ...]


def make_drawing(graph: Graph) -> Drawing:
    """The unrolled drawing of a graph that has labels. Linear."""
    return _Drafting(graph).drawing()


class _Drafting:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.index = EntryIndex(graph)
        self.conditionals = graph.get(Conditionals)
        self.ops_inside = Counter({scope.id: scope.stop - scope.start for scope in graph.scopes})
        self.rows = [row for row in self.index.rows if not self.index.is_statistic(row)]
        self.shown = {row.number for row in self.rows}

    def drawing(self) -> Drawing:
        return Drawing(
            self._title(),
            tuple(self._node(row) for row in self.rows),
            tuple(edge for row in self.rows for edge in self._edges(row)),
            tuple(self._cluster(scope) for scope in self.graph.scopes if self._has_box(scope)),
        )

    def _title(self) -> tuple[str, ...]:
        rows = [row for row in self.index.rows if row.output is None]
        size = sum(self.graph.values[row.value].type.nbytes for row in rows)
        parameters = [parameter.type for parameter in self.graph.meta.parameters]
        weights = human_bytes(sum(t.nbytes for t in parameters))
        return (
            self.graph.meta.model,
            f"{len(rows)} tensors total ({human_bytes(size)})",
            f"{sum(t.numel for t in parameters):,} parameters ({weights})",
        )

    def _has_box(self, scope: Scope) -> bool:
        return scope.parent is not None and self.ops_inside[scope.id] > 1

    def _cluster(self, scope: Scope) -> Cluster:
        outer = [s for s in self.graph.scope_chain(scope.parent) if self._has_box(s)]
        parent = _cluster_id(outer[-1]) if outer else None
        return Cluster(_cluster_id(scope), (f"@{self.index.scope_label(scope)}", f"({scope.cls})"), parent)

    def _node(self, row: EntryRow) -> Node:
        value_type = self.graph.values[row.value].type
        lines = [row.name, f"{human_shape(value_type.shape)} ({human_bytes(value_type.nbytes)})"]
        op = None if row.op is None else self.graph.ops[row.op]
        if op is None:
            lines += self._leaf_lines(row)
            return Node(_node_id(row), tuple(lines), self._role(row), dashed=self._dashed(row))
        parameters = self._parameter_shapes(op)
        if parameters:
            lines.append(f"params: {', '.join(parameters)}")
        scopes = [s for s in self.graph.scope_chain(op.scope) if s.parent is not None]
        bottom = bool(scopes) and self.ops_inside[scopes[-1].id] == 1
        if bottom:
            lines.append(f"@{self.index.scope_label(scopes[-1])}")
        boxes = [_cluster_id(s) for s in scopes if self._has_box(s)]
        return Node(
            _node_id(row),
            tuple(lines),
            self._role(row),
            bottom,
            not op.operands,
            boxes[-1] if boxes else None,
            f"{op.function}{f' at {op.location}' if op.location else ''}",
        )

    def _leaf_lines(self, row: EntryRow) -> list[str]:
        addresses = self.graph.leaves[row.leaf].addresses if row.leaf is not None else ()
        return [f"@{addresses[0]}"] if addresses else []

    def _dashed(self, row: EntryRow) -> bool:
        return row.leaf is not None and self.graph.leaves[row.leaf].kind == "external"

    def _role(self, row: EntryRow) -> str:
        if row.output is not None:
            return "output"
        if row.leaf is not None:
            kind = self.graph.leaves[row.leaf].kind
            return "input" if kind == "input" else "buffer"
        op = None if row.op is None else self.graph.ops[row.op]
        if op is not None and self.conditionals and self.conditionals.final[op.id]:
            return "condition"
        return "parameters" if op is not None and self._parameter_shapes(op) else "plain"

    def _parameter_shapes(self, op: Op) -> list[str]:
        values = (self.graph.values[v] for v in op.operands)
        leaves = ((v, self.graph.leaves[v.leaf]) for v in values if v.leaf is not None)
        return [human_shape(v.type.shape) for v, leaf in leaves if leaf.kind == "parameter"]

    def _edges(self, row: EntryRow) -> list[Edge]:
        parents = [n for n in self.index.parents[row.number] if n in self.shown]
        names = self._argument_names(row) if len(parents) > 1 else {}
        if self.conditionals and row.op is not None and self.conditionals.starts[row.op]:
            names = {n: " ".join(filter(None, ("IF", names.get(n)))) for n in parents}
        return [Edge(_node_id(self.index.rows[n]), _node_id(row), names.get(n, "")) for n in parents]

    def _argument_names(self, row: EntryRow) -> dict[int, str]:
        """Per parent of a non-commutative layer, where it stands in the call."""
        op = None if row.op is None else self.graph.ops[row.op]
        if op is None or layer_type(op.function) in COMMUTATIVE:
            return {}
        arguments = [(f"arg {i}", arg) for i, arg in enumerate(op.args)] + list(op.kwargs)
        names: dict[int, list[str]] = {}
        for name, template in arguments:
            for slot in slots(template):
                parent = self.index.by_value.get(op.operands[slot])
                if parent is not None and name not in names.setdefault(parent.number, []):
                    names[parent.number].append(name)
        return {number: ", ".join(found) for number, found in names.items()}


def _node_id(row: EntryRow) -> str:
    return f"n{row.number}"


def _cluster_id(scope: Scope) -> str:
    return f"cluster_{scope.id}"
