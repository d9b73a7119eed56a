"""Random programs of views, copies, writes and random functions: the fast lane records what the general way does."""

import random
import re

import pytest
import torch
from torch import nn

import lens
from lens.capture.recorder import Recorder
from lens.ir.printer import print_graph
from lens.validate.check import check

STEPS = {
    "mul": lambda t, _: t * 2,
    "rows": lambda t, _: t[1:],
    "mul_": lambda t, _: t.mul_(1.5),
    "add_": lambda t, _: t.add_(1),
    "relu_": lambda t, _: torch.relu_(t),
    "setitem": lambda t, _: t.__setitem__(0, 3.0),
    "view": lambda t, _: t.view(-1),
    "reshape": lambda t, _: t.reshape(-1),
    "t": lambda t, _: t.t(),
    "turned": lambda t, _: t.transpose(0, 1).contiguous(),
    "contiguous": lambda t, _: t.contiguous(),
    "dropout": lambda t, _: torch.dropout(t, 0.5, False),
    "drawn": lambda t, _: torch.dropout(t, 0.5, True),
    "split": lambda t, _: t.split(2),
    "chunk": lambda t, _: t.chunk(2, -1),
    "unbind": lambda t, _: t.unbind(0),
    "detach": lambda t, _: t.detach(),
    "expand": lambda t, _: t.expand(2, *t.shape),
    "gathered": lambda t, _: t[torch.tensor([0, 1])],
    "to": lambda t, _: t.to(torch.float32),
    "there and back": lambda t, _: t.to(torch.float64).float(),
    "flatten": lambda t, _: t.flatten(),
    "squeezed": lambda t, _: t.unsqueeze(0).squeeze(0),
    "sum": lambda t, other: t + other.sum(),
    "cat": lambda t, other: torch.cat([t.flatten(), other.flatten()]),
    "as": lambda t, _: t.view_as(t),
    "unseen": lambda t, _: unseen(t),
}


def unseen(tensor):
    with torch._C.DisableTorchFunction():
        tensor.add_(1)


class Program(nn.Module):
    """Some steps on tensors that may share memory, and that may die in between; the same ones at every call."""

    def __init__(self, seed, length=25):
        super().__init__()
        self.seed, self.length = seed, length
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        choose = random.Random(self.seed)
        tensors = [x * 1.0, x + 1, self.weight * 2, x]
        for _ in range(self.length):
            name, one, other = choose.choice(list(STEPS)), choose.choice(tensors), choose.choice(tensors)
            if (name == "unseen" and choose.random() < 0.7) or not works(name, one, other):
                continue
            new = STEPS[name](one, other)
            del one, other
            tensors += [new] if isinstance(new, torch.Tensor) else new or ()
            if len(tensors) > 8 or choose.random() < 0.2:
                del tensors[choose.randrange(len(tensors))], new
        return tuple(tensor * 1 for tensor in tensors)


def works(name, *tensors):
    """Whether a step does not raise: what raises looks at its operands in the general way only."""
    with torch._C.DisableTorchFunction(), torch.random.fork_rng():
        copies = [tensor.detach().clone() for tensor in tensors]
        try:
            STEPS[name](*copies)
        except (RuntimeError, IndexError):
            return False
    return not (name.endswith("_") and tensors[0].requires_grad and tensors[0].is_leaf)


def recorded(program, x, save):
    """The history of a program; the text of its graph without times; or why torch does not run it."""
    torch.manual_seed(0)
    try:
        history = lens.trace(program, x.clone(), save=save)
    except RuntimeError as error:
        return None, str(error)
    lines = [line for line in print_graph(history.graph).splitlines() if not line.startswith("  meta ")]
    return history, re.sub(r"took [-+\d.e]+", "", "\n".join(lines))


@pytest.mark.parametrize("save", ["none", "all"])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_fast_lane_records_what_the_general_way_does(save, mode, monkeypatch):
    original, ran = Recorder.__init__, 0

    def general(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.takes_ended = False

    for seed in range(40):
        torch.manual_seed(seed)
        program, x = Program(seed), torch.randn(4, 4)
        with mode():
            fast, text = recorded(program, x, save)
            with monkeypatch.context() as patch:
                patch.setattr(Recorder, "__init__", general)
                slow, expected = recorded(program, x, save)
        assert text == expected, seed
        ran += fast is not None
        if fast is not None and save == "all":
            assert check(fast).ok == check(slow).ok, seed
    assert ran > 20
