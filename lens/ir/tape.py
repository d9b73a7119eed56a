"""The tape: what a backend's recorder writes while the model runs, and its sealing into a graph.

Rows are plain tuples, because a row is written for every operation of the model; the classes of the IR are made
once, at sealing. Nothing here imports torch: dtypes, devices and layouts are whatever prints as their name.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from dis import opname
from operator import itemgetter
from types import CodeType
from typing import Any, NamedTuple, TypeAlias

from attrs import define, field

from lens.ir.elements import (
    Bundle,
    FnRef,
    Leaf,
    LeafId,
    LeafKind,
    Location,
    Meta,
    Op,
    OpId,
    Read,
    Scope,
    ScopeId,
    Value,
)
from lens.ir.graph import Graph
from lens.ir.templates import Map, Seq, Slice, Slot, Template
from lens.ir.types import TensorType

#: A code object and the offset of the running instruction; None where no place is known.
Site: TypeAlias = "tuple[CodeType, int] | None"
#: A template in which tuples of constants may still stand as they are.
RawTemplate: TypeAlias = "Template | tuple[Any, ...]"
#: shape, dtype, device, layout, alias_of, grad_fn
ValueRow: TypeAlias = "tuple[tuple[int, ...], object, object, object, int | None, str | None]"


class OpRow(NamedTuple):
    """One call, appended when it returns. The recorder writes it as a bare tuple in this order.

    ``begin`` is the number of op rows when the call began: the rows since then are its interior.
    """

    function: FnRef
    begin: int
    operands: Sequence[int]
    args: Sequence[RawTemplate]
    kwargs: Mapping[str, RawTemplate] | None
    results: Sequence[int]
    form: RawTemplate
    scope: int | None
    site: Site
    duration: float
    yields: tuple[int | None, ...] | None


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

    ops: list[tuple[Any, ...]] = field(factory=list)
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
        for value in op[5]:
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
    newest_first = tape.ops[::-1]
    by_beginning = sorted(newest_first, key=itemgetter(1))  # a composite before its interior
    used = [waiting.pop(value) for op in by_beginning for value in op[2] if value in waiting]
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
        self.types: dict[tuple[object, ...], TensorType] = {}
        self.sites = SiteTable()

    def graph(self, meta: Meta) -> Graph:
        tape = self.tape
        ops = self.ops()
        return Graph(
            ops=ops,
            values=self.values(ops),
            scopes=self.scopes(),
            leaves=tuple([self.leaf(i, row) for i, row in enumerate(tape.leaves)]),
            reads=tuple([self.read(row) for row in tape.reads]),
            inputs=self.bundle(*tape.inputs),
            outputs=self.bundle(*tape.outputs),
            meta=meta,
        )

    def ops(self) -> tuple[Op, ...]:
        ids = self.ids
        effects = {op: tuple([(ids[old], ids[new]) for old, new in pairs]) for op, pairs in _by_op(self.tape).items()}
        locate = self.sites.locate
        ops = []
        for i, row in enumerate(self.tape.ops):
            fn, begin, operands, args, kwargs, results, form, scope, site, duration, yields = row
            ops.append(
                Op(
                    OpId(i),
                    fn,
                    tuple([ids[v] for v in operands]),
                    tuple([seal_template(arg) for arg in args]),
                    tuple([(k, seal_template(v)) for k, v in kwargs.items()]) if kwargs else (),
                    tuple([ids[v] for v in results]),
                    form if type(form) is Slot else seal_template(form),
                    effects.get(i, ()),
                    scope,
                    locate(site),
                    duration,
                    i - begin,
                    tuple([None if v is None else ids[v] for v in yields]) if yields and i > begin else (),
                )
            )
        return tuple(ops)

    def values(self, ops: tuple[Op, ...]) -> tuple[Value, ...]:
        made: dict[int, tuple[OpId, int]] = {}
        for op in ops:
            for index, value in enumerate(op.writes):
                made[value] = (op.id, index)
        leaves: dict[int, LeafId] = {row[1]: LeafId(i) for i, row in enumerate(self.tape.leaves)}
        ids = self.ids
        values: list[Any] = [None] * (len(ids) - ids.count(UNUSED))
        for old, (shape, dtype, device, layout, alias, grad) in enumerate(self.tape.values):
            new = ids[old]
            if new == UNUSED:
                continue
            producer, index = made.get(new, (None, 0))
            leaf = None if producer is not None else leaves.get(old)
            tensor_type = self.tensor_type(shape, dtype, device, layout)
            values[new] = Value(new, tensor_type, producer, index, None if alias is None else ids[alias], leaf, grad)
        return tuple(values)

    def bundle(self, form: RawTemplate, values: Sequence[int]) -> Bundle:
        return Bundle(seal_template(form), tuple([self.ids[v] for v in values]))

    def tensor_type(self, *key: Any) -> TensorType:
        found = self.types.get(key)
        if found is None:
            shape, *names = key
            dtype, device, layout = (str(name).removeprefix("torch.") for name in names)
            extents = tuple(n if isinstance(n, int) else -1 for n in shape)  # ragged ones are symbols
            found = self.types[key] = TensorType(dtype, extents, device, layout)
        return found

    def scopes(self) -> tuple[Scope, ...]:
        exits = {number: (stop, outputs) for number, stop, outputs in self.tape.exits}
        unfinished: tuple[int, Sequence[int]] = (len(self.tape.ops), ())
        locate, ids = self.sites.locate, self.ids
        scopes = []
        for i, (names, call, parent, training, start, inputs, site) in enumerate(self.tape.scopes):
            stop, outputs = exits.get(i, unfinished)
            scopes.append(
                Scope(
                    ScopeId(i),
                    names[0],
                    names[2],
                    call,
                    None if parent is None else ScopeId(parent),
                    names[1],
                    training,
                    start,
                    stop,
                    tuple([ids[v] for v in inputs]),
                    tuple([ids[v] for v in outputs]),
                    locate(site),
                )
            )
        return tuple(scopes)

    def leaf(self, number: int, row: LeafRow) -> Leaf:
        kind, value, addresses, trainable, site = row
        return Leaf(LeafId(number), kind, self.ids[value], addresses, trainable, self.sites.locate(site))

    def read(self, row: ReadRow) -> Read:
        return Read(
            self.ids[row.value],
            row.kind,
            seal_template(row.result),
            row.position,
            None if row.scope is None else ScopeId(row.scope),
            self.sites.locate_read(row.site),
        )


_FINISHED = frozenset({type(None), bool, int, float, complex, str, Slot})


def seal_template(raw: RawTemplate) -> Template:
    """A raw template with its bare tuples turned into nodes. Linear in its size."""
    if type(raw) in _FINISHED:  # before the patterns, which are tried one after the other
        return raw  # type: ignore[return-value]
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


#: Names of the instructions that ask for the truth of what the instruction before them has made.
_TRUTH_TESTS = ("POP_JUMP", "JUMP_IF", "UNARY_NOT", "TO_BOOL")


def tests_truth(site: tuple[CodeType, int]) -> bool:
    """Whether the instruction at a site asks for a truth value, as ``if``, ``while``, ``not`` do."""
    code, offset = site
    return opname[code.co_code[offset]].startswith(_TRUTH_TESTS)


class SiteTable:
    """Turns code objects and instruction offsets into locations; each pair is worked out once."""

    def __init__(self) -> None:
        self._locations: dict[tuple[int, int], Location] = {}
        self._positions: dict[int, list[tuple[int | None, ...]]] = {}

    def locate(self, site: Site) -> Location | None:
        """The location of a site, with columns where this Python keeps them (3.11 and later)."""
        if site is None:
            return None
        code, offset = site
        key = (id(code), offset)
        found = self._locations.get(key)
        if found is None:
            found = self._locations[key] = self._work_out(code, offset)
        return found

    def locate_read(self, site: Site) -> Location | None:
        """The location of the expression that was read at a site.

        Where a jump tests a truth value, Python gives the jump the place of the whole statement; the expression is
        what the instruction before it has made.
        """
        if site is None:
            return None
        code, offset = site
        bytecode = code.co_code
        if tests_truth(site):
            offset -= 2
            while offset > 0 and opname[bytecode[offset]] == "EXTENDED_ARG":
                offset -= 2
        return self.locate((code, max(offset, 0)))

    def _work_out(self, code: CodeType, offset: int) -> Location:
        name = getattr(code, "co_qualname", code.co_name)
        if sys.version_info >= (3, 11):
            rows = self._positions.get(id(code))
            if rows is None:
                rows = self._positions[id(code)] = list(code.co_positions())
            line, end_line, column, end_column = rows[offset // 2]
            if None not in (line, end_line, column, end_column):
                return Location(code.co_filename, line, name, end_line, column, end_column)
            return Location(code.co_filename, line or code.co_firstlineno, name)
        for start, end, line in code.co_lines():
            if start <= offset < end and line is not None:
                return Location(code.co_filename, line, name)
        return Location(code.co_filename, code.co_firstlineno, name)
