"""The entries of a history and how they are found (paper, "The ModelHistory object")."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from lens.entry import LayerEntry, OpEntry
from lens.errors import UnknownKeyError
from lens.ir.elements import ScopeId, ValueId
from lens.ir.entry_index import EntryIndex
from lens.ir.graph import Graph
from lens.ir.payloads import PayloadStore
from lens.passes.manager import PassRecord


class HistoryEntries:
    """A recorded forward pass as a sequence of entries, one per pass of every layer."""

    def __init__(
        self,
        graph: Graph,
        payloads: PayloadStore,
        pass_records: Sequence[PassRecord] = (),
        logging_seconds: float = 0.0,
    ) -> None:
        self.graph = graph
        self.payloads = payloads
        self.pass_records = tuple(pass_records)
        self.logging_seconds = logging_seconds

    @cached_property
    def index(self) -> EntryIndex:
        """The entries and their keys."""
        return EntryIndex(self.graph)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the facts without the derived caches."""
        return {k: v for k, v in vars(self).items() if k not in ("index", "_by_scope_end")}

    # Entries

    def __len__(self) -> int:
        """Number of entries: one per pass of every layer, inputs, buffers and outputs included."""
        return len(self.index.rows)

    def __iter__(self) -> Iterator[OpEntry]:
        return (OpEntry(self, row) for row in self.index.rows)

    def entry(self, number: int) -> OpEntry:
        """The entry at a position among all entries, saved or not."""
        return OpEntry(self, self.index.rows[number])

    def __getitem__(self, key: str | int) -> Any:
        """The entry of a key: an ``OpEntry``, or a ``LayerEntry`` if the key names several passes.

        Raises:
            UnknownKeyError: a KeyError that names the nearest keys.
            AmbiguousKeyError: if the key is both a label and a module address.
        """
        if isinstance(key, str):
            rows = self.index.find(key)
            entries = [OpEntry(self, row) for row in rows]
            return entries[0] if len(entries) == 1 else LayerEntry(key, entries)
        if not isinstance(key, int) or isinstance(key, bool):
            raise UnknownKeyError(
                f"a layer cannot be looked up by a {type(key).__name__}",
                where=f"history[{key!r}]",
                hint="use a label, a module address, or an ordinal",
            )
        numbered = self._numbered
        if not -len(numbered) <= key < len(numbered):
            raise UnknownKeyError(
                f"there is no layer number {key}",
                where=f"{len(numbered)} entries",
                hint=f"ordinals go from {-len(numbered)} to {len(numbered) - 1}",
            )
        return OpEntry(self, numbered[key])

    def __contains__(self, key: object) -> bool:
        try:
            self[key]  # type: ignore[index]
        except KeyError:
            return False
        return True

    @property
    def _numbered(self) -> Sequence[Any]:
        """The rows that ordinals count: the saved ones if only some are saved, else all."""
        rows = self.index.rows
        saved = [row for row in rows if row.value in self.payloads]
        return saved or rows

    def reach(self, start: int, edges: Sequence[tuple[int, ...]]) -> list[int]:
        """Entries that can be reached over edges, in order of execution, the start left out. Linear."""
        seen = {start}
        stack = [start]
        while stack:
            for near in edges[stack.pop()]:
                if near not in seen:
                    seen.add(near)
                    stack.append(near)
        return sorted(seen - {start})

    @cached_property
    def _by_scope_end(self) -> dict[str, dict[ValueId, list[ScopeId]]]:
        ends: dict[str, dict[ValueId, list[ScopeId]]] = {"inputs": {}, "outputs": {}}
        for scope in self.graph.scopes:
            if scope.parent is not None:
                for end, found in ends.items():
                    for value in getattr(scope, end):
                        found.setdefault(value, []).append(scope.id)
        return ends

    def scopes_by(self, end: str) -> dict[ValueId, list[ScopeId]]:
        """Per value, the module calls that have it among their ``inputs`` or ``outputs``."""
        return self._by_scope_end[end]
