"""Small models of the gallery: loops, conditions, noise, buffers, and the figures of the paper."""

import torch
from torch import nn


class LSTMCellLoop(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(4, 8)
        self.readout = nn.Linear(8, 2)

    def forward(self, steps):
        h = c = torch.zeros(steps.shape[1], 8)
        for step in steps:
            h, c = self.cell(step, (h, c))
        return self.readout(h)


class FeedbackConvolution(nn.Module):
    """Lateral recurrence over time, as in models of the visual cortex."""

    def __init__(self):
        super().__init__()
        self.bottom_up = nn.Conv2d(3, 8, 3, padding=1)
        self.lateral = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.decoder = nn.Linear(8, 5)

    def forward(self, image):
        drive = self.bottom_up(image)
        state = torch.relu(drive)
        for _ in range(4):
            state = torch.relu(self.norm(drive + self.lateral(state)))
        return self.decoder(state.mean((2, 3)))


class EarlyExit(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        for stage in self.stages:
            x = torch.relu(stage(x))
            if self.head(x).softmax(-1).max() > 0.9:
                break
        return self.head(x)


class WhileLoop(nn.Module):
    def __init__(self):
        super().__init__()
        self.step = nn.Linear(4, 4)

    def forward(self, x):
        while x.sum() < 40:
            x = torch.relu(self.step(x)) + x + 5
        return torch.sin(x)


class NoiseAndBuffers(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(4, 8), nn.Linear(4, 4)
        self.register_buffer("scale", torch.full((4,), 2.0))

    def forward(self, x):
        mean, spread = self.encode(x).chunk(2, -1)
        sample = mean + torch.exp(spread / 2) * torch.randn(mean.shape)
        return self.decode(sample) / self.scale


class Figure3A(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        x = self.linear(torch.cos(x)) + 1
        x = torch.sin(x)
        return (self.linear(torch.cos(x)) + 1) * 2


class Figure3B(nn.Module):
    def forward(self, x):
        for _ in range(2):
            x = torch.relu(torch.cos(x)) * 2
        x = torch.tan(x)
        return torch.relu(torch.cos(x)) * 2


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, left, right):
        return torch.cosine_similarity(self.tower(left), self.tower(right))


SMALL_MODELS = {
    "lstm_cell_loop": lambda: (LSTMCellLoop(), (torch.randn(5, 2, 4),), {}),
    "feedback_convolution": lambda: (FeedbackConvolution(), (torch.randn(1, 3, 16, 16),), {}),
    "early_exit": lambda: (EarlyExit(), (torch.randn(1, 8),), {}),
    "while_loop": lambda: (WhileLoop(), (torch.ones(1, 4),), {}),
    "noise_and_buffers": lambda: (NoiseAndBuffers(), (torch.randn(1, 4),), {}),
    "figure_3a": lambda: (Figure3A(), (torch.randn(2, 4),), {}),
    "figure_3b": lambda: (Figure3B(), (torch.randn(2, 4),), {}),
    "siamese": lambda: (Siamese(), (torch.randn(1, 6), torch.randn(1, 6)), {}),
}
