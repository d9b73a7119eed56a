"""One recorded run: from a module and a call, or a block of code, to a history."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, Literal

import torch
from attrs import frozen
from torch import nn

import lens
from lens import registry
from lens.capture.addresses import AddressBook
from lens.capture.backend import CaptureBackend
from lens.capture.backend_contract import recording, sealed
from lens.capture.encoding import slot
from lens.capture.inputs import named_tensors
from lens.capture.interrupts import InterruptsWait
from lens.capture.keeping import UNSEEN
from lens.capture.module_calls import MODULE_CALL_FILE
from lens.capture.quiet_gc import collector_off
from lens.capture.recorder import Recorder
from lens.capture.selection import Save, Transform, is_pattern, make_selection
from lens.capture.sites import Locator
from lens.capture.stopping import Stop, StopAt, Stopped, make_stop
from lens.capture.user_functions import place_of
from lens.errors import InputError, LensError, UnknownKeyError
from lens.foreign import attempt, message_of
from lens.history import ModelHistory
from lens.ir.elements import Fault, Meta, Unseen, ValueId
from lens.ir.entry_index import EntryRow, ordinals
from lens.ir.facets import Labels
from lens.ir.gaps import RUNS_LATER
from lens.ir.graph import Graph
from lens.ir.naming import layer_type
from lens.ir.payloads import Payload, PayloadStore, Stale
from lens.ir.places import SiteTable
from lens.ir.tape import OP_FUNCTION, OP_OPERANDS, OP_RESULTS, number_values, seal
from lens.passes.granularity import GranularityPass
from lens.passes.manager import PassManager
from lens.passes.protocol import Pass
from lens.stages import stage
from lens.user_warnings import warn_user

#: Why a layer that ``save=`` names may be there, and no value of it.
_RENAMED = "no operation of this name ran, a pass has made it so; save what ran, or all"
#: What a call gives whose code has not run yet.
_LAZY = (GeneratorType, CoroutineType, AsyncGeneratorType)


@frozen
class Settings:
    """How to record, save and analyse.

    Args:
        backend: The capture backend.
        pipeline: The passes.
        save, transform, detach, stop_at, seed, fast_paths: As in ``lens.trace``.
    """

    backend: CaptureBackend
    pipeline: tuple[Pass, ...]
    save: Save
    transform: Transform | None
    detach: bool
    stop_at: StopAt | None
    seed: int | None
    fast_paths: Literal["keep", "open"]


class Run(AbstractContextManager["Run"]):
    """One recorded run. Leaving the block makes the history, also when the run raised.

    Args:
        root: The module that names things: what is called, or what holds what is called.
        settings: How to record, save and analyse.

    Raises:
        InputError: if ``save``, ``transform`` or ``stop_at`` cannot be used with this module.
    """

    def __init__(self, root: nn.Module, settings: Settings) -> None:
        self.begun = time.perf_counter()
        self.root = root
        self.settings = settings
        with UNSEEN():
            self.addresses = AddressBook(root)
        modules = self.addresses.by_address()
        selection = make_selection(settings.save, modules)
        if selection.keys is not None:
            _check_labelled(settings.pipeline)
        self.selection = selection.with_transform(
            settings.transform, settings.detach, counted="aten" not in settings.backend.capabilities
        )
        locator = Locator((MODULE_CALL_FILE, __file__))
        leaf_level = bool(settings.pipeline) and settings.pipeline[0] == GranularityPass("leaf")
        keep = settings.fast_paths == "keep"
        self.recorder = Recorder(self.addresses, self.selection, locator, keep, composites=not leaf_level)
        self.recorder.stop = make_stop(settings.stop_at, self.selection, modules)
        self.stopped = ""
        self.started = time.time()
        self.forward_seconds = 0.0
        self.history: ModelHistory | None = None
        #: What was saved because a function of the user picked it.
        self._picked: tuple[Payload, ...] = ()
        #: What stands for the value that one raised about, and what made that value.
        self._failed: Payload | None = None
        self._place = ""
        self.recorder.keeper.on_failure = self._end_soon

    def _end_soon(self) -> None:
        self.recorder.stop = Stop()

    def call(self, target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Call what is traced, under the backend."""
        if self.settings.seed is not None:
            torch.manual_seed(self.settings.seed)
        recorder = self.recorder
        with UNSEEN():
            for names, tensor in named_tensors(target, args, kwargs):
                recorder.leaf(tensor, "input", names)
            recorder.tape.inputs = recorder.bundle((args, kwargs))
            recorder.prepare()
        try:
            with self._recording():
                output = target(*args, **kwargs) if target is self.root else self._in_scope(target, args, kwargs)
        except (Stopped, Exception) as error:
            if recorder.stop is None or not self._is_ended_by(error):
                raise
            self.stopped = recorder.stop.reached
            return
        if isinstance(output, _LAZY):
            what = f"the model returned a {type(output).__name__}, {RUNS_LATER}"
            recorder.tape.unseen.append((what, None))
        with UNSEEN():
            recorder.tape.outputs = recorder.bundle(output, hold=self.selection.outputs)
        if recorder.stop is not None and recorder.keeper.failure is None:
            warn_user(f"the run went to its end: {self._why_not_stopped(recorder.stop)}")

    def _is_ended_by(self, error: BaseException | None) -> bool:
        """Whether this is how the run was ended, or what scripted and other code in between has made of it."""
        stop = self.recorder.stop
        return isinstance(error, Stopped) or (isinstance(error, Exception) and stop is not None and bool(stop.reached))

    def _why_not_stopped(self, stop: Stop) -> str:
        if stop.reached:
            return f"the model caught what was to end it at {stop.reached}"
        return stop.missing(
            {*self.addresses.by_address(), *(layer_type(row[OP_FUNCTION]) for row in self.recorder.tape.ops)}
        )

    @contextmanager
    def block(self) -> Iterator[None]:
        """Record what happens in the block. Tensors first met in it are its inputs, unread results its outputs."""
        if self.settings.seed is not None:
            torch.manual_seed(self.settings.seed)
        recorder = self.recorder
        recorder.stranger = "input"
        with UNSEEN():
            recorder.prepare()
        try:
            with self._recording():
                yield
        finally:
            self._find_ends()

    def _find_ends(self) -> None:
        recorder, tape = self.recorder, self.recorder.tape
        given = [row[1] for row in tape.leaves if row[0] == "input"]
        tape.inputs = (tuple(map(slot, range(len(given)))), given)
        read = {value for row in tape.ops for value in row[OP_OPERANDS]}
        made = {value for row in tape.ops for value in row[OP_RESULTS]}
        alive = [record.value for record in recorder.tensors.records() if record() is not None]
        results = sorted({value for value in alive if value in made and value not in read})
        tape.outputs = (tuple(map(slot, range(len(results)))), results)

    @contextmanager
    def _recording(self) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            ops = self.recorder.tape.ops
            with (
                stage("running the model", lambda: len(ops)),
                InterruptsWait() as signals,
                recording(self.settings.backend, self.recorder),
                signals.let_through(),
            ):
                yield
        finally:
            self.forward_seconds = time.perf_counter() - begin

    def _in_scope(self, target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function, or a method other than the module's own call, as the outermost scope."""
        entered = self.recorder.enter(self.root, args, kwargs, None)
        output = None
        try:
            output = target(*args, **kwargs)
            return output
        finally:
            self.recorder.exit(entered, output)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        keeper = self.recorder.keeper
        failure = keeper.failure
        if self._is_ended_by(error):  # out of a block that was ended because of the failure
            error = None
        try:
            history = self._history(error)
        except LensError as problem:
            if error is None:
                raise
            _attach(error, "lens_history_error", problem)  # the model's own error comes first
            return
        finally:
            self.recorder.close()
            keeper.forget_failure()
        if error is not None:
            _attach(error, "lens_history", history)
        elif failure is not None:
            failed = [v for v in history.payloads if history.payloads.values[v] is self._failed]
            label = history.index.name_of(failed[0]) if failed and history.graph.get(Labels) else ""
            raise failure.told(f"{label} {self._place}".strip()) from failure.error
        else:
            history.payloads = self._narrowed(history)
        self.history = history

    def _history(self, error: BaseException | None) -> ModelHistory:
        keeper, ops = self.recorder.keeper, self.recorder.tape.ops
        with stage("analysing", lambda: len(ops)), collector_off(), UNSEEN():
            graph, ids = sealed(self.settings.backend, lambda: self._sealed(error))
            payloads = keeper.store(self.recorder.encoder.objects, ids)
            # Passes renumber values, not payloads.
            kept = (payloads.values.get(ValueId(ids[value])) for value in keeper.picked)
            self._picked = tuple(payload for payload in kept if payload is not None)
            if keeper.failure is not None:
                self._place = place_of(self.recorder.tape, keeper.failure.value)
                self._failed = payloads.values[ValueId(ids[keeper.failure.value])] = Stale(keeper.failure.shown)
            result = PassManager(self.settings.pipeline, registry.providers()).run(graph, payloads)
        durations = sum(op.duration for op in result.graph.ops)
        seconds = max(0.0, time.perf_counter() - self.begun - durations)
        return ModelHistory(result.graph, result.payloads, result.records, seconds)

    def _sealed(self, error: BaseException | None) -> tuple[Graph, list[int]]:
        """The graph, and the ids that it has for the values of the tape."""
        self.recorder.end()
        self.recorder.memory.disclose()
        ids = number_values(self.recorder.tape)
        return seal(self.recorder.tape, self._meta(error), ids), ids

    def _narrowed(self, history: ModelHistory) -> PayloadStore:
        """Only the values that ``save=`` named, if it named some by keys that are known after the run."""
        if self.selection.keys is None:
            return history.payloads
        picked = set(map(id, self._picked))
        wanted = {value for value, payload in history.payloads.values.items() if id(payload) in picked}
        for key in self.selection.keys:
            try:
                rows = _named(key, history)
            except UnknownKeyError:
                if not self.stopped:
                    raise
                reason = history.index.why_no_entry(str(key)) or "it did not run"
                warn_user(f"save= names {key!r}, which has no layer up to the end at {self.stopped}: {reason}")
                continue
            wanted.update(row.value for row in rows)
            if not _holds_some(history, rows):
                warn_user(f"save= names {key!r}, of which nothing is kept: {_RENAMED}")
        return history.payloads.keep(wanted)

    def _meta(self, error: BaseException | None) -> Meta:
        sites = SiteTable()
        return Meta(
            model=type(self.root).__name__,
            backend=self.settings.backend.name,
            capabilities=tuple(sorted(self.settings.backend.capabilities)),
            fast_paths=self.settings.fast_paths,
            seed=self.settings.seed,
            training=getattr(self.root, "training", False),
            started=self.started,
            forward_seconds=self.forward_seconds,
            lens=lens.__version__,
            torch=str(torch.__version__),
            modules=self.addresses.module_infos(),
            parameters=self.addresses.parameter_infos(),
            fault=None if error is None else self._fault(error),
            unseen=tuple(Unseen(what, sites.locate(site)) for what, site in self.recorder.tape.unseen),
            stopped=self.stopped,
            transformed=self.selection.transform is not None,
        )

    def _fault(self, error: BaseException) -> Fault:
        site = self.recorder.locator.raised_at(error)
        running = self.recorder.running()
        name = "" if running is None else str(running.ref)
        return Fault(type(error).__name__, message_of(error), name, SiteTable().locate(site))


def _attach(error: BaseException, name: str, value: object) -> None:
    """Give an exception of the model's an attribute, also if its class is frozen; if it has no room for it, none."""
    attempt(lambda: object.__setattr__(error, name, value))


def _holds_some(history: ModelHistory, rows: Sequence[EntryRow]) -> bool:
    """Whether a value is held of one of these entries, or of what else its operation wrote to."""
    saved = history.payloads
    if any(row.value in saved for row in rows):
        return True
    return any(value in saved for row in rows for value in history.index.values_of[row.number])


def _check_labelled(pipeline: tuple[Pass, ...]) -> None:
    """Refuse keys where no pass gives the labels by which they are found after the run."""
    if not any(Labels in (*one.provides, *one.requires) for one in pipeline):
        raise InputError(
            "save= names layers, which this pipeline does not name",
            where=f"lens.trace(save=..., passes=...): {', '.join(one.name for one in pipeline) or 'no passes'}",
            hint='add the pass "labels", or save "all", "none" or what a function of the operation picks',
        )


def _named(key: str | int, history: ModelHistory) -> Sequence[EntryRow]:
    index = history.index
    if isinstance(key, int):
        count = len(index.rows)
        if not -count <= key < count:
            raise InputError(
                f"there is no layer number {key}",
                where="lens.trace(save=...)",
                hint=ordinals(count),
            )
        return (index.rows[key],)
    if is_pattern(key) and key not in index:
        return index.find_all(key)
    return (key not in index and index.of_type(key)) or index.find(key)
