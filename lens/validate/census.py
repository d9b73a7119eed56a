"""The census: every call below autograd, and the recorded operation during which it happened."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from attrs import define, field

from lens.capture.keeping import UNSEEN
from lens.capture.module_calls import MODULE_CALL_FILE
from lens.capture.recorder import Call, Recorder
from lens.capture.torch_dispatch import QuietDispatchMode, calling_frame
from lens.functions import Function, describe
from lens.ir.places import Site

_TORCH = os.path.dirname(torch.__file__) + os.sep
#: The function that runs a backward pass.
BACKWARD = "torch.autograd.backward"
#: The module whose code runs the model that is audited.
_AUDIT = "lens.validate.completeness"


@define(eq=False)
class CensusCall:
    """A call that no operation of the finest level owned when it happened.

    Args:
        name: The operator, such as ``aten.relu.default``.
        site: The user's line.
        functions: The Python functions, with their modules, between that line and the call.
        writes: Whether it wrote to a tensor that the trace knows.
        askers: The frames of the backend that let it happen, innermost first; kept until it has said what it was.
        seen_below: Whether it was a backend below autograd that let it happen.
    """

    name: str
    site: Site
    functions: frozenset[str]
    writes: bool
    askers: tuple[FrameType, ...]
    seen_below: bool = False


@define(eq=False)
class _Running:
    """An operation between its start and its end, and the calls that are its own if nothing finer is."""

    opened: bool
    frame: FrameType | None
    instruction: int
    call: Call | None = None
    calls: list[CensusCall] = field(factory=list)

    def alive(self) -> bool:
        """Whether the caller still waits for it: one that raised never ends."""
        return self.frame is None or self.frame.f_lasti == self.instruction


class CensusRecorder(Recorder):
    """A recorder that knows during which operation a call happens. For audits: it costs more than a plain one."""

    def begin_census(self, package: str) -> None:
        """Start counting; ``package`` is the Python package of the backend."""
        self.package = package
        self.takes_ended = False  # what runs meanwhile is its
        self.running_ops: list[_Running] = []
        self.owned = 0
        self.excused: Counter[str] = Counter()
        self.unowned: list[CensusCall] = []
        #: Calls that the backend let happen without an operation, until it says what they were.
        self.asked: list[CensusCall] = []
        #: Whose they are if it says nothing.
        self.askers_own: list[CensusCall] = self.unowned

    def start(
        self,
        function: Function,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None,
        frame: FrameType | None,
        opened: bool = False,
    ) -> Call:
        """As a recorder does."""
        running = _Running(opened, frame, -1 if frame is None else frame.f_lasti)
        self.running_ops.append(running)
        running.call = super().start(function, args, kwargs, frame, opened)
        return running.call

    def finish(self, call: Call, result: Any, duration: float) -> None:
        """As a recorder does."""
        rows = self.tape.ops
        before = len(rows)
        super().finish(call, result, duration)
        self._flush()
        while self.running_ops:
            running = self.running_ops.pop()
            if running.call is call:
                break
            self.excused["inside a call that raised"] += len(running.calls)
        if len(rows) == before:
            lost = [one for one in running.calls if one.writes]
            self.excused["inside a call that made no tensor"] += len(running.calls) - len(lost)
            self._hand_out(lost)
        elif running.opened and rows[-1][1] and None not in (rows[-1][10] or ()):
            self._hand_out(running.calls)  # the composite will be dissolved into its interior
        else:
            self.owned += len(running.calls)

    def read(self, kind: str, args: Sequence[Any], result: Any, frame: FrameType | None) -> None:
        """As a recorder does."""
        super().read(kind, args, result, frame)
        caller = sys._getframe(1)
        answered = [call for call in self.asked if caller in call.askers]
        if answered:
            self.excused[f"a read, recorded as {kind}"] += len(answered)
            self.asked = [call for call in self.asked if caller not in call.askers]

    def notice(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], frame: FrameType
    ) -> None:
        """Note a call below autograd."""
        while self.running_ops and not self.running_ops[-1].alive():
            self.excused["inside a call that raised"] += len(self.running_ops.pop().calls)
        functions, askers = self._between(frame)
        function = describe(func)
        known = [t for t in function.written(args, kwargs) if self.tensors.is_met(t)]
        call = CensusCall(str(func), self.site(frame), functions, bool(known), askers)
        running = self.running_ops[-1] if self.running_ops else None
        if running is not None and not running.opened:
            running.calls.append(call)
            return
        own = self.unowned if running is None else running.calls
        if own is not self.askers_own:
            self._flush()
        self.asked.append(call)
        self.askers_own = own

    def end_census(self) -> None:
        """Stop counting."""
        self._flush()
        for running in self.running_ops:
            self.excused["inside a call that raised"] += len(running.calls)

    def _hand_out(self, calls: list[CensusCall]) -> None:
        (self.running_ops[-1].calls if self.running_ops else self.unowned).extend(calls)

    def _flush(self) -> None:
        """The backend said nothing about what it let happen."""
        for call in self.asked:
            call.seen_below = any(frame.f_code.co_name == "__torch_dispatch__" for frame in call.askers)
            call.askers = ()
        self.askers_own += self.asked
        self.asked = []

    def _between(self, start: FrameType) -> tuple[frozenset[str], tuple[FrameType, ...]]:
        """The functions from a frame outwards to the user's code, and the frames of the backend among them.

        ``BACKWARD`` is among the functions wherever it is.
        """
        functions: set[str] = set()
        askers: list[FrameType] = []
        frame: FrameType | None = start
        while frame is not None and frame.f_code.co_filename != MODULE_CALL_FILE:
            if self._is_backend(frame):
                askers.append(frame)
            elif not frame.f_code.co_filename.startswith(_TORCH):
                break
            functions.add(_name(frame))
            frame = frame.f_back
        while frame is not None and frame.f_globals.get("__name__") != _AUDIT:
            if _name(frame) == BACKWARD:  # which may call functions of the user's
                functions.add(BACKWARD)
            frame = frame.f_back
        return frozenset(functions), tuple(askers)

    def _is_backend(self, frame: FrameType) -> bool:
        return str(frame.f_globals.get("__name__")).startswith(self.package)


def _name(frame: FrameType) -> str:
    return f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}"


class CensusMode(QuietDispatchMode):
    """Tells a recorder of every call below autograd."""

    def __init__(self, recorder: CensusRecorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = recorder

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        self.recorder.notice(func, args, kwargs, calling_frame(sys._getframe(1)))
        if not isinstance(func, torch._ops.OpOverload):
            return func(*args, **kwargs)  # takes functions, whose Python code runs as usual
        with UNSEEN():  # or the backend would see, because of the census, what it does not see
            return func(*args, **kwargs)
