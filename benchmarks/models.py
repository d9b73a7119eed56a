"""The models that all benchmarks run on: small ones bound by the number of operations, and usual ones."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from lens.model_specs import import_torchvision


class Case(NamedTuple):
    """A model and the arguments of its forward pass."""

    model: nn.Module
    args: tuple[Any, ...]


class Steps(nn.Module):
    """Does the same in every step, with the same parts."""

    def __init__(self, steps, **parts):
        super().__init__()
        self.steps = steps
        for name, part in parts.items():
            self.add_module(name, part)


class Chain(Steps):
    """Builtin functions only, no modules inside: nothing but overhead."""

    def forward(self, x):
        for _ in range(self.steps):
            x = torch.relu(x + 1.0)
        return x


class LinearLoop(Steps):
    """``x = relu(fc(x))``, many times."""

    def __init__(self, steps):
        super().__init__(steps, fc=nn.Linear(8, 8))

    def forward(self, x):
        for _ in range(self.steps):
            x = torch.relu(self.fc(x))
        return x


class RNN(Steps):
    """A hand-written recurrent network: ``h = tanh(inward(x) + across(h))``."""

    def __init__(self, steps, width=32):
        super().__init__(steps, inward=nn.Linear(width, width), across=nn.Linear(width, width))
        self.width = width

    def forward(self, x):
        h = torch.zeros(x.shape[0], self.width)
        for _ in range(self.steps):
            h = torch.tanh(self.inward(x) + self.across(h))
        return h


class CellLoop(Steps):
    """An ``nn.LSTMCell``, called many times."""

    def __init__(self, steps):
        super().__init__(steps, cell=nn.LSTMCell(8, 8))

    def forward(self, x):
        h = c = torch.zeros(1, 8)
        for _ in range(self.steps):
            h, c = self.cell(x, (h, c))
        return h


class WhileLoop(Steps):
    """Rounds of a ``while`` whose condition is a tensor."""

    def __init__(self, steps):
        super().__init__(steps, fc=nn.Linear(8, 8))

    def forward(self, x):
        count = torch.zeros(())
        while count < self.steps:
            x = torch.relu(self.fc(x))
            count = count + 1
        return x


def vision(name: str, size: int, batch: int = 1) -> Case:
    return Case(getattr(import_torchvision().models, name)(), (torch.randn(batch, 3, size, size),))


def _language(name: str, **options: Any) -> Case:
    import_torchvision()  # which transformers imports, if it is there
    import transformers

    config = getattr(transformers, f"{name}Config")(**options)
    return Case(getattr(transformers, f"{name}Model")(config), (torch.randint(0, 1000, (1, 16)),))


def _loop(cls: type[Steps], steps: int) -> Case:
    return Case(cls(steps), (torch.randn(1, 8),))


SMALL_GPT2 = {"n_layer": 12, "n_embd": 192, "n_head": 6, "vocab_size": 1000, "use_cache": False}
CASES: dict[str, Callable[[], Case]] = {
    "resnet50@64": lambda: vision("resnet50", 64),
    "resnet18@224": lambda: vision("resnet18", 224),
    "densenet121@64": lambda: vision("densenet121", 64),
    "vit_b_16@224": lambda: vision("vit_b_16", 224),
    "swin_t@224": lambda: vision("swin_t", 224),
    "rnn300": lambda: Case(RNN(300), (torch.randn(1, 32),)),
    "gpt2-12x192": lambda: _language("GPT2", **SMALL_GPT2),
    "bert": lambda: _language("Bert"),
    "lstmcell2000": lambda: _loop(CellLoop, 2000),
    "while1000": lambda: _loop(WhileLoop, 1000),
    "chain2000": lambda: _loop(Chain, 2000),
    "linear500": lambda: _loop(LinearLoop, 500),
}


def make_case(name: str) -> Case:
    """A model in eval mode with random weights, the same in every process."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    case = CASES[name]()
    case.model.eval()
    return case
