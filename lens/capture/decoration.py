"""The ``decoration`` backend, the way of the paper: torch's functions are replaced by ones that record.

The replacements are in place while a trace runs and know it in its own thread only. Inside a call they stand aside,
except inside a Python-level function, whose interior they record by themselves. Under them lies a net, a torch function
mode that is told of the calls of functions that the program bound where no replacement could be put.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache, partial, update_wrapper
from threading import get_ident
from time import perf_counter
from types import FrameType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn, overrides
from torch.overrides import TorchFunctionMode

from lens.capture.decorations import Decorations
from lens.capture.item_slots import unknown_layout
from lens.capture.module_calls import MODULE_CALL, wrap_module_call
from lens.capture.opening import Opener, asker, asks_by_attribute, wrap_guard
from lens.capture.patches import LOCK, Entries
from lens.capture.recorder import Recorder, site_of
from lens.capture.regions import Sight, missing_names
from lens.capture.trace_modes import TraceMode, finish_pops, mode_stack
from lens.capture.watching import watch_regions
from lens.functions import PLAIN_TYPES, Function, Kind, describe, unpatched

#: private: who has switched torch's functions' overriding off; where torch's functions of C are.
_NEEDED = ("_is_torch_function_all_disabled", "_VariableFunctions")


class DecorationBackend:
    """Records through replaced functions of torch; opens composites."""

    name = "decoration"
    capabilities = frozenset(
        {"functions", "composites", "reads", "scopes", "sites", "fast_paths", "untold_writes", "regions"}
    )

    def unavailable(self) -> str | None:
        """Why this torch lacks what it needs, or indexing cannot be put back in this Python; None if neither."""
        lacking = (f"this torch has no torch._C.{name}" for name in _NEEDED if not hasattr(torch._C, name))
        return missing_names() or next(lacking, None) or unknown_layout()

    @contextmanager
    def record(self, emit: Recorder) -> Iterator[None]:
        """Watch this thread while the block lasts."""
        with ExitStack() as stack:
            recording = _Recording(emit)
            decorations = _decorations()
            sight = _DecorationSight(recording, decorations.recordings, stack)
            sight.when_retired(partial(decorations.forget, recording))
            sight.patch(nn.Module, MODULE_CALL, wrap_module_call, emit)
            if emit.keep_fast_paths:
                sight.patch(overrides, "has_torch_function", wrap_guard, recording.net, in_regions=True)
            watch_regions(sight, self.record)
            stack.enter_context(decorations.known_to(recording, emit.addresses))
            yield


class _DecorationSight(Sight):
    """What a trace by decoration sees in its thread: everything while its recording is on the stack."""

    def __init__(self, recording: _Recording, recordings: dict[int, list[Any]], stack: ExitStack) -> None:
        super().__init__(recording.recorder, None, stack)
        self.recording, self.recordings = recording, recordings

    @contextmanager
    def covered(self, observer: TorchFunctionMode) -> Iterator[None]:
        """Nothing is recorded in the block; the observer sees its functions."""
        stack = self.recordings.get(get_ident())
        if stack is None:  # the trace of this job has just ended
            with super().covered(observer):
                yield
            return
        place = stack.index(self.recording)
        del stack[place]
        try:
            with self.recording.without_net(), super().covered(observer):
                yield
        finally:
            stack.insert(place, self.recording)

    @property
    def is_on(self) -> bool:
        """Whether nothing has taken the recording off."""
        return self.recording in self.recordings.get(get_ident(), ())


class Replacement:
    """Stands in for a function of torch, and equals it: dispatch tables of the program know both as one."""

    # Slots, because ``functools.wraps`` gives what it makes of this the contents of ``__dict__``.
    __slots__ = (
        *("__dict__", "__weakref__", "_asks", "_binds", "_function", "_recordings"),
        *("beneath", "covers", "lens_original"),
    )

    def __init__(
        self, original: Callable[..., Any], function: Function | None, recordings: dict[int, list[Any]]
    ) -> None:
        update_wrapper(self, original)
        self.lens_original = original
        self._function, self._recordings = function, recordings
        #: What traces by another backend have replaced the function with, and in which threads.
        self.beneath: tuple[Callable[..., Any], Entries] | None = None
        #: The replacement of theirs that this one has taken the place of.
        self.covers: Any = None
        self._asks = isinstance(original, FunctionType)
        self._binds = hasattr(original, "__get__")

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the function; where a trace of this thread is on, tell it."""
        stack = self._recordings.get(get_ident())
        original = self.lens_original
        if not stack or torch._C._is_torch_function_all_disabled():
            if self.beneath is not None and get_ident() in self.beneath[1]:
                return self.beneath[0](*args, **kwargs)
            if not overrides.has_torch_function((*args, *kwargs.values()) if kwargs else args):
                return original(*args, **kwargs)
            with _Reporter(None, None, self):
                return original(*args, **kwargs)
        recording = stack.pop()
        netted = recording.netted
        try:
            if recording.has_mode_above():
                return recording.through_modes(self, stack, args, kwargs)
            if self._function is None:
                run = partial(self, args[0])
                return recording.record(describe(args[0]), (), run, stack, args[1:], kwargs, sys._getframe(1))
            if self._asks:
                with _Reporter(recording, stack, self):
                    return original(*args, **kwargs)
            return recording.record(self._function, (), self, stack, args, kwargs, sys._getframe(1))
        finally:
            if netted and not recording.netted:
                recording.spread()
            stack.append(recording)

    @property
    def lens_patch(self) -> Replacement:
        """What says for whom this replacement is there (``lens.capture.patches.is_asleep``)."""
        return self

    @property
    def entries(self) -> Entries:
        """The recordings that it tells, by thread."""
        return self._recordings

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return MethodType(self, instance) if instance is not None and self._binds else self

    def __eq__(self, other: object) -> bool:
        return bool(unpatched(other) == self.lens_original)

    def __hash__(self) -> int:
        return hash(self.lens_original)

    def __reduce__(self) -> Any:
        return unpatched, (self.lens_original,)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """For ``isinstance``: who looks into functions, as TorchScript's compiler does, finds what the original is."""
        return FunctionType if self._asks else Replacement

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lens_original, name)


