"""What to save: decided while the model runs wherever the key allows it, so that nothing else is held."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import torch
from attrs import evolve, frozen
from torch import nn

from lens.capture.tensor_table import version_of
from lens.errors import InputError
from lens.ir.elements import FnRef
from lens.ir.naming import layer_type
from lens.ir.tape import ModuleNames, ValueRow

_TYPE = "[a-z][a-z0-9]*"
_LABEL = re.compile(rf"(?P<type>{_TYPE})((?P<number>_\d+(_\d+)?)(:\d+)?)?")
_TAKES = 'give "all", "none", a label, a module address, an ordinal, a pattern, a layer type'
#: What labels call inputs and the like; functions may be called so, too (``nn.init.constant_``).
_LEAVES = frozenset({"input", "buffer", "constant", "external"})


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
    def of(cls, function: FnRef, module: ModuleNames, row: ValueRow) -> RunningOp:
        """The operation that has just made this value in this module."""
        dtype = str(row[1]).removeprefix("torch.")
        return cls(layer_type(function), function, module[0], module[2], tuple(row[0]), dtype)


Predicate: TypeAlias = Callable[[RunningOp], bool]
Key: TypeAlias = "str | int | Predicate"
Save: TypeAlias = "Key | Iterable[Key]"
#: What is done with a tensor before it is kept: a dtype or a device to move it to, or any function.
Change: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
Transform: TypeAlias = "torch.dtype | torch.device | str | Change"


@frozen
class Selection:
    """Which values to hold during the run, and which keys to narrow them down to afterwards.

    Args:
        everything: Hold all values.
        predicate: Hold the results of operations for which it is true.
        addresses: Hold the outputs of these modules.
        types: Hold the results of operations whose layer types are these, or fit these patterns.
        leaves: Hold inputs and buffers: all, or those whose names are these, or fit these patterns.
        outputs: Hold the model's outputs.
        keys: If not None, only what these keys name is kept after the run, and what the predicate picked.
        transform: What is kept in the place of a tensor; None for the tensor itself.
        detach: Whether what is kept is cut off from autograd.
    """

    everything: bool = False
    predicate: Predicate | None = None
    addresses: frozenset[str] = frozenset()
    types: frozenset[str] = frozenset()
    leaves: bool | frozenset[str] = False
    outputs: bool = False
    keys: tuple[str | int, ...] | None = None
    transform: Change | None = None
    detach: bool = False

    @property
    def nothing(self) -> bool:
        """Whether no value at all is to be held."""
        return not (self.everything or self.predicate or self.addresses or self.types or self.leaves or self.outputs)

    def wants_type(self, kind: str) -> bool:
        """Whether the results of operations of this layer type are held."""
        return fits(kind, self.types)

    def with_transform(self, transform: Transform | None, detach: bool, *, counted: bool = True) -> Selection:
        """The selection of values that are changed before they are kept. Raises InputError if they cannot be.

        ``counted``: whether torch counts writes where the function is called, as it does not below autograd.
        """
        made = None if transform is None else _as_function(transform, counted)
        return evolve(self, transform=made, detach=detach)


def make_selection(save: Save, modules: Mapping[str, nn.Module]) -> Selection:
    """The selection that ``save=`` asks for.

    Args:
        save: ``"all"``, ``"none"``, a key or a function of the running operation, or several of these.
        modules: The model's modules by address.

    Raises:
        InputError: if it is none of these.
    """
    keys, predicates = split(save, "save", _TAKES, modules)
    if keys in (("all",), ("none",)) and not predicates:
        return Selection(everything=keys == ("all",))
    addresses, types = set(), set()
    words: set[str] = set()
    everything = leaves = outputs = False
    for key in keys:
        if isinstance(key, int):
            everything = True
            continue
        if is_pattern(key) and key not in modules:
            addresses.update(matching(key, modules))
            addresses.update(matching(key.partition(":")[0], modules))
            words.add(key)  # inputs and buffers have addresses, too
            if "." not in key:  # else it fits no label
                types.add(key.partition("_")[0].partition(":")[0])
                leaves = outputs = True  # inputs, buffers and outputs have labels, too
            continue
        address = key if key in modules else key.rpartition(":")[0]
        label = _LABEL.fullmatch(key)
        if address and address in modules:
            addresses.add(address)
        elif label:
            types.add(label["type"])
            outputs = outputs or label["type"] == "output"
            leaves = leaves or label["type"] in _LEAVES
            if not label["number"]:
                words.add(key)  # it may be the name of an input, too
        else:
            leaves = True
    return Selection(
        everything,
        _any_of(predicates) if len(predicates) > 1 else next(iter(predicates), None),
        frozenset(addresses),
        frozenset(types),
        leaves or frozenset(words),
        outputs,
        keys if keys or not predicates else None,
    )


def _any_of(predicates: Sequence[Predicate]) -> Predicate:
    """All are asked, whatever the first ones say: they may count."""
    return lambda op: max([bool(predicate(op)) for predicate in predicates])


def split(
    given: object, option: str, takes: str, modules: Mapping[str, nn.Module]
) -> tuple[tuple[str | int, ...], tuple[Predicate, ...]]:
    """The keys of an option, and its functions.

    Args:
        given: What the user gave.
        option, takes: What the option is called, and what to give, for an error.
        modules: The model's modules by address.

    Raises:
        InputError: if it is neither a key nor a function nor several of these.
    """
    single = isinstance(given, (str, bytes, nn.Module, torch.Tensor)) or not isinstance(given, Iterable)
    items: tuple[Any, ...] = (given,) if single else tuple(given)  # type: ignore[arg-type]
    where = f"lens.trace({option}=...)"
    for item in items:
        if isinstance(item, nn.Module):
            address = next((name for name, module in modules.items() if module is item and name), "layer1")
            raise InputError(f"{option}= takes no module", where=where, hint=f"give its address, such as {address!r}")
        if isinstance(item, type):
            rule = f"lambda op: op.module_type == {item.__name__!r}"
            raise InputError(f"{option}= takes no class", where=where, hint=f"for modules of a class give {rule}")
        if not (isinstance(item, str) or type(item) is int or callable(item)):
            text = " ".join(repr(item).split())
            short = text if len(text) <= 60 else f"{text[:60]}..."
            what = f"{option}= cannot {'be' if single else 'hold'} {short} (a {type(item).__name__})"
            raise InputError(what, where=where, hint=f"{takes}, a function of the operation, or a list of these")
    if not items:
        raise InputError(f"{option}= is empty", where=where, hint=f"{takes}, a function of the operation, or nothing")
    return tuple(item for item in items if not callable(item)), tuple(filter(callable, items))


def is_pattern(key: str) -> bool:
    """Whether a key has the marks of a pattern, such as ``layer*.conv1`` or ``relu_*``."""
    return any(mark in key for mark in "*?[")


def may_be_type(word: str) -> bool:
    """Whether an operation can be of this layer type: libraries and users have functions of any name."""
    return re.fullmatch(_TYPE, word) is not None


def is_type(word: str) -> bool:
    """Whether torch itself has a function of which this can be the layer type, at the places where users find most."""
    places = (torch, torch.Tensor, torch.nn.functional, torch.linalg, torch.fft, torch.special)
    return any(word == name.replace("_", "").lower() for place in places for name in dir(place))


def fits(name: str, wanted: Collection[str]) -> bool:
    """Whether a name is one of those wanted, or fits a pattern among them."""
    return name in wanted or any(fnmatchcase(name, pattern) for pattern in wanted)


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a pattern fits."""
    return [name for name in names if fnmatchcase(name, pattern)]


def _as_function(transform: Transform, counted: bool) -> Change:
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
    return _without_writing(transform, counted)


def _without_writing(transform: Change, counted: bool) -> Change:
    """The function, held to leave the model's own tensor as it is."""

    def made(tensor: torch.Tensor) -> torch.Tensor:
        before = version_of(tensor) if counted else None
        if before is None:  # torch would not tell
            return transform(tensor.clone())
        found = transform(tensor)
        if version_of(tensor) != before:
            raise ValueError("it wrote to the tensor that it was given, which is the model's own; write to t.clone()")
        return found

    return made
