"""Putting what was recorded in another thread onto the tape, as one block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from threading import RLock
from types import FrameType
from typing import Any

import torch
from attrs import evolve

from lens.capture.footprint import Footprint
from lens.capture.recorder import EXPOSING, Recorder
from lens.capture.sites import Locator
from lens.capture.tensor_table import TensorRecord, storage_of
from lens.functions import Function, tensors_in
from lens.ir.gaps import UNORDERED
from lens.ir.places import Site
from lens.ir.tape import OP_FUNCTION, OP_OPERANDS, OP_RESULTS, RawTemplate, Tape, seal_template
from lens.ir.templates import Node, Opaque, Template, map_nodes


class JobRecorder(Recorder):
    """Records in another thread than the trace's, onto a tape of its own; remembers the tensors behind its leaves."""

    def __init__(self, main: Recorder, locator: Locator) -> None:
        super().__init__(main.addresses, main.keeper.selection, locator, main.keep_fast_paths, main.composites)
        #: The trace's recorder; None when the trace has ended before the job.
        self.main: Recorder | None = main
        #: Held while the job looks at what the trace knows.
        self._looking = RLock()
        self.sources: list[tuple[int, torch.Tensor]] = []
        #: The memories that these tensors have.
        self.given: set[int | None] = set()
        #: Those of these values whose tensors had been written to, out of sight of the other thread.
        self.changed: set[int] = set()
        #: The trace's records of others in the same memory of which that is true, and what was there.
        self.changed_others: list[tuple[TensorRecord, torch.Tensor]] = []
        #: How many operations the other thread had recorded when it handed the job out.
        self.handed_out = len(main.tape.ops)

    def leaf(self, tensor: torch.Tensor, kind: Any, addresses: tuple[str, ...], site: Site = None) -> int:
        """Make a tensor a leaf of this tape; the other thread may know it as something else.

        If its memory is exposed there, it is here, too: what is written to it from now on is found here.
        """
        with self._looking:
            main = self.main
            known = main.tensors.find(tensor) if main is not None and main.memory.exposed else None
            changed = main is not None and known is not None and self.look_at(main, known, tensor)
        value = super().leaf(tensor, kind, addresses, site)
        self.sources.append((value, tensor))
        self.given.add(storage_of(tensor))
        if changed:
            self.changed.add(value)
        if known is not None and known.exposed:
            self.memory.expose(tensor)
        self.memory.stop_counting(tensor)  # other threads may write to it too
        return value

    def leave(self) -> None:
        """The trace ends: look at nothing of it any more. Waits for the job where it is doing so."""
        with self._looking:
            self.main = None

    def look_at(self, main: Recorder, known: TensorRecord, tensor: torch.Tensor) -> bool:
        """Whether the trace knows something else in exposed memory than there is; note what else there is like that."""
        memory = main.memory
        if known.exposed and known.storage not in self.memory.exposed:
            for member, other in main.tensors.members(known):
                if member.exposed and memory.has_changed(member, other):
                    with self.keeper.unseen():
                        self.changed_others.append((member, other.detach().clone()))
        return known.exposed and memory.has_changed(known, tensor)

    def protect(
        self,
        written: Sequence[torch.Tensor],
        operands: list[int] | None = None,
        given: Iterable[torch.Tensor] = (),
        function: Function | None = None,
        resizes: bool = False,
    ) -> None:
        """Save what a write is about to destroy, here and in the trace."""
        super().protect(written, operands, given, function, resizes)
        with self._looking:
            if self.main is not None:
                self.main.memory.copy_held([tensor for tensor in written if storage_of(tensor) in self.given])

    def read(self, kind: str, args: Sequence[Any], result: Any, frame: FrameType | None) -> None:
        """Note that values left the tensor world; save what others can overwrite from now on, here and in the trace."""
        if kind in EXPOSING:
            with self._looking:
                for tensor in tensors_in(args) if self.main is not None else ():
                    self.main.memory.copy_exposed(tensor)  # type: ignore[union-attr]
        super().read(kind, args, result, frame)


def splice(main: Recorder, job: JobRecorder) -> None:
    """Append the whole tape of a finished job. Linear in all that was recorded since it was handed out."""
    begin = len(main.tape.ops)
    if job.memory.exposed:
        job.memory.look_at_all()
    _Splicing(main, job).run()
    since, own = _uses(main, job.handed_out, begin), _uses(main, begin, len(main.tape.ops))
    if any(
        _clash(main, one, other) for root in since.keys() & own.keys() for one in since[root] for other in own[root]
    ):
        main.tape.unseen.append((UNORDERED, job.call_site))


