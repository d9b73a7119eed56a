"""What a pass is.

A pass is a frozen attrs class whose fields are its options. It is pure: it reads a graph and returns facets (an
annotating pass) or a new graph with a map (a restructuring pass); it changes nothing.
"""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from attrs import field, frozen

from lens.ir.facets import Facet, why_no_facets
from lens.ir.graph import Graph
from lens.ir.payloads import PayloadStore
from lens.ir.rewrite import Restructured


@frozen
class PassContext:
    """What a pass may look at besides the graph.

    Args:
        payloads: The saved values; empty for a graph without any.
    """

    payloads: PayloadStore = field(factory=PayloadStore)


@frozen
class PassResult:
    """What a pass found out.

    Args:
        facets: New facets, about the new graph if there is one.
        restructured: The new graph and its map, from restructuring passes.
    """

    facets: tuple[Facet, ...] = ()
    restructured: Restructured | None = None


@runtime_checkable
class Pass(Protocol):
    """The protocol of passes.

    Attributes:
        name: What pipelines call it.
        requires: Facet types that must be there before it runs.
        provides: Facet types that it returns.
        preserves: For restructuring passes, facet types that are carried over by ``Facet.remap``.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[type[Facet], ...]]
    provides: ClassVar[tuple[type[Facet], ...]]
    preserves: ClassVar[tuple[type[Facet], ...]]

    def run(self, graph: Graph, context: PassContext) -> PassResult:
        """Analyse or restructure a graph."""
        ...


_FACETS = ("requires", "provides", "preserves")


def why_no_pass(candidate: object) -> str:
    """Why this pass, or class of passes, does not declare what a pass declares; empty if it does."""
    missing = [part for part in ("name", *_FACETS, "run") if not hasattr(candidate, part)]
    if missing:
        return f"it has no {missing[0]}"
    name, run = (getattr(candidate, part) for part in ("name", "run"))
    if not isinstance(name, str):
        return f"its name is a {type(name).__name__}"
    if not callable(run):
        return f"its run is a {type(run).__name__}"
    return next((f"its {part} is {why}" for part in _FACETS if (why := why_no_facets(getattr(candidate, part)))), "")
