"""Two traces in two threads, each of which begins or ends while the other is running."""

import itertools
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from test_regions import Model, TorchMarks, linear

import lens

BACKENDS = ("torch_function", "decoration", "torch_dispatch")
X = torch.arange(8.0).reshape(2, 4)


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return grad


def work(s, x):
    """What a backend sees through something that it has put in the place of torch's own, of every kind."""
    y = x * 2
    y.set_(x.clone())
    z = torch.zeros(2, 4, dtype=torch.complex64)
    z.real = y
    z.imag = torch.tensor([1.0, 2.0, 3.0, 4.0]) + y
    return Cube.apply(s.fc(torch.relu(z.abs())))


def told(history):
    """Everything that does not depend on the number of a thread."""
    return (
        [(str(op.function), len(op.operands), [history.graph.values[v].type for v in op.results]) for op in history.graph.ops],
        [(scope.address, scope.cls) for scope in history.graph.scopes],
        [(leaf.kind, leaf.addresses) for leaf in history.graph.leaves],
        [(gap.kind, gap.what) for gap in history.gaps],
    )  # fmt: skip


def traced(backend, before, after):
    """The history of a model that does its work between waiting for two events."""

    def forward(s, x):
        before.set()
        assert after.wait(60)
        return work(s, x)

    return lens.trace(Model(forward, fc=linear()), X, backend=backend)


def done():
    event = threading.Event()
    event.set()
    return event


@pytest.mark.parametrize(("first", "second"), list(itertools.product(BACKENDS, BACKENDS)))
def test_the_trace_that_goes_on_sees_what_it_sees_alone(first, second):
    alone = {backend: told(traced(backend, threading.Event(), done())) for backend in {first, second}}
    marks = TorchMarks()
    first_runs, second_runs, first_over = threading.Event(), threading.Event(), threading.Event()
    found = {}

    def run_first():
        try:
            found["first"] = told(traced(first, first_runs, second_runs))
        finally:
            first_over.set()

    def run_second():
        assert first_runs.wait(60)
        found["second"] = told(traced(second, second_runs, first_over))

    threads = [threading.Thread(target=run_first), threading.Thread(target=run_second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"first": alone[first], "second": alone[second]}
    assert marks.left_behind(TorchMarks()) == []
    assert {backend: told(traced(backend, threading.Event(), done())) for backend in alone} == alone


def test_any_number_of_traces_in_any_order_leave_nothing_behind():
    """In a process of its own: what is made once in a process is made in the middle of other traces."""
    code = """
import threading, sys
import torch
from test_regions import TorchMarks, X, linear
import lens
from torch import nn
ready = threading.Barrier(3)
def work(backend):
    ready.wait()
    for _ in range(6):
        lens.trace(nn.Sequential(linear(), nn.ReLU()), X, backend=backend)
marks = TorchMarks()
threads = [threading.Thread(target=work, args=(name,)) for name in ("torch_function", "decoration", "torch_dispatch")]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(marks.left_behind(TorchMarks()))
"""
    for _ in range(2):
        out = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
        assert out.stdout.strip() == "[]", out.stderr


def test_the_table_that_is_made_while_another_trace_runs_is_that_of_torch():
    """The first trace by decoration finds what another backend has replaced, and is to replace torch's own."""
    code = """
import torch, lens
from torch import nn
class Model(nn.Module):
    def forward(self, x):
        lens.trace(nn.ReLU(), x, backend="decoration", passes="")
        return x * 2
before = torch.tensor, torch.as_tensor, torch.Tensor.set_, torch.Tensor.tolist
with torch.no_grad():
    lens.trace(Model(), torch.ones(2), backend="torch_dispatch", passes="")
    lens.trace(nn.ReLU(), torch.ones(2), backend="decoration", passes="")
assert (torch.tensor, torch.as_tensor, torch.Tensor.set_, torch.Tensor.tolist) == before
assert not hasattr(torch.tensor, "lens_original")
with torch.device("meta"):
    assert torch.tensor([1.0]).is_meta
print("fine")
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "fine", out.stderr
