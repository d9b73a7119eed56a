"""What a case of the conformance suite is, and the few shapes that its models take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor, nn


@frozen
class Case:
    """A tiny model with inputs.

    Args:
        name: Its name, a word.
        model: Makes the model; called anew for every run, after seeding.
        args: Makes the positional arguments.
        kwargs: Keyword arguments.
        needs: Capabilities without which a backend need not try; those for reads and scopes go without saying.
        errors: The exceptions that its forward ends with; empty if it returns.
    """

    name: str
    model: Callable[[], nn.Module]
    args: Callable[[], tuple[Any, ...]]
    kwargs: Mapping[str, Any] = field(factory=dict)
    needs: tuple[str, ...] = ()
    errors: tuple[type[Exception], ...] = ()


class Body(nn.Module):
    """A function as the forward of a module without parameters."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns."""
        return self.function(*args, **kwargs)


class Parts(nn.Module):
    """Named modules, and a forward that is given them all as its first argument."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns for this module and the arguments."""
        return self.function(self, *args, **kwargs)


def of(function: Callable[..., Any], *shapes: tuple[int, ...], name: str = "", **options: Any) -> Case:
    """A case of a function of tensors with these shapes; named after the function."""
    return Case(name or function.__name__.strip("_"), lambda: Body(function), ramps(*shapes), **options)


def ramps(*shapes: tuple[int, ...]) -> Callable[[], tuple[Tensor, ...]]:
    """Arguments of these shapes, filled with ascending numbers."""
    return lambda: tuple(ramp(*shape) for shape in shapes)


def ramp(*shape: int) -> Tensor:
    """A tensor filled with ascending numbers from -1 to 1."""
    return torch.linspace(-1, 1, torch.Size(shape).numel()).reshape(shape)
