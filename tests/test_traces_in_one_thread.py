"""Traces in one thread: one within another wherever the user's code may run, and across each other, which is an error."""

import asyncio

import pytest
import torch
from region_models import Model, X, linear
from test_regions import TorchMarks
from torch import nn
from torch.overrides import TorchFunctionMode

import lens
from lens.errors import LensError

BACKENDS = ["torch_function", "decoration", "torch_dispatch"]
INNER = nn.Sequential(linear(), nn.ReLU())


def ops_of(history):
    return [str(op.function).rpartition(".")[2] for op in history.graph.ops]


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_tasks_that_trace_at_the_same_time_are_told_apart_from_nested_traces(backend):
    marks, dispatching = TorchMarks(), torch._C._len_torch_dispatch_stack()
    flag = torch.utils._python_dispatch.is_in_torch_dispatch_mode()

    async def task(before, after):
        with lens.tracing(INNER, backend=backend) as history:
            await asyncio.sleep(before)
            X.sin()
            await asyncio.sleep(after)
            X.cos()
        return history

    async def both():
        return await asyncio.gather(task(0.0, 0.05), task(0.02, 0.1), return_exceptions=True)

    error, history = asyncio.run(both())
    assert type(error) is LensError
    assert "asyncio" in error.hint
    assert "sin" in str(error.lens_history.graph.ops[0].function)
    assert "cos" in str(history.graph.ops[-1].function)
    assert marks.left_behind(TorchMarks()) == []
    assert torch._C._len_torch_dispatch_stack() == dispatching
    assert torch.utils._python_dispatch.is_in_torch_dispatch_mode() == flag
    assert len(lens.trace(nn.ReLU(), X, backend=backend).graph.ops) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_error_in_a_task_comes_through_though_its_trace_lies_beneath_another(backend):
    first, second = lens.tracing(backend=backend), lens.tracing(backend=backend)
    first.__enter__()
    second.__enter__()
    error = ValueError("of the task")
    assert not first.__exit__(ValueError, error, None)
    assert error.lens_history.graph.meta.fault.message == "of the task"
    second.__exit__(None, None, None)


def trace_of(backend):
    return lambda x: lens.trace(INNER, x, backend=backend)["output_1"].tensor_contents


def in_vmap(s, x):
    return s.fc(torch.func.vmap(s.inner)(x))


def in_backward(s, x):
    y = s.fc(x)
    y.register_hook(lambda grad: s.inner(grad) * 0 + grad)
    y.sum().backward()
    return s.fc(y)


@pytest.mark.parametrize("inner", BACKENDS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("forward", [in_vmap, in_backward])
def test_a_trace_in_a_region_leaves_the_one_around_it_on(forward, backend, inner):
    marks = TorchMarks()
    model = Model(forward, fc=linear())
    vars(model)["inner"] = lambda x: x.relu()
    plain = [(scope.address, scope.cls) for scope in lens.trace(model, X, backend=backend).graph.scopes]
    vars(model)["inner"] = trace_of(inner)
    found = [(scope.address, scope.cls) for scope in lens.trace(model, X, backend=backend).graph.scopes]
    assert [scope for scope in found if scope in plain] == plain
    assert marks.left_behind(TorchMarks()) == []


@pytest.mark.parametrize("inner", BACKENDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_functions_of_the_user_that_a_trace_calls_may_trace(backend, inner):
    marks, ask = TorchMarks(), trace_of(inner)
    plain = ops_of(lens.trace(INNER, X, backend=backend))
    assert ops_of(lens.trace(INNER, X, backend=backend, save=lambda op: bool((ask(X) >= 0).all()))) == plain
    assert ops_of(lens.trace(INNER, X, backend=backend, transform=lambda t: ask(X))) == plain
    assert marks.left_behind(TorchMarks()) == []


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("first", [None, "cpu"])
@pytest.mark.parametrize("second", [None, "cpu", "meta"])
def test_what_a_forward_does_with_the_default_device_stays_so(backend, first, second):
    class Counting(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            Counting.calls += 1
            return func(*args, **kwargs or {})

    def forward(s, x):
        torch.set_default_device(second)
        with Counting():
            y = x.sin()
        return y + 1

    try:
        found = []
        for run in (Model(forward), lambda x: lens.trace(Model(forward), x, backend=backend)):
            torch.set_default_device(first)
            Counting.calls = 0
            run(X)
            modes = torch.overrides._get_current_function_mode_stack()
            found.append(([type(mode) for mode in modes], torch.get_default_device(), Counting.calls))
            torch.set_default_device(None)
            assert torch.overrides._get_current_function_mode_stack() == []
        assert found[0] == found[1]
    finally:
        while torch.overrides._len_torch_function_stack():
            torch.overrides._pop_mode()
