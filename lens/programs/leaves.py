"""Where the tensors of a program come from: the trace, or the model."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any

import torch
from torch import nn

from lens.errors import RenderError
from lens.ir.elements import Leaf
from lens.ir.payloads import PayloadStore

#: First words of addresses that a ``GraphModule`` has other uses for.
_TAKEN = frozenset(dir(torch.fx.GraphModule)) | {"graph", "code", "training", "meta", "lens"}


def tensors_by_address(model: nn.Module | None) -> dict[str, torch.Tensor] | None:
    """The parameters and buffers of a model under all their addresses; None without a model."""
    if model is None:
        return None
    named = (*model.named_buffers(remove_duplicate=False), *model.named_parameters(remove_duplicate=False))
    return dict(named)


def leaf_tensor(leaf: Leaf, payloads: PayloadStore, given: Mapping[str, torch.Tensor] | None) -> torch.Tensor:
    """The tensor of a parameter, buffer, constant or external leaf.

    Registered ones are the model's own, as they are now, if a model is given; else what the trace has saved, which is
    what the run began with.

    Args:
        leaf: The leaf.
        payloads: What the trace has saved.
        given: The tensors of the model that was given, by address; None if none was.

    Raises:
        RenderError: it is not in the trace, and no model was given, or the one given does not have it.
        StaleValueError: it was saved by reference and changed since.
    """
    if given is not None and leaf.kind in ("parameter", "buffer"):
        for address in leaf.addresses:
            if address in given:
                return given[address]
        raise RenderError(
            f"the model given does not have the {leaf.kind} {_name(leaf)}, which the program needs",
            where=str(leaf.location or _name(leaf)),
            hint="give the model that was traced, or one like it, not what wraps it (torch.compile, DataParallel)",
        )
    if leaf.value in payloads:
        return payloads.read(leaf.value, _name(leaf))  # type: ignore[no-any-return]
    raise RenderError(
        f"a program needs the {leaf.kind} {_name(leaf)}, which this trace did not save",
        where=str(leaf.location or _name(leaf)),
        hint="give the model: history.to_fx(model); or trace it in this process with save='all'",
    )


def _name(leaf: Leaf) -> str:
    return leaf.addresses[0] if leaf.addresses else f"tensor %{leaf.value}"


def place(root: nn.Module, address: str, tensor: torch.Tensor) -> str:
    """Register a tensor under an address, in modules made on the way, and give the address that it got.

    It differs from the one asked for where a ``GraphModule`` has its own use for the first word, where an address
    is no name (``table['key']``), and where another tensor has it.
    """
    words = [word.replace("'", "").replace('"', "") for word in address.split(".")]
    if words[0] in _TAKEN:
        words[0] = f"lens_{words[0]}"
    owner = root
    for word in words[:-1]:
        if word not in owner._modules:
            owner.add_module(word, nn.Module())
        owner = owner.get_submodule(word)
    taken = {**owner._parameters, **owner._buffers}
    others = (f"{words[-1]}_{number}" for number in count(1))
    while taken.get(words[-1], tensor) is not tensor:
        words[-1] = next(others)
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(words[-1], tensor)
    else:
        owner.register_buffer(words[-1], tensor)
    return ".".join(words)


def registered(leaf: Leaf, tensor: torch.Tensor, *, written: bool) -> torch.Tensor:
    """The tensor as a program holds it: the model's own parameter, but a copy of what the program writes to."""
    own = isinstance(tensor, nn.Parameter)
    if leaf.kind == "parameter" and (written or not own):  # what the trace saved before a write is no parameter
        trainable = tensor.requires_grad if own else leaf.trainable and tensor.is_floating_point()
        return nn.Parameter(tensor.detach().clone() if written else tensor.detach(), trainable)
    if written:
        return tensor.detach().clone()
    return tensor if own else tensor.detach()


def free_name(root: nn.Module, stem: str) -> str:
    """An attribute name that a module does not have yet."""
    return next(name for number in count() if not hasattr(root, name := f"{stem}_{number}"))


class Caller(nn.Module):
    """The module that calls something that lens does not see into."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call it."""
        return self.function(*args, **kwargs)
