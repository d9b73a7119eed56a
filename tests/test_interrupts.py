"""Interrupts (Ctrl-C) while a model runs: nothing stays patched, and the history up to there is one."""

import gc
import inspect
import os
import signal
import sys
import timeit

import pytest
import torch
import torch.nn.functional as F
from attrs import frozen
from region_models import Model, X, linear
from test_regions import TorchMarks
from torch import nn, overrides
from torch.utils.checkpoint import checkpoint

import lens
from lens import capture
from lens.capture import interrupts
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
    whole = min(timeit.repeat(lambda: lens.trace(model, X, backend=backend, passes=""), number=1, repeat=6))
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


@pytest.mark.parametrize("backend", ["torch_function", "decoration"])
def test_a_mode_that_torch_has_taken_off_for_a_call_is_not_put_on_later(backend):
    """The traceback keeps torch's generator, which would go on when that goes."""
    pop = overrides._pop_mode_temporarily.__wrapped__.__code__

    def interrupt(frame, event, _):
        generator = getattr(frame.f_locals.get("self"), "gen", None)
        if event == "call" and frame.f_code.co_name == "__exit__" and getattr(generator, "gi_code", None) is pop:
            raise KeyboardInterrupt

    def forward(x):
        sys.settrace(interrupt)
        return torch.Tensor.__rsub__(x, 1)

    try:
        with pytest.raises(KeyboardInterrupt):
            lens.trace(Model(lambda s, x: forward(x)), X, backend=backend)
    finally:
        sys.settrace(None)
    gc.collect()
    assert overrides._get_current_function_mode_stack() == []


class Interrupter:
    """Raises ``KeyboardInterrupt`` at one of the points of a run through the code of capture.

    Points are where Python looks for signals: on entry to a function, and after each call of one that is not Python's.
    Left out are generators: what is raised where Python closes one is lost.

    Args:
        at: The number of the point, from 0.
    """

    def __init__(self, at=-1):
        self.at, self.count, self.point = at, 0, ""

    def __enter__(self):
        sys.setprofile(self.reach)

    def __exit__(self, *_):
        sys.setprofile(None)

    def reach(self, frame, event, _):
        code = frame.f_code
        if event not in ("call", "c_return") or not code.co_filename.startswith(CAPTURE):
            return
        if code.co_flags & inspect.CO_GENERATOR:
            return
        if self.count == self.at:
            sys.setprofile(None)
            self.point = f"{event} in {code.co_filename}:{frame.f_lineno}"
            raise KeyboardInterrupt
        self.count += 1


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
    """At every seventh point at which Python looks for signals, one at a time."""
    model, marks = Interrupted(), TorchMarks()
    with torch.no_grad():
        lens.trace(model, X, backend=backend, passes="")  # the first time is different
        model.interrupter = Interrupter()
        whole = len(lens.trace(model, X, backend=backend, passes="").graph.ops)
        points = model.interrupter.count
        assert points > 500
        for at in range(0, points, 7):
            model.interrupter = Interrupter(at)
            with pytest.raises(KeyboardInterrupt) as raised:
                lens.trace(model, X.clone(), backend=backend, passes="")
            history, point = raised.value.lens_history, model.interrupter.point
            assert len(history.graph.ops) <= whole, point
            assert find_problems(history.graph) == [], point
            assert check(history).failed == (), point
            assert torch._C._is_torch_function_enabled(), point
            assert torch._C._len_torch_dispatch_stack() == 0, point
        model.interrupter = Interrupter()
        assert len(lens.trace(model, X, backend=backend, passes="").graph.ops) == whole
    assert marks.left_behind(TorchMarks()) == []


class TimeIsOver(Exception):
    pass


def time_is_over(*_):
    raise TimeIsOver


@pytest.fixture
def alarm():
    """A handler that raises, of a signal that is not Ctrl-C's."""
    before = signal.signal(signal.SIGALRM, time_is_over), signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGALRM, before[0])
    signal.signal(signal.SIGINT, before[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_time_limit_at_any_moment_leaves_nothing_behind(backend, alarm):
    model = nn.Sequential(linear(), nn.ReLU())
    whole = min(timeit.repeat(lambda: lens.trace(model, X, backend=backend), number=1, repeat=6))
    marks, raised = TorchMarks(), 0
    for i in range(100):
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, whole * (i + 1) / 110)
                lens.trace(model, X, backend=backend)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except TimeIsOver:
            raised += 1
        assert marks.left_behind(TorchMarks()) == [], i
        assert signal.getsignal(signal.SIGALRM) is time_is_over
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert raised > 30


def test_a_time_limit_in_code_of_the_users_is_no_failure_of_that_code(alarm):
    def slow(_):
        signal.raise_signal(signal.SIGALRM)

    with pytest.raises(TimeIsOver):
        lens.trace(nn.ReLU(), X, save=slow)


def test_a_time_limit_in_a_pass_is_no_failure_of_the_pass(alarm):
    @frozen
    class Slow:
        name, requires, provides, preserves = "slow", (), (), ()

        def run(self, graph, context):
            signal.raise_signal(signal.SIGALRM)

    with pytest.raises(TimeIsOver):
        lens.trace(nn.ReLU(), X, passes=[Slow()])


@pytest.mark.parametrize("at", range(60))
def test_an_interrupt_at_any_point_of_letting_interrupts_through_leaves_the_handler(at, alarm):
    """The handlers are those of before, and are called again."""
    points = 0

    def reach(frame, event, _):
        nonlocal points
        if event in ("call", "c_return") and frame.f_code.co_filename in (interrupts.__file__, signal.__file__):
            points += 1
            if points == at:
                sys.setprofile(None)
                signal.raise_signal(signal.SIGINT)

    sys.setprofile(reach)
    try:
        lens.trace(nn.ReLU(), X, passes="")
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(None)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGALRM) is time_is_over
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
