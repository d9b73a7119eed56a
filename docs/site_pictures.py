"""Draws the pictures of the pages and writes the page of the command line when the site is built, from today's code."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lens
from lens.cli import help_of_all


class Figure3A(nn.Module):
    """The recurrent model of the paper's Figure 3A."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            x = self.fc(torch.cos(x)) + 1
            x = torch.sin(x)
        return x


class Conditional(nn.Module):
    """A branch that depends on the input, noise, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.register_buffer("offset", torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block(x) / (self.offset + torch.rand(4))
        if torch.mean(x - 5) > -3:
            x = x * 2
        return x


def on_pre_build(config: Any) -> None:
    """Called by mkdocs before it reads the pages."""
    folder = Path(config["docs_dir"]) / "img"
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    recurrent = lens.trace(Figure3A(), torch.rand(1, 5), save="none")
    recurrent.draw(folder / "unrolled.svg", direction="right")
    recurrent.draw(folder / "rolled.svg", view="rolled", direction="right")
    lens.trace(Conditional(), torch.rand(2, 4), save="none").draw(folder / "conditional.svg")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by mkdocs for each page: the help of every command where the page of the command line wants it."""
    if page.file.src_uri != "reference/command-line.md":
        return markdown
    os.environ["COLUMNS"] = "100"
    texts = (f"## {name}\n\n```\n{text}```" for name, text in help_of_all().items())
    return "\n\n".join((markdown, *texts))
