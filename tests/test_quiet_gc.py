"""The garbage collector goes on working for a program that traces, and is afterwards as it was before."""

import gc
import signal
import sys
import threading
import weakref
from contextlib import suppress
from functools import partial

import pytest
import torch
from models import Body
from torch import nn

import lens
from lens.capture.quiet_gc import collections_put_off, collector_off


@pytest.fixture(autouse=True)
def known_settings():
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.enable()
    gc.set_threshold(*before)


def test_cycles_that_die_between_traces_are_collected():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.callback = lambda: self

        def forward(self, x):
            return self.fc(x)

    alive, most = weakref.WeakSet(), 0
    for _ in range(1000):
        net = Net()
        alive.add(net)
        lens.trace(net, torch.ones(4))
        most = max(most, len(alive))
    assert most < 500


def in_thread(x):
    found = []
    thread = threading.Thread(target=lambda: found.append(x.sin()))
    thread.start()
    thread.join()
    return found[0]


def raising(*_):
    raise ValueError("no")


def in_block(_, x, **options):
    with lens.tracing(**options):
        x.sin()


FORWARDS = {
    "vmap": torch.func.vmap(torch.sin),
    "vjp": lambda x: torch.func.vjp(torch.sin, x)[1](x)[0],
    "script": torch.jit.script(nn.Linear(4, 4)),
    "thread": in_thread,
    "raising": raising,
}
CALLS = {
    "trace": lens.trace,
    "report": lens.validation_report,
    "save": partial(lens.trace, save=raising),
    "stop_at": partial(lens.trace, stop_at=raising),
    "transform": partial(lens.trace, transform=raising),
    "block": partial(in_block, save=raising),
}


@pytest.mark.parametrize("backend", ["torch_function", "decoration", "torch_dispatch"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("forward", FORWARDS.values(), ids=FORWARDS)
def test_nothing_of_a_trace_waits_for_the_collector(forward, call, backend):
    alive = weakref.WeakSet()
    with suppress(ValueError, RuntimeError):
        call(Body(forward), torch.ones(2, 4), backend=backend)  # the first time is different
    gc.collect()
    gc.disable()
    for _ in range(3):
        x = torch.ones(2, 4)
        alive.add(x)
        with suppress(ValueError, RuntimeError):
            call(Body(forward), x, backend=backend)
    del x
    assert not alive


@pytest.mark.parametrize("name", ["set_threshold", "disable"])
def test_an_interrupt_right_after_a_change_leaves_nothing_changed(name):
    def interrupt(frame, event, arg):
        if event == "c_return" and arg is getattr(gc, name) and frame.f_code.co_filename.endswith("quiet_gc.py"):
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)

    sys.setprofile(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            lens.trace(nn.ReLU(), torch.ones(2))
    finally:
        sys.setprofile(None)
    assert (gc.isenabled(), gc.get_threshold()) == (True, (700, 10, 10))


@pytest.mark.parametrize("setting", [collections_put_off, collector_off])
def test_threads_that_overlap_leave_nothing_changed(setting):
    inside, leave = threading.Event(), threading.Event()

    def other():
        with setting():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with setting():
        thread.start()
        inside.wait(10)
    assert (gc.isenabled(), gc.get_threshold()) != (True, (700, 10, 10))  # the other still needs it
    leave.set()
    thread.join()
    assert (gc.isenabled(), gc.get_threshold()) == (True, (700, 10, 10))
