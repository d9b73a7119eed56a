"""The adapter that lets Model Explorer open trace files itself.

Model Explorer imports the module ``main`` of a package that its ``--extensions`` names, so:
``model-explorer trace.lens --extensions lens.render.model_explorer``
"""

from __future__ import annotations

from typing import Any

from model_explorer import Adapter, AdapterMetadata, ModelExplorerGraphs, graph_builder

from lens.render.model_explorer import explorer_graph
from lens.render.trace_file import read_trace


class LensAdapter(Adapter):  # type: ignore[misc]  # Model Explorer has no types
    """Model Explorer's reader of trace files. Runs without torch."""

    metadata = AdapterMetadata(
        id="lens",
        name="lens traces",
        description="Reads the files that history.save(path) and `lens trace --save-to` write.",
        fileExts=["lens"],
    )

    def convert(self, model_path: str, settings: dict[str, Any]) -> ModelExplorerGraphs:
        """The graph of a trace file. Raises FileFormatError if it is none."""
        graph, _, _ = read_trace(model_path)
        return {"graphs": [graph_builder.Graph(**explorer_graph(graph))]}
