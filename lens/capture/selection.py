"""What to save: decided while the model runs wherever the key allows it, so that nothing else is held."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from fnmatch import fnmatchcase
from typing import TypeAlias

import torch
from attrs import evolve, frozen

from lens.errors import InputError
from lens.ir.elements import FnRef
from lens.ir.naming import layer_type

_LABEL = re.compile(r"(?P<type>[a-z][a-z0-9]*)_\d+(_\d+)?(:\d+)?")


@frozen
class RunningOp:
    """An operation as a predicate sees it, right after it ran.

    Args:
        type: Layer type, such as ``conv2d``.
        function: What was called.
        address: The innermost module that it ran in; empty for the model itself.
        module_type: That module's class name.
        shape: Extents of the result.
        dtype: Such as ``float32``.
    """

    type: str
    function: FnRef
    address: str
    module_type: str
    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, function: FnRef, address: str, module_type: str, result: torch.Tensor) -> RunningOp:
        """The operation that has just returned this tensor."""
        shape = tuple(result.shape) if not result.is_nested else ()
        dtype = str(result.dtype).removeprefix("torch.")
        return cls(layer_type(function), function, address, module_type, shape, dtype)


Predicate: TypeAlias = Callable[[RunningOp], bool]
Save: TypeAlias = "str | int | Iterable[str | int] | Predicate"
#: What is done with a tensor before it is kept: a dtype or a device to move it to, or any function.
Transform: TypeAlias = "torch.dtype | torch.device | str | Callable[[torch.Tensor], torch.Tensor]"


@frozen
class Selection:
    """Which values to hold during the run, and which keys to narrow them down to afterwards.

    Args:
        everything: Hold all values.
        predicate: Hold the results of operations for which it is true.
        addresses: Hold the outputs of these modules.
        types: Hold the results of operations whose layer types fit these patterns.
        leaves: Hold inputs and buffers.
        outputs: Hold the model's outputs.
        keys: If not None, only what these keys name is kept after the run.
        transform: What is kept in the place of a tensor; None for the tensor itself.
        detach: Whether what is kept is cut off from autograd.
    """

    everything: bool = False
    predicate: Predicate | None = None
    addresses: frozenset[str] = frozenset()
    types: frozenset[str] = frozenset()
    leaves: bool = False
    outputs: bool = False
    keys: tuple[str | int, ...] | None = None
    transform: Callable[[torch.Tensor], torch.Tensor] | None = None
    detach: bool = False

    @property
    def nothing(self) -> bool:
        """Whether no value at all is to be held."""
        return not (self.everything or self.predicate or self.addresses or self.types or self.leaves or self.outputs)

    def wants_type(self, kind: str) -> bool:
        """Whether the results of operations of this layer type are held."""
        return kind in self.types or any(fnmatchcase(kind, pattern) for pattern in self.types)

    def with_transform(self, transform: Transform | None, detach: bool) -> Selection:
        """The selection of values that are changed before they are kept. Raises InputError if they cannot be."""
        return evolve(self, transform=None if transform is None else _as_function(transform), detach=detach)


def make_selection(save: Save, module_addresses: Collection[str]) -> Selection:
    """The selection that ``save=`` asks for.

    Args:
        save: ``"all"``, ``"none"``, one key, several keys, or a predicate on the running operation.
        module_addresses: The addresses of the model's modules.

    Raises:
        InputError: if it is none of these.
    """
    if callable(save):
        return Selection(predicate=save)
    if isinstance(save, str) and save in ("all", "none"):
        return Selection(everything=save == "all")
    keys = (save,) if isinstance(save, (str, int)) else _listed(save)
    addresses, types = set(), set()
    everything = leaves = outputs = False
    for key in keys:
        if isinstance(key, int):
            everything = True
            continue
        if is_pattern(key, module_addresses):
            addresses.update(matching(key, module_addresses))
            addresses.update(matching(key.partition(":")[0], module_addresses))
            if "." not in key:  # else it fits no label
                types.add(key.partition("_")[0].partition(":")[0])
                leaves = outputs = True  # inputs, buffers and outputs have labels, too
            continue
        address = key.rpartition(":")[0] if key not in module_addresses else key
        label = _LABEL.fullmatch(key)
        if (address or key) in module_addresses:
            addresses.add(address or key)
        elif label and label["type"] not in ("input", "output", "buffer", "constant", "external"):
            types.add(label["type"])
        elif label and label["type"] == "output":
            outputs = True
        else:
            leaves = True
    return Selection(
        everything,
        None,
        frozenset(addresses),
        frozenset(types),
        leaves,
        outputs,
        keys,
    )


def _listed(save: object) -> tuple[str | int, ...]:
    keys = tuple(save) if isinstance(save, Iterable) else ()
    if not keys or not all(isinstance(key, (str, int)) for key in keys):
        raise InputError(
            f"save= cannot be {save!r}",
            where="lens.trace(save=...)",
            hint='give "all", "none", a label, a module address, a list of these, or a function of the operation',
        )
    return keys


def is_pattern(key: str, module_addresses: Collection[str] = ()) -> bool:
    """Whether a key is a pattern such as ``layer*.conv1`` or ``relu_*``."""
    return any(mark in key for mark in "*?[") and key not in module_addresses


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a pattern fits."""
    return [name for name in names if fnmatchcase(name, pattern)]


def _as_function(transform: Transform) -> Callable[[torch.Tensor], torch.Tensor]:
    if isinstance(transform, torch.dtype):
        return lambda tensor: tensor.to(transform) if tensor.is_floating_point() else tensor
    if isinstance(transform, (str, torch.device)):
        try:
            device = torch.device(transform)
        except RuntimeError as error:
            raise InputError(
                f"transform={transform!r} is no device", where="lens.trace", hint='such as "cpu", or give a function'
            ) from error
        return lambda tensor: tensor.to(device)
    if not callable(transform):
        raise InputError(
            f"transform cannot be {transform!r}",
            where="lens.trace",
            hint="give a dtype, a device, or a function of the tensor",
        )
    return transform
