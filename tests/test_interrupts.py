"""Interrupts (Ctrl-C) while a model runs: nothing stays patched, and the history up to there is one."""

import dis
import os
import signal
import sys
import time

import pytest
import torch
import torch.nn.functional as F
from region_models import Model, X, linear
from test_regions import TorchMarks
from torch import nn
from torch.utils.checkpoint import checkpoint

import lens
from lens import capture
from lens.ir.verifier import find_problems
from lens.validate.check import check

BACKENDS = ["torch_function", "decoration", "torch_dispatch"]
CAPTURE = os.path.dirname(capture.__file__) + os.sep


def interruptible(x):
    y = checkpoint(torch.relu, x, use_reentrant=False)
    for _ in range(30):
        y = F.gelu(torch.sin(y) + 1)  # no transform: torch itself does not survive an interrupt there
        y[0] = 0.5
    return y


def forget_hooks_of_checkpoints():
    """Interrupted while it enters or leaves them, torch's checkpoint leaves its hooks on saved tensors, to later tests."""
    while torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
        torch._C._autograd._pop_saved_tensors_default_hooks()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_interrupt_at_any_moment_leaves_nothing_behind(backend):
    model = nn.Sequential(linear(), nn.ReLU(), Model(lambda s, x: interruptible(x)))
    lens.trace(model, X, backend=backend, passes="")  # the first time takes longer
    begin = time.perf_counter()
    lens.trace(model, X, backend=backend, passes="")
    whole = time.perf_counter() - begin
    marks, dispatching = TorchMarks(), torch._C._len_torch_dispatch_stack()
    before, interrupted = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT)), 0
    outer = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        for i in range(40):
            try:
                signal.setitimer(signal.ITIMER_REAL, whole * (i + 1) / 45)
                lens.trace(model, X, backend=backend, passes="")
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            forget_hooks_of_checkpoints()
            assert marks.left_behind(TorchMarks()) == [], i
            assert torch._C._len_torch_dispatch_stack() == dispatching
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.signal(signal.SIGINT, outer)
    assert interrupted > 10
    assert len(lens.trace(nn.ReLU(), X, backend=backend).graph.ops) == 1


def interrupt_points(code):
    """Where Python looks for signals: after calls, on entry, and where loops begin anew."""
    found, before = set(), None
    for instruction in dis.get_instructions(code):
        if before is not None and before.opname.startswith(("CALL", "RESUME")):
            found.add(instruction.offset)
        if instruction.opname in ("JUMP_BACKWARD", "JUMP_ABSOLUTE") and instruction.argval < instruction.offset:
            found.add(instruction.argval)
        before = instruction
    return found


class Interrupter:
    """Raises ``KeyboardInterrupt`` at one point of the code of capture, when that is reached for the first time.

    Attributes:
        point: The code object and the offset in it; None to note in ``reached`` all points that are.
    """

    def __init__(self, point=None):
        self.point, self.reached, self.points = point, {}, {}

    def __enter__(self):
        sys.settrace(self.enter_frame)

    def __exit__(self, *_):
        sys.settrace(None)

    def enter_frame(self, frame, event, arg):
        code = frame.f_code
        if not code.co_filename.startswith(CAPTURE) or (self.point is not None and code is not self.point[0]):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self.reach

    def reach(self, frame, event, arg):
        point = frame.f_code, frame.f_lasti
        if event != "opcode":
            return self.reach
        if self.point is None:
            if point[0] not in self.points:
                self.points[point[0]] = interrupt_points(point[0])
            if point[1] in self.points[point[0]]:
                self.reached[point] = True
        elif point == self.point:
            sys.settrace(None)
            raise KeyboardInterrupt
        return self.reach


class Interrupted(nn.Module):
    """All sorts of writes and views, under the eyes of an interrupter."""

    def __init__(self):
        super().__init__()
        self.linear, self.interrupter = linear(), Interrupter()

    def forward(self, x):
        with self.interrupter:
            y = self.linear(x)
            for _ in range(2):
                y = torch.sin(y) + 1
                y[0] = 0.5
            flat = y.view(-1)
            flat[2:].add_(1)
            y.detach().mul_(2)
            first, second = y.unbind(0)
            first.copy_(second)
            y.numpy()[0] = 1
            z = torch.relu_(y)
            y.data = torch.ones(2, 4)
            return z + y, first


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_interrupt_at_any_point_of_capture_leaves_a_history(backend):
    """At every point at which Python looks for signals, one at a time."""
    model = Interrupted()
    with torch.no_grad():
        lens.trace(model, X, backend=backend, passes="")  # the first time is different
        model.interrupter = Interrupter()
        whole = len(lens.trace(model, X, backend=backend, passes="").graph.ops)
        points = list(model.interrupter.reached)
        assert len(points) > 300
        for point in points:
            model.interrupter = Interrupter(point)
            with pytest.raises(KeyboardInterrupt) as raised:
                lens.trace(model, X.clone(), backend=backend, passes="")
            history = raised.value.lens_history
            assert len(history.graph.ops) <= whole, point
            assert find_problems(history.graph) == [], point
            assert check(history).failed == (), point
        model.interrupter = Interrupter()
        assert len(lens.trace(model, X, backend=backend, passes="").graph.ops) == whole
