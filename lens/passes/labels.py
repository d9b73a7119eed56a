"""Labels: the names of layers that users see (paper, "Layer nomenclature")."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from attrs import frozen

from lens.ir.facets import Facet, Labels
from lens.ir.graph import Graph
from lens.ir.naming import layer_type
from lens.passes.protocol import PassContext, PassResult


@frozen
class LabelsPass:
    """Name every result ``{type}_{k}_{n}``: k-th layer of its type, n-th layer, by first execution.

    Inputs, outputs, buffers and other leaves are counted apart and not in n. Linear.
    """

    name: ClassVar[str] = "labels"
    requires: ClassVar[tuple[type[Facet], ...]] = ()
    provides: ClassVar[tuple[type[Facet], ...]] = (Labels,)
    preserves: ClassVar[tuple[type[Facet], ...]] = ()

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        by_type: Counter[str] = Counter()
        total = 0
        results: list[tuple[str, ...]] = []
        for op in graph.ops:
            kind = layer_type(op.function)
            names = []
            for _ in op.results:
                by_type[kind] += 1
                total += 1
                names.append(f"{kind}_{by_type[kind]}_{total}")
            results.append(tuple(names))
        ones = (1,) * len(graph.ops)
        outputs = tuple(f"output_{i + 1}" for i in range(len(graph.outputs.values)))
        return PassResult((Labels(tuple(results), ones, ones, _leaf_labels(graph), outputs),))


def _leaf_labels(graph: Graph) -> tuple[str | None, ...]:
    counts: Counter[str] = Counter()
    labels: list[str | None] = []
    for leaf in graph.leaves:
        counts[leaf.kind] += 1
        labels.append(None if leaf.kind == "parameter" else f"{leaf.kind}_{counts[leaf.kind]}")
    return tuple(labels)