def _decorations() -> Decorations:
    """The one table of this process, made when it is first needed."""
    with LOCK:
        return _made()


@cache
def _made() -> Decorations:
    return Decorations(Replacement)


class _Recording:
    """One trace. While it handles a call it is off the stack of its thread, as a torch function mode would be."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder, self.thread = recorder, get_ident()
        self.opener = Opener()
        self.net = _Net(self)
        #: Whether the net is on the stack of modes.
        self.netted = False
        #: How many modes were on before the trace; one that the model has entered sees a call before we do.
        self.modes: int = overrides._len_torch_function_stack()  # type: ignore[attr-defined]
        #: Composites that are running: if one comes back from inside itself, it runs as it is.
        self.opened: set[Function] = set()

    def spread(self, above: int = 0) -> None:
        """Put the net on the stack of modes, beneath so many."""
        modes = [overrides._pop_mode() for _ in range(above)]  # type: ignore[no-untyped-call]
        for mode in (self.net, *reversed(modes)):
            overrides._push_mode(mode)  # type: ignore[no-untyped-call]
        self.netted = True

    def take_in(self) -> int | None:
        """Take the net off the stack, and tell how many modes lie above; None if it is not on."""
        self.netted = False
        if self.net not in mode_stack():
            return None
        above: list[TorchFunctionMode] = []
        while (top := overrides._pop_mode()) is not self.net:  # type: ignore[no-untyped-call]
            above.append(top)
        for mode in reversed(above):
            overrides._push_mode(mode)  # type: ignore[no-untyped-call]
        return len(above)

    @contextmanager
    def without_net(self) -> Iterator[int]:
        """Have the net off the stack in the block; gives how many modes the model has entered."""
        above = self.take_in()
        try:
            # The net knows better: the model may have set the default device, a mode beneath everything.
            yield overrides._len_torch_function_stack() - self.modes if above is None else above  # type: ignore
        finally:
            if above is not None:
                self.spread(above)

    def has_mode_above(self) -> bool:
        """Whether the model has entered a mode; if it has not, the net is off the stack now."""
        count: int = overrides._len_torch_function_stack()  # type: ignore[attr-defined]
        if self.netted and count:
            top = overrides._pop_mode()  # type: ignore[no-untyped-call]
            if top is self.net:
                self.netted = False
                return False
            overrides._push_mode(top)  # type: ignore[no-untyped-call]
            if self.net in mode_stack():
                return True
        return count > self.modes

    def record(
        self,
        function: Function,
        types: Sequence[type],
        run: Callable[..., Any],
        stack: list[_Recording],
        args: Sequence[Any],
        kwargs: dict[str, Any],
        frame: FrameType,
    ) -> Any:
        """Run a call and tell the recorder of it."""
        recorder = self.recorder
        if not function.recorded:
            result = run(*args, **kwargs)
            if function.kind is Kind.READ:
                recorder.read(function.read, (*args, *kwargs.values()), result, frame)
            return result
        opened = function.composite and function not in self.opened and PLAIN_TYPES.issuperset(types)
        opened = opened and not asks_by_attribute(function.callable)
        call = recorder.start(function, args, kwargs, frame, opened)
        begin = perf_counter()
        result = self.run_opened(function, site_of(call), stack, args, kwargs) if opened else run(*args, **kwargs)
        duration = perf_counter() - begin
        recorder.finish(call, result, duration)
        return result

    def run_opened(
        self, function: Function, site: Any, stack: list[_Recording], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        """Run a composite with the trace on, so that its interior is recorded."""
        recorder = self.recorder
        outer_site, recorder.inside_site = recorder.inside_site, site
        self.opened.add(function)
        body = self.opener.open(function.callable)
        stack.append(self)
        self.spread()
        try:
            return body(*args, **kwargs)
        finally:
            self.take_in()
            if self in stack:  # an interrupt may come where the interior has just taken it off
                stack.remove(self)
            self.opened.discard(function)
            recorder.inside_site = outer_site

    def through_modes(
        self, replacement: Callable[..., Any], stack: list[_Recording], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        """Let the modes that the model has entered have the call first; what they call then is recorded."""
        types = tuple({type(arg) for arg in args if isinstance(arg, torch.Tensor)})
        with self.without_net() as count:
            first, *others = [overrides._pop_mode() for _ in range(count)]  # type: ignore[no-untyped-call]
            try:
                with ExitStack() as beneath:
                    beneath.enter_context(_Reporter(self, stack, replacement))
                    for mode in reversed(others):
                        beneath.enter_context(_switched_on(mode))
                    return first.__torch_function__(replacement, types, args, kwargs)
            finally:
                for mode in (*reversed(others), first):
                    overrides._push_mode(mode)  # type: ignore[no-untyped-call]

    def missed(
        self, func: Any, types: Sequence[type], args: Sequence[Any], kwargs: dict[str, Any], frame: FrameType
    ) -> Any:
        """A call of a function that the program had bound out of reach; torch has taken the net off for it."""
        function = describe(unpatched(asker(func, frame)))
        stack = _decorations().recordings.get(get_ident(), ())
        # autograd hands the modes of a thread to helpers of its own, which the trace does not see
        if self not in stack or (function.kind is Kind.METADATA and type(func) is not FunctionType):
            return func(*args, **kwargs)
        assert isinstance(stack, list)
        stack.remove(self)
        self.netted = False
        try:
            return self.record(
                function, types, partial(_natively, function.callable, types), stack, args, kwargs, frame
            )
        finally:
            self.netted = True
            stack.append(self)


@contextmanager
def _switched_on(mode: TorchFunctionMode) -> Iterator[None]:
    """A mode on the stack, without the effects of entering it."""
    overrides._push_mode(mode)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        overrides._pop_mode()  # type: ignore[no-untyped-call]


class _Net(TraceMode):
    """Lies beneath the replacements: is told of the calls for which none stood in."""

    def __init__(self, recording: _Recording) -> None:
        super().__init__()
        self.recording, self.recorder = recording, recording.recorder

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.recording.missed(func, types, args, kwargs or {}, sys._getframe(1))


class _Reporter(TraceMode):
    """On for one call: is told what torch reports of it.

    So a Python-level function is recorded with the name and the arguments by which torch knows it; and what torch
    hands to tensor subclasses and to modes of the program's is always the function that the program finds.
    """

    def __init__(
        self, recording: _Recording | None, stack: list[_Recording] | None, replacement: Callable[..., Any]
    ) -> None:
        super().__init__()
        self.recording, self.stack, self.replacement = recording, stack, replacement

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is not None:
            finish_pops(error)
        overrides._pop_mode()  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        asking = asker(func, sys._getframe(1))
        function = describe(unpatched(asking))
        run = self.replacement if self.stack and asking is func else partial(_natively, function.callable, types)
        if self.recording is None or self.stack is None:
            return run(*args, **(kwargs or {}))
        return self.recording.record(function, types, run, self.stack, args, kwargs or {}, sys._getframe(1))


def _natively(function: Callable[..., Any], types: Sequence[type], *args: Any, **kwargs: Any) -> Any:
    """What torch does with a call after the innermost mode: the next mode, then the types that override it."""
    known = _decorations().known_as(function)
    if overrides._len_torch_function_stack():  # type: ignore[attr-defined]
        with (
            overrides._pop_mode_temporarily() as mode,
            nullcontext() if isinstance(mode, _Reporter) else _Reporter(None, None, function),
        ):
            return mode.__torch_function__(known, types, args, kwargs)
    for kind in types:
        if kind not in PLAIN_TYPES:
            result = kind.__torch_function__(known, types, args, kwargs)  # type: ignore[attr-defined]
            if result is not NotImplemented:
                return result
    return function(*args, **kwargs)
