"""Processes that are forked during a trace: nothing of it is on in them, and they may trace."""

import gc
import os
import pickle
import threading

import pytest
import torch
from region_models import X, linear
from test_regions import TorchMarks
from torch import nn

import lens
from lens.capture.quiet_gc import collector_off

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked here")
BACKENDS = ["torch_function", "decoration", "torch_dispatch"]
MODEL = nn.Sequential(linear(), nn.ReLU())


def in_child(function):
    """What a function gives in a forked process."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(writing, pickle.dumps(function()))
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as told:
        found = told.read()
    os.waitpid(pid, 0)
    return pickle.loads(found)


def state(marks, backend):
    """What is left of traces here, and what new ones see, in this thread and in new ones."""
    left = [str(what) for what in marks.left_behind(TorchMarks())]
    found = [len(lens.trace(MODEL, X, backend=backend).graph.ops)]

    def work():
        MODEL(X)
        found.append(len(lens.trace(MODEL, X, backend=backend).graph.ops))

    for _ in range(2):  # one of these has the number of a thread that is no more
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(60)
    left += [str(what) for what in marks.left_behind(TorchMarks())]
    return left, found, torch._C._len_torch_dispatch_stack(), lens.capture.patches.awake()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_process_forked_by_a_traced_thread_is_not_traced(backend):
    plain = state(TorchMarks(), backend)
    marks = TorchMarks()
    with lens.tracing(MODEL, backend=backend) as history:
        MODEL(X)
        assert in_child(lambda: state(marks, backend)) == plain
        MODEL(X)
    assert len(history.graph.ops) == 2 * plain[1][0]
    assert len([scope for scope in history.graph.scopes if not scope.address]) == 2


def test_the_collector_of_a_process_forked_by_a_traced_thread_is_as_it_was():
    before = gc.isenabled(), gc.get_threshold()
    found = []

    class Forking(nn.Module):
        def forward(self, x):
            found.append(in_child(lambda: (gc.isenabled(), gc.get_threshold())))
            return x + 1

    lens.trace(Forking(), X)
    assert found == [before]
    with collector_off():
        assert in_child(gc.isenabled) is before[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_block_that_ends_in_the_forked_process_leaves_nothing_behind(backend):
    marks = TorchMarks()

    def leave():
        block.__exit__(None, None, None)
        return state(marks, backend)

    plain = state(TorchMarks(), backend)
    block = lens.tracing(MODEL, backend=backend)
    history = block.__enter__()
    MODEL(X)
    assert in_child(leave) == plain
    block.__exit__(None, None, None)
    assert len(history.graph.ops) == plain[1][0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_process_forked_while_another_thread_traces_is_as_without_that(backend):
    plain, marks = state(TorchMarks(), backend), TorchMarks()
    going, over = threading.Event(), threading.Event()

    def forward(x):
        going.set()
        assert over.wait(60)
        return MODEL(x)

    thread = threading.Thread(target=lambda: lens.trace(forward, X, backend=backend))
    thread.start()
    assert going.wait(60)
    try:
        assert in_child(lambda: state(marks, backend)) == plain
    finally:
        over.set()
        thread.join()
    assert marks.left_behind(TorchMarks()) == []
