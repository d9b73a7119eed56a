"""The model of the committed trace files (tests/data): a buffer, noise, an in-place write, a condition, passes."""

import torch
from torch import nn


class FileModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, x):
        for _ in range(2):
            x = torch.relu(self.fc(x))
        y = x + torch.rand(2, 3)
        y[:, :1].mul_(2)
        if y.sum() > 0:
            y = y / self.scale
        return {"y": y, "big": y.topk(1)}
