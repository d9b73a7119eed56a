"""What a validation leaves behind: all that a forward pass changes is as after one."""

import threading
from collections import OrderedDict, defaultdict, deque
from types import SimpleNamespace

import pytest
import torch
from models import Body
from torch import nn

import lens
from lens import reachable
from lens.reachable import slots_of


class Stateful(nn.Module):
    """A module with one attribute and a forward that is given."""

    def __init__(self, state, forward):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.state = state
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


class Slotted:
    __slots__ = ("__weakref__", "seen")


class Cache:
    """Of the kind that language models are given: objects in a list in an object."""

    def __init__(self):
        self.layers = [SimpleNamespace(keys=None), SimpleNamespace(keys=None)]

    def update(self, x):
        for layer in self.layers:
            layer.keys = x if layer.keys is None else torch.cat([layer.keys, x])
        return layer.keys


def decay(model, x):
    model.linear.weight.data.mul_(0.5)
    return model.linear(x)


def rebound(model, x):
    for parameter in model.linear.parameters():
        parameter.data = parameter.data * 0.5
    return model.linear(x)


def buffer_data(model, x):
    model.state.data.mul_(0.5)
    return x * model.state


def starts_once(model, x):
    if model.state.sum() == 0:
        model.state.data.copy_(x.mean(0))
        return x
    return x - model.state


def previous(model, x):
    out = x + model.state
    model.state.copy_(x.mean(0))
    return out


def queued(model, x):
    model.state.append(x)
    return sum(model.state)


def nested(model, x):
    model.state["h"].append(len(model.state["h"]))
    return x * len(model.state["h"])


def ordered(model, x):
    model.state.move_to_end("a")
    return x * next(iter(model.state.values()))


def slotted(model, x):
    model.state.seen = getattr(model.state, "seen", 0) + 1
    return x * model.state.seen


def accumulates(model, x):
    with torch.enable_grad():
        model.linear(x.detach()).sum().backward()
    return model.linear(x)


#: What the model holds besides a layer, what it does with it, and how what is left is told.
FORWARDS = {
    "a parameter through .data": (lambda: None, decay, lambda m: m.linear.weight),
    "a parameter's .data": (lambda: None, rebound, lambda m: m.linear.weight),
    "a buffer through .data": (lambda: nn.Buffer(torch.ones(3)), buffer_data, lambda m: m.state),
    "a buffer written once": (lambda: nn.Buffer(torch.zeros(3)), starts_once, lambda m: m.state),
    "a tensor that is no buffer": (lambda: torch.zeros(3), previous, lambda m: m.state),
    "a deque": (lambda: deque(maxlen=2), queued, lambda m: torch.stack([*m.state])),
    "a list in a dict": (lambda: defaultdict(list), nested, lambda m: torch.tensor(m.state["h"])),
    "an order": (lambda: OrderedDict(a=2, b=3), ordered, lambda m: torch.tensor([*m.state.values()])),
    "a slot": (Slotted, slotted, lambda m: torch.tensor(m.state.seen)),
    "an object's list": (Cache, lambda m, x: m.state.update(x).sum(0), lambda m: m.state.layers[1].keys),
}


@pytest.mark.parametrize("backend", ["torch_function", "torch_dispatch"])
@pytest.mark.parametrize("name", FORWARDS)
def test_what_a_model_changes_of_itself_is_as_after_one_forward(name, backend):
    state, forward, told = FORWARDS[name]
    x = torch.randn(2, 3)
    torch.manual_seed(1)
    once = Stateful(state(), forward)
    torch.manual_seed(1)
    model = Stateful(state(), forward)
    once(x)
    report = lens.validation_report(model, x, backend=backend)
    assert report.ok, str(report)
    assert (report.checks[0].status, report.checks[-1].layer) == ("proved", "completeness"), str(report)
    assert torch.equal(told(model), told(once))


