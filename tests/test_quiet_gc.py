"""The garbage collector goes on working for a program that traces, and is afterwards as it was before."""

import gc
import signal
import sys
import threading
import weakref

import pytest
import torch
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
