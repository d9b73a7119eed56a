"""The ``decoration`` backend, the way of the paper: torch's functions are replaced by ones that record.

The replacements are in place while a trace runs and know it in its own thread only. Inside a call they stand aside,
except inside a Python-level function, whose interior they record by themselves.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache, partial, update_wrapper
from threading import Lock, get_ident
from time import perf_counter
from types import FrameType, FunctionType
from typing import Any

import torch
from torch import nn, overrides
from torch.overrides import TorchFunctionMode

from lens.capture.module_calls import watch_modules
from lens.capture.patches import Entries, patched
from lens.capture.recorder import Recorder, site_of
from lens.capture.swapping import SwapTable, perform
from lens.functions import Function, Kind, describe, unpatched

#: Tensor types whose functions nobody overrides.
_PLAIN_TYPES = frozenset({torch.Tensor, nn.Parameter})


class DecorationBackend:
    """Records through replaced functions of torch; opens composites."""

    name = "decoration"
    capabilities = frozenset({"functions", "composites", "reads", "scopes", "sites"})

    def unavailable(self) -> str | None:
        """None: functions can always be replaced."""
        return None

    @contextmanager
    def record(self, emit: Recorder) -> Iterator[None]:
        """Watch this thread while the block lasts."""
        with ExitStack() as stack:
            stack.enter_context(watch_modules(emit))
            if not emit.keep_fast_paths:
                stack.enter_context(patched(overrides, "has_torch_function", _wrap_guard, None))
            stack.enter_context(_decorations().known_to(_Recording(emit), emit.modules()))
            yield


class _Decorations:
    """The replacements, and the recordings that they tell, by thread, innermost last."""

    def __init__(self) -> None:
        self.recordings: dict[int, list[_Recording]] = {}
        self._lock = Lock()
        self._table = SwapTable(self.wrap)
        self._restore: list[partial[Any]] = []

    @contextmanager
    def known_to(self, recording: _Recording, modules: Iterable[nn.Module]) -> Iterator[None]:
        """Have the replacements in place and a recording of this thread told, while the block lasts.

        The last trace that ends puts all originals back.
        """
        thread = get_ident()
        try:
            with self._lock:
                swaps = self._table.swaps(modules)
                self._restore += [restore for _, restore in swaps]
                self.recordings.setdefault(thread, []).append(recording)
                perform(put for put, _ in swaps)
            yield
        finally:
            with self._lock:
                self.recordings[thread].remove(recording)
                if not self.recordings[thread]:
                    del self.recordings[thread]
                if not self.recordings:
                    restore, self._restore = self._restore, []
                    perform(restore)

    def wrap(self, original: Callable[..., Any], reported: Any) -> Callable[..., Any]:
        """The replacement of a function; ``reported`` is None for the call method of an operator object."""
        function = None if reported is None else describe(reported)
        asks = isinstance(original, FunctionType)
        recordings = self.recordings

        def replacement(*args: Any, **kwargs: Any) -> Any:
            stack = recordings.get(get_ident())
            if not stack:
                if not overrides.has_torch_function((*args, *kwargs.values()) if kwargs else args):
                    return original(*args, **kwargs)
                with _Reporter(None, stack, original):
                    return original(*args, **kwargs)
            recording = stack.pop()
            try:
                if overrides._len_torch_function_stack() > recording.modes:  # type: ignore[attr-defined]
                    return recording.through_mode(replacement, original, stack, args, kwargs)
                if function is None:
                    called = describe(args[0])
                    run = partial(replacement, args[0])
                    return recording.record(called, (), run, stack, args[1:], kwargs, sys._getframe(1))
                if asks:
                    with _Reporter(recording, stack, replacement):
                        return original(*args, **kwargs)
                return recording.record(function, (), replacement, stack, args, kwargs, sys._getframe(1))
            finally:
                stack.append(recording)

        update_wrapper(replacement, original)
        replacement.lens_original = original  # type: ignore[attr-defined]
        return replacement


@cache
def _decorations() -> _Decorations:
    return _Decorations()


class _Recording:
    """One trace. While it handles a call it is off the stack of its thread, as a torch function mode would be."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        #: How many modes were on before the trace; one that the model has entered sees a call before we do.
        self.modes: int = overrides._len_torch_function_stack()  # type: ignore[attr-defined]
        #: Composites that are running: if one comes back from inside itself, it runs as it is.
        self.opened: set[Function] = set()

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
        opened = function.composite and function not in self.opened and _PLAIN_TYPES.issuperset(types)
        call = recorder.start(function, args, kwargs, frame, opened)
        begin = perf_counter()
        if opened:
            result = self.run_opened(function, site_of(call), stack, args, kwargs)
        else:
            result = run(*args, **kwargs)
        duration = perf_counter() - begin
        recorder.finish(call, result, duration)
        return result

    def run_opened(
        self, function: Function, site: Any, stack: list[_Recording], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        """Run a composite with the trace on, so that its interior is recorded."""
        recorder = self.recorder
        outer_site, recorder.composite_site = recorder.composite_site, site
        self.opened.add(function)
        stack.append(self)
        try:
            return function.callable(*args, **kwargs)
        finally:
            stack.remove(self)
            self.opened.discard(function)
            recorder.composite_site = outer_site

    def through_mode(
        self,
        replacement: Callable[..., Any],
        original: Callable[..., Any],
        stack: list[_Recording],
        args: Sequence[Any],
        kwargs: dict[str, Any],
    ) -> Any:
        """Let a mode that the model has entered have the call first; what it calls then is recorded."""
        types = tuple({type(arg) for arg in args if isinstance(arg, torch.Tensor)})
        with overrides._pop_mode_temporarily() as mode, _Reporter(self, stack, replacement):
            return mode.__torch_function__(original, types, args, kwargs)


class _Reporter(TorchFunctionMode):
    """On for one call: is told what torch reports of it, and hands on the original instead of its replacement.

    So a Python-level function is recorded with the name and the arguments by which torch knows it, and tensor
    subclasses and modes of the user's, which compare functions by identity, meet the functions that they know.
    """

    def __init__(
        self, recording: _Recording | None, stack: list[_Recording] | None, replacement: Callable[..., Any]
    ) -> None:
        super().__init__()
        self.recording, self.stack, self.replacement = recording, stack, replacement

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        function = describe(unpatched(func))
        run = self.replacement if self.stack else partial(_natively, function.callable, types)
        if self.recording is None or self.stack is None:
            return run(*args, **(kwargs or {}))
        return self.recording.record(function, types, run, self.stack, args, kwargs or {}, sys._getframe(1))


def _natively(function: Callable[..., Any], types: Sequence[type], *args: Any, **kwargs: Any) -> Any:
    """What torch does with a call after the innermost mode: the next mode, then the types that override it."""
    if overrides._len_torch_function_stack():  # type: ignore[attr-defined]
        with overrides._pop_mode_temporarily() as mode:
            with nullcontext() if isinstance(mode, _Reporter) else _Reporter(None, None, function):
                return mode.__torch_function__(function, types, args, kwargs)
    for kind in types:
        if kind not in _PLAIN_TYPES:
            result = kind.__torch_function__(function, types, args, kwargs)  # type: ignore[attr-defined]
            if result is not NotImplemented:
                return result
    return function(*args, **kwargs)


def _wrap_guard(original: Callable[..., bool], threads: Entries) -> Callable[..., bool]:
    """``has_torch_function`` as attention asks it: a yes keeps it off its fused eval path."""

    def has_torch_function(relevant_args: Sequence[Any]) -> bool:
        return get_ident() in threads or original(relevant_args)

    return has_torch_function