def test_gradients_are_as_after_one_forward():
    torch.manual_seed(1)
    once = Stateful(None, accumulates)
    torch.manual_seed(1)
    model = Stateful(None, accumulates)
    for one in (once, model):
        one.linear.bias.grad = torch.ones(3)
    x = torch.randn(2, 3)
    once(x)
    lens.validation_report(model, x)
    for mine, theirs in zip(model.parameters(), once.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)


def test_inputs_are_as_after_one_forward():
    def takes(batch):
        return batch["cache"].update(batch.pop("x")) * batch["n"][0]

    batch = {"x": torch.ones(1, 3), "n": [2], "cache": Cache()}
    assert lens.validate_saved_activations(Body(takes), batch)
    assert list(batch) == ["n", "cache"]
    assert batch["cache"].layers[0].keys.shape == (1, 3)


def test_an_input_that_comes_to_ask_for_gradients():
    def force(x):
        return torch.autograd.grad(x.requires_grad_().sin().sum(), x)[0]

    x = torch.randn(3)
    assert lens.validate_saved_activations(Body(force), x)
    assert x.requires_grad
    assert x.is_leaf


def test_a_changed_input_does_not_stay_in_the_graph_of_a_run():
    linear, x = nn.Linear(3, 3), torch.ones(2, 3)
    once = x.clone().mul_(linear.weight[0])
    assert lens.validate_saved_activations(Stateful(None, lambda m, x: x.mul_(linear.weight[0]) + 1), x)
    assert torch.equal(x, once)


def test_arrays_and_generators_of_its_own():
    numpy = pytest.importorskip("numpy", reason="an array of NumPy's is tested; it is in the extra 'test'")
    state = SimpleNamespace(
        array=numpy.ones(3), numpy=numpy.random.default_rng(1), torch=torch.Generator().manual_seed(1)
    )

    def forward(model, x):
        model.state.array += 1
        noise = torch.rand(3, generator=model.state.torch)
        return x * model.state.array.sum() * model.state.numpy.random() + noise

    model = Stateful(state, forward)
    report = lens.validation_report(model, torch.ones(3))
    assert report.checks[0].status == "proved", str(report)
    assert state.array.tolist() == [2, 2, 2]
    second = numpy.random.default_rng(1)
    second.random()
    assert state.numpy.random() == second.random()


def test_the_default_dtype_that_a_model_leaves_is_put_back():
    def leaves(x):
        torch.set_default_dtype(torch.float64 if torch.get_default_dtype() == torch.float32 else torch.float16)
        return x + 1

    try:
        assert lens.validate_saved_activations(Body(leaves), torch.ones(3))
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_parameter_that_changes_unseen_is_not_changed_again():
    """What it was is not known, so the model does not run again, and the report says so."""

    def unseen(model, x):
        with torch._C.DisableTorchFunction(), torch.no_grad():
            model.linear.weight.data.mul_(0.5)
        return model.linear(x)

    model = Stateful(None, unseen)
    expected = model.linear.weight.detach() * 0.5
    report = lens.validation_report(model, torch.randn(2, 3))
    assert torch.equal(model.linear.weight, expected)
    assert report.checks[0].status == "exempt"
    assert "linear.weight" in report.checks[0].detail
    assert "completeness" not in {check.layer for check in report.checks}


def test_what_is_not_looked_at_is_said(monkeypatch):
    monkeypatch.setattr(reachable, "MOST", 20)
    report = lens.validation_report(nn.Linear(3, 3), torch.ones(3))
    assert report.ok
    assert (report.checks[-1].layer, report.checks[-1].status) == ("state", "exempt")


def test_objects_that_other_threads_use_are_left_alone():
    shared, own = Cache(), Cache()
    shared.lock = threading.Lock()
    found, is_whole = reachable.reachable([SimpleNamespace(shared=shared, own=own)])
    assert is_whole
    assert any(one is own.layers for one in found)
    assert not any(one is shared.layers for one in found)


def test_slots_of_a_class_are_its_own_and_inherited():
    class More(Slotted):
        __slots__ = ("more",)

    assert {slot.__name__ for slot in slots_of(More())} == {"more", "seen"}
