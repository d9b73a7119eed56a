"""One small model per item of the paper's visual code (Figures 2 and 3), for golden drawings."""

import torch
from models import Conditional, LSTMLoop, Raises, TwoBranches
from torch import nn


class Functions(nn.Module):
    """2A: a chain of operations, in a module and not, and one that makes a tensor."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(torch.sin(x)) + torch.rand(2, 3)


class Nested(nn.Module):
    """2C: modules in modules."""

    def __init__(self):
        super().__init__()
        inner = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
        self.outer = nn.Sequential(inner, nn.Dropout(0.0), nn.Linear(3, 2))

    def forward(self, x):
        return torch.tanh(self.outer(x))


class Arguments(nn.Module):
    """2D: positions and names of arguments; none where the order does not matter."""

    def forward(self, x, y):
        ratio = torch.div(x, other=y)
        joined = torch.cat([ratio, x])
        scaled = torch.add(joined, joined.sin(), alpha=2)
        return scaled + joined, torch.where(ratio > 0, input=x, other=y)


class Buffers(nn.Module):
    """2E: a buffer is drawn, running statistics are not."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("scale", torch.ones(3))

    def forward(self, x):
        return self.norm(x) * self.scale


class Figure3A(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        x = self.fc(torch.cos(x)) + 1
        x = torch.sin(x)
        return self.fc(torch.cos(x)) + 1


class Figure3B(nn.Module):
    def forward(self, x):
        for _ in range(2):
            x = torch.relu(torch.cos(x)) * 2
        x = torch.tan(x)
        return torch.relu(torch.cos(x)) * 2


class While(nn.Module):
    """A condition evaluated several times, in a module called several times."""

    def __init__(self):
        super().__init__()
        self.step = nn.Sequential(nn.Linear(2, 2), nn.ReLU())

    def forward(self, x):
        while x.sum() < 20:
            x = self.step(x) + x + 3
        return x


class Escapes(nn.Module):
    """Values that leave the graph, and one that comes from outside."""

    def forward(self, x):
        scale = x.mean().item()
        outside = torch.from_numpy(torch.relu(x).detach().numpy() + 1)
        return x * scale + outside


DRAWN = {
    "2a": (Functions, (2, 3)),
    "2b": (TwoBranches, (2, 4)),
    "2c": (Nested, (2, 3)),
    "2d": (Arguments, (2, 3), (2, 3)),
    "2e": (Buffers, (2, 3)),
    "2f": (Conditional, (2, 3)),
    "3a": (Figure3A, (2, 3)),
    "3b": (Figure3B, (2, 3)),
    "while": (While, (1, 2)),
    "lstm": (LSTMLoop, (3, 2, 4)),
    "escapes": (Escapes, (2, 3)),
    "fault": (lambda: Raises(ValueError("inside")), (2, 4)),
}
