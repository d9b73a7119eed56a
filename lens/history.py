"""The history of a forward pass: what users hold in their hands (paper, "The ModelHistory object")."""

from __future__ import annotations

from html import escape
from os import PathLike
from typing import Any

from lens import registry
from lens.exports import Exports
from lens.history_diff import HistoryDiff, Tolerance, compare
from lens.history_facts import HistoryFacts
from lens.history_queries import HistoryQueries
from lens.ir.facets import Labels
from lens.render.columns import Table
from lens.render.picture import Pictures
from lens.render.summary import By, head_of, summarize
from lens.render.trace_file import read_trace, write_trace
from lens.stages import stage


class ModelHistory(HistoryFacts, HistoryQueries, Pictures, Exports):
    """A full record of one forward pass.

    Index it with a label (``conv2d_2_4``, ``conv2d_2``, ``conv2d_2:1``), a module address (``features.3``,
    ``block:2``), a buffer address, or an ordinal; iterate over it to get every pass of every layer in order of
    execution.

    Attributes:
        graph: The typed graph, with facets.
        payloads: The saved values.
        pass_records: What the analysis passes took.
        logging_seconds: Time that lens itself took, during and after the forward pass.
    """

    def __str__(self) -> str:
        return str(self.summary()) if self.graph.get(Labels) else repr(self)

    def __repr__(self) -> str:
        size = f"{len(self)} entries" if self.graph.get(Labels) else f"{len(self.graph.ops)} operations without labels"
        return f"<ModelHistory of {self.model_name}: {size}>"

    def __bool__(self) -> bool:
        return bool(self.graph.values)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """The summary, in notebooks that show no picture."""
        printer.text(str(self))

    def _repr_html_(self) -> str:
        """The facts and the picture, for notebooks; the summary where there is no picture."""
        svg = self._repr_svg_()
        if svg is None:
            return self.summary()._repr_html_()
        return f"<pre>{escape(chr(10).join(head_of(self)))}</pre>{svg}"

    def summary(self, by: By = "layer", *, depth: int | None = None, limit: int | None = 60) -> Table:
        """A table of what the model did; print it, show it in a notebook, or iterate over its rows.

        Args:
            by: ``layer``: every entry, in order of execution. ``module``: time, memory, parameters and FLOPs of every
                module with all that is in it. ``type``: the same by layer type. ``time``, ``memory``, ``parameters``,
                ``flops``: the same by layer, all its passes together, the largest first.
            depth: For ``module``: leave out modules that are deeper; 1 is the modules of the model itself.
            limit: How many rows are printed; None for all.

        Memory is that of the tensors that the operations return. Linear.

        Raises:
            InputError: if there is no such summary.
        """
        return summarize(self, by, depth, limit)

    def diff(self, other: ModelHistory, *, rtol: float = 0.0, atol: float = 0.0, slower: float = 2.0) -> HistoryDiff:
        """What is different in another history: layers added and removed, shapes, arguments, inputs, values, times.

        Args:
            other: The later history, of the same model or another.
            rtol, atol: By how much saved values may differ, as in ``torch.allclose``; by default not at all.
            slower: From which factor on a layer that takes a millisecond more or less is listed for its time.

        Raises:
            InputError: if ``other`` is no history, or a number cannot be used.
        """
        return compare(self, other, Tolerance(rtol, atol, slower))

    def save(self, path: str | PathLike[str], *, payloads: bool = True, beside: bool = False) -> str:
        """Write the history to a file that ``lens.load`` reads, and give its path.

        Args:
            path: The file.
            payloads: Whether to write the saved values too, but those that were overwritten since.
            beside: Whether to write these into a file of their own, ``PATH.safetensors``; they are then read from
                there, one by one, when they are asked for (``pip install lens-trace[export]``).

        Raises:
            InputError: if the path is none.
            FileFormatError: if it cannot be written, or a value does not fit into the file.
        """
        with stage("writing the trace"):
            return write_trace(self, path, payloads, beside)


def load(path: str | PathLike[str]) -> ModelHistory:
    """The history that ``history.save(path)`` wrote. Does not need the model.

    Args:
        path: The file; where values were saved beside it, that file has to stand there too.

    Raises:
        InputError: the path is none.
        FileFormatError: the file is not a lens trace, damaged, or from a newer version.
    """
    graph, payloads, seconds = read_trace(path, registry.facet_classes())
    return ModelHistory(graph, payloads, logging_seconds=seconds)
