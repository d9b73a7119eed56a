"""Models with the program that each runs, written down by hand: what the attributes of the paper's table must be.

A program is run here line by line with plain torch, so that every tensor, argument, gradient node and state of the
random number generator has a second source.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from attrs import define, field
from models import Conditional, TwoBranches
from torch import nn


@define
class Line:
    """One call: the labels of its results, the function, its arguments, and where it stands."""

    names: tuple[str, ...]
    function: Callable[..., Any]
    args: Callable[[dict[str, Any], Any], tuple[Any, ...]]
    kwargs: dict[str, Any] = field(factory=dict)
    modules: tuple[str, ...] = ()
    exits: tuple[str, ...] = ()
    in_place: bool = False
    condition: bool = False
    alone: bool = False
    draws: bool = False


@define
class Leaf:
    """An input (then it has a position) or a buffer: its label, its address, and the module whose it is."""

    name: str
    address: str
    modules: tuple[str, ...] = ()
    position: int | None = None


@define
class Case:
    """A model with its inputs and program; ``enters`` are the modules that each entry is handed to."""

    model: Any
    args: tuple[torch.Tensor, ...]
    program: list[Line | Leaf]
    outputs: dict[str, str]
    enters: dict[str, tuple[str, ...]] = field(factory=dict)
    seed: int = 3


@define
class Fact:
    """What the program says of one entry."""

    name: str
    line: Line | Leaf | None
    operation: int | None
    tensor: torch.Tensor
    grad: str | None
    parents: list[str]
    args: tuple[Any, ...] = ()
    index: int = 0
    params: list[torch.Tensor] = field(factory=list)
    state: torch.Tensor | None = None


def run(case: Case) -> dict[str, Fact]:
    """Run the program of a case on its model and input, and say what each entry must be, in order."""
    torch.manual_seed(case.seed)
    live: dict[str, Any] = {}
    named: dict[int, str] = {}  # the latest name of each tensor
    facts: dict[str, Fact] = {}
    number = 0
    for line in case.program:
        if isinstance(line, Leaf):
            is_buffer = line.position is None
            tensor = case.model.get_buffer(line.address) if is_buffer else case.args[line.position]
            live[line.name], named[id(tensor)] = tensor, line.name
            facts[line.name] = Fact(line.name, line, None, tensor.clone(), _grad(tensor), [])
            continue
        number += 1
        args = line.args(live, case.model)
        given = [t for arg in (*args, *line.kwargs.values()) for t in _tensors(arg)]
        parents = list(dict.fromkeys(named[id(t)] for t in given if id(t) in named))
        params = list({id(t): t for t in given if isinstance(t, nn.Parameter)}.values())
        before = tuple(_copied(arg) for arg in args)
        state = torch.get_rng_state() if line.draws else None
        result = line.function(*args, **line.kwargs)
        for index, (name, tensor) in enumerate(zip(line.names, _tensors(result), strict=True)):
            live[name], named[id(tensor)] = tensor, name
            facts[name] = Fact(
                name, line, number, tensor.detach().clone(), _grad(tensor), parents, before, index, params, state
            )
    for label, source in case.outputs.items():
        facts[label] = Fact(label, None, None, facts[source].tensor, facts[source].grad, [source])
    return facts


def _grad(tensor: torch.Tensor) -> str | None:
    return None if tensor.grad_fn is None else type(tensor.grad_fn).__name__


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for part in value for t in _tensors(part)] if isinstance(value, (list, tuple)) else []


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    return type(value)(_copied(part) for part in value) if isinstance(value, (list, tuple)) else value


class Branching(nn.Module):
    def forward(self, x, y):
        a = torch.relu(x)
        return torch.cat([torch.sin(a) + torch.cos(a), a, y], 1)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.fc.bias.requires_grad_(False)

    def forward(self, x):
        for _ in range(3):
            x = torch.relu(self.fc(x))
        return x


class Several(nn.Module):
    def forward(self, x):
        values, _ = x.max(dim=1)
        left, _, right = x.chunk(3, dim=1)
        return {"sum": left + right, "top": values}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(self.conv(x))


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = Block(), Block()

    def forward(self, x):
        y = self.a(x)
        return self.b(y) + y


def _weights(address: str) -> Callable[[Any], tuple[Any, Any]]:
    return lambda model: (model.get_submodule(address).weight, model.get_submodule(address).bias)


def _linear(source: str, address: str) -> Callable[[dict[str, Any], Any], tuple[Any, ...]]:
    return lambda v, m: (v[source], *_weights(address)(m))


def _conv(source: str, address: str, padding: int = 0) -> Callable[[dict[str, Any], Any], tuple[Any, ...]]:
    return lambda v, m: (v[source], *_weights(address)(m), (1, 1), (padding, padding), (1, 1), 1)


def _of(*sources: Any) -> Callable[[dict[str, Any], Any], tuple[Any, ...]]:
    return lambda v, m: tuple(v[s] if isinstance(s, str) else s for s in sources)


def feedforward() -> Case:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    alone = {"alone": True}
    return Case(
        model,
        (torch.randn(2, 3, 6, 6),),
        [
            Leaf("input_1", "input", position=0),
            Line(("conv2d_1_1",), torch.conv2d, _conv("input_1", "0"), modules=("0",), exits=("0",), **alone),
            Line(("relu_1_2",), torch.relu, _of("conv2d_1_1"), modules=("1",), exits=("1",), **alone),
            Line(("flatten_1_3",), torch.Tensor.flatten, _of("relu_1_2", 1, -1), modules=("2",), exits=("2",), **alone),
            Line(("linear_1_4",), F.linear, _linear("flatten_1_3", "3"), modules=("3",), exits=("3",), **alone),
        ],
        {"output_1": "linear_1_4"},
        {"input_1": ("0",), "conv2d_1_1": ("1",), "relu_1_2": ("2",), "flatten_1_3": ("3",)},
    )


def branching() -> Case:
    return Case(
        Branching(),
        (torch.randn(2, 4, requires_grad=True), torch.randn(2, 1)),
        [
            Leaf("input_1", "x", position=0),
            Leaf("input_2", "y", position=1),
            Line(("relu_1_1",), torch.relu, _of("input_1")),
            Line(("sin_1_2",), torch.sin, _of("relu_1_1")),
            Line(("cos_1_3",), torch.cos, _of("relu_1_1")),
            Line(("add_1_4",), torch.Tensor.add, _of("sin_1_2", "cos_1_3")),
            Line(("cat_1_5",), torch.cat, lambda v, m: ([v["add_1_4"], v["relu_1_1"], v["input_2"]], 1)),
        ],
        {"output_1": "cat_1_5"},
    )


def recurrent() -> Case:
    lines: list[Line | Leaf] = [Leaf("input_1", "x", position=0)]
    enters = {"input_1": ("fc:1",)}
    source = "input_1"
    for n in (1, 2, 3):
        call = f"fc:{n}"
        linear, relu = f"linear_1_1:{n}", f"relu_1_2:{n}"
        lines.append(Line((linear,), F.linear, _linear(source, "fc"), modules=(call,), exits=(call,), alone=True))
        lines.append(Line((relu,), torch.relu, _of(linear)))
        if n < 3:
            enters[relu] = (f"fc:{n + 1}",)
        source = relu
    return Case(Recurrent(), (torch.randn(2, 4),), lines, {"output_1": source}, enters)


def conditional() -> Case:
    return Case(
        Conditional(),
        (torch.randn(3, 4),),
        [
            Leaf("input_1", "x", position=0),
            Line(("sub_1_1",), torch.Tensor.sub, _of("input_1", 5), condition=True),
            Line(("mean_1_2",), torch.mean, _of("sub_1_1"), condition=True),
            Line(("gt_1_3",), torch.Tensor.gt, _of("mean_1_2", 3), condition=True),
            Line(("cos_1_4",), torch.cos, _of("input_1")),
        ],
        {"output_1": "cos_1_4"},
    )


def noise_and_buffer() -> Case:
    return Case(
        TwoBranches(),
        (torch.randn(2, 4),),
        [
            Leaf("input_1", "x", position=0),
            Line(("linear_1_1",), F.linear, _linear("input_1", "fc"), modules=("fc",), exits=("fc",), alone=True),
            Line(("relu_1_2",), torch.relu, _of("linear_1_1")),
            Line(("rand_1_3",), torch.rand, _of(2, 4), draws=True),
            Line(("add_1_4",), torch.Tensor.add, _of("relu_1_2", "rand_1_3")),
            Leaf("buffer_1", "scale"),
            Line(("div_1_5",), torch.Tensor.div, _of("add_1_4", "buffer_1")),
        ],
        {"output_1": "div_1_5"},
        {"input_1": ("fc",)},
    )


def several_outputs() -> Case:
    return Case(
        Several(),
        (torch.randn(4, 6),),
        [
            Leaf("input_1", "x", position=0),
            Line(("max_1_1", "max_2_2"), torch.Tensor.max, _of("input_1"), {"dim": 1}),
            Line(("chunk_1_3", "chunk_2_4", "chunk_3_5"), torch.Tensor.chunk, _of("input_1", 3), {"dim": 1}),
            Line(("add_1_6",), torch.Tensor.add, _of("chunk_1_3", "chunk_3_5")),
        ],
        {"output_1": "add_1_6", "output_2": "max_1_1"},
    )


def nested_in_place() -> Case:
    def block(name: str, source: str, k: int, n: int) -> list[Line | Leaf]:
        conv, relu = f"conv2d_{k}_{n}", f"relu_{k}_{n + 1}"
        inner, act = f"{name}.conv", f"{name}.act"
        return [
            Line((conv,), torch.conv2d, _conv(source, inner, 1), modules=(name, inner), exits=(inner,), alone=True),
            Line((relu,), torch.relu_, _of(conv), modules=(name, act), exits=(name, act), in_place=True, alone=True),
        ]

    return Case(
        Nested(),
        (torch.randn(1, 2, 5, 5),),
        [
            Leaf("input_1", "x", position=0),
            *block("a", "input_1", 1, 1),
            *block("b", "relu_1_2", 2, 3),
            Line(("add_1_5",), torch.Tensor.add, _of("relu_2_4", "relu_1_2")),
        ],
        {"output_1": "add_1_5"},
        {
            "input_1": ("a", "a.conv"),
            "conv2d_1_1": ("a.act",),
            "relu_1_2": ("b", "b.conv"),
            "conv2d_2_3": ("b.act",),
        },
    )


def statistics() -> Case:
    model = nn.Sequential(nn.BatchNorm1d(4))  # in train mode: the buffers are written to
    one = {"modules": ("0",)}
    return Case(
        model,
        (torch.randn(8, 4),),
        [
            Leaf("input_1", "input", position=0),
            Leaf("buffer_1", "0.running_mean", ("0",)),
            Leaf("buffer_2", "0.running_var", ("0",)),
            Line(
                ("batchnorm_1_1",),
                torch.batch_norm,
                lambda v, m: (
                    v["input_1"], m[0].weight, m[0].bias, v["buffer_1"], v["buffer_2"], True, 0.1, 1e-5, True,
                ),
                exits=("0",),
                alone=True,
                **one,
            ),
        ],
        {"output_1": "batchnorm_1_1"},
        {"input_1": ("0",)},
    )  # fmt: skip


CASES = {
    case.__name__: case
    for case in (
        feedforward,
        branching,
        recurrent,
        conditional,
        noise_and_buffer,
        several_outputs,
        nested_in_place,
        statistics,
    )
}
