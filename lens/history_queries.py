"""Questions about layers: by type, neighbour, module or rule; what lies between two; where modules and loops end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import SupportsIndex, TypeAlias

from lens.entry import OpEntry
from lens.errors import InputError
from lens.history_entries import HistoryEntries
from lens.ir.elements import Scope, ValueId
from lens.ir.entry_index import EntryRow
from lens.ir.reach import reached

#: One pattern or several: ``"relu"``, ``"*pool2d"``, ``["conv2d", "linear"]``.
Patterns: TypeAlias = str | Sequence[str]
Key: TypeAlias = str | SupportsIndex | OpEntry


class HistoryQueries(HistoryEntries):
    """The questions; each answer is a list of entries in order of execution."""

    def layers(
        self,
        type: Patterns | None = None,  # noqa: A002 - what users call it
        *,
        parent_type: Patterns | None = None,
        child_type: Patterns | None = None,
        module: Patterns | None = None,
        where: Callable[[OpEntry], bool] | None = None,
    ) -> list[OpEntry]:
        """The entries that answer to everything that is asked; linear.

        Args:
            type: Their layer type, such as ``"maxpool2d"`` or ``"*pool*"``; torch's spellings (``max_pool2d``,
                ``MaxPool2d``) will do.
            parent_type: A type that one of their parents has.
            child_type: A type that one of their children has.
            module: The module, at any depth, in which they were computed: ``"layer1"``, ``"block:2"``, ``"layer?.*"``.
            where: A function that is true of them.

        Raises:
            UnknownKeyError: if the model has no such module.
            InputError: if a pattern is no string, or ``where`` no function.
        """
        if where is not None and not callable(where):
            raise InputError(
                f"where cannot be {where!r}", where="history.layers", hint="give a function: lambda entry: ..."
            )
        modules = self._modules(module)
        parents, children = self.index.parents, self.index.children
        return [
            entry
            for number, entry in enumerate(self)
            if (type is None or _has_type(entry, type))
            and (parent_type is None or any(_has_type(self.entry(n), parent_type) for n in parents[number]))
            and (child_type is None or any(_has_type(self.entry(n), child_type) for n in children[number]))
            and (module is None or any(_is_named(scope, modules) for scope in entry._scopes))
            and (where is None or where(entry))
        ]

    def between(self, start: Key, end: Key, type: Patterns | None = None) -> list[OpEntry]:  # noqa: A002
        """The entries on any path from one entry to another, both left out; linear.

        Args:
            start, end: Keys as for ``history[key]`` that name one pass each, or entries.
            type: Only entries of this layer type, or these, as for ``layers``.

        Raises:
            UnknownKeyError: if a key names nothing.
            AmbiguousKeyError: if a key names several passes.
        """
        first, last = self.one(start)._row.number, self.one(end)._row.number
        ahead = set(reached(first, self.index.children))
        inside = [self.entry(n) for n in reached(last, self.index.parents) if n in ahead]
        return [entry for entry in inside if type is None or _has_type(entry, type)]

    def count_between(self, start: Key, end: Key, type: Patterns | None = None) -> int:  # noqa: A002
        """The number of layers on any path from one entry to another; passes of a layer count once.

        Args:
            start, end, type: As for ``between``; so are the errors.
        """
        return len({entry.layer_label for entry in self.between(start, end, type)})

    def paths(self, start: Key, end: Key) -> Iterator[list[str]]:
        """Every path from one entry to another, as labels, both included.

        There may be exponentially many: take what you need with ``itertools.islice``.

        Args:
            start, end: As for ``between``; so are the errors.
        """
        first, last = self.one(start)._row.number, self.one(end)._row.number
        useful = {last, *reached(last, self.index.parents)}
        path, branches = [first], [iter(self.index.children[first])]
        if first == last:
            yield [self.index.rows[first].name]
            return
        while branches:
            step = next(branches[-1], None)
            if step is None:
                branches.pop()
                path.pop()
            elif step == last:
                yield [self.index.rows[n].name for n in (*path, last)]
            elif step in useful:
                path.append(step)
                branches.append(iter(self.index.children[step]))

    def module_outputs(
        self, module: Patterns = "*", *, depth: int | None = None, nested: bool = False
    ) -> list[OpEntry]:
        """The entries that modules returned, one per call and tensor.

        Args:
            module: Addresses or patterns.
            depth: Only modules at this depth; 1 is those that the model itself calls.
            nested: Only higher-level modules (paper, "Visualization"): those that encompass several operations.

        Raises:
            UnknownKeyError: if the model has no such module.
        """
        wanted = self._modules(module)
        if depth is not None and type(depth) is not int:
            raise InputError(f"depth cannot be a {type(depth).__name__}", where="depth=", hint="give 1, 2, ... or None")
        found: dict[ValueId, EntryRow] = {}
        for scope in self.graph.scopes:
            if (
                not scope.is_model
                and _is_named(scope, wanted)
                and (depth is None or sum(not s.is_model for s in self.graph.scope_chain(scope.id)) == depth)
                and (not nested or scope.stop - scope.start > 1)
            ):
                found.update((v, row) for v in scope.outputs if (row := self.index.entry_of(v)) is not None)
        return [OpEntry(self, row) for row in sorted(found.values(), key=lambda row: row.number)]

    def loop_ends(self) -> list[OpEntry]:
        """The results of each pass of the recurrent loops: what the next pass, or the layers after the loop, read.

        A loop is a set of connected layers that run equally often; its pass is what they did in it. A layer is a
        result if, in any of its passes, a layer outside of the pass reads it, or none at all. Linear.
        """
        rows = self.index.rows
        rounds = [(row.pass_total, row.pass_num, row.op is None) for row in rows]

        def leaves(number: int) -> bool:
            near = self.index.children[number]
            return not near or any(rounds[n] != rounds[number] for n in near)

        ends = {row.label for row in rows if row.pass_total > 1 and leaves(row.number)}
        return [self.entry(row.number) for row in rows if row.label in ends]

    def _modules(self, patterns: Patterns | None) -> list[str]:
        """The patterns as a list. Raises UnknownKeyError if one is an address that no module has."""
        listed = _listed(patterns)
        for address in listed:
            if not any(sign in address for sign in "*?["):
                self.index.check_module(address)
        return listed


def _listed(patterns: Patterns | None) -> list[str]:
    if patterns is None or isinstance(patterns, str):
        return [] if patterns is None else [patterns]
    if not isinstance(patterns, Sequence) or not all(isinstance(pattern, str) for pattern in patterns):
        raise InputError(f"{patterns!r} is no pattern", hint='give a string such as "relu" or "*pool*", or a list')
    return list(patterns)


def _has_type(entry: OpEntry, patterns: Patterns) -> bool:
    return any(fnmatchcase(entry.layer_type, p.replace("_", "").lower()) for p in _listed(patterns))


def _is_named(scope: Scope, patterns: Sequence[str]) -> bool:
    names = [name for address in (scope.address, *scope.aliases) for name in (address, f"{address}:{scope.call}")]
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)
