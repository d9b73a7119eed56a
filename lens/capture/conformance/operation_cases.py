"""Which operations there are: operators, functions under several names, composites, several results, constructors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn, tanh
from torch.nn.functional import gelu, softmax

from lens.capture.conformance.case import Body, Case, Parts, of, ramps


def _chain(x: Tensor, y: Tensor) -> Tensor:
    return torch.sigmoid((x @ y).relu() - 1).sum(dim=-1, keepdim=True)


def _operators(x: Tensor, y: Tensor) -> Tensor:
    z = 1 - x + 2 * y / 3 - (x - y) ** 2
    z = -z % 2 + abs(x) // 0.5 + 2**y + 1 / (3 + y)
    return z * (x > y) * ~(x == y) + (+x) ** 3


def _integer_operators(x: Tensor) -> Tensor:
    i = x.long()
    return ((i & 3) | (1 << i.abs())) ^ (i >> 1) ^ (5 & i) if len(i) else i


def _aliases(x: Tensor) -> Tensor:
    y = torch.special.expit(torch.nn.functional.relu(x)) + nn.functional.relu(x) + torch.relu(x) + x.relu()
    return torch.linalg.norm(y, dim=0) + torch.fft.fft(x).real[0] + torch.sum(y) + torch._VF.tanh(y)[0]


def _bound_early(x: Tensor) -> Tensor:
    return softmax(gelu(tanh(x)), dim=0)


def _several_results(x: Tensor) -> Tensor:
    values, indices = x.max(dim=1)
    a, b = x.split(1)
    c, *_ = torch.unbind(x, 1)
    top = torch.topk(x, 2)
    return a + b + values.sum() * indices[0] + c[0] + top.values[0, 0]


def _iterate(x: Tensor) -> Tensor:
    total = torch.zeros(3)
    for row in x:
        total = total + row
    return torch.stack([total, *x]).unique(dim=0)


def _generator(x: Tensor) -> Tensor:
    def steps() -> Iterator[Tensor]:
        y = x
        while True:
            y = y * 2
            yield y

    it = steps()
    return next(it) + next(it)


def _constructors(x: Tensor) -> Tensor:
    y = torch.zeros(2) + torch.arange(2) + torch.tensor([1.0, 2.0]) + torch.full((2,), 3.0)
    return y + x.new_ones(2) + torch.empty_like(x).fill_(1) + torch.eye(2)[0] + torch.as_tensor(x)


def _numbers_in_lists(x: Tensor) -> Tensor:
    return torch.tensor([x.sum(), x.max()]) + torch.as_tensor([x[0], 2.0])


def _random(x: Tensor) -> Tensor:
    source = torch.Generator().manual_seed(1)
    y = torch.rand(2) + torch.randn_like(x) + torch.randn(2, generator=source)
    return y + torch.bernoulli(x.abs()) + torch.empty(2).uniform_() + torch.randperm(2) + nn.functional.dropout(x, 0.5)


def _external(x: Tensor) -> Tensor:
    return x + torch.frombuffer(bytearray(16), dtype=torch.float32)


def _einsum(x: Tensor, y: Tensor) -> Tensor:
    return torch.einsum("ij,jk->ik", x, y) + torch.tensordot(x, y, dims=1)


def _interpolate(x: Tensor) -> Tensor:
    return nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def _pooling(x: Tensor) -> Tensor:
    y, where = nn.functional.max_pool2d(x, 2, return_indices=True)
    return (
        nn.functional.max_unpool2d(y, where, [2, 2])
        + nn.functional.adaptive_avg_pool2d(x, 1)
        + nn.functional.max_pool2d(x, 1)
    )


def _losses(x: Tensor) -> Tensor:
    target = torch.tensor([0, 2])
    return nn.functional.cross_entropy(x, target, label_smoothing=0.1) + nn.functional.mse_loss(
        x.softmax(1), nn.functional.one_hot(target, 3).float()
    )


def _normalise(x: Tensor) -> Tensor:
    return (
        nn.functional.layer_norm(nn.functional.normalize(x, dim=1), (4,))
        + nn.functional.group_norm(x, 2)
        + nn.functional.log_softmax(x, dim=-1)
    )


def _tensor_methods(x: Tensor) -> Tensor:
    return x.norm() + x.unflatten(0, (2, 2)).sum() + x.split(2)[0].sum() + x.unique().sum() + 2 ** -x.sum()


def _attention(x: Tensor) -> Tensor:
    return nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)


def _operator_registry(x: Tensor) -> Tensor:
    return torch.ops.aten.add(torch.ops.aten.relu.default(x), x)


def _complex(x: Tensor) -> Tensor:
    y = torch.polar(x.abs(), x) * 1j
    return torch.view_as_real(y.conj().resolve_conj()).sum(-1)


def _sparse(x: Tensor) -> Tensor:
    return torch.sparse.mm(x.to_sparse(), x) + torch.mm(x, x)


def _attend(self: Any, x: Tensor) -> Tensor:
    out: Tensor = self.attention(x, x, x, need_weights=False)[0]
    return out


def _fast_attention() -> nn.Module:
    return Parts(_attend, attention=nn.MultiheadAttention(4, 2, batch_first=True)).eval().requires_grad_(False)


def _attention_module() -> nn.Module:
    return nn.MultiheadAttention(4, 2, batch_first=True)


CASES = (
    of(_chain, (2, 3), (3, 2)),
    of(_operators, (4,), (4,)),
    of(_integer_operators, (4,)),
    of(_aliases, (4,)),
    of(_bound_early, (4,)),
    of(_several_results, (2, 3)),
    of(_iterate, (2, 3)),
    of(_generator, (2,)),
    of(_constructors, (2,)),
    of(_numbers_in_lists, (2,), needs=("functions",)),  # an operator shows nothing of the tensors it was made from
    of(_random, (2,)),
    of(_external, (4,)),
    of(_einsum, (2, 2), (2, 2)),
    of(_interpolate, (1, 1, 2, 2)),
    of(_pooling, (1, 1, 4, 4)),
    of(_losses, (2, 3)),
    of(_normalise, (2, 4)),
    of(_tensor_methods, (4,)),
    of(_attention, (1, 2, 3, 4)),
    of(_operator_registry, (3,)),
    of(_complex, (3,)),
    of(_sparse, (2, 2)),
    Case("attention_module", _attention_module, ramps((1, 3, 4), (1, 3, 4), (1, 3, 4))),
    Case("attention_fast_path", _fast_attention, ramps((1, 3, 4)), needs=("fast_paths",)),
    Case("function_attribute", lambda: Body(torch.tanh), ramps((2,))),
)
