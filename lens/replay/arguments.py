"""Templates back to Python arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lens.errors import ReplayError
from lens.functions import owner_of
from lens.ir.templates import Map, Opaque, Seq, Slice, Slot, Symbol, Template


def build(template: Template, tensors: Sequence[Any] | Mapping[int, Any], objects: Mapping[int, Any]) -> Any:
    """The object that a template describes.

    Args:
        template: The template.
        tensors: What stands in its slots, by their numbers.
        objects: The opaque objects of the trace, by index.

    Raises:
        ReplayError: if it needs an opaque object that is not there, or a class that cannot be imported.
    """
    match template:
        case Slot(index):
            return tensors[index]
        case Seq(kind, items):
            return _sequence(kind, [build(item, tensors, objects) for item in items])
        case Map(kind, pairs):
            built = {build(k, tensors, objects): build(v, tensors, objects) for k, v in pairs}
            return built if kind == "dict" else _record(kind, built)
        case Slice(start, stop, step):
            return slice(*(build(part, tensors, objects) for part in (start, stop, step)))
        case Symbol():
            return _constant(template)
        case Opaque(kind, text, index):
            if index not in objects:
                raise ReplayError(
                    f"an argument of type {kind} is not kept in this trace",
                    where=text,
                    hint='trace it in this process; neither saved traces nor those with save="none" hold such objects',
                )
            return objects[index]
        case _:
            return template


def _sequence(kind: str, items: list[Any]) -> Any:
    if kind == "list":
        return items
    if kind == "tuple":
        return tuple(items)
    if kind == "size":
        return torch.Size(items)
    cls = find_class(kind)
    if hasattr(cls, "_make"):
        return cls._make(items)
    return cls(items)


def _record(kind: str, items: dict[Any, Any]) -> Any:
    cls = find_class(kind)
    return cls(**items) if all(isinstance(key, str) for key in items) else cls(items)


def find_class(qualified: str) -> Any:
    """The class of a qualified name. Raises ReplayError if it cannot be found."""
    place, _, name = qualified.rpartition(".")
    found = getattr(owner_of(place), name, None) if place else None
    if found is not None:
        return found
    raise ReplayError(
        f"the class {qualified} cannot be found",
        where=qualified,
        hint="import the package that defines it",
    )


def _constant(symbol: Symbol) -> Any:
    if symbol.kind == "device":
        return torch.device(symbol.name)
    if symbol.kind == "builtin":
        return {"Ellipsis": ..., "NotImplemented": NotImplemented}[symbol.name]
    return getattr(torch, symbol.name.removeprefix("torch."))
