"""The entries of a history: which there are, in which order, and by which keys they are found."""

from __future__ import annotations

from collections import Counter, defaultdict
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cached_property

from attrs import evolve, frozen

from lens.errors import AmbiguousKeyError, UnknownKeyError
from lens.ir.elements import LeafId, OpId, Scope, ValueId
from lens.ir.facets import Labels
from lens.ir.graph import Graph
from lens.ir.naming import layer_type

#: In the types of layers whose buffers are running statistics, ``nativebatchnorm`` of aten among them.
_NORMALISATION = ("batchnorm", "instancenorm")
#: What to say where a history has no entries.
NOTHING = "nothing was recorded; give the model a tensor"


@frozen
class EntryRow:
    """One pass of one layer.

    Args:
        number: Its position among all entries.
        label: The layer's label, without pass.
        pass_num: Which pass, from 1.
        pass_total: How many passes the layer has.
        value: Its tensor.
        op: The op that made it; None for inputs, buffers, outputs and other leaves.
        index: Which result of the op.
        leaf: The leaf that it is, if it is one.
        output: Its position among the model's outputs, if it is an output node.
    """

    number: int
    label: str
    pass_num: int
    pass_total: int
    value: ValueId
    op: OpId | None = None
    index: int = 0
    leaf: LeafId | None = None
    output: int | None = None

    @property
    def label_with_pass(self) -> str:
        """Such as ``conv2d_3_7:2``."""
        return f"{self.label}:{self.pass_num}"

    @property
    def name(self) -> str:
        """The label, with the pass if the layer has several."""
        return self.label_with_pass if self.pass_total > 1 else self.label