def _uses(recorder: Recorder, begin: int, end: int) -> dict[int, set[tuple[int, bool]]]:
    """The memory that some operations use: by the value that it began with, pairs of a value and: was it written."""
    tape = recorder.tape
    found: dict[int, set[tuple[int, bool]]] = {}
    rows = tape.ops[begin:end]
    used = [(value, True) for row in rows if row[OP_FUNCTION].mutates for value in row[OP_RESULTS]]
    used += [(new, True) for op, old, new in tape.effects if begin <= op < end and old in tape.ops[op][OP_OPERANDS]]
    used += [(value, False) for row in rows if not row[OP_FUNCTION].view for value in row[OP_OPERANDS]]
    roots: dict[int, int] = {}
    for value, writes in used:
        found.setdefault(_root(tape, value, roots), set()).add((value, writes))
    return found


def _root(tape: Tape, value: int, known: dict[int, int]) -> int:
    """The value that a memory began with; found for all values on the way there at once."""
    way = []
    while value not in known and (source := tape.values[value][4]) is not None:
        way.append(value)
        value = source
    root = known.get(value, value)
    known.update(dict.fromkeys(way, root))
    return root


def _clash(recorder: Recorder, one: tuple[int, bool], other: tuple[int, bool]) -> bool:
    """Whether two uses of one memory, at least one of them a write, may concern the same elements."""
    if not (one[1] or other[1]):
        return False
    (low, high), (start, stop) = (_extent(recorder, value) for value, _ in (one, other))
    return low < stop and start < high


def _extent(recorder: Recorder, value: int) -> tuple[int, int]:
    """Which elements of its memory a value has: all if that is not known. A write leaves a value where it was."""
    shape, *_, alias, _ = recorder.tape.values[value]
    layout = recorder.keeper.layouts.get(value)
    if layout is None and alias is not None and recorder.tape.values[alias][0] == shape:
        layout = recorder.keeper.layouts.get(alias)
    return (0, 1 << 62) if layout is None else layout.extent(tuple(shape))


