"""Regions: parts of the forward pass whose interior is out of sight, written down as one opaque operation each.

What runs inside a scripted function cannot be seen; what runs under ``vmap`` or ``grad`` works on wrappers that mean
nothing outside. Such a call is recorded as one operation whose operands are the tensors that went in: its arguments,
and what it closed over as far as that can be seen or known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from threading import get_ident
from time import perf_counter
from types import FrameType, FunctionType
from typing import Any

import torch
from attrs import evolve
from torch import overrides
from torch.overrides import TorchFunctionMode

from lens.capture.keeping import UNSEEN, has_drawn
from lens.capture.opening import Opener
from lens.capture.patches import LOCK, Entries, Patch, Wrap, hidden, patch
from lens.capture.recorder import Call, Recorder
from lens.capture.tensor_table import version_of
from lens.capture.trace_modes import TraceMode, mode_stack, set_mode_stack
from lens.capture.unseen import same_bits
from lens.functions import PLAIN_TYPES, Function, Kind, call_opaque, describe, unpatched
from lens.ir.elements import FnRef
from lens.ir.templates import Slot

#: private: how a region is taken out of sight; without them neither Python-level backend can be used.
_MODE_STACK = (
    "_push_mode",
    "_pop_mode",
    "_pop_mode_temporarily",
    "_get_current_function_mode",
    "_get_current_function_mode_stack",
    "_len_torch_function_stack",
)

#: private: keeps a copy made under a transform from being wrapped by it; without it such a copy may be a wrapper
_WRAPPERS_OFF: Callable[[], AbstractContextManager[None]] = getattr(torch._C, "_DisableFuncTorch", nullcontext)


def missing_names() -> str | None:
    """Why regions cannot be recorded with this torch; None if they can."""
    missing = [name for name in _MODE_STACK if not hasattr(overrides, name)]
    return f"this torch has no torch.overrides.{missing[0]}" if missing else None


class Sight:
    """What one trace sees in one thread, and what must be covered up while a region runs.

    Args:
        recorder: Where the region's operation goes.
        mode: The function mode by which the backend sees operations; None if it uses none.
        stack: Unwinds when the trace ends; then everything that was patched is put back.
    """

    def __init__(self, recorder: Recorder, mode: TorchFunctionMode | None, stack: ExitStack) -> None:
        self.recorder = recorder
        self.mode = mode
        self.stack = stack
        #: Everything patched for this trace, and what is covered up of it.
        self._patched: list[tuple[Patch, Any]] = []
        self.patches: list[Entries] = []
        self._thread = get_ident()
        stack.callback(self.unpatch)
        #: The work handed to other threads (``threads.Jobs``).
        self.jobs: Any = None

    def patch(self, owner: Any, name: str, wrap: Wrap, entry: Any = None, in_regions: bool = False) -> None:
        """Patch an attribute, if this torch has it, for this trace. The entry is the sight, if it is not given.

        In regions the original is back, unless the patch is there for these as well (``in_regions``).
        """
        if hasattr(owner, name):
            entry = self if entry is None else entry
            replaced = patch(owner, name, wrap)
            entries = replaced.add(entry)
            if not in_regions:
                self.patches.append(entries)
            self._patched.append((replaced, entry))

    def unpatch(self) -> None:
        """Take away everything patched for this trace. Any thread may say so."""
        with LOCK:
            while self._patched:
                replaced, entry = self._patched.pop()
                replaced.drop(self._thread, entry)

    def when_retired(self, stop: Callable[[], object]) -> None:
        """Say what ends the recording in this thread when another says so, besides taking away what is patched."""

        def retire() -> None:
            stop()
            self.unpatch()
            if self.jobs is not None:
                self.jobs.abandon()

        self.recorder.retire = retire  # type: ignore[method-assign]
        self.stack.callback(vars(self.recorder).pop, "retire", None)  # it holds the recorder

    @contextmanager
    def covered(self, observer: TorchFunctionMode) -> Iterator[None]:
        """Nothing is recorded in the block; the observer sees its functions instead of the backend's mode."""
        with hidden(self.patches):
            if self.mode is None:
                with observer:
                    yield
                return
            set_mode_stack(observer if one is self.mode else one for one in mode_stack())
            try:
                yield
            finally:
                set_mode_stack(self.mode if one is observer else one for one in mode_stack())

    @property
    def open(self) -> bool:
        """Whether the backend is looking; not inside an operation that runs as it is, or a function of the user."""
        return self.is_on and not self.recorder.keeper.asking

    @property
    def is_on(self) -> bool:
        """Whether nothing has taken the backend off."""
        return self.mode is None or self.mode in mode_stack()


