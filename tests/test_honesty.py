"""Tracing leaves no mark: on the model, on torch, on random numbers, after errors, between threads."""

import pickle
import threading

import attrs
import pytest
import torch
from models import Body, Raises, TwoBranches
from torch import nn
from torch.overrides import TorchFunctionMode

import lens
from lens.errors import LensError
from lens.ir.elements import Unseen
from lens.ir.gaps import BACKWARD, find_gaps


def torch_state():
    return (
        nn.Module.__call__,
        torch.overrides.has_torch_function,
        torch.is_grad_enabled(),
        len(torch.overrides._get_current_function_mode_stack()),
    )


def test_nothing_is_left_on_torch_or_the_model():
    model, x = TwoBranches(), torch.ones(2, 4)
    before = torch_state()
    attributes = {name: dict(vars(m)) for name, m in model.named_modules()}
    lens.trace(model, x)
    assert torch_state() == before
    for name, module in model.named_modules():
        assert vars(module).keys() == attributes[name].keys()
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert all(not vars(t) for t in [x, *model.parameters(), *model.buffers()])


def test_the_seed_gives_the_plain_result_and_the_same_state_afterwards():
    model, x = TwoBranches(), torch.ones(2, 4)
    torch.manual_seed(5)
    plain = model(x)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    history = lens.trace(model, x)
    assert torch.equal(history["output_1"].tensor_contents, plain)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(lens.trace(model, x, seed=5)["output_1"].tensor_contents, plain)
    assert lens.trace(model, x, seed=5).random_seed_used == 5


def test_the_model_runs_exactly_once():
    calls = []
    model = nn.ReLU()
    model.register_forward_hook(lambda *_: calls.append(1))
    lens.trace(model, torch.ones(2), save=["relu_1"])
    assert calls == [1]


@attrs.frozen
class Frozen(Exception):
    code: int = 1


class WithoutText(Exception):
    def __str__(self):
        return self.text


class WithHistory(Exception):
    lens_history = property(lambda self: None)


@pytest.mark.parametrize("error", [Frozen(), WithoutText(), WithHistory()], ids=lambda error: type(error).__name__)
def test_an_exception_of_any_class_comes_through_unchanged(error):
    def forward(x):
        x.sin()
        raise error

    with pytest.raises(type(error)) as caught:
        lens.trace(forward, torch.ones(2))
    assert caught.value is error
    if not isinstance(error, WithHistory):
        assert len(error.lens_history.graph.ops) == 1
        assert error.lens_history.graph.meta.fault.type == type(error).__name__


def test_gradients_are_those_of_a_plain_forward():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 1))
    x = torch.randn(3, 4)
    model(x).sum().backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    lens.trace(model, x)["output_1"].tensor_contents.sum().backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), plain, strict=True))


@pytest.mark.parametrize("error", [ValueError("inside"), KeyboardInterrupt(), RuntimeError("x")])
def test_an_exception_comes_through_with_the_partial_history(error):
    before = torch_state()
    with pytest.raises(type(error)) as caught:
        lens.trace(Raises(error), torch.ones(2, 4))
    assert caught.value is error
    assert torch_state() == before
    history = caught.value.lens_history
    assert history.layer_list == ["input_1", "linear_1_1", "relu_1_2"]
    assert history["relu_1"].tensor_contents.shape == (2, 4)
    fault = history.graph.meta.fault
    assert fault.type == type(error).__name__
    assert fault.location.file.endswith("models.py")
    assert "FAULT" in str(history)


def test_a_failing_operation_is_named():
    class Model(nn.Module):
        def forward(self, x):
            return torch.cat([x, x.t()])

    with pytest.raises(RuntimeError) as caught:
        lens.trace(Model(), torch.ones(2, 3))
    assert caught.value.lens_history.graph.meta.fault.function == "torch.cat"


@pytest.mark.parametrize("backend", ["torch_function", "decoration", "torch_dispatch"])
def test_a_fault_is_at_the_users_line(backend):
    def forward(x):
        y = x + 1
        return y.view(7)

    line = forward.__code__.co_firstlineno + 2
    with pytest.raises(RuntimeError) as caught:
        lens.trace(forward, torch.ones(3), backend=backend)
    location = caught.value.lens_history.graph.meta.fault.location
    assert (location.file, location.line) == (__file__, line)


def test_a_run_stops_after_a_module_that_returns_nothing():
    class Quiet(torch.nn.Module):
        def forward(self, x):
            self.seen = x.sum()

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.side = Quiet()

        def forward(self, x):
            self.side(x)
            return x * 2

    history = lens.trace(Net(), torch.ones(3), stop_at="side")
    assert [op.function.name for op in history.graph.ops] == ["sum"]
    assert history.graph.meta.stopped == "side"


