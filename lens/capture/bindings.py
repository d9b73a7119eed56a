"""Where a program may have bound a function: names, containers, partials, default arguments, closures, classes.

The search starts from the modules of a model. It goes through what is reached by name and through plain containers;
objects of other kinds keep what they hold to themselves.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any, TypeAlias

from torch import nn

#: What holds a function, and under which key, index or attribute.
Place: TypeAlias = tuple[Any, "str | int"]

#: Attributes that lead on, by the type of what has them.
_ATTRIBUTES = {
    FunctionType: ("__defaults__", "__kwdefaults__", "__closure__", "__dict__"),
    partial: ("func", "args", "keywords"),
    CellType: ("cell_contents",),
    MethodType: ("__func__",),
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    property: ("fget", "fset"),
}
#: What these hold can be looked into, but not exchanged.
_FIXED = (tuple, MethodType, staticmethod, classmethod, property)
#: Packages whose functions and classes are not looked into; torch's are found in other ways.
_CLOSED = sys.stdlib_module_names | {"torch"}
#: Longer containers are data.
_MOST_ITEMS = 10_000


def reached_from(modules: Iterable[nn.Module], loaded: Iterable[ModuleType] = ()) -> Iterator[Place]:
    """Every place that the code of these modules reaches by name. Linear in what is reached.

    That is: what the modules hold and close over; the names of the files in which their code stands, and of the
    modules of Python that are known there; and of those that are given as ``loaded``.
    """
    roots: list[Any] = []
    for module in modules:
        roots += (vars(module), *filter(_is_open, type(module).__mro__))
    seen = set(map(id, roots))
    files: dict[int, dict[str, Any]] = {id(vars(module)): vars(module) for module in loaded}
    yield from _walk(roots, seen, files)
    known = [value for names in files.values() for value in list(names.values()) if type(value) is ModuleType]
    for other in known:
        if other.__name__.partition(".")[0] not in _CLOSED:
            files.setdefault(id(vars(other)), vars(other))
    for names in files.values():
        yield from _walk([names], seen, None, str(names.get("__name__")))


def _walk(
    pending: list[Any], seen: set[int], files: dict[int, dict[str, Any]] | None, within: str | None = None
) -> Iterator[Place]:
    """The places in these holders, and in what they lead to; ``within`` keeps to one module's code."""
    while pending:
        holder = pending.pop()
        if files is not None and isinstance(holder, (FunctionType, type)):
            names = _globals(holder)
            files[id(names)] = names
        bindable = type(holder) not in _FIXED
        for key, value in _contents(holder):
            if bindable:
                yield holder, key
            if id(value) not in seen and _leads_on(value) and _is_open(value, within):
                seen.add(id(value))
                pending.append(value)


def _globals(code: Any) -> dict[str, Any]:
    """The names of the file in which a function or class stands."""
    if isinstance(code, FunctionType):
        return code.__globals__
    module = sys.modules.get(code.__module__)
    return vars(module) if module is not None else {}


def bound_at(place: Place) -> Any:
    """What is bound at a place now; None if the place is gone."""
    holder, key = place
    if isinstance(holder, dict):
        return dict.get(holder, key)
    if isinstance(holder, list):
        return holder[key] if isinstance(key, int) and key < len(holder) else None
    if isinstance(holder, type):
        return vars(holder).get(str(key))
    try:
        return getattr(holder, str(key))
    except ValueError:  # an empty cell: a name that is bound later
        return None


def binding(place: Place, value: Any) -> partial[Any]:
    """A call, into C, that binds a value at a place."""
    holder, key = place
    if isinstance(holder, (dict, list)):
        kind: Any = dict if isinstance(holder, dict) else list
        return partial(kind.__setitem__, holder, key, value)
    if isinstance(holder, partial):
        state = {"func": holder.func, "args": holder.args, str(key): value}
        return partial(holder.__setstate__, (state["func"], state["args"], holder.keywords, vars(holder)))  # type: ignore[attr-defined]
    return partial(setattr, holder, str(key), value)


def _leads_on(value: Any) -> bool:
    kind = type(value)
    return kind in _ATTRIBUTES or issubclass(kind, (dict, list, type)) or kind is tuple


def _is_open(value: Any, within: str | None = None) -> bool:
    if not isinstance(value, (FunctionType, type)):
        return True
    home = str(getattr(value, "__module__", ""))
    return home.partition(".")[0] not in _CLOSED and within in (None, home)


def _contents(holder: Any) -> list[tuple[Any, Any]]:
    if isinstance(holder, (dict, list, tuple)):
        if len(holder) > _MOST_ITEMS:
            return []
        return list(dict.items(holder)) if isinstance(holder, dict) else list(enumerate(tuple(holder)))
    if isinstance(holder, type):
        return list(vars(holder).items())
    return [(name, bound_at((holder, name))) for name in _ATTRIBUTES[type(holder)]]