class Observer(TraceMode):
    """Sees the functions called in a region: notes which tensors from outside they are given, and copies what is held
    of these before a function writes to one of them or to what wraps one."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder: Recorder = recorder
        self.opener = Opener()
        self.values: dict[int, int] = {}
        #: The tensors from outside, and how often they had been written to when they were noted.
        self.versions: list[tuple[torch.Tensor, int | None]] = []
        self._protected = self._copied = 0
        #: What was copied because batch norm does not count up the version of its statistics.
        self.copies: list[tuple[torch.Tensor, torch.Tensor]] = []
        #: Composites whose opened copy is running.
        self._opened: set[Function] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self.note((*args, *kwargs.values()))
        function = describe(unpatched(func))
        plain = not types or PLAIN_TYPES.issuperset(types)  # no subclass's __torch_function__ is passed by
        is_python = function.composite and isinstance(function.callable, FunctionType)
        if plain and is_python and function not in self._opened:
            return self._run_opened(function, args, kwargs)
        if function.written(args, kwargs):
            self.protect()
            if function.statistics is not None:
                self.copy_uncopied()
        return func(*args, **kwargs)

    def _run_opened(self, function: Function, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run a composite so that what it calls is seen: its name does not tell what it writes to."""
        self._opened.add(function)
        try:
            with self:
                return self.opener.open(function.callable)(*args, **kwargs)
        finally:
            self._opened.discard(function)

    def note(self, args: Sequence[Any]) -> None:
        """Note the tensors among these arguments that are known outside the region."""
        for tensor in tensors_in(self.recorder, args):
            if id(tensor) not in self.values and self.recorder.knows(tensor):
                self.add(tensor, self.recorder.value_of(tensor))

    def add(self, tensor: torch.Tensor, value: int) -> None:
        """Note a tensor from outside, once."""
        if id(tensor) not in self.values:
            self.values[id(tensor)] = value
            self.versions.append((tensor, version_of(tensor)))

    def protect(self) -> None:
        """Copy what is held of the tensors from outside, of each once: what is written to may be a wrapper of any."""
        unprotected = [tensor for tensor, _ in self.versions[self._protected :]]
        self._protected = len(self.versions)
        if unprotected:
            with UNSEEN(), _WRAPPERS_OFF():
                self.recorder.protect(unprotected)

    def copy_uncopied(self) -> None:
        """Copy those of the tensors from outside that may be statistics, each once."""
        uncopied = [tensor for tensor, _ in self.versions[self._copied :]]
        self._copied = len(self.versions)
        with UNSEEN(), _WRAPPERS_OFF():
            for tensor in uncopied:
                may_be = type(tensor) in PLAIN_TYPES and not (tensor.requires_grad or tensor.is_meta)
                if may_be and tensor.layout is torch.strided:
                    self.copies.append((tensor, tensor.detach().clone()))

    def written(self) -> list[torch.Tensor]:
        """The tensors from outside that have been written to since they were noted, or copied."""
        written = [tensor for tensor, version in self.versions if version_of(tensor) != version]
        counted = set(map(id, written))
        return written + [t for t, copy in self.copies if id(t) not in counted and not same_bits(t, copy)]


def tensors_in(recorder: Recorder, obj: Any) -> list[torch.Tensor]:
    """The tensors in nested containers."""
    found: list[torch.Tensor] = []

    def visit(tensor: torch.Tensor) -> Slot:
        found.append(tensor)
        return Slot(0)

    recorder.encoder.encode_with(obj, visit)
    return found