class EntryIndex:
    """All entries of a graph with labels, and every way to look one up. Built in linear time."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.rows: tuple[EntryRow, ...] = tuple(_make_rows(graph))
        self.by_op: dict[OpId, list[EntryRow]] = defaultdict(list)
        self.by_value: dict[ValueId, EntryRow] = {}
        self.outputs = [row for row in self.rows if row.output is not None]
        for row in self.rows:
            if row.op is not None:
                self.by_op[row.op].append(row)
            if row.output is None:
                self.by_value[row.value] = row
        for op in graph.ops:
            for _, new in op.effects:
                if self.by_op[op.id]:
                    self.by_value[new] = self.by_op[op.id][0]

    def entry_of(self, value: ValueId) -> EntryRow | None:
        """The entry of a tensor. Of one that its op wrote to and did not return: the op's first, with this tensor."""
        row = self.by_value.get(value)
        return row if row is None or row.value == value else evolve(row, value=value)

    @cached_property
    def values_of(self) -> dict[int, list[ValueId]]:
        """Per entry, its tensor and the values of other tensors that its op wrote to."""
        found: dict[int, list[ValueId]] = defaultdict(list)
        for value, row in self.by_value.items():
            found[row.number].append(value)
        return found

    @cached_property
    def parents(self) -> list[tuple[int, ...]]:
        """Per entry, the entries whose tensors it reads, in order, each once."""
        found: list[tuple[int, ...]] = []
        for row in self.rows:
            if row.output is not None:
                reads: tuple[ValueId, ...] = (row.value,)
            else:
                reads = () if row.op is None else self.graph.ops[row.op].sources
            numbers = (self.by_value[v].number for v in reads if v in self.by_value)
            found.append(tuple(dict.fromkeys(numbers)))
        return found

    @cached_property
    def children(self) -> list[tuple[int, ...]]:
        """Per entry, the entries that read its tensors, in order, each once."""
        found: list[dict[int, None]] = [{} for _ in self.rows]
        for number, parents in enumerate(self.parents):
            for parent in parents:
                found[parent][number] = None
        return [tuple(numbers) for numbers in found]

    @cached_property
    def calls(self) -> Counter[str]:
        """How often each module was called."""
        return Counter(scope.address for scope in self.graph.scopes)

    def scope_label(self, scope: Scope) -> str:
        """A module call as users write it: the address, with the call number if there are several calls."""
        return f"{scope.address}:{scope.call}" if self.calls[scope.address] > 1 else scope.address

    def name_of(self, value: ValueId) -> str:
        """A value as users read it: the name of its entry, else the ``@address`` of its leaf, else its number."""
        row, leaf = self.by_value.get(value), self.graph.values[value].leaf
        addresses = () if leaf is None else self.graph.leaves[leaf].addresses
        return row.name if row is not None else f"@{addresses[0]}" if addresses else f"%{value}"

    def is_statistic(self, row: EntryRow) -> bool:
        """Whether an entry is a buffer that only normalisation layers read: tables and pictures leave it out."""
        if row.leaf is None or self.graph.leaves[row.leaf].kind != "buffer":
            return False
        users = [self.graph.ops[op] for op in self.graph.users(row.value)]
        return bool(users) and all(any(word in layer_type(op.function) for word in _NORMALISATION) for op in users)

    # Lookup

    @cached_property
    def _labels(self) -> dict[str, list[EntryRow]]:
        keys: dict[str, list[EntryRow]] = defaultdict(list)
        whole = {row.label for row in self.rows}
        for row in self.rows:
            stem, _, number = row.label.rpartition("_")
            short = stem if row.op is not None and number.isdigit() and stem not in whole else None
            for label in filter(None, (row.label, short)):
                keys[label].append(row)
                keys[f"{label}:{row.pass_num}"].append(row)
        return keys

    @cached_property
    def _addresses(self) -> dict[str, list[EntryRow]]:
        keys: dict[str, list[EntryRow]] = defaultdict(list)
        seen: set[tuple[str, ValueId]] = set()
        for scope in self.graph.scopes:
            made = [row for v in scope.outputs[:1] if (row := self.entry_of(v)) is not None]
            for address in filter(None, (scope.address, *scope.aliases)):
                for row in made:
                    if (address, row.value) not in seen:
                        seen.add((address, row.value))
                        keys[address].append(row)
                    keys[f"{address}:{scope.call}"] = [row]
        for row in self.rows:
            if row.leaf is not None:
                for address in self.graph.leaves[row.leaf].addresses:
                    keys.setdefault(address, [row])
        return keys

    def keys_of(self, row: EntryRow) -> list[str]:
        """All text keys that lead to an entry, alone or with other passes of its layer."""
        return self._keys[row.number]

    @cached_property
    def _keys(self) -> list[list[str]]:
        """Per entry, the keys that lead to it and are not ambiguous."""
        found: list[dict[str, None]] = [{} for _ in self.rows]
        for keys, others in ((self._labels, self._addresses), (self._addresses, self._labels)):
            for key, rows in keys.items():
                if others.get(key, rows) == rows:
                    for row in rows:
                        found[row.number][key] = None
        return [list(keys) for keys in found]

    def passes_of(self, row: EntryRow) -> list[EntryRow]:
        """All passes of the layer of an entry, in order."""
        return self._labels[row.label]

    def check_module(self, address: str) -> None:
        """Raises UnknownKeyError, with the nearest addresses, if the model has no such module or call of one."""
        known = {module.address for module in self.graph.meta.modules}
        for scope in self.graph.scopes:
            known.update(a for name in (scope.address, *scope.aliases) for a in (name, f"{name}:{scope.call}"))
        if address not in known:
            named = sorted(name for name in known if name.partition(":")[0])  # the model itself has no name
            near = get_close_matches(address, named, n=4, cutoff=0.5) or named[:4]
            nearest = f"nearest addresses: {', '.join(map(repr, near))}; patterns such as 'layer1.*' work too"
            raise UnknownKeyError(
                f"there is no module {address!r}",
                where=f"{self.graph.meta.model}, {len(self.graph.meta.modules)} modules",
                hint=nearest if near else "the model has no submodules",
            )

    def of_type(self, kind: str) -> list[EntryRow]:
        """The entries of a layer type, such as ``conv2d`` or ``input``; linear."""
        return [row for row in self.rows if row.label.partition("_")[0] == kind]

    def __contains__(self, key: str) -> bool:
        return key in self._labels or key in self._addresses

    def find_all(self, pattern: str) -> list[EntryRow]:
        """The entries whose labels or addresses fit a pattern; linear. Raises UnknownKeyError if there are none."""
        tables = (self._labels, self._addresses)
        found = {row.number: row for keys in tables for key in keys if fnmatchcase(key, pattern) for row in keys[key]}
        if not found:
            raise UnknownKeyError(
                f"no layer and no module fits {pattern!r}",
                where=f"{self.graph.meta.model}, {len(self.rows)} entries",
                hint=self._suggestion(pattern.strip("*?")),
            )
        return [found[number] for number in sorted(found)]

    def find(self, key: str) -> list[EntryRow]:
        """The entries that a label or an address names: one, or all passes of one layer or module.

        Raises:
            UnknownKeyError: with the nearest keys.
            AmbiguousKeyError: if it is both a label and the address of something else.
        """
        by_label = self._labels.get(key, [])
        by_address = self._addresses.get(key, [])
        if by_label and by_address and by_label != by_address:
            raise AmbiguousKeyError(
                f"{key!r} is both a label and a module address",
                where=f"the label of {by_label[0].label}, the address of {by_address[0].label}",
                hint=f"use the full label, {by_label[0].label!r} or {by_address[0].label!r}",
            )
        rows = by_label or by_address
        if not rows:
            raise UnknownKeyError(
                f"there is no layer {key!r}",
                where=f"{self.graph.meta.model}, {len(self.rows)} entries",
                hint=self._suggestion(key),
            )
        return rows

    def _suggestion(self, key: str) -> str:
        """What to do now that a key has led nowhere."""
        reason = self.why_no_entry(key)
        if reason:
            return reason
        if key.removeprefix("-").isdecimal():
            return f"for the layer at that position write history[{key}], without quotes"
        if not self.rows:
            return NOTHING
        known = [k for k in (*self._labels, *self._addresses) if ":" not in k or ":" in key]
        near = get_close_matches(key, known, n=4, cutoff=0.5)
        if not near and key:
            near = [k for k in known if k.startswith(key[:4])][:4]
        return f"{'nearest keys' if near else 'there are, among others'}: {', '.join(map(repr, near or known[:4]))}"

    def why_no_entry(self, key: str) -> str:
        """Why something that the model has is no entry; empty if the model has nothing of that name. Linear."""
        graph, (address, _, call) = self.graph, key.partition(":")
        unused = [("parameter", (parameter.address,)) for parameter in graph.meta.parameters]
        for kind, addresses in (*((leaf.kind, leaf.addresses) for leaf in graph.leaves), *unused):
            if key in addresses:
                return f"{key!r} is a {kind} and no layer; the parameter_addresses of an entry tell what it uses"
        if address not in {module.address for module in graph.meta.modules}:
            return ""
        calls = [scope for scope in graph.scopes if address in (scope.address, *scope.aliases)]
        if not calls:
            return f"the module {address!r} was not called in this run"
        if call and call not in {str(scope.call) for scope in calls}:
            return f"of the module {address!r} there are {', '.join(f'{address}:{scope.call}' for scope in calls[:4])}"
        returned = [self.name_of(value) for scope in calls for value in scope.outputs[:1]]
        what = f"{returned[0]}, which is no layer" if returned else "no tensor, or one that nothing uses"
        return f"the module {address!r} has returned {what}"