def test_two_threads_trace_two_models_at_once():
    before = torch_state()
    found, errors = {}, []

    def work(name, layers):
        try:
            model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(layers)])
            for _ in range(20):
                found[name] = len(lens.trace(model, torch.ones(1, 4)).graph.ops)
        except LensError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i, 3 + i)) for i in range(3)]
    for thread in threads:
        thread.start()
    plain = nn.Linear(2, 2)(torch.ones(1, 2))
    for thread in threads:
        thread.join()
    assert plain.shape == (1, 2)
    assert errors == []
    assert found == {0: 3, 1: 4, 2: 5}
    assert torch_state() == before


def test_a_history_pickles():
    history = lens.trace(TwoBranches(), torch.ones(2, 4))
    copy = pickle.loads(pickle.dumps(history))
    assert copy.graph == history.graph
    assert torch.equal(copy["relu_1"].tensor_contents, history["relu_1"].tensor_contents)


def test_fast_attention_path_is_kept_and_can_be_opened():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 2).eval()
    x = torch.randn(2, 5, 8)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[0, 3:] = True
    with torch.no_grad():
        plain = model(x, src_key_padding_mask=mask)
        kept = lens.trace(model, x, {"src_key_padding_mask": mask})
        opened = lens.trace(model, x, {"src_key_padding_mask": mask}, fast_paths="open")
    assert torch.equal(kept["output_1"].tensor_contents, plain)
    assert "transformerencoderlayerfwd" in {entry.layer_type for entry in kept}
    assert "linear" in {entry.layer_type for entry in opened}


def test_nothing_is_kept_alive_without_payloads():
    import gc
    import weakref

    seen = []
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model[0].register_forward_hook(lambda m, i, o: seen.append(weakref.ref(o)))
    with torch.no_grad():
        history = lens.trace(model, torch.ones(1, 4), save="none")
    gc.collect()
    assert seen[0]() is None
    assert len(history.payloads) == 0


def test_a_failing_analysis_does_not_hide_the_models_error():
    class Broken:
        name, requires, provides, preserves = "broken", (), (), ()

        def run(self, graph, context):
            raise ZeroDivisionError

    error = ValueError("inside")
    with pytest.raises(ValueError, match="inside") as caught:
        lens.trace(Raises(error), torch.ones(2, 4), passes=(Broken(),))
    assert "'broken'" in str(caught.value.lens_history_error)


def test_a_child_that_holds_its_parent():
    parent = nn.Sequential(nn.Linear(4, 4))
    parent[0].parent = parent
    history = lens.trace(parent, torch.ones(1, 4))
    assert history["0"].layer_label == "linear_1_1"
    assert history.module_addresses == ["0"]


def test_a_trace_inside_a_traced_forward():
    inner_histories = []

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            y = torch.relu(self.fc(x))
            inner_histories.append(lens.trace(nn.Sequential(nn.Linear(4, 2), nn.Tanh()), y))
            return y + 1

    before = torch_state()
    history = lens.trace(Outer(), torch.ones(1, 4))
    assert inner_histories[0].layer_list == ["input_1", "linear_1_1", "tanh_1_2", "output_1"]
    assert history["add_1"].parent_layers == ["relu_1_2"]
    assert history["fc"].layer_label == "linear_1_1"
    assert torch_state() == before


def generator(x):
    yield x.sin()


async def coroutine(x):
    return x.sin()


async def async_generator(x):
    yield x.sin()


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("forward", [generator, coroutine, async_generator])
def test_a_forward_that_has_not_run_when_it_returns_is_a_gap(forward):
    (gap,) = lens.trace(Body(forward), torch.ones(2)).gaps
    assert forward.__name__ in str(gap)
    assert "lens.tracing" in gap.advice


def test_what_another_backend_has_missed_is_told_without_advice_for_something_else():
    graph = lens.trace(TwoBranches(), torch.ones(2, 4)).graph
    missed = tuple(map(Unseen, (BACKWARD, "the accelerator kept some of it to itself")))
    backward, own = find_gaps(attrs.evolve(graph, meta=attrs.evolve(graph.meta, unseen=missed)))
    assert "torch.autograd.grad" in backward.advice
    assert str(own) == "the accelerator kept some of it to itself: it is not in the graph"


def test_a_generator_that_a_block_uses_is_recorded():
    model, x = Body(generator), torch.ones(2)
    with lens.tracing(model) as history:
        list(model(x))
    assert [op.function.name for op in history.graph.ops] == ["sin"]
    assert history.gaps == ()


#: What a recording asks of a tensor.
ASKED = {"__get__", "is_inference"}


@pytest.mark.parametrize("backend", ["torch_function", "decoration", "torch_dispatch"])
def test_a_mode_around_a_trace_sees_the_calls_of_the_model_and_none_of_lens_own_work(backend):
    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func.__name__)
            return func(*args, **(kwargs or {}))

    model, x, seen = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout()), torch.ones(2, 4), []
    with Watch():
        lens.trace(model, x, backend=backend)
    assert [name for name in seen if name not in ASKED] == ["linear", "relu", "dropout"]
    assert len(seen) <= 3 * 11
    assert backend != "torch_dispatch" or len(seen) == 3
