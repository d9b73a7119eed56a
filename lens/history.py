"""The history of a forward pass: what users hold in their hands (paper, "The ModelHistory object")."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

from lens.history_facts import HistoryFacts
from lens.render.picture import Pictures
from lens.render.summary import summarize
from lens.render.tables import pandas_table
from lens.render.trace_file import write_trace

if TYPE_CHECKING:
    import pandas


class ModelHistory(HistoryFacts, Pictures):
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
        return summarize(self)

    def __repr__(self) -> str:
        return f"<ModelHistory of {self.model_name}: {len(self)} entries>"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """The summary, in notebooks that show no picture."""
        printer.text(str(self))

    def save(self, path: str | PathLike[str], *, payloads: bool = True) -> str:
        """Write the history to a file that ``lens.load`` reads, and give its path.

        Args:
            path: The file.
            payloads: Whether to write the saved values too.

        Raises:
            FileFormatError: if the path cannot be written.
        """
        return write_trace(self, path, payloads)

    def to_pandas(self) -> pandas.DataFrame:
        """The entries as a table, one row per entry. Needs pandas (``pip install lens-trace[pandas]``)."""
        return pandas_table(self)
