"""Tables that print themselves: as text, as HTML in notebooks, and with colours where ``rich`` prints them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from html import escape
from typing import TYPE_CHECKING, Any

from attrs import frozen

if TYPE_CHECKING:
    import rich.table


#: What moves the cursor, ends the line, or begins an order to the terminal.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def printable(text: str) -> str:
    """Text on one line that gives a terminal no orders: names may hold anything, those of a trace file too."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


@frozen
class Column:
    """A column: its title, how a value is shown, and whether it stands to the right."""

    title: str
    show: Callable[[Any], str] = str
    right: bool = False


@frozen
class Table:
    """A table of values.

    Args:
        columns: The columns.
        rows: Per row, a value per column; None is shown as nothing.
        head: Lines above the table.
        limit: How many rows are shown; the middle of a longer table is left out, or its end if it is sorted.
        is_sorted: Whether the first rows are what matters.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]
    head: tuple[str, ...] = ()
    limit: int | None = None
    is_sorted: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Each row, the values by the titles of their columns."""
        titles = [column.title for column in self.columns]
        return (dict(zip(titles, row, strict=True)) for row in self.rows)

    def _above(self) -> list[str]:
        return [printable(line) for line in self.head]

    def _shown(self) -> list[tuple[str, ...] | str]:
        """The rows as text; a string stands for rows left out."""

        def texts(rows: tuple[tuple[Any, ...], ...]) -> list[tuple[str, ...]]:
            cells = (zip(self.columns, row, strict=True) for row in rows)
            return [
                tuple("" if value is None else printable(column.show(value)) for column, value in row) for row in cells
            ]

        if self.limit is None or len(self.rows) <= self.limit:
            return [*texts(self.rows)]
        begin = self.limit if self.is_sorted else self.limit // 2
        end = len(self.rows) - (self.limit - begin)
        return [*texts(self.rows[:begin]), f"... {end - begin} more ...", *texts(self.rows[end:])]

    def __str__(self) -> str:
        titles = tuple(column.title for column in self.columns)
        lines = self._shown()
        cells = [titles, *(line for line in lines if not isinstance(line, str))]
        widths = [max(len(row[i]) for row in cells) for i in range(len(titles))]

        def line_of(row: tuple[str, ...]) -> str:
            sides = zip(row, widths, self.columns, strict=True)
            return "  ".join(c.rjust(w) if column.right else c.ljust(w) for c, w, column in sides).rstrip()

        text = [line_of(titles), *(f"  {line}" if isinstance(line, str) else line_of(line) for line in lines)]
        return "\n".join([*self._above(), "", *text] if self.head else text)

    def _repr_html_(self) -> str:
        """The table for notebooks."""
        style = ['style="text-align:right"' if column.right else 'style="text-align:left"' for column in self.columns]

        def row_of(cells: tuple[str, ...], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag} {s}>{escape(c)}</{tag}>" for c, s in zip(cells, style, strict=True))

        titles = row_of(tuple(column.title for column in self.columns), "th")
        rows = [
            f'<tr><td colspan="{len(style)}">{line}</td>' if isinstance(line, str) else row_of(line, "td")
            for line in self._shown()
        ]
        head = f"<pre>{escape(chr(10).join(self._above()))}</pre>" if self.head else ""
        return f"{head}<table>{titles}{''.join(rows)}</table>"

    def __rich__(self) -> rich.table.Table:
        """The table as ``rich`` prints it."""
        from rich.table import Table as RichTable  # only rich calls this
        from rich.text import Text  # plain text would be searched for markup

        title = Text("\n".join(self._above())) if self.head else None
        table = RichTable(title=title, title_justify="left", title_style="")
        for column in self.columns:
            table.add_column(column.title, justify="right" if column.right else "left")
        for line in self._shown():
            table.add_row(*map(Text, [line] if isinstance(line, str) else line))
        return table
