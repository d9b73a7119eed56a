"""A renderer: the edges of the graph, one a line."""

from typing import ClassVar

from attrs import frozen

from lens.ir.facets import Facet


@frozen
class EdgesRenderer:
    """``producer -> consumer`` for every operand that an operation made."""

    name: ClassVar[str] = "edges"
    suffix: ClassVar[str] = ".txt"
    requires: ClassVar[tuple[type[Facet], ...]] = ()
    needs_model: ClassVar[bool] = False

    def render(self, history):
        graph = history.graph
        edges = [(graph.producer(value), op) for op in graph.ops for value in op.operands]
        lines = [f"{a.function.name}_{a.id} -> {b.function.name}_{b.id}\n" for a, b in edges if a is not None]
        return "".join(lines)
