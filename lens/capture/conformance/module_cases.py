"""Modules: nested, shared, repeated, with hooks and running statistics, recurrent, and those that hold no tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lens.capture.conformance.case import Case, Parts, ramps


def _nested() -> nn.Module:
    block = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    return nn.Sequential(block, nn.ModuleDict({"a": nn.Tanh()})["a"], nn.Sequential(nn.Identity(), nn.Flatten(0)))


def _shared(self: Any, x: Tensor) -> Tensor:
    return self.one(self.two(self.one(x)))


def _shared_module() -> nn.Module:
    linear = nn.Linear(2, 2, bias=False)
    return Parts(_shared, one=linear, two=linear)


def _tied() -> nn.Module:
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    second.weight = first.weight
    return nn.Sequential(first, second)


def _repeat(self: Any, x: Tensor) -> Tensor:
    for _ in range(3):
        x = self.step(x).relu()
    return x


def _lstm_loop(self: Any, x: Tensor) -> Tensor:
    h = c = torch.zeros(1, 3)
    for step in x:
        h, c = self.cell(step, (h, c))
    return h


def _hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    model[0].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    model[0].register_forward_hook(lambda module, args, output: output + 1)
    model[1].register_forward_hook(lambda module, args, output: None)
    return model


def _embed(self: Any, ids: Tensor) -> Tensor:
    return self.out(self.table(ids).mean(1))


class _Depth(nn.Module):
    """Counts; sees no tensor."""

    def forward(self, depth: int) -> int:
        return depth + 1


def _no_tensors(self: Any, x: Tensor) -> Tensor:
    return x * self.depth(self.depth(0))


class _Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = [torch.full((2,), 2.0)], torch.ones(2)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale[0] + self.shift


def _early_exit(self: Any, x: Tensor) -> Tensor:
    y = self.first(x)
    return y if y.sum() > 100 else self.second(y)


def _train(model: nn.Module, mode: bool) -> nn.Module:
    return model.train(mode)


def _functional_call(self: Any, x: Tensor) -> Tensor:
    weights = {"weight": torch.ones(2, 2), "bias": x[0]}
    out: Tensor = torch.func.functional_call(self.linear, weights, (x,))
    return out


def _simple(name: str, make: Any, *shapes: tuple[int, ...]) -> Case:
    return Case(name, make, ramps(*shapes))


CASES = (
    _simple("nested_modules", _nested, (2, 2)),
    _simple("shared_module", _shared_module, (2, 2)),
    _simple("tied_parameters", _tied, (1, 2)),
    _simple("repeated_module", lambda: Parts(_repeat, step=nn.Linear(2, 2)), (1, 2)),
    _simple("hooks", _hooked, (1, 2)),
    _simple("batch_norm_train", lambda: nn.BatchNorm1d(2), (4, 2)),
    _simple("batch_norm_eval", lambda: _train(nn.BatchNorm1d(2), False), (4, 2)),
    _simple("dropout_eval", lambda: _train(nn.Sequential(nn.Dropout(0.5), nn.ReLU(inplace=True)), False), (3,)),
    _simple("convolution", lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.AdaptiveAvgPool2d(1)), (1, 1, 3, 3)),
    # Below, an LSTM is what the processor's library makes of it.
    Case("lstm", lambda: nn.LSTM(2, 3), ramps((2, 1, 2)), needs=("functions",)),
    _simple("lstm_cell_loop", lambda: Parts(_lstm_loop, cell=nn.LSTMCell(2, 3)), (2, 1, 2)),
    Case(
        "embedding",
        lambda: Parts(_embed, table=nn.Embedding(5, 3, padding_idx=0), out=nn.Linear(3, 1)),
        lambda: (torch.tensor([[1, 2], [3, 0]]),),
    ),
    _simple("no_tensors", lambda: Parts(_no_tensors, depth=_Depth()), (2,)),
    _simple("constant_attribute", _Scaled, (2,)),
    _simple("early_exit", lambda: Parts(_early_exit, first=nn.ReLU(), second=nn.Tanh()), (2,)),
    _simple("functional_call", lambda: Parts(_functional_call, linear=nn.Linear(2, 2)), (2, 2)),
    _simple("weight_norm", lambda: parametrizations.weight_norm(nn.Linear(2, 2)), (1, 2)),
    _simple("parameter_returned", lambda: Parts(lambda self, x: self.p, p=nn.Parameter(torch.ones(2))), (1,)),
    _simple(
        "transformer_layer",
        lambda: nn.TransformerEncoderLayer(4, 2, 4, dropout=0.0, activation="gelu", batch_first=True),
        (1, 3, 4),
    ),
)