class _Splicing:
    def __init__(self, main: Recorder, job: JobRecorder) -> None:
        self.main = main
        self.job = job
        #: Values of the leaves of the job, as the trace knows them now; then all other values.
        self.values = {value: self.value_here(value, tensor) for value, tensor in job.sources}
        #: Those leaves, and the ids of their tensors.
        self.sources = {value for value, _ in job.sources}
        self.given = {id(tensor) for _, tensor in job.sources}
        #: The op of the job that returned a value, by value.
        self.makers = {value: position for position, row in enumerate(job.tape.ops) for value in row[OP_RESULTS]}
        #: By memory that the job wrote to: a tensor there that it was given, and by which op of the trace, and where.
        self.written: dict[int | None, tuple[TensorRecord, torch.Tensor, set[tuple[int, Footprint]]]] = {}
        #: The ids of the sets of tensors whose writes are in it.
        self.noted: set[int] = set()
        self.ops = len(main.tape.ops)
        self.scopes = len(main.calls.rows)
        self.objects = len(main.encoder.objects)

    def run(self) -> None:
        main, job = self.main, self.job
        for record, found in job.changed_others:
            other = record()
            if other is not None and id(other) not in self.given:
                main.memory.renew(record, other, found)
        for value, row in enumerate(job.tape.values):
            if value not in self.values:
                shape, dtype, device, layout, alias, grad = row
                self.values[value] = len(main.tape.values)
                source = None if alias is None else self.values[alias]
                main.tape.values.append((shape, dtype, device, layout, source, grad))
        main.encoder.objects.extend(job.encoder.objects)
        self.scope_rows()
        main.tape.ops.extend(self.op_row(*row) for row in job.tape.ops)
        main.tape.reads.extend(
            read._replace(
                value=self.values[read.value], position=self.ops + read.position, scope=self.scope(read.scope)
            )
            for read in job.tape.reads
        )
        main.tape.effects.extend(
            (self.ops + op, self.values[old], self.values[new]) for op, old, new in job.tape.effects
        )
        main.tape.leaves.extend(
            (kind, self.values[value], addresses, trained, site)
            for kind, value, addresses, trained, site in job.tape.leaves
            if value not in self.sources
        )
        main.tape.unseen.extend(job.tape.unseen)
        memories = {number: main.memory.number(storage) for storage, number in job.memory.numbers.items()}
        main.keeper.take_over(job.keeper, self.values, self.ops, memories)
        main.memory.leaf_storages |= job.memory.leaf_storages
        self.tensors()

    def value_here(self, value: int, tensor: torch.Tensor) -> int:
        """What the trace knows a tensor as that the job met as this value.

        Its count of writes says nothing: other jobs may be writing right now. Nor does what is in exposed memory, where
        the job may have written since.
        """
        memory, record = self.main.memory, self.main.tensors.find(tensor)
        if record is None:
            return self.main.value_of(tensor)
        if value in self.job.changed:
            memory.renew(record, tensor)
        elif record.exposed:
            memory.take_in(record, tensor)
        elif not record.settled:
            memory.settle(record, tensor)
        if record.aliases is not None:  # the job may write to it, which is run again where it lay
            memory.place(record.value, record, tensor)
        return record.value

    def mapped(self, values: Sequence[int]) -> list[int]:
        return [self.values[value] for value in values]

    def scope(self, number: int | None) -> int | None:
        return self.main.scope if number is None else self.scopes + number

    def scope_rows(self) -> None:
        tape, job = self.main.tape, self.job
        for module, parent, training, start, inputs, site in job.calls.rows:
            row = (module, self.scope(parent), training, self.ops + start, self.mapped(inputs), site)
            self.main.calls.rows.append(row)
        ends = {number: (stop, outputs) for number, stop, outputs in job.tape.exits}
        for number in range(len(job.calls.rows)):
            stop, outputs = ends.get(number, (len(job.tape.ops), ()))
            tape.exits.append((self.scopes + number, self.ops + stop, self.mapped(outputs)))

    def op_row(self, fn: Any, interior: int, operands: Any, args: Any, kwargs: Any, *rest: Any) -> tuple[Any, ...]:
        results, form, scope, site, duration, yields = rest
        return (
            fn,
            interior,
            self.mapped(operands),
            [self.template(arg) for arg in args],
            {name: self.template(arg) for name, arg in kwargs.items()} if kwargs else None,
            self.mapped(results),
            self.template(form),
            self.scope(scope),
            site,
            duration,
            yields and tuple(None if value is None else self.values[value] for value in yields),
        )

    def template(self, raw: RawTemplate) -> Template:
        """A template with its opaque objects numbered as the trace numbers them."""

        def renumber(node: Node) -> Template | None:
            return evolve(node, index=node.index + self.objects) if isinstance(node, Opaque) else None

        return map_nodes(seal_template(raw), renumber)

    def tensors(self) -> None:
        """Tell the trace about the job's live tensors, and about its writes to tensors that share their memory."""
        memory = self.main.memory
        memory.exposed |= self.job.memory.exposed
        met: list[TensorRecord] = []
        for record in self.job.tensors.records():
            tensor = record()
            if tensor is None:
                continue
            known = self.update(record, tensor)
            met.append(known)
            if id(tensor) in self.given:
                self.note_writes(record, known, tensor)
        for known, tensor, writes in self.written.values():
            memory.spread(sorted(writes), known, tensor)
            for _, where in writes:
                self.distrust(known, tensor, where)
        memory.expose_with(self.job.memory, {id(known) for known in met})
        for known in met:  # they know already what the job wrote to them
            if known.aliases is not None:
                known.looked = len(known.aliases.writes)

    def update(self, record: TensorRecord, tensor: torch.Tensor) -> TensorRecord:
        """The record of the trace of one of the job's tensors, as the job left it."""
        known = self.main.tensors.find(tensor)
        if known is None:
            known = self.main.tensors.add(tensor, self.values[record.value])
        known.revalue(self.values[record.value])
        if known.storage in self.job.memory.overwritten:
            self.main.keeper.lose(known)
        held = self.main.keeper.held  # by now with the copies that the job made
        values = dict.fromkeys([*known.held, *self.mapped(record.held)])
        known.held = tuple([value for value in values if value in held and held[value][0] is tensor])
        if known.held and known.aliases is not None:
            known.aliases.hold(known)
        known.pending = tuple(self.ops + op for op in self.job.memory.pending(record, tensor))
        self.main.memory.watch_one(known, tensor)
        return known

    def note_writes(self, record: TensorRecord, known: TensorRecord, tensor: torch.Tensor) -> None:
        """Note what the job wrote to the memory of a tensor that it was given: to that itself, and through others."""
        versions, aliases = list(self.versions(record)), record.aliases
        writes = {(self.makers[value], Footprint.of(tensor)) for value in versions if value in self.makers}
        if aliases is not None and id(aliases) not in self.noted:
            self.noted.add(id(aliases))
            writes.update(aliases.writes)
        if writes:
            noted = self.written.setdefault(known.storage, (known, tensor, set()))[2]
            noted.update((self.ops + position, where) for position, where in writes)
        if known.storage in self.written:  # else the job wrote nothing here, and if there was a write, nobody saw it
            known.seen(tensor)
        if known.aliases is not None:
            for value in versions:
                self.main.memory.place(self.values[value], known, tensor)

    def versions(self, record: TensorRecord) -> Iterator[int]:
        """The values that a tensor which the job was given stood for since, the last one first."""
        value: int | None = record.value
        while value is not None and value not in self.sources:
            yield value
            value = self.job.tape.values[value][4]

    def distrust(self, written: TensorRecord, tensor: torch.Tensor, where: Footprint) -> None:
        """Leave what only the trace holds of what the job wrote to as it is: if nobody copied it, its count tells."""
        aliases = self.main.tensors.aliases(written, tensor)
        for member in () if aliases is None else aliases.take_held(where):
            other = member()
            if member is written or (other is not None and self.job.tensors.is_met(other)):
                aliases.hold(member)  # type: ignore[union-attr]
            else:
                member.held = ()
