"""Views, writes in place and through views, ``out=``, ``.data``: which value each operation reads."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lens.capture.conformance.case import Case, Parts, of, ramps


def _views(x: Tensor) -> Tensor:
    y = x.view(3, 4).t()
    return y[1:3, None].expand(2, 2, 3).squeeze() + y.narrow(0, 0, 1)


def _in_place(x: Tensor) -> Tensor:
    y = x + 1
    y.mul_(2).add_(x)
    y += 3
    return y.relu_()


def _in_place_through_view(x: Tensor) -> Tensor:
    y = x * 2
    y[:, :2].mul_(3)
    return y.sum()


def _overlapping_views(x: Tensor) -> Tensor:
    y = x + 0
    left, right = y[:4], y[2:]
    left.zero_()
    return right.sum() * y


def _disjoint_views(x: Tensor) -> Tensor:
    y = x + 0
    left, right = y[:3], y[3:]
    left.zero_()
    return right * 2


def _as_strided(x: Tensor) -> Tensor:
    y = x * 1
    torch.as_strided(y, (2, 2), (1, 1)).add_(1)
    return y


def _set_item(x: Tensor) -> Tensor:
    y = x.clone()
    y[0] = 7.0
    y[:, 1] = x[:, 0]
    y[y > 0.5] = 0
    y[torch.tensor([0, 1]), ...] = -1
    return y


def _augmented_item(x: Tensor) -> Tensor:
    y = x + 1
    y[0] += x[1]
    y[:, :1] *= 2
    return y


def _out_argument(x: Tensor) -> Tensor:
    y = torch.empty(2, 3)
    torch.mul(x, 2, out=y)
    torch.add(y, x, out=y[:1].resize_(0))
    return y.neg()


def _foreach(x: Tensor, y: Tensor) -> Tensor:
    parts = [x * 1, y * 1]
    torch._foreach_mul_(parts, 2.0)
    more = torch._foreach_add(parts, 1.0)
    return parts[0] + more[1].sum()


def _data_attribute(x: Tensor) -> Tensor:
    y = x * 2
    y.data.add_(1)
    z = y + 1
    z.data = x * 3
    return z * y


def _set_memory(x: Tensor) -> Tensor:
    y = torch.zeros(6)
    y.set_(x + 1)  # type: ignore[call-overload]  # torch's stubs know storages only
    return y * 2


def _detach(x: Tensor) -> Tensor:
    y = x * 2
    z = y.detach()
    z.zero_()
    return y + z.requires_grad_()


def _input_written(x: Tensor) -> Tensor:
    x.add_(1)
    return x * 2


def _copies(x: Tensor) -> Tensor:
    y = copy.deepcopy(x)
    y.copy_(x + 1)
    return y.contiguous().clone().to(torch.float64).type_as(x)


def _identities(x: Tensor) -> Tensor:
    return x.contiguous().float().reshape(6).expand(6)


def _properties(x: Tensor) -> Tensor:
    z = torch.complex(x, x.T.mT)
    z.real.mul_(2)
    z.imag = x
    return z.H.abs() + z.imag.T


def _write_buffer(self: Any, x: Tensor) -> Tensor:
    self.count += 1
    self.last[0] = x.sum()
    return x * self.count


def _replace_buffer(self: Any, x: Tensor) -> Tensor:
    self.state = self.state * 0.5 + x
    return self.state.tanh()


def _write_parameter(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        self.weight.clamp_(max=0.5)
    return x * self.weight


def _inference_mode(x: Tensor) -> Tensor:
    with torch.inference_mode():
        y = x * 2
        y[0].add_(1)
        return y + 1


CASES = (
    of(_views, (12,)),
    of(_in_place, (2, 3)),
    of(_in_place_through_view, (2, 4)),
    of(_overlapping_views, (6,)),
    of(_disjoint_views, (6,), name="disjoint_views"),
    of(_as_strided, (4,)),
    of(_set_item, (2, 3)),
    of(_augmented_item, (2, 3)),
    of(_out_argument, (2, 3)),
    of(_foreach, (3,), (2,)),
    of(_data_attribute, (4,)),
    of(_set_memory, (6,), needs=("untold_writes",)),
    of(_detach, (4,)),
    of(_input_written, (3,)),
    of(_copies, (6,), needs=("functions",)),  # below, a deepcopy is bytes that come from outside
    of(_identities, (6,)),
    of(_properties, (3, 3), needs=("untold_writes",)),
    Case("write_buffer", lambda: Parts(_write_buffer, count=torch.tensor(0), last=torch.zeros(2)), ramps((2,))),
    Case("replace_buffer", lambda: Parts(_replace_buffer, state=torch.ones(2)), ramps((2,))),
    Case("write_parameter", lambda: Parts(_write_parameter, weight=nn.Parameter(torch.ones(2))), ramps((2,))),
    of(_inference_mode, (2, 2)),
)
