"""Restructuring: a new graph from some of the ops of an old one, and the map between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from attrs import evolve, field, frozen

from lens.errors import GraphError
from lens.ir.elements import Bundle, Leaf, LeafId, Op, OpId, Read, Scope, ScopeId, Value, ValueId
from lens.ir.graph import Graph
from lens.ir.quick import quick

_op, _value = quick(Op), quick(Value)


@frozen
class GraphMap:
    """Where the ops and values of an old graph went.

    Args:
        ops: Per old op its new id, or None.
        values: Old value to new value; pruned ones are missing.
        absorbed: Old op of the interior of a composite that was closed -> that composite's new id.
    """

    ops: tuple[OpId | None, ...]
    values: Mapping[ValueId, ValueId] = field(factory=dict)
    absorbed: Mapping[OpId, OpId] = field(factory=dict)

    @property
    def surviving_ops(self) -> list[OpId]:
        """The old ids of the ops that are left, in order."""
        return [OpId(old) for old, new in enumerate(self.ops) if new is not None]


def why_no_map(graph_map: GraphMap, old: Graph, new: Graph) -> str:
    """In what a map cannot lead from one graph to another; empty if it can. Linear."""
    parts: tuple[Any, Any, Any] = graph_map.ops, graph_map.values, graph_map.absorbed  # as foreign code gave them
    ops, values, absorbed = parts
    if not (isinstance(ops, (tuple, list)) and isinstance(values, Mapping) and isinstance(absorbed, Mapping)):
        return "ops are no tuple, or values or absorbed no mapping"
    if len(ops) != len(old.ops):
        return f"there are {len(ops)} ops for {len(old.ops)}"
    kept = [op for op in ops if op is not None]
    named: tuple[tuple[str, Iterable[object], Sequence[object]], ...] = (
        ("op", kept, new.ops),
        ("op", absorbed.values(), new.ops),
        ("op", absorbed, old.ops),
        ("value", values.values(), new.values),
        ("value", values, old.values),
    )
    for what, ids, there in named:
        strange = next((one for one in ids if type(one) is not int or not 0 <= one < len(there)), None)
        if strange is not None:
            return f"{what} {strange!r:.40} does not exist"
    if len(set(kept)) < len(kept):
        return "two ops become one; one of them is None, or stands in absorbed"
    for value, becomes in values.items():
        before, after = old.values[value].type, new.values[becomes].type
        if before is not after and before != after:  # nearly all are one object
            return f"%{value} becomes a value of another type, %{becomes}"
    return ""


@frozen
class Restructured:
    """A new graph and the map that leads to it."""

    graph: Graph
    map: GraphMap


def keep_ops(
    graph: Graph,
    kept: Sequence[Op],
    substitute: Mapping[ValueId, ValueId] | None = None,
    drop_scope: Callable[[Scope], bool] | None = None,
) -> Restructured:
    """A graph of the given ops only, everything renumbered. Linear.

    Args:
        graph: The old graph.
        kept: Ops with old ids, in order; they may differ from the old ones in results, effects and interior.
        substitute: Old values to be read as other old values (those that a dissolved composite handed through).
        drop_scope: Scopes to leave out, with those in them; their ops must be gone.

    Values that no kept op makes and that are no leaf are pruned, and so are leaves (inputs excepted) that nothing
    reads any more. Facets are not carried over; that is the pass manager's job.

    Raises:
        GraphError: something still reads what a dropped op made, or substitutes stand for each other in a circle.
    """
    return _Renumbering(graph, kept, substitute or {}, drop_scope).run()


def has_unread_leaves(graph: Graph) -> bool:
    """Whether there are leaves, inputs excepted, that nothing reads; ``keep_ops`` prunes them. Linear."""
    read = _read_values(graph, graph.ops)
    return any(leaf.kind != "input" and leaf.value not in read for leaf in graph.leaves)


def _read_values(graph: Graph, ops: Sequence[Op]) -> set[ValueId]:
    read = {*graph.outputs.values, *graph.inputs.values}
    for op in ops:
        read.update(op.operands)
        for old, _ in op.effects:
            read.add(old)
    read.update([r.value for r in graph.reads])
    return read


def _outside(scopes: Sequence[Scope], drop_scope: Callable[[Scope], bool]) -> list[Scope]:
    """The scopes that are not dropped, nor in one that is."""
    dropped: set[ScopeId] = set()
    for scope in scopes:  # a parent comes before what is in it
        if drop_scope(scope) or scope.parent in dropped:
            dropped.add(scope.id)
    return [scope for scope in scopes if scope.id not in dropped]


def _settled(substitute: Mapping[ValueId, ValueId]) -> dict[ValueId, ValueId]:
    """Every value with what is read for it in the end. Linear."""
    last: dict[ValueId, ValueId] = {}
    for value in substitute:
        passed: dict[ValueId, None] = {}
        end = value
        while end in substitute and end not in last:
            if end in passed:
                raise GraphError(
                    f"what is to be read in the place of %{end} goes in a circle",
                    where=f"substitute[{end}] = {substitute[end]}",
                    hint="let every chain in substitute= end at a value that is there",
                )
            passed[end] = None
            end = substitute[end]
        last.update(dict.fromkeys(passed, last.get(end, end)))
    return last


class _Renumbering:
    def __init__(
        self,
        graph: Graph,
        kept: Sequence[Op],
        substitute: Mapping[ValueId, ValueId],
        drop_scope: Callable[[Scope], bool] | None,
    ) -> None:
        self.graph = graph
        self.kept = kept
        self.substitute = _settled(substitute)
        self.scopes = list(graph.scopes) if drop_scope is None else _outside(graph.scopes, drop_scope)
        self.scope_ids = {s.id: ScopeId(i) for i, s in enumerate(self.scopes)}
        self.values: dict[ValueId, ValueId] = {}
        self.op_ids: list[OpId | None] = [None] * len(graph.ops)
        for new, op in enumerate(kept):
            self.op_ids[op.id] = OpId(new)
        #: Per old op position, how many kept ops stand before it.
        self.positions = list(accumulate((new is not None for new in self.op_ids), initial=0))
        #: Per old value that an op makes: the op's new id, and the place among what it makes.
        self.made = {v: (OpId(new), i) for new, op in enumerate(kept) for i, v in enumerate(op.writes)}

    def run(self) -> Restructured:
        leaves = self._kept_leaves()
        old_values = [self.graph.leaves[leaf].value for leaf in leaves]
        old_values += [value for op in self.kept for value in op.writes]
        self.values.update({old: ValueId(new) for new, old in enumerate(old_values)})
        leaf_ids = {old: LeafId(new) for new, old in enumerate(leaves)}
        new_graph = Graph(
            ops=tuple(self._op(op) for op in self.kept),
            values=self._values(old_values, leaf_ids),
            scopes=tuple(self._scope(scope) for scope in self.scopes),
            leaves=tuple(
                Leaf(
                    leaf_ids[leaf.id],
                    leaf.kind,
                    self.values[leaf.value],
                    leaf.addresses,
                    leaf.trainable,
                    leaf.location,
                )
                for leaf in (self.graph.leaves[i] for i in leaves)
            ),
            reads=tuple(read for old in self.graph.reads if (read := self._read(old)) is not None),
            inputs=self._bundle(self.graph.inputs),
            outputs=self._bundle(self.graph.outputs),
            meta=self.graph.meta,
        )
        for old in self.substitute:
            target = self.values.get(self._resolve(old))
            if target is not None:
                self.values[old] = target
        return Restructured(new_graph, GraphMap(tuple(self.op_ids), self.values, self._absorbed()))

    def _absorbed(self) -> dict[OpId, OpId]:
        absorbed = {}
        for new, op in enumerate(self.kept):
            interior = self.graph.ops[op.id].interior
            if interior and not op.interior:
                absorbed.update({OpId(old): OpId(new) for old in range(op.id - interior, op.id)})
        return absorbed

    def _resolve(self, value: ValueId) -> ValueId:
        return self.substitute.get(value, value)

    def _new(self, value: ValueId) -> ValueId:
        try:
            return self.values[self.substitute.get(value, value)]
        except KeyError:
            raise self._lacking(value) from None

    def _lacking(self, value: ValueId) -> GraphError:
        """The error for a value that is read and that nothing makes any more."""
        reader = next((f"op {op.id}" for op in self.kept if value in op.reads), "the output")
        wanted = self._resolve(value)
        maker = next(
            (f"op {op.id} ({op.function}), which is dropped" for op in self.graph.ops if wanted in op.writes), ""
        )
        return GraphError(
            f"{reader} of the old graph needs %{wanted}, the result of {maker or 'no op'}",
            where=f"graph of {self.graph.meta.model}",
            hint="keep that op, or give keep_ops in substitute= the value to be read in its place",
        )

    def _kept_leaves(self) -> list[LeafId]:
        read = {self._resolve(v) for v in _read_values(self.graph, self.kept)}
        return [leaf.id for leaf in self.graph.leaves if leaf.kind == "input" or leaf.value in read]

    def _values(self, old_values: list[ValueId], leaf_ids: dict[LeafId, LeafId]) -> tuple[Value, ...]:
        values = []
        for old in old_values:
            value = self.graph.values[old]
            producer, index = self.made.get(old, (None, 0))
            values.append(
                _value(
                    self.values[old],
                    value.type,
                    producer,
                    index,
                    self._alias(value.alias_of),
                    None if value.leaf is None else leaf_ids[value.leaf],
                    value.grad_fn,
                )
            )
        return tuple(values)

    def _alias(self, old: ValueId | None) -> ValueId | None:
        """The nearest surviving value that a value shares memory with."""
        while old is not None:
            new = self.values.get(self._resolve(old))
            if new is not None:
                return new
            old = self.graph.values[old].alias_of
        return None

    def _op(self, op: Op) -> Op:
        new_id = self.op_ids[op.id]
        assert new_id is not None
        return _op(  # written out: attrs.evolve costs 5 us, and this runs for every op
            new_id,
            op.function,
            tuple([self._new(v) for v in op.operands]),
            op.args,
            op.kwargs,
            tuple([self.values[v] for v in op.results]),
            op.form,
            tuple([(self._new(old), self.values[new]) for old, new in op.effects]),
            None if op.scope is None else self.scope_ids[op.scope],
            op.location,
            op.duration,
            self.positions[op.id] - self.positions[op.id - op.interior],
            tuple([None if v is None else self.values.get(self._resolve(v)) for v in op.yields]),
        )

    def _scope(self, scope: Scope) -> Scope:
        return Scope(
            self.scope_ids[scope.id],
            scope.address,
            scope.cls,
            scope.call,
            None if scope.parent is None else self.scope_ids[scope.parent],
            scope.aliases,
            scope.training,
            self.positions[scope.start],
            self.positions[scope.stop],
            self._surviving(scope.inputs),
            self._surviving(scope.outputs),
            scope.location,
        )

    def _surviving(self, values: tuple[ValueId, ...]) -> tuple[ValueId, ...]:
        new = (self.values.get(self._resolve(v)) for v in values)
        return tuple(v for v in new if v is not None)

    def _read(self, read: Read) -> Read | None:
        old = self._resolve(read.value)
        value = self.values.get(old)
        if value is None:
            return None
        scope = None if read.scope is None else self.scope_ids.get(read.scope)
        position = self.positions[read.position]
        if old in self.made:  # inside a composite that was closed: it now comes after it
            position = max(position, self.made[old][0] + 1)
        return evolve(read, value=value, position=position, scope=scope)

    def _bundle(self, bundle: Bundle) -> Bundle:
        return Bundle(bundle.form, tuple(self._new(v) for v in bundle.values))
