"""The session: from a model and its inputs to a history; the four functions of the paper stand in ``lens.paper``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

import lens
from lens import registry
from lens.capture.addresses import AddressBook
from lens.capture.backend import CaptureBackend, find_backend
from lens.capture.inputs import check_call, named_tensors, positional
from lens.capture.module_calls import MODULE_CALL_FILE
from lens.capture.quiet_gc import collector_off, old_objects_set_aside
from lens.capture.recorder import Recorder
from lens.capture.selection import Save, make_selection
from lens.capture.sites import Locator
from lens.errors import InputError, LensError
from lens.history import ModelHistory
from lens.ir.elements import Fault, Meta, Unseen, ValueId
from lens.ir.payloads import PayloadStore
from lens.ir.tape import SiteTable, number_values, seal
from lens.passes.granularity import GranularityPass
from lens.passes.manager import PassManager
from lens.passes.pipeline import parse_pipeline
from lens.passes.protocol import Pass

#: The pipeline that ``trace`` runs.
DEFAULT_PIPELINE = "granularity{level=leaf},orphans,distances,conditionals,containment,recurrence,labels"
Passes: TypeAlias = "str | Sequence[Pass]"


def trace(
    model: nn.Module,
    args: Any = (),
    kwargs: dict[str, Any] | None = None,
    *,
    save: Save = "all",
    backend: str | CaptureBackend = "torch_function",
    passes: Passes = DEFAULT_PIPELINE,
    seed: int | None = None,
    fast_paths: Literal["keep", "open"] = "keep",
) -> ModelHistory:
    """Run a model once, as it is, and give the history of everything it did.

    Args:
        model: Any module. It is not changed, and runs exactly once.
        args: A tuple is the positional arguments; anything else, a list too, is one argument.
        kwargs: Keyword arguments.
        save: Which tensors to keep: ``"all"``, ``"none"``, labels, module addresses, ordinals, or a function of the
            running operation (``lambda op: op.type == "relu"``). Addresses and functions are decided while the model
            runs, so nothing else is held in memory.
        backend: The capture backend: its name (``lens.capture.backends()`` tells what there is), or one of your own.
        passes: The analysis: a pipeline as text, or passes.
        seed: Set before the run with ``torch.manual_seed``; by default the generators are left as they are.
        fast_paths: ``"keep"`` leaves torch's fused attention in eval mode on, so the result is the plain one bit for
            bit; ``"open"`` runs the composed path to see inside it.

    Raises:
        InputError: the model, its arguments or ``save`` cannot be used.
        BackendError: the backend is unknown or unavailable here.
        PassError: a pass is unknown or fails.

    An exception of the model itself comes through unchanged, with the history up to there as its attribute
    ``lens_history``. Source: paper, "Logging the forward pass".
    """
    positional_args, named_args = positional(args), dict(kwargs or {})
    check_call(model, positional_args, named_args)
    if fast_paths not in ("keep", "open"):
        raise InputError(f"fast_paths cannot be {fast_paths!r}", hint='give "keep" or "open"')
    pipeline = _passes(passes)
    chosen = find_backend(backend) if isinstance(backend, str) else backend
    if seed is not None:
        torch.manual_seed(seed)
    run = _Run(model, chosen, save, pipeline, seed, fast_paths)
    with old_objects_set_aside(), run:
        run.forward(positional_args, named_args)
    assert run.history is not None
    return run.history


def _passes(passes: Passes) -> tuple[Pass, ...]:
    if isinstance(passes, str):
        return parse_pipeline(passes, registry.pass_classes())
    return tuple(passes)


class _Run(AbstractContextManager["_Run"]):
    """One recorded forward pass. Leaving the block makes the history, also when the forward pass raised."""

    def __init__(
        self,
        model: nn.Module,
        backend: CaptureBackend,
        save: Save,
        pipeline: tuple[Pass, ...],
        seed: int | None,
        fast_paths: Literal["keep", "open"],
    ) -> None:
        self.begun = time.perf_counter()
        self.model = model
        self.backend = backend
        self.pipeline = pipeline
        self.seed = seed
        self.fast_paths = fast_paths
        self.addresses = AddressBook(model)
        module_addresses = {info.address for info in self.addresses.module_infos()}
        self.selection = make_selection(save, module_addresses)
        locator = Locator((MODULE_CALL_FILE, __file__))
        keep = fast_paths == "keep"
        leaf_level = bool(pipeline) and pipeline[0] == GranularityPass("leaf")
        self.recorder = Recorder(self.addresses, self.selection, locator, keep, composites=not leaf_level)
        self.started = time.time()
        self.forward_seconds = 0.0
        self.history: ModelHistory | None = None

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run the model under the backend."""
        recorder = self.recorder
        for name, tensor in named_tensors(self.model, args, kwargs):
            if recorder.tensors.find(tensor) is None:
                recorder.leaf(tensor, "input", (name,))
        recorder.tape.inputs = recorder.bundle((args, kwargs))
        recorder.prepare()
        begin = time.perf_counter()
        try:
            with self.backend.record(recorder):
                output = self.model(*args, **kwargs)
        finally:
            self.forward_seconds = time.perf_counter() - begin
        recorder.tape.outputs = recorder.bundle(output, hold=self.selection.outputs)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            history = self._history(error, traceback)
        except LensError as failure:
            if error is None:
                raise
            error.lens_history_error = failure  # type: ignore[attr-defined]  # the model's own error comes first
            return
        finally:
            self.recorder.close()
        if error is None:
            history.payloads = self._narrowed(history)
        else:
            error.lens_history = history  # type: ignore[attr-defined]
        self.history = history

    def _history(self, error: BaseException | None, traceback: TracebackType | None) -> ModelHistory:
        with collector_off():
            self.recorder.memory.disclose()
            ids = number_values(self.recorder.tape)
            graph = seal(self.recorder.tape, self._meta(error, traceback), ids)
            payloads = self.recorder.keeper.store(self.recorder.encoder.objects, ids)
            result = PassManager(self.pipeline, registry.providers()).run(graph, payloads)
        durations = sum(op.duration for op in result.graph.ops)
        seconds = max(0.0, time.perf_counter() - self.begun - durations)
        return ModelHistory(result.graph, result.payloads, result.records, seconds)

    def _narrowed(self, history: ModelHistory) -> PayloadStore:
        """Only the values that ``save=`` named, if it named some by keys that are known after the run."""
        if self.selection.keys is None:
            return history.payloads
        index = history.index
        wanted: set[ValueId] = set()
        for key in self.selection.keys:
            rows = index.find(key) if isinstance(key, str) else [index.rows[_ordinal(key, history)]]
            wanted.update(row.value for row in rows)
        return history.payloads.keep(wanted)

    def _meta(self, error: BaseException | None, traceback: TracebackType | None) -> Meta:
        sites = SiteTable()
        return Meta(
            model=type(self.model).__name__,
            backend=self.backend.name,
            capabilities=tuple(sorted(self.backend.capabilities)),
            fast_paths=self.fast_paths,
            seed=self.seed,
            training=getattr(self.model, "training", False),
            started=self.started,
            forward_seconds=self.forward_seconds,
            lens=lens.__version__,
            torch=str(torch.__version__),
            modules=self.addresses.module_infos(),
            parameters=self.addresses.parameter_infos(),
            fault=None if error is None else self._fault(error, traceback),
            unseen=tuple(Unseen(what, sites.locate(site)) for what, site in self.recorder.tape.unseen),
        )

    def _fault(self, error: BaseException, traceback: TracebackType | None) -> Fault:
        while traceback is not None and traceback.tb_next is not None:
            traceback = traceback.tb_next
        site = None if traceback is None else (traceback.tb_frame.f_code, traceback.tb_lasti)
        running = self.recorder.running
        return Fault(
            type(error).__name__,
            str(error),
            "" if running is None else str(running.ref),
            SiteTable().locate(site),
        )


def _ordinal(key: int, history: ModelHistory) -> int:
    count = len(history.index.rows)
    if not -count <= key < count:
        raise InputError(
            f"there is no layer number {key}",
            where="lens.trace(save=...)",
            hint=f"ordinals go from {-count} to {count - 1}",
        )
    return key