def ordinals(count: int) -> str:
    """Which ordinals so many entries have, for those who gave another."""
    return f"ordinals go from {-count} to {count - 1}" if count else NOTHING


def _make_rows(graph: Graph) -> list[EntryRow]:
    labels = graph[Labels]
    rows: list[EntryRow] = []
    placed: set[LeafId] = set()

    def place_leaf(leaf: LeafId | None) -> None:
        if leaf is None or leaf in placed:
            return
        placed.add(leaf)
        label = labels.leaves[leaf]
        if label is not None:
            rows.append(EntryRow(len(rows), label, 1, 1, graph.leaves[leaf].value, leaf=leaf))

    for leaf in graph.leaves:
        if leaf.kind == "input":
            place_leaf(leaf.id)
    for op in graph.ops:
        for value in op.reads:
            place_leaf(graph.values[value].leaf)
        for index, label in enumerate(labels.results[op.id]):
            passes = labels.pass_num[op.id], labels.pass_total[op.id]
            rows.append(EntryRow(len(rows), label, *passes, op.results[index], op=op.id, index=index))
    for leaf in graph.leaves:
        place_leaf(leaf.id)
    for place, value in enumerate(graph.outputs.values):
        rows.append(EntryRow(len(rows), labels.outputs[place], 1, 1, value, output=place))
    return rows
