"""What happens in a run: reads and control flow, containers, autograd, checkpoints, modes, errors."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lens.capture.conformance.case import Body, Case, Parts, of, ramp


class _Pair(NamedTuple):
    first: Tensor
    second: Any


def _condition(x: Tensor) -> Tensor:
    if x.mean() > 0.5:
        return x.sin()
    if x.max() < 2 and not (x == 0).any():
        return x.cos()
    return x.neg()


def _while_loop(x: Tensor) -> Tensor:
    while x.abs().max() > 0.3:
        x = x / 2
    return x


def _numbers(x: Tensor) -> Tensor:
    scale = x.max().item() + float(x[0]) + int(x[-1]) + x.tolist()[0]
    return x * scale + [1, 2, 3][x.argmax()]


def _assertion(x: Tensor) -> Tensor:
    torch._assert((x < 5).all(), "too big")
    assert torch.isfinite(x).all()
    return x * 2


def _containers(batch: dict[str, Any], scale: Tensor) -> dict[str, Any]:
    first, (second,) = batch["parts"]
    return {"sum": first + second * scale, "pair": _Pair(first * 2, [second, 3, None]), "name": "x"}


def _keyword_arguments(x: Tensor, *, scale: Tensor, power: int = 1) -> Tensor:
    return torch.pow(input=x, exponent=power) * scale


def _same_twice(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = x + 1
    return y, x, y


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.mul(2).relu()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * 2


def _autograd_function(x: Tensor) -> Tensor:
    out: Tensor = _Double.apply(x + 1)
    return out * 3


def _checkpointed(self: Any, x: Tensor) -> Tensor:
    y: Tensor = checkpoint(self.block, x, use_reentrant=False)
    z: Tensor = checkpoint(lambda t: t.sin() * t, y, use_reentrant=False)
    return z


def _reentrant_checkpoint(self: Any, x: Tensor) -> Tensor:
    y: Tensor = checkpoint(self.block, x.requires_grad_(), use_reentrant=True)
    return y + 1


def _gradient(x: Tensor) -> Tensor:
    with torch.enable_grad():
        y = (x * 1).requires_grad_()
        energy = (y**2).sum()
    (grad,) = torch.autograd.grad(energy, y)
    return x - grad


def _autocast(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y: Tensor = self.linear(x)
    return y.float() + 1


def _raises(self: Any, x: Tensor) -> Tensor:
    y: Tensor = self.linear(x)
    return y + torch.ones(3, 5)


def _catches(x: Tensor) -> Tensor:
    try:
        x.reshape(7)
    except RuntimeError:
        return x + 1
    return x


def _catches_from_module(self: Any, x: Tensor) -> Tensor:
    try:
        self.part(x)
    except ValueError:
        x = x + 1
    return x * 2


def _refuse(x: Tensor) -> Tensor:
    raise ValueError(f"not this: {x.exp().shape}")


def _compared(x: Tensor) -> Tensor:
    y = x * 2
    if torch.equal(x, y):
        return y
    return y * complex(x[0])


def _linear(function: Any, **options: Any) -> Case:
    name = function.__name__.strip("_")
    return Case(name, lambda: Parts(function, linear=nn.Linear(2, 2)), lambda: (ramp(1, 2),), **options)


def _block(function: Any) -> Case:
    name = function.__name__.strip("_")
    return Case(name, lambda: Parts(function, block=nn.Sequential(nn.Linear(2, 2), nn.ReLU())), lambda: (ramp(1, 2),))


CASES = (
    of(_condition, (3,)),
    of(_while_loop, (3,)),
    of(_numbers, (3,)),
    of(_assertion, (3,)),
    Case(
        "containers",
        lambda: of(_containers).model(),
        lambda: ({"parts": (ramp(2), [ramp(2) + 1])}, ramp(1)),
    ),
    of(_keyword_arguments, (2,), kwargs={"scale": torch.full((2,), 3.0), "power": 2}),
    of(_same_twice, (2,)),
    of(_autograd_function, (2,)),
    _block(_checkpointed),
    _block(_reentrant_checkpoint),
    of(_gradient, (2,)),
    _linear(_autocast),
    _linear(_raises, errors=(RuntimeError,)),
    of(_catches, (3,)),
    Case("catches_from_module", lambda: Parts(_catches_from_module, part=Body(_refuse)), lambda: (ramp(2),)),
    of(_compared, (3,)),
)
