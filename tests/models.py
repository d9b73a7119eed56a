"""Small models for the tests."""

import torch
import torch.nn.functional as F
from torch import nn


class TwoBranches(nn.Module):
    """Functions, modules, a buffer, an operator with argument positions, and noise."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0, 4.0]))

    def forward(self, x):
        y = F.relu(self.fc(x))
        noise = torch.rand(2, 4)
        return (y + noise) / self.scale


class Conditional(nn.Module):
    def forward(self, x):
        if torch.mean(x - 5) > 3:
            return torch.sin(x)
        return torch.cos(x)


class InPlaceThroughView(nn.Module):
    def forward(self, x):
        y = x * 2
        view = y[:, :2]
        view.mul_(3)
        return y.sum()


class SetItem(nn.Module):
    def forward(self, x):
        y = x + 1
        y[0] = 7.0
        return y * 2


class InPlaceReLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.conv(x)) + 1


class Containers(nn.Module):
    def forward(self, batch, scale=1.0):
        image = batch["image"] * scale
        return {"image": image, "parts": [image[0], image[1]], "size": 3}


class LSTMLoop(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(4, 8)

    def forward(self, x):
        h = c = torch.zeros(x.shape[1], 8)
        for step in x:
            h, c = self.cell(step, (h, c))
        return h


class Raises(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.error = error

    def forward(self, x):
        y = torch.relu(self.fc(x))
        if y.shape[0] == 2:
            raise self.error
        return y


class Body(nn.Module):
    """A function as the forward of a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)
