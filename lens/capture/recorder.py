"""The recorder: what a backend tells about the running model, written to a tape.

A backend calls ``start`` before and ``finish`` after every operation, ``read`` when a value leaves the tensor
world, ``enter`` and ``exit`` around every module call. This is the hot path: rows are bare tuples, and whatever
can wait is left to sealing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FrameType
from typing import Any, TypeAlias
from weakref import getweakrefcount, ref

import torch
from attrs import evolve
from torch import Tensor, nn

from lens.capture.addresses import AddressBook
from lens.capture.encoding import FIRST_SLOT, SLOTS, shorten, slot
from lens.capture.entered import ModuleCalls
from lens.capture.keeping import generator_states
from lens.capture.nodes import node_class
from lens.capture.operands import OperandRecorder
from lens.capture.parts import copy_parts, renew_parts
from lens.capture.selection import RunningOp, Selection
from lens.capture.sites import CLOSED_CLASSES, Locator, is_closed
from lens.capture.stopping import Stop
from lens.capture.tensor_table import TensorRecord
from lens.capture.unseen import odd_type
from lens.functions import Function, tensors_in
from lens.ir.places import Site
from lens.ir.tape import OP_RESULTS, RawTemplate, ReadRow
from lens.ir.templates import Slot
from lens.writes import WRITE_UNCOUNTED, statistics_of

#: A call between ``start`` and ``finish``: function, number of op rows before it, operands, templates of its
#: arguments, site, tensors that it writes to, generator states. A bare tuple: a named one costs 0.3 us per call.
#: The operands of a composite that will hardly get a row are None, and its arguments stand as they are.
Call: TypeAlias = tuple[
    Function,
    int,
    "list[int] | None",
    Sequence[Any],
    "Mapping[str, Any] | None",
    Site,
    Sequence[torch.Tensor],
    "Mapping[str, torch.Tensor] | None",
]


def site_of(call: Call) -> Site:
    """Where a call that has begun comes from."""
    return call[5]


#: What comes back to ``exit``: number of the scope, and the scope, the call site and the site inside as they were.
Entered: TypeAlias = "tuple[int, int | None, Site, Site]"


def written_by(call: Call) -> Sequence[torch.Tensor]:
    """What a call writes to."""
    return call[6]


#: Reads whose result shares its memory with the tensor.
EXPOSING = frozenset({"numpy", "dlpack", "data_ptr"})
_TENSOR_TYPE = {torch.Tensor}


class Recorder(OperandRecorder):
    """Writes the tape of one run in one thread.

    Args:
        addresses: The names of the model's tensors and modules.
        selection: Which values to hold.
        locator: Finds the user's line of a call.
        keep_fast_paths: Whether the backend is to leave torch's fused eval paths on.
        composites: Whether a composite gets a row of its own even if the operations inside explain all that it
            returns (docs/adr/005-composites-at-leaf-level.md).
    """

    #: Not so when it has been closed.
    is_open = False

    def __init__(
        self,
        addresses: AddressBook,
        selection: Selection,
        locator: Locator,
        keep_fast_paths: bool = True,
        composites: bool = True,
    ) -> None:
        super().__init__(addresses, selection, locator)
        self.is_open = True
        self.keep_fast_paths = keep_fast_paths
        self.composites = composites
        self.scope: int | None = None
        #: While a composite or a module runs that calls no code of the user: its site, which its interior shares.
        self.inside_site: Site = None
        #: What the run is to end at, if at anything.
        self.stop: Stop | None = None
        #: Whether a backend may tell of a call of a ``quick`` function when it is over only.
        self.takes_ended = True
        #: The last function whose call has begun and not ended as it should, and the number of op rows then.
        self._begun: tuple[Function, int] | None = None
        #: Set by a backend that learns of some writes late: takes in what there is to learn; whether there was any.
        self.collect: Callable[[], bool] = lambda: False
        self._ops, self._exits = self.tape.ops, self.tape.exits
        self._add, self._find = self.tensors.add, self.tensors.find
        self._hold_all, self._selective = self.keeper.holds_all, self.keeper.selective
        self._holds_some = not self.keeper.nothing
        #: Whether fresh tensors need nothing but their entry: what is saved is nothing, or all just as it is.
        self.keeps_fresh = self.keeper.nothing or (self._hold_all and selection.transform is None)
        self.calls = ModuleCalls(addresses)

    # Operations

    def start(
        self,
        function: Function,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None,
        frame: FrameType | None,
        opened: bool = False,
    ) -> Call:
        """Note the operands of a coming call; save what it overwrites, unless its interior (``opened``) tells that."""
        site = self.inside_site or self.locator.find(frame, self.call_site)
        self._begun = function, len(self._ops)
        if function.copies:  # addresses of this run mean other objects, or none, in the next
            args, kwargs = (args[0], {}), None
        if opened and not self.composites:
            return function, len(self._ops), None, args, kwargs, site, (), None
        operands, encoded, by_name = self.encode(args, kwargs)
        written: Sequence[torch.Tensor] = ()
        if not opened and (function.may_write or (kwargs and "out" in kwargs)):
            written = self._about_to_write(function, args, kwargs or {}, operands)
        generators = generator_states(args, kwargs) if function.random and function.draws(args, kwargs) else None
        return function, len(self._ops), operands, encoded, by_name, site, written, generators

    def _about_to_write(
        self, function: Function, args: Sequence[Any], kwargs: Mapping[str, Any], operands: list[int]
    ) -> Sequence[torch.Tensor]:
        """What a call will write to, after what that destroys has been saved."""
        written = function.written(args, kwargs)
        if written:
            self.protect(written, operands, tensors_in((*args, *kwargs.values())), function, "out" in kwargs)
            if self.encoder.has_met_subclass:
                return copy_parts(self, written)
        return written

    def finish(self, call: Call, result: Any, duration: float) -> None:
        """Note what a call returned, how long it took (seconds), and what it wrote to.

        A call that made no tensor, wrote to none and has no interior was no operation; it leaves no row. Nor does one
        that hands out a tensor whose value is known.
        """
        function, begin, operands, args, kwargs, site, written, generators = call
        self._begun = None
        if function.hands_out and result is not None and self.tensors.is_up_to_date(result):
            return
        ops = self._ops
        position = len(ops)
        if operands is None:
            if begin < position and self._all_met(result):
                return
            operands, args, kwargs = self._operands_before(call)
            call = (function, begin, operands, args, kwargs, site, written, generators)
        results: list[int] = []
        yields: list[int | None] = []
        form = self._results(result, function, operands, written, results, yields)
        if not results and not written:
            return
        if written:
            self.memory.written(call, position, results, yields)
        inside = tuple(yields) if begin < position else None
        ops.append(
            (function.ref, position - begin, operands, args, kwargs, results, form, self.scope, site, duration, inside),
        )
        if generators and self.keeper.keep_generators(position, generators) and not function.ref.random:
            ops[position] = (evolve(function.ref, random=True), *ops[position][1:])
        if written and self.encoder.has_met_subclass:
            renew_parts(self, written)
        if self.stop is not None and results:
            self.stop.ran(self.described(function, results[0]), results[0], self.keeper)

    def fails(self, function: Function) -> None:
        """Note that the call of a ``plain`` function has raised."""
        self._begun = function, len(self._ops)

    def running(self) -> Function | None:
        """The function whose call has raised, if nothing has been recorded since; for the report of a fault."""
        return self._begun[0] if self._begun is not None and self._begun[1] == len(self._ops) else None

    def results_of(
        self, result: Any, function: Function, operands: Sequence[int], first: Any
    ) -> tuple[Sequence[int], RawTemplate]:
        """The values and the template of what a ``plain`` function returned; ``first`` is its first argument."""
        if type(result) is Tensor:
            return (self._result(result, function, operands),), FIRST_SLOT
        results: list[int] = []
        if type(result) is not tuple or set(map(type, result)) != _TENSOR_TYPE:
            return results, self._results(result, function, operands, (), results)
        for tensor in result:
            value = self._fresh_result(tensor, function, first) if self.keeps_fresh else None
            results.append(self._result(tensor, function, operands) if value is None else value)
        return results, self.encoder.slots_in(tuple, 0, len(results))

    def _fresh_result(self, tensor: torch.Tensor, function: Function, first: Any) -> int | None:
        """The value of one of several results, if it is fresh, as in ``lens.capture.fast_lane``; None if it is not."""
        alias, shares = None, False
        try:
            if not function.fresh:
                shown = self.tensors.shown(first, tensor)
                if shown is None:
                    return None
                (alias,), shares = shown[1], shown[3]
            elif getweakrefcount(tensor):
                return None
            value, version = len(self._values), tensor._version
            row = (tensor.shape, tensor.dtype, tensor.device, tensor.layout, alias, node_class(tensor, value))
        except RuntimeError:  # it was made in inference mode, or is nested
            return None
        self._values.append(row)
        self._keep_fresh(tensor, value, version, shares)
        return value

    def _results(
        self,
        result: Any,
        function: Function,
        operands: Sequence[int],
        written: Sequence[torch.Tensor],
        results: list[int],
        yields: list[int | None] | None = None,
    ) -> RawTemplate:
        """Give the tensors in what a call returned their values; the template of it."""
        if type(result) is torch.Tensor:
            results.append(self._result(result, function, operands, written, yields))
            return SLOTS[0]
        if type(result) is tuple and set(map(type, result)) == _TENSOR_TYPE:
            for tensor in result:
                results.append(self._result(tensor, function, operands, written, yields))
            return self.encoder.slots_in(tuple, 0, len(results))

        def visit(tensor: torch.Tensor) -> Slot:
            results.append(self._result(tensor, function, operands, written, yields))
            return slot(len(results) - 1)

        return self.encoder.encode_with(result, visit)

    def _all_met(self, result: Any) -> bool:
        """Whether every tensor in what a composite returned has a value already: its own row would add nothing."""
        if type(result) is torch.Tensor:
            return self.tensors.is_met(result)
        unmet: list[torch.Tensor] = []

        def visit(tensor: torch.Tensor) -> Slot:
            if not self.tensors.is_met(tensor):
                unmet.append(tensor)
            return SLOTS[0]

        self.encoder.encode_with(result, visit)
        return not unmet

    def _operands_before(self, call: Call) -> tuple[list[int], list[RawTemplate], dict[str, RawTemplate] | None]:
        """The operands of a composite that is over, as they were before its interior wrote to them."""
        _, begin, _, args, kwargs, *_ = call
        operands: list[int] = []
        encoded = [self.encoder.encode(arg, operands) for arg in args]
        named = {name: self.encoder.encode(arg, operands) for name, arg in kwargs.items()} if kwargs else None
        made = {value for row in self._ops[begin:] for value in row[OP_RESULTS]}
        made.update(new for position, _, new in self.tape.effects if position >= begin)
        for place, value in enumerate(operands):
            older: int | None = value
            while older is not None and older in made:
                older = self._values[older][4]
            operands[place] = value if older is None else older
        return operands, encoded, named

    def _result(
        self,
        tensor: torch.Tensor,
        function: Function,
        operands: Sequence[int],
        written: Sequence[torch.Tensor] = (),
        yields: list[int | None] | None = None,
    ) -> int:
        """Give a returned tensor a new value; the one that it had, if any, goes to ``yields``."""
        values = self._values
        value = len(values)
        record = self._find(tensor)
        alias = None if record is None else record.value
        if yields is not None:
            yields.append(alias)
        if record is not None:
            record.revalue(value)
            if record.aliases is not None or record.pending:
                self.memory.drop_pending(record)
            record.seen(tensor)
        elif not (function.returns_fresh and self.keeps_fresh and type(tensor) is Tensor and not tensor.is_inference()):
            record = self._add(tensor, value)
            if record.aliases is not None:
                alias = self.tensors.alias(record, operands)
                if self.memory.exposed:
                    self.memory.snap(record, tensor)
        try:
            node = node_class(tensor, value)
            values.append((tensor.shape, tensor.dtype, tensor.device, tensor.layout, alias, node))
        except RuntimeError:  # nested tensors have no shape; a view written under no_grad has no grad_fn
            values.append((*odd_type(tensor), alias, None))
        if record is None:
            self._keep_fresh(tensor, value, tensor._version)
            return value
        if self._holds_some and (self._hold_all or self._wants(function, value)):
            self.keeper.hold(record, value, tensor)
        if alias is not None and function.reaches and not written:
            self.memory.reach(len(self._ops), operands, record, tensor)
        return value

    def _keep_fresh(self, tensor: torch.Tensor, value: int, version: int, shares: bool = False) -> None:
        """Note a new tensor in memory of its own, or one that shares it with other fresh ones only."""
        self._fresh[id(tensor)] = ref(tensor), (value,), version, shares
        if self._holds_some:
            self.keeper.held[value] = tensor, version

    # Writes in place

    def protect(
        self,
        written: Sequence[torch.Tensor],
        operands: list[int] | None = None,
        given: Iterable[torch.Tensor] = (),
        function: Function | None = None,
        resizes: bool = False,
    ) -> None:
        """Save what a write to these tensors is about to destroy (``Memory.protect``)."""
        self.memory.protect(written, operands or [], given, function, resizes)

    def hold_if_wanted(self, function: Function, record: TensorRecord, tensor: torch.Tensor) -> None:
        """Hold the value that a tensor has now, if the selection wants it."""
        if self._holds_some and (self._hold_all or self._wants(function, record.value)):
            self.keeper.hold(record, record.value, tensor)

    def _wants(self, function: Function, value: int) -> bool:
        asked = self.keeper.selection.predicate is not None
        return (asked and self.keeper.picks(self.described(function, value), value)) or self.keeper.wants(function.ref)

    def described(self, function: Function, value: int) -> RunningOp:
        """What a function of the user is told of an operation."""
        names = ("", (), "") if self.scope is None else self.calls.names(self.scope)
        return RunningOp.of(function.ref, names, self._values[value])

    def close(self) -> None:
        """The trace is over: let go of everything at once, instead of leaving circles to the garbage collector."""
        vars(self.memory).clear()
        vars(self.encoder).clear()
        vars(self).clear()

    def retire(self) -> None:
        """End the recording in the thread that it is for, from another one. A backend that can sets what does so."""

    def site(self, frame: FrameType | None = None) -> Site:
        """The user's line that led to a frame; by default the one that is running."""
        if frame is None:
            return self.inside_site or self.locator.find(sys._getframe(1), self.call_site)
        return self.locator.find(frame, self.call_site)

    # Reads

    def read(self, kind: str, args: Sequence[Any], result: Any, frame: FrameType | None) -> None:
        """Note that values left the tensor world; ``result`` is what the caller got."""
        # Elsewhere than in the user's code only where the value leaves for another library.
        site = self.site(frame) if frame is None or kind in EXPOSING else (frame.f_code, frame.f_lasti)
        shown = shorten(result)
        for arg in args:
            if isinstance(arg, torch.Tensor):
                value = self.value_of(arg)
                if kind in EXPOSING:
                    self.memory.expose(arg)
                position = len(self.tape.ops)
                self.tape.reads.append(ReadRow(value, kind, shown, position, self.scope, site))

    # Modules

    def enter(
        self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], frame: FrameType | None
    ) -> Entered:
        """Note that a module is being called. Give what comes back to ``exit``."""
        inputs = self._values_given((*args, *kwargs.values()) if kwargs else args)
        outer_scope, outer_site, outer_inside = self.scope, self.call_site, self.inside_site
        self.call_site = site = self.locator.find(frame, outer_site)
        if type(module) in CLOSED_CLASSES and is_closed(module):  # 1 us less for each operation in it
            self.inside_site = site
        entered = self.calls.rows
        self.scope = number = len(entered)
        training = getattr(module, "training", False)  # frozen scripted modules have none
        entered.append((module, outer_scope, training, len(self._ops), inputs, site))
        return number, outer_scope, outer_site, outer_inside

    def exit(self, entered: Entered, output: Any) -> None:
        """Note that a module call has ended; ``output`` is None if it raised."""
        number, self.scope, self.call_site, self.inside_site = entered
        outputs = self._values_given(output if type(output) is tuple else (output,))
        self._exits.append((number, len(self._ops), outputs))
        if self._selective and self.keeper.wants_module(self.calls.names(number)):
            self.encoder.encode_with(output, self._hold_now)
        if self.stop is not None and (output is not None or sys.exc_info()[0] is None):
            self.stop.left(self.calls.names(number), self.calls.number(number))

    def end(self) -> None:
        """The run is over: describe what was left for now."""
        super().end()
        if self._holds_some:
            self.keeper.trust(self._by_id.values())
            self.keeper.copy_values(self._uncounted())
        self.tape.scopes[:] = self.calls.scope_rows()

    def _uncounted(self) -> set[int]:
        """The values of running statistics, and of what is like them: torch counts no write when a later call of the
        model changes them."""
        found: set[int] = set()
        updates = set()
        for position, (function, _, operands, args, kwargs, results, *_) in enumerate(self._ops):
            if not function.mutates:
                continue
            if function.name.partition(".")[0] in WRITE_UNCOUNTED:
                found.update(results)
                updates.add(position)
            for place, name in statistics_of(function.name):
                given = args[place] if place < len(args) else (kwargs or {}).get(name)
                if type(given) is Slot:
                    found.add(operands[given.index])
                    updates.add(position)
        return found.union([new for position, _, new in self.tape.effects if position in updates])

    def _hold_now(self, tensor: torch.Tensor) -> Slot:
        record = self.tensors.find(tensor)
        if record is not None:
            self.keeper.hold(record, record.value, tensor)
        return SLOTS[0]

    def bundle(self, obj: Any, *, hold: bool = False) -> tuple[RawTemplate, list[int]]:
        """Inputs or outputs of the model as a template and its values."""
        values: list[int] = []
        form = self.encoder.encode(obj, values)
        if hold:
            self.encoder.encode_with(obj, self._hold_now)
        return form, values
