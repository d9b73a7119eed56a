"""What to save: decided while the model runs wherever the key allows it, so that nothing else is held."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from typing import TypeAlias

from attrs import frozen

from lens.errors import InputError
from lens.ir.elements import FnRef

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


Predicate: TypeAlias = Callable[[RunningOp], bool]
Save: TypeAlias = "str | int | Iterable[str | int] | Predicate"


@frozen
class Selection:
    """Which values to hold during the run, and which keys to narrow them down to afterwards.

    Args:
        everything: Hold all values.
        predicate: Hold the results of operations for which it is true.
        addresses: Hold the outputs of these modules.
        types: Hold the results of operations of these layer types.
        leaves: Hold inputs and buffers.
        outputs: Hold the model's outputs.
        keys: If not None, only what these keys name is kept after the run.
    """

    everything: bool = False
    predicate: Predicate | None = None
    addresses: frozenset[str] = frozenset()
    types: frozenset[str] = frozenset()
    leaves: bool = False
    outputs: bool = False
    keys: tuple[str | int, ...] | None = None

    @property
    def nothing(self) -> bool:
        """Whether no value at all is to be held."""
        return not (self.everything or self.predicate or self.addresses or self.types or self.leaves or self.outputs)


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
