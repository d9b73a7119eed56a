"""Labels: the names of layers that users see (paper, "Layer nomenclature")."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from attrs import frozen

from lens.ir.facets import Facet, Labels, Recurrence
from lens.ir.graph import Graph
from lens.ir.naming import layer_type
from lens.passes.protocol import PassContext, PassResult


@frozen
class LabelsPass:
    """Name every result ``{type}_{k}_{n}``: k-th layer of its type, n-th layer, by first execution.

    The passes of a recurrent layer share the numbers of its first. Inputs, outputs, buffers and other leaves are
    counted apart and not in n. Linear.
    """

    name: ClassVar[str] = "labels"
    requires: ClassVar[tuple[type[Facet], ...]] = (Recurrence,)
    provides: ClassVar[tuple[type[Facet], ...]] = (Labels,)
    preserves: ClassVar[tuple[type[Facet], ...]] = ()

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        layers = graph[Recurrence].layer
        totals = Counter(layers)
        names: list[tuple[str, ...]] = [()] * len(totals)
        seen = [0] * len(totals)
        by_type: Counter[str] = Counter()
        results: list[tuple[str, ...]] = []
        passes: list[int] = []
        total = 0
        for op, layer in zip(graph.ops, layers, strict=True):
            seen[layer] += 1
            known, count = names[layer], len(op.results)
            while len(known) < count:
                kind = layer_type(op.function)
                by_type[kind] += 1
                total += 1
                names[layer] = known = (*known, f"{kind}_{by_type[kind]}_{total}")
            results.append(known if len(known) == count else known[:count])
            passes.append(seen[layer])
        return PassResult(
            (
                Labels(
                    tuple(results),
                    tuple(passes),
                    tuple([totals[layer] for layer in layers]),
                    _leaf_labels(graph),
                    tuple(f"output_{i + 1}" for i in range(len(graph.outputs.values))),
                ),
            )
        )


def _leaf_labels(graph: Graph) -> tuple[str | None, ...]:
    counts: Counter[str] = Counter()
    labels: list[str | None] = []
    for leaf in graph.leaves:
        counts[leaf.kind] += 1
        labels.append(None if leaf.kind == "parameter" else f"{leaf.kind}_{counts[leaf.kind]}")
    return tuple(labels)
