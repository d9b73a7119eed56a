"""Instruments: what can be attached to a pass manager."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from attrs import define, field

from lens.errors import PassError
from lens.ir.graph import Graph
from lens.ir.printer import print_graph
from lens.passes.manager import PassRecord


@define
class Timing:
    """Collects the records of all passes; as text, a table of seconds and op counts."""

    records: list[PassRecord] = field(factory=list)

    def after(self, record: PassRecord, step: int, graph: Graph) -> None:
        """Keep the record."""
        self.records.append(record)

    def __str__(self) -> str:
        width = max((len(record.name) for record in self.records), default=4)
        head = f"{'pass':{width}}  {'ms':>10}  {'us per op':>10}  {'ops before':>10}  {'ops after':>10}"
        rows = [
            f"{r.name:{width}}  {r.seconds * 1e3:10.2f}  {r.seconds * 1e6 / max(r.ops_before, 1):10.2f}"
            f"  {r.ops_before:10}  {r.ops_after:10}"
            for r in self.records
        ]
        return "\n".join([head, *rows])


class DumpAfter:
    """Writes the text of the graph after every pass to ``01-name.txt``, ``02-name.txt``, ... in a folder.

    Raises:
        PassError: if the folder cannot be written.
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        self.folder = Path(folder)

    def after(self, record: PassRecord, step: int, graph: Graph) -> None:
        """Write one file."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{step:02}-{record.name}.txt"
            path.write_text(print_graph(graph), encoding="utf-8")
        except OSError as error:
            raise PassError(
                f"the graph cannot be dumped: {error.strerror}",
                where=str(self.folder),
                hint="choose a folder that you may write to",
            ) from error
