"""Real models: the traced forward is the plain one bit for bit, and what is saved is what hooks see."""

import copy

import pytest
import torch
from real_models import REAL_MODELS
from torch import nn

import lens
from lens.capture.encoding import SLOTS, ArgumentEncoder
from lens.ir.parser import parse
from lens.ir.printer import print_graph
from lens.ir.verifier import verify
from lens.validate.check import check


def tensors(output):
    found = []
    ArgumentEncoder(lambda _: 0).encode_with(output, lambda t: found.append(t) or SLOTS[0])
    return found


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", REAL_MODELS)
def test_traced_is_plain(name, train, grad):
    torch.manual_seed(0)
    model, args, kwargs = REAL_MODELS[name]()
    twin = copy.deepcopy(model.train(train))
    untouched = nn.Module._call_impl, torch.overrides.has_torch_function
    held = [*model.parameters(), *model.buffers(), *tensors((args, kwargs))]
    marks = [set(vars(tensor)) for tensor in held]  # transformers leaves marks of its own
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    with torch.set_grad_enabled(grad):
        torch.manual_seed(1)
        plain = tensors(twin(*args, **kwargs))
        state = torch.get_rng_state()
        torch.manual_seed(1)
        history = lens.trace(model, args, kwargs)
    assert torch.equal(torch.get_rng_state(), state)
    traced = [history.payloads.read(value) for value in history.graph.outputs.values]
    assert len(traced) == len(plain)
    assert all(torch.equal(a, b) for a, b in zip(traced, plain, strict=True))
    after = zip(model.state_dict().values(), twin.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in after)
    assert untouched == (nn.Module._call_impl, torch.overrides.has_torch_function)
    assert attributes == {name: set(vars(module)) for name, module in model.named_modules()}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any(vars(tensor) for tensor in traced)
    assert marks == [set(vars(tensor)) for tensor in held]
    verify(history.graph)
    assert parse(print_graph(history.graph)) == history.graph
    assert not any(leaf.kind == "external" for leaf in history.graph.leaves)
    report = check(history)
    assert report.ok, str(report)


@pytest.mark.parametrize("name", [n for n in REAL_MODELS if n not in ("lstm_cell_loop", "masked_encoder")])
def test_saved_values_are_those_that_a_forward_hook_sees(name):
    torch.manual_seed(0)
    model, args, kwargs = REAL_MODELS[name]()
    model.eval()
    seen, calls = {}, {}

    def hook(address):
        def note(module, inputs, output):
            calls[address] = calls.get(address, 0) + 1
            found = tensors(output)
            if found:
                seen[address, calls[address]] = found[0].detach().clone()

        return note

    for address, module in model.named_modules():
        if address:
            module.register_forward_hook(hook(address))
    history = lens.trace(model, args, kwargs)
    compared = 0
    for (address, call), value in seen.items():
        entry = history[f"{address}:{call}"]
        # A later module may have written to the tensor in place; the entry is the value at the module's exit.
        assert torch.equal(entry.tensor_contents, value), (address, call)
        compared += 1
    assert compared >= sum(1 for _ in model.children())