def note_closed_over(tensors: Sequence[torch.Tensor]) -> None:
    """Tell the regions that are running in this thread that they use these tensors."""
    for mode in mode_stack():
        if isinstance(mode, Observer):
            mode.note(tensors)


def run_region(
    entries: Entries,
    ref: FnRef,
    target: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    frame: FrameType | None,
    *,
    closed_over: Sequence[torch.Tensor] = (),
    may_write: bool = False,
) -> Any:
    """Call ``target`` out of sight and record the call, in every trace that is open in this thread.

    Args:
        entries: The ``Sight``s of each thread.
        ref: The name to record it under.
        target, args, kwargs: What to call.
        frame: Where the search for the user's line begins.
        closed_over: Tensors that it is known to use besides its arguments.
        may_write: Whether it may write to tensors that it was given without a function that an ``Observer`` sees.
    """
    sights: list[Sight] = [sight for sight in entries.get(get_ident()) or () if sight.open]
    run: Callable[[], Any] = partial(target, *args, **kwargs)
    for sight in sights:
        region = running(sight, ref, (target, *args), kwargs, frame, closed_over, may_write)
        run = partial(_run_within, region, run)
    return run()


def _run_within(region: AbstractContextManager[list[Any]], run: Callable[[], Any]) -> Any:
    with region as results:
        results.append(run())
    return results[0]


@contextmanager
def running(
    sight: Sight,
    ref: FnRef,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    frame: FrameType | None,
    closed_over: Sequence[torch.Tensor] = (),
    may_write: bool = False,
) -> Iterator[list[Any]]:
    """Take what runs in the block out of one trace's sight: one operation, if it appends its result to the list."""
    region = _Region(sight.recorder, ref, closed_over, may_write)
    with UNSEEN():
        call = region.start(args, kwargs, frame)
    results: list[Any] = []
    begin = perf_counter()
    with sight.covered(region.observer):
        before = torch.default_generator.get_state()
        yield results
    duration = perf_counter() - begin
    if results:
        with UNSEEN():
            region.finish(call, results[0], duration, before)


class _Region:
    """One run of a region, as one trace sees it."""

    def __init__(self, recorder: Recorder, ref: FnRef, closed_over: Sequence[torch.Tensor], may_write: bool) -> None:
        self.recorder = recorder
        self.ref = evolve(ref, opaque=True)
        self.closed_over = closed_over
        self.may_write = may_write
        self.observer = Observer(recorder)

    def start(self, args: Sequence[Any], kwargs: Mapping[str, Any], frame: FrameType | None) -> Call:
        call = self.recorder.start(Function(call_opaque, self.ref, Kind.OP), args, kwargs, frame)
        _, _, operands, _, _, _, _, _ = call
        assert operands is not None  # only of composites the operands may be left for later
        inputs = tensors_in(self.recorder, (*args, *kwargs.values()))
        for tensor, value in zip(inputs, operands, strict=True):
            self.observer.add(tensor, value)
        self.observer.note(self.closed_over)
        if self.may_write:
            self.observer.protect()
            self.observer.copy_uncopied()
        return call

    def finish(self, call: Call, result: Any, duration: float, state: torch.Tensor) -> None:
        """Record the call; ``state`` is the generator's from before, which is kept if numbers were drawn."""
        _, begin, operands, args, kwargs, site, _, _ = call
        assert operands is not None
        closed_over = [value for value in self.observer.values.values() if value not in operands]
        if closed_over:
            slots = tuple(Slot(len(operands) + place) for place in range(len(closed_over)))
            kwargs = {**(kwargs or {}), "closed_over": slots}
            operands += closed_over
        written = self.observer.written()
        drew = has_drawn(state)
        ref = evolve(self.ref, random=drew, mutates=bool(written))
        function = Function(call_opaque, ref, Kind.OP)
        states = {"cpu": state} if drew else None
        self.recorder.finish((function, begin, operands, args, kwargs, site, written, states), result, duration)
