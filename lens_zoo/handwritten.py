"""Hand-written nets of the kinds that no library has: feedback, noise, decisions, loops of changing length."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from lens.model_specs import ModelCall


class Feedback(nn.Module):
    """Vision with top-down connections: the upper area of one step modulates the lower area of the next."""

    def __init__(self) -> None:
        super().__init__()
        self.lower = nn.Conv2d(3, 4, 3, padding=1)
        self.upper = nn.Conv2d(4, 6, 3, padding=1)
        self.down = nn.ConvTranspose2d(6, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Three steps, each with a normalisation of its own."""
        top: Tensor | None = None
        for norm in self.norms:
            bottom = self.lower(x)
            if top is not None:
                bottom = bottom + torch.sigmoid(self.down(top))
            top = functional.relu(self.upper(norm(bottom)))
        assert top is not None
        pooled: Tensor = top.mean((2, 3))
        return pooled


class Settling(nn.Module):
    """A net that runs until its state settles: the number of passes depends on the values."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """At most eight rounds."""
        state, change, rounds = torch.zeros_like(x), torch.tensor(1.0), 0
        while change > 0.05 and rounds < 8:
            new = self.cell(x, state)
            change, state, rounds = (new - state).abs().max(), new, rounds + 1
        return state


class Growing(nn.Module):
    """A recurrent net that attends to all of its past: shapes change from step to step."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.out = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """One step per row."""
        past = x[:1]
        for row in x[1:]:
            weights = torch.softmax(past @ self.query(row), 0)
            past = torch.cat([past, self.out(weights @ past)[None]])
        return past


class Deciding(nn.Module):
    """Experts chosen by the input, with ``if``, ``elif``, a conditional expression and ``assert``."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """One of three experts."""
        assert bool(torch.isfinite(x).all())
        if x.mean() > 3:
            y = self.experts[0](x)
        elif x.std() > 0.1:
            y = self.experts[1](x)
        else:
            y = self.experts[2](x)
        return torch.sigmoid(y) if (y > 0).any() else torch.neg(y)


class Branching(nn.Module):
    """Parallel ways of unlike depth, split, joined, with a tied weight and views written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.ways = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Sequential(nn.Linear(4, 4), nn.Tanh())})

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """Logits by the transposed embedding."""
        left, right = self.embed(tokens).chunk(2, -1)
        joined = torch.cat([self.ways["a"](left), self.ways["b"](right)], -1)
        joined[..., 0] += 1
        joined[..., 1:3].mul_(2)
        return {"logits": functional.linear(joined, self.embed.weight), "peak": joined.amax(-1)}


class Noisy(nn.Module):
    """Noise from the global and from an own generator, dropout that is always on, sampling."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        """Samples from a noisy categorical."""
        own = torch.Generator().manual_seed(3)
        y = self.fc(x) + torch.randn(6, generator=own) + torch.randn_like(x[:, :1])
        y = functional.dropout(y, 0.3, training=True)
        return y.gather(1, torch.multinomial(y.softmax(-1), 2))


class Siamese(nn.Module):
    """One encoder for two images, one of them through an address of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten())
        self.twin = self.encoder

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """How far apart the images are."""
        return functional.cosine_similarity(self.encoder(a), self.twin(b))


class Sequences(nn.Module):
    """Packed sequences through a bidirectional LSTM, and a loop over its cells."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 5, bidirectional=True, batch_first=True)
        self.cell = nn.LSTMCell(10, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The last state of the loop."""
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        h = c = y.new_zeros(x.shape[0], 3)
        for step in y.unbind(1):
            h, c = self.cell(step, (h, c))
        return h


def _rows() -> tuple[Tensor, ...]:
    return (torch.randn(3, 4),)


def _images(count: int) -> tuple[Tensor, ...]:
    return tuple(torch.randn(2, 3, 8, 8) for _ in range(count))


_NETS: dict[str, tuple[type[nn.Module], Callable[[], tuple[Tensor, ...]]]] = {
    "feedback": (Feedback, lambda: _images(1)),
    "settling": (Settling, _rows),
    "growing": (Growing, _rows),
    "deciding": (Deciding, _rows),
    "branching": (Branching, lambda: (torch.randint(0, 10, (2, 5)),)),
    "noisy": (Noisy, _rows),
    "siamese": (Siamese, lambda: _images(2)),
    "sequences": (Sequences, lambda: (torch.randn(3, 5, 4), torch.tensor([5, 2, 4]))),
}


def names(everything: bool) -> list[str]:
    """All of them."""
    return list(_NETS)


def is_feedforward(name: str) -> bool:
    """Whether nothing of it recurs."""
    return name in ("deciding", "branching", "noisy")


def build(name: str) -> ModelCall:
    """A net and its input."""
    net, arguments = _NETS[name]
    return ModelCall(net().eval(), arguments(), {})
