"""The tape: what a backend's recorder writes while the model runs, and its sealing into a graph.

Rows are plain tuples, because a row is written for every operation of the model; the classes of the IR are made
once, at sealing. Nothing here imports torch: dtypes, devices and layouts are whatever prints as their name.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

from attrs import define, field

from lens.ir.elements import (
    Bundle,
    Leaf,
    LeafId,
    LeafKind,
    Meta,
    Op,
    Read,
    Scope,
    ScopeId,
    Value,
)
from lens.ir.graph import Graph
from lens.ir.places import Site, SiteTable
from lens.ir.quick import quick
from lens.ir.templates import Map, Seq, Slice, Slot, Template, one_nan
from lens.ir.types import TensorType, shared_type

#: A template in which tuples of constants may still stand as they are.
RawTemplate: TypeAlias = "Template | tuple[Any, ...]"
#: shape, dtype, device, layout, alias_of, class of grad_fn (whose name torch makes anew each time: 0.1 us)
ValueRow: TypeAlias = "tuple[tuple[int, ...], object, object, object, int | None, type | None]"

#: One call, appended when it returns: function, interior (how many of the rows before it were written while it ran),
#: operands, args, kwargs, results, form, scope, site, duration, yields.
OpRow: TypeAlias = tuple[Any, ...]
OP_FUNCTION, OP_INTERIOR, OP_OPERANDS, OP_RESULTS, OP_SITE = 0, 1, 2, 5, 8
#: A tensor that no recorded op made: kind, value, addresses, trainable, site.
LeafRow: TypeAlias = "tuple[LeafKind, int, tuple[str, ...], bool, Site]"


class ReadRow(NamedTuple):
    """A value that left the tensor world."""

    value: int
    kind: str
    result: RawTemplate
    position: int
    scope: int | None
    site: Site


#: Address, further addresses and class name of a module.
ModuleNames: TypeAlias = tuple[str, tuple[str, ...], str]
#: A module call that begins: names, call number, parent, training, op rows before it, inputs, site.
ScopeRow: TypeAlias = "tuple[ModuleNames, int, int | None, bool, int, Sequence[int], Site]"
#: A module call that ends: number of its scope, op rows before that, outputs.
ExitRow: TypeAlias = tuple[int, int, Sequence[int]]


@define
class Tape:
    """The rows of one run, in order of time within each list."""

    ops: list[OpRow] = field(factory=list)
    values: list[ValueRow] = field(factory=list)
    leaves: list[LeafRow] = field(factory=list)
    scopes: list[ScopeRow] = field(factory=list)
    exits: list[ExitRow] = field(factory=list)
    reads: list[ReadRow] = field(factory=list)
    #: (op position, old value, new value): writes of an op to memory that other tensors share.
    effects: list[tuple[int, int, int]] = field(factory=list)
    inputs: tuple[RawTemplate, Sequence[int]] = (None, ())
    outputs: tuple[RawTemplate, Sequence[int]] = (None, ())
    #: What the backend knows that it did not see, and where.
    unseen: list[tuple[str, Site]] = field(factory=list)
    #: The values of leaves that were made before the run, used or not.
    prepared: range = range(0)


#: The id of a value that has no place in the graph: a leaf that was prepared and not used.
UNUSED = -1


def number_values(tape: Tape) -> list[int]:
    """The id of each value row in the graph: leaves first, then what the ops make, in order. Linear.

    It is the order that a restructured graph has, so a tape from which no op goes is not numbered twice.
    """
    _order_leaves(tape)
    ids = [UNUSED] * len(tape.values)
    following = itertools.count()
    for row in tape.leaves:
        ids[row[1]] = next(following)
    effects = _by_op(tape)
    for position, op in enumerate(tape.ops):
        for value in op[OP_RESULTS]:
            ids[value] = next(following)
        for _, new in effects.get(position, ()):
            ids[new] = next(following)
    return ids


def _order_leaves(tape: Tape) -> None:
    """Put prepared leaves where they are first used, among the others, and leave out those that nothing uses."""
    if not tape.prepared:
        return
    before = [row for row in tape.leaves if row[1] < tape.prepared.start]
    waiting = {row[1]: row for row in tape.leaves[len(before) :]}
    by_beginning = tape.ops
    if any(map(itemgetter(OP_INTERIOR), by_beginning)):
        newest_first = [(place - op[OP_INTERIOR], op) for place, op in enumerate(by_beginning)][::-1]
        by_beginning = [op for _, op in sorted(newest_first, key=itemgetter(0))]  # a composite before its interior
    used = [waiting.pop(value) for op in by_beginning for value in op[OP_OPERANDS] if value in waiting]
    others = itertools.chain(
        (read.value for read in tape.reads),
        (value for scope in tape.scopes for value in scope[5]),
        (value for end in tape.exits for value in end[2]),
        (old for _, old, _ in tape.effects),
        tape.inputs[1],
        tape.outputs[1],
        (row[4] for row in tape.values),
    )
    used += [waiting.pop(value) for value in others if value in waiting]
    tape.leaves[:] = [*before, *used, *(row for value, row in waiting.items() if value not in tape.prepared)]


def seal(tape: Tape, meta: Meta, ids: list[int] | None = None) -> Graph:
    """The graph of a finished tape, its values numbered by ``number_values``. Linear in its length."""
    return _Sealing(tape, number_values(tape) if ids is None else ids).graph(meta)


def _by_op(tape: Tape) -> dict[int, list[tuple[int, int]]]:
    effects: dict[int, list[tuple[int, int]]] = {}
    for position, old, new in tape.effects:
        effects.setdefault(position, []).append((old, new))
    return effects


class _Sealing:
    def __init__(self, tape: Tape, ids: list[int]) -> None:
        self.tape = tape
        self.ids: Any = ids
        self.effects = _by_op(tape)
        self.types: dict[tuple[object, ...], TensorType] = {}
        self.alone: dict[int, tuple[int]] = {}
        self.met: dict[tuple[int, ...], tuple[Template, ...]] = {}
        self.sites = SiteTable()

    def graph(self, meta: Meta) -> Graph:
        tape = self.tape
        return Graph(
            ops=self.ops(),
            values=self.values(),
            scopes=self.scopes(),
            leaves=tuple([self.leaf(i, row) for i, row in enumerate(tape.leaves)]),
            reads=tuple([self.read(row) for row in tape.reads]),
            inputs=self.bundle(*tape.inputs),
            outputs=self.bundle(*tape.outputs),
            meta=meta,
        )

    def new_ids(self, values: Sequence[int]) -> tuple[Any, ...]:
        """Values by their ids. Who names one value alone shares the tuple: 110 bytes per op on resnet18."""
        if len(values) != 1:
            return tuple([self.ids[v] for v in values])
        value = values[0]
        found = self.alone.get(value)
        if found is None:
            found = self.alone[value] = (self.ids[value],)
        return found

    def ops(self) -> tuple[Op, ...]:
        new_ids, locate, arguments = self.new_ids, self.sites.locate, self.arguments
        effects = {op: tuple([new_ids(pair) for pair in pairs]) for op, pairs in self.effects.items()}
        ops = []
        numbers: Iterator[Any] = itertools.count()  # a call of OpId costs 0.1 us
        for i, row in zip(numbers, self.tape.ops, strict=False):
            fn, interior, operands, args, kwargs, results, form, scope, site, duration, yields = row
            ops.append(
                _op(
                    i,
                    fn,
                    new_ids(operands),
                    arguments(args),
                    tuple(zip(kwargs, arguments(kwargs.values()), strict=True)) if kwargs else (),
                    new_ids(results),
                    form if type(form) is Slot else seal_template(form),
                    effects.get(i, ()),
                    scope,
                    locate(site),
                    duration,
                    interior,
                    tuple([None if v is None else self.ids[v] for v in yields]) if yields and interior else (),
                )
            )
        return tuple(ops)

    def arguments(self, raw: Iterable[RawTemplate]) -> tuple[Template, ...]:
        """Arguments as templates; the same objects again give the same tuple, which passes then know by identity.

        A loop passes the same constants in every round: 0.6 us and 80 bytes per op saved here, 3 us in recurrence.
        """
        key = tuple(map(id, raw))  # the tape keeps them all alive
        found = self.met.get(key)
        if found is None:
            found = tuple([item if type(item) in _AS_THEY_ARE else seal_template(item) for item in raw])  # type: ignore[misc]
            if _OFTEN_SHARED.issuperset(map(type, raw)):  # others are made anew for every call
                self.met[key] = found
        return found

    def values(self) -> tuple[Value, ...]:
        """The values in the order in which ``number_values`` counts them."""
        ids, rows, types = self.ids, self.tape.values, self.types
        values: list[Value] = []
        grad_names: dict[type | None, str | None] = {None: None}
        for old, producer, index, leaf in self.origins():
            row = rows[old]
            alias = row[4]
            tensor_type = types.get(row[:4]) or self.tensor_type(*row[:4])
            alias_of = None if alias is None else ids[alias]
            grad = row[5]
            if grad is not None and grad not in grad_names:
                grad_names[grad] = grad.__name__
            values.append(_value(ids[old], tensor_type, producer, index, alias_of, leaf, grad_names[grad]))
        return tuple(values)

    def origins(self) -> Iterator[tuple[int, Any, int, Any]]:
        """Per value its row, the op that made it, its place among what that made, and the leaf that it is."""
        for number, leaf in enumerate(self.tape.leaves):
            yield leaf[1], None, 0, number
        for number, op in enumerate(self.tape.ops):
            for index, value in enumerate(op[OP_RESULTS]):
                yield value, number, index, None
            if number in self.effects:
                for index, (_, value) in enumerate(self.effects[number], len(op[OP_RESULTS])):
                    yield value, number, index, None

    def bundle(self, form: RawTemplate, values: Sequence[int]) -> Bundle:
        return Bundle(seal_template(form), self.new_ids(values))

    def tensor_type(self, *key: Any) -> TensorType:
        shape, *names = key
        dtype, device, layout = (str(name).removeprefix("torch.") for name in names)
        extents = tuple(n if isinstance(n, int) else -1 for n in shape)  # ragged ones are symbols
        found = self.types[key] = shared_type(dtype, extents, device, layout)
        return found

    def scopes(self) -> tuple[Scope, ...]:
        exits = {number: (stop, outputs) for number, stop, outputs in self.tape.exits}
        unfinished: tuple[int, Sequence[int]] = (len(self.tape.ops), ())
        new_ids, locate = self.new_ids, self.sites.locate
        scopes = []
        for i, (names, call, parent, training, start, inputs, site) in enumerate(self.tape.scopes):
            stop, outputs = exits.get(i, unfinished)
            address, aliases, cls = names
            inner, outer = ScopeId(i), None if parent is None else ScopeId(parent)
            ends = new_ids(inputs), new_ids(outputs)
            scopes.append(_scope(inner, address, cls, call, outer, aliases, training, start, stop, *ends, locate(site)))
        return tuple(scopes)

    def leaf(self, number: int, row: LeafRow) -> Leaf:
        kind, value, addresses, trainable, site = row
        return _leaf(LeafId(number), kind, self.ids[value], addresses, trainable, self.sites.locate(site))

    def read(self, row: ReadRow) -> Read:
        return Read(
            self.ids[row.value],
            row.kind,
            seal_template(row.result),
            row.position,
            None if row.scope is None else ScopeId(row.scope),
            self.sites.locate_read(row.site),
        )


_op, _value, _scope, _leaf, _seq = quick(Op), quick(Value), quick(Scope), quick(Leaf), quick(Seq)
_FINISHED = frozenset({type(None), bool, int, float, complex, str, Slot})
_AS_THEY_ARE = _FINISHED - {float}
_OFTEN_SHARED = _FINISHED | {tuple, Seq}


def seal_template(raw: RawTemplate) -> Template:
    """A raw template with its bare tuples turned into nodes. Linear in its size."""
    if type(raw) in _AS_THEY_ARE:  # before the patterns, which are tried one after the other
        return raw  # type: ignore[return-value]
    if type(raw) is tuple and _AS_THEY_ARE.issuperset(map(type, raw)):
        return _seq("tuple", raw)
    if type(raw) is float:
        return one_nan(raw)
    match raw:
        case tuple():
            return Seq("tuple", tuple([seal_template(item) for item in raw]))
        case Seq(kind, items):
            return Seq(kind, tuple([seal_template(item) for item in items]))
        case Map(kind, pairs):
            return Map(kind, tuple([(seal_template(k), seal_template(v)) for k, v in pairs]))
        case Slice(start, stop, step):
            return Slice(seal_template(start), seal_template(stop), seal_template(step))
        case _:
            return raw
