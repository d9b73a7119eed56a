"""The backend below autograd: a ``TorchDispatchMode``.

It sees every call of a registered operator in its thread, those that TorchScript and C++ functions make included.
What a call writes to and whether it draws random numbers is what the operator's schema says. It sees no Python-level
function as a whole, but for those that lead between tensors and Python data (``lens.capture.python_data``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from time import perf_counter
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _python_dispatch

from lens.capture.compiled import watch_compiled
from lens.capture.keeping import UNSEEN
from lens.capture.memory_places import MemoryPlaces
from lens.capture.module_calls import watch_modules
from lens.capture.nodes import node_class
from lens.capture.patches import put_back_in_children
from lens.capture.python_data import is_subscript, watch_python_data
from lens.capture.recorder import Recorder, written_by
from lens.capture.regions import Sight
from lens.capture.stopping import Stopped
from lens.capture.tensor_table import TensorRecord, storage_of
from lens.capture.threads import disclose_threads
from lens.capture.trace_modes import left_out_of_order
from lens.functions import Function, Kind, describe, tensors_in
from lens.ir.places import tests_truth

if TYPE_CHECKING:
    from torch.utils._python_dispatch import TorchDispatchMode
else:
    try:  # private: torch has no public name for it; without it this backend says that it is unavailable
        from torch.utils._python_dispatch import TorchDispatchMode
    except ImportError:
        TorchDispatchMode = object


class TorchDispatchBackend:
    """Records the operators of ATen and of libraries, through a ``TorchDispatchMode``."""

    name = "torch_dispatch"
    capabilities = frozenset({"aten", "python_data", "scopes", "sites", "scripted", "fast_paths", "untold_writes"})

    def unavailable(self) -> str | None:
        """Why it cannot be used here; None if it can."""
        return "this torch has no TorchDispatchMode" if TorchDispatchMode is object else None

    @contextmanager
    def record(self, emit: Recorder) -> Iterator[None]:
        """Watch this thread while the block lasts."""
        mode = _DispatchMode(emit)
        emit.recognise, emit.collect = mode.places.find, mode.settle
        emit.keeper.unseen = mode.unseen
        with ExitStack() as stack:
            stack.enter_context(watch_modules(emit))
            if not emit.keep_fast_paths:
                stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
                torch.backends.mha.set_fastpath_enabled(False)
            # Under a mode torch's compiler gives functions up for good, those inside ``torch.cond`` among them.
            watch_compiled(Sight(emit, None, stack))
            watch_python_data(mode, stack)
            disclose_threads(emit, stack)
            stack.push(mode.end)
            stack.enter_context(_on(mode))
            yield


#: Where the frames are that torch puts around the handler of a dispatch mode, so that its compiler lets it be.
_WRAPPERS = frozenset({"torch._compile", "torch._dynamo.eval_frame"})


def calling_frame(frame: FrameType) -> FrameType:
    """From the frame that called the handler of a dispatch mode, the one whose instruction led to it."""
    while frame.f_globals.get("__name__") in _WRAPPERS and frame.f_back is not None:
        frame = frame.f_back
    return frame


@contextmanager
def _on(mode: _DispatchMode) -> Iterator[None]:
    """Have a mode on until the block ends, and leave alone what has come onto the stack of modes meanwhile.

    Raises:
        LensError: the block ended as it should, but inside of a trace that began later.
    """
    mode.__enter__()  # type: ignore[no-untyped-call]
    ended = False
    try:
        yield
        ended = True
    finally:
        above = _take_off(mode)
        if ended and any(isinstance(one, _DispatchMode) for one in above):
            raise left_out_of_order()


#: private: the innermost mode; without it, that of the trace that ends is taken to be on top
_TOP: Callable[[], Any] | None = getattr(_python_dispatch, "_get_current_dispatch_mode", None)


def _take_off(mode: _DispatchMode) -> list[Any]:
    """Take a mode off the stack, if it is on; the modes above it."""
    above: list[Any] = []
    while (one := mode if _TOP is None else _TOP()) is not None:
        one.__exit__(None, None, None)
        if one is mode:
            break
        above.append(one)
    for one in reversed(above):
        one.__enter__()
    return above


def _take_all_off() -> None:
    """In a forked process: the traces are those of the other one."""
    others = []
    while _TOP is not None and (one := _TOP()) is not None:
        one.__exit__(None, None, None)
        if not isinstance(one, _DispatchMode):
            others.append(one)
    for one in reversed(others):
        one.__enter__()


put_back_in_children(_take_all_off)


class QuietDispatchMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that looks on."""

    #: Operators that take functions (``torch.cond``) come here too, instead of refusing to run.
    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Private: torch need not load its compiler to keep it away from here; nothing is compiled during a trace."""
        return False


class _DispatchMode(QuietDispatchMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recorder = recorder
        self.tensors = recorder.tensors
        self.tensors.tied = False
        self.places = MemoryPlaces(recorder.tensors, recorder.value_of)
        self.functions: dict[Callable[..., Any], Function] = {}
        #: What the last call returned or wrote to.
        self.latest: list[TensorRecord] = []
        #: What shares memory with what the last call wrote to.
        self.bumped: list[TensorRecord] = []
        #: The Python instruction that led to the last call.
        self.instruction: tuple[CodeType, int] | None = None
        #: Whether a tensor is being made of Python data, and whether what happens now is to be overlooked.
        self.constructing = self.blind = False

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if self.blind:
            return func(*args, **(kwargs or {}))
        frame = calling_frame(sys._getframe(1))
        if not isinstance(func, torch._ops.OpOverload):
            return self.handle(func, args, kwargs or {}, frame)  # takes functions, whose Python code runs as usual
        # Above this mode everything has happened; but what is called from Python would start there again, with the
        # ``__torch_function__`` of the user's modes and tensor subclasses.
        with UNSEEN():
            return self.handle(func, args, kwargs or {}, frame)

    def handle(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], frame: FrameType) -> Any:
        """Run a call, and record what it is."""
        function = self.functions.get(func)
        if function is None:
            function = self.functions[func] = describe(func)
        if function.ref.namespace == "torch.ops.prim":  # a question of torch's own, maybe in the middle of a call
            return func(*args, **kwargs)
        self.settle()
        self.look_at(args, kwargs, frame)
        if not function.recorded:
            return self.ask(function, args, kwargs, frame)
        name = function.ref.name
        if name == "lift_fresh.default":
            return self.lift(func(*args, **kwargs), frame)
        instruction = frame.f_code, frame.f_lasti
        if name == "detach.default" and instruction == self.instruction:
            record = self.tensors.find(args[0])
            if record is not None and self.is_latest(record):
                return self.wrap(func(*args, **kwargs), args[0])
        self.instruction = instruction
        if name.startswith("set_.source_Storage"):
            return self.move(func(*args, **kwargs), frame)
        return self.record(function, args, kwargs, frame)

    def record(self, function: Function, args: Sequence[Any], kwargs: dict[str, Any], frame: FrameType) -> Any:
        """Run and record an operation."""
        recorder, find = self.recorder, self.tensors.find
        if function.may_write and function.ref.namespace != "torch.ops.aten":
            self.expect_counts(function, args, kwargs)
        call = recorder.start(function, args, kwargs, frame)
        begin = perf_counter()
        result = function.callable(*args, **kwargs)
        recorder.finish(call, result, perf_counter() - begin)
        self.latest = latest = []
        for tensor in tensors_in((result,)):
            record = find(tensor)
            if record is not None:
                latest.append(record)
                self.places.note(record, tensor)
        for tensor in written_by(call):
            record = find(tensor)
            if record is not None:
                self.places.written(tensor, len(recorder.tape.ops) - 1)
                latest.append(record)
                self.bumped += self.tensors.records_on(record.storage)
        return result

    def expect_counts(self, function: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Custom operators count their writes before this mode is told of the call, and those of ATen afterwards."""
        for tensor in function.written(args, kwargs):
            record = self.tensors.find(tensor)
            if record is not None and record.version is not None and tensor._version == record.version + 1:
                for one in self.tensors.records_on(record.storage):
                    self.see(one)

    def see(self, record: TensorRecord) -> None:
        """Take a tensor's count of writes for right."""
        tensor = record()
        if tensor is not None:
            record.seen(tensor)

    def ask(self, function: Function, args: Sequence[Any], kwargs: dict[str, Any], frame: FrameType) -> Any:
        """Run a call that makes no tensor; note it if it is a read."""
        result = function.callable(*args, **kwargs)
        if function.kind is Kind.READ:
            kind = function.read
            if kind == "item" and isinstance(result, bool) and tests_truth((frame.f_code, frame.f_lasti)):
                kind = "bool"
            self.recorder.read(kind, (*args, *kwargs.values()), result, frame)
        return result

    def lift(self, tensor: torch.Tensor, frame: FrameType) -> torch.Tensor:
        """A tensor made of other data comes into sight: a constant if these are plain numbers, else who knows what."""
        if not self.tensors.is_met(tensor) and self.places.find(tensor) is None:
            numbers = self.constructing or is_subscript(frame)
            own = numbers and storage_of(tensor) is not None and tensor.untyped_storage().resizable()
            self.recorder.leaf(tensor, "constant" if own else "external", (), self.recorder.site(frame))
        return tensor

    def construct(self, function: Function, args: Any, kwargs: Any, frame: FrameType, *, derived: bool) -> Any:
        """Make a tensor of Python data; if there are tensors among it, that is an operation."""
        if self.blind or self.constructing:
            return function.callable(*args, **kwargs)
        self.constructing = True
        try:
            if not derived:
                return function.callable(*args, **kwargs)
            with self.unseen():
                self.settle()
                return self.record(function, args, kwargs, frame)
        finally:
            self.constructing = False

    def read_out(self, function: Function, args: Any, kwargs: Any, frame: FrameType) -> Any:
        """Note that values left the tensor world as a list, as an array or to another library."""
        if self.blind:
            return function.callable(*args, **kwargs)
        with self.unseen():
            self.settle()
            return self.ask(function, args, kwargs, frame)

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """Record nothing in the block."""
        before, self.blind = self.blind, True
        try:
            with UNSEEN():
                yield
        finally:
            self.blind = before

    def wrap(self, tensor: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        """Autograd wraps a result that it was just given (a ``detach`` that no Python instruction asked for).

        It does so only where somebody else holds the result, as a trace does that keeps payloads: so no operation
        of the model. The new object stands for the same value.
        """
        record = self.tensors.add(tensor, self.recorder.value_of(original))
        self.latest.append(record)
        self.places.note(record, tensor)
        return tensor

    def look_at(self, args: Sequence[Any], kwargs: dict[str, Any], frame: FrameType) -> None:
        """Notice tensors that were given other memory where no operator did it (``p.data = t``)."""
        for tensor in tensors_in((*args, *kwargs.values()) if kwargs else args):
            record = self.tensors.find(tensor)
            if record is not None and record.storage != storage_of(tensor) and not self.is_latest(record):
                self.recorder.keeper.lose(record)
                self.move(tensor, frame)

    def move(self, tensor: torch.Tensor, frame: FrameType | None) -> torch.Tensor:
        """A tensor was given other memory: it stands for the value that is there."""
        if self.places.find(tensor) is None:
            self.recorder.leaf(tensor, "external", (), self.recorder.site(frame))
        found = self.tensors.find(tensor)
        assert found is not None
        self.latest.append(found)
        return tensor

    def is_latest(self, record: TensorRecord) -> bool:
        """Whether the last call returned or wrote to this tensor (``in`` would compare the tensors themselves)."""
        return any(latest is record for latest in self.latest)

    def settle(self) -> bool:
        """See what autograd did to the last results after this mode had run: version counters, ``grad_fn``.

        Whether there was anything to see.
        """
        seen = bool(self.latest or self.bumped)
        values = self.recorder.tape.values
        for record in (*self.latest, *self.bumped) if self.bumped else self.latest:
            self.see(record)
        self.bumped = []
        for record in self.latest:
            tensor = record()
            try:
                node = node_class(tensor, record.value) if tensor is not None and tensor.requires_grad else None
            except RuntimeError:  # a view that was written to under no_grad
                node = None
            if node is not None:
                *row, _ = values[record.value]
                values[record.value] = (*row, node)  # type: ignore[assignment]
        return seen

    def end(self, kind: type[BaseException] | None, *_: object) -> None:
        """Notice what happened after the last call, unless an interrupt came in the middle of something."""
        if kind is not None and not issubclass(kind, (Exception, Stopped)):
            return
        with UNSEEN():
            self.settle()
            self.tensors.meet_reserved()
            alive = [tensor for record in self.tensors.records() if (tensor := record()) is not None]
            self.look_at(alive, {}, sys._getframe(0))
