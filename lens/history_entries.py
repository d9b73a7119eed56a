"""The entries of a history and how they are found (paper, "The ModelHistory object")."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, SupportsIndex

from attrs import evolve

from lens.entry import LayerEntry, OpEntry
from lens.errors import AmbiguousKeyError, UnknownKeyError, unknown_attribute
from lens.ir.elements import OpId, ScopeId, ValueId
from lens.ir.entry_index import NOTHING, EntryIndex, EntryRow, ordinals
from lens.ir.facets import Distances
from lens.ir.graph import Graph
from lens.ir.payloads import PayloadStore
from lens.ir.reach import MarkedReach
from lens.passes.distances import DistancesPass
from lens.passes.manager import PassManager, PassRecord


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

    if not TYPE_CHECKING:  # a type checker would take every name for one that is there

        def __getattr__(self, name: str) -> Any:
            raise unknown_attribute(self, name)

    @cached_property
    def index(self) -> EntryIndex:
        """The entries and their keys."""
        return EntryIndex(self.graph)

    @cached_property
    def _distances(self) -> Distances:
        """The facet of the graph, or what it would be, if the pipeline had no pass for it."""
        found = self.graph.get(Distances)
        return PassManager((DistancesPass(),)).run(self.graph).graph[Distances] if found is None else found

    @cached_property
    def flop_counter(self) -> Callable[[OpId], int | None] | None:
        """Gives the floating point operations of an operation; None if torch, whose formulas it uses, is missing."""
        if find_spec("torch") is None:
            return None
        from lens.replay.flops import FlopCounter  # torch is optional for looking at a trace

        return FlopCounter(self.graph, self.payloads)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the facts without the derived caches."""
        return {k: v for k, v in vars(self).items() if not isinstance(getattr(type(self), k, None), cached_property)}

    # Entries

    def __len__(self) -> int:
        """Number of entries: one per pass of every layer, inputs, buffers and outputs included."""
        return len(self.index.rows)

    def __iter__(self) -> Iterator[OpEntry]:
        """All entries. If only another tensor that the operation wrote to was saved, the entry shows that one."""
        return (OpEntry(self, row) for row in self._as_saved)

    def entry(self, number: int) -> OpEntry:
        """The entry at a position among all entries, saved or not."""
        try:
            return OpEntry(self, self.index.rows[number])
        except (IndexError, TypeError) as error:
            places = f"positions go from 0 to {len(self) - 1}; history[key] takes labels and addresses"
            raise UnknownKeyError(
                f"there is no entry at {number!r:.40}",
                where=f"{len(self)} entries",
                hint=places if len(self) else NOTHING,
            ) from error

    def __getitem__(self, key: str | SupportsIndex) -> OpEntry | LayerEntry:
        """The entry of a key: an ``OpEntry``, or a ``LayerEntry`` if the key names several passes.

        Raises:
            UnknownKeyError: a KeyError that names the nearest keys.
            AmbiguousKeyError: if the key is both a label and a module address.
        """
        if isinstance(key, str):
            rows = self.index.find(key)
            entries = [OpEntry(self, row) for row in rows]
            return entries[0] if len(entries) == 1 else LayerEntry(key, entries)
        try:
            number = operator.index(key)
        except (TypeError, ValueError):
            number = None
        if number is None or isinstance(key, bool):
            raise UnknownKeyError(
                f"a layer cannot be looked up by a {type(key).__name__}",
                where=f"history[{key!r}]",
                hint="use a label, a module address, or an ordinal; list(history)[2:5] gives several",
            )
        count = len(self.numbered)
        if not -count <= number < count:
            raise UnknownKeyError(
                f"there is no layer number {number}",
                where=f"{count} entries",
                hint=ordinals(count),
            )
        return OpEntry(self, self.numbered[number])

    def one(self, key: str | SupportsIndex | OpEntry) -> OpEntry:
        """The one entry of a key. Raises AmbiguousKeyError if it names several passes, else as ``history[key]``."""
        if isinstance(key, OpEntry) and key._history is not self:
            raise UnknownKeyError(
                "this entry belongs to another history",
                where=repr(key),
                hint=f"look it up in this one: history[{key.layer_label_w_pass!r}]",
            )
        found = key if isinstance(key, OpEntry) else self[key]
        if isinstance(found, OpEntry):
            return found
        raise AmbiguousKeyError(
            f"{key!r} names {len(found)} passes",
            where=f"{found.passes[0].layer_label_w_pass} to {found.passes[-1].layer_label_w_pass}",
            hint=f"name one: {found.passes[0].layer_label_w_pass!r}, {found.passes[1].layer_label_w_pass!r}, ...",
        )

    def __contains__(self, key: object) -> bool:
        try:
            self[key]  # type: ignore[index]
        except KeyError:
            return False
        return True

    @cached_property
    def numbered(self) -> Sequence[EntryRow]:
        """The rows that ordinals count: the saved ones if only some are saved, else all."""
        saved = [row for row in self._as_saved if row.value in self.payloads]
        return saved or self.index.rows

    @cached_property
    def _as_saved(self) -> tuple[EntryRow, ...]:
        """All rows. If only another tensor that the op wrote to was saved, the row shows that one. Linear."""
        saved = self.payloads
        if not saved:
            return self.index.rows
        return tuple(row if row.value in saved else self._with_saved(row) for row in self.index.rows)

    def _with_saved(self, row: EntryRow) -> EntryRow:
        others = self.index.values_of.get(row.number, ())
        return next((evolve(row, value=value) for value in others if value in self.payloads), row)

    @cached_property
    def _origins(self) -> MarkedReach:
        """Which entries without parents an entry descends from."""
        parents = self.index.parents
        return MarkedReach(parents, [n for n, near in enumerate(parents) if not near], range(len(parents)))

    @cached_property
    def _initialized(self) -> MarkedReach:
        """Which entries that make a tensor from no tensor an entry descends from."""
        made = [entry._row.number for entry in self if entry.initialized_inside_model]
        return MarkedReach(self.index.parents, made, range(len(self)))

    @cached_property
    def _endings(self) -> MarkedReach:
        """Which outputs descend from an entry."""
        outputs = [row.number for row in self.index.outputs]
        return MarkedReach(self.index.children, outputs, range(len(self) - 1, -1, -1))

    @cached_property
    def _by_scope_end(self) -> dict[str, dict[ValueId, list[ScopeId]]]:
        """Per value, the module calls that have it among their ``inputs`` or ``outputs``."""
        ends: dict[str, dict[ValueId, list[ScopeId]]] = {"inputs": {}, "outputs": {}}
        for scope in self.graph.scopes:
            if not scope.is_model:
                for end, found in ends.items():
                    for value in getattr(scope, end):
                        found.setdefault(value, []).append(scope.id)
        return ends
