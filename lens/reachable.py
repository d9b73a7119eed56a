"""The objects that a forward pass can change: what is reached from the model and its inputs."""

from __future__ import annotations

import random
import sys
from argparse import Namespace
from collections import UserDict, UserList, deque
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from types import MemberDescriptorType, SimpleNamespace
from typing import Any

import torch
from torch import nn

from lens.foreign import Raised, attempt

#: So many objects are looked at, the nearest ones.
MOST = 1_000_000
#: What is looked into although it is Python's or torch's own.
_OPEN = (torch.Tensor, nn.Module, torch.optim.Optimizer, SimpleNamespace, Namespace, UserDict, UserList)
_OPEN_PACKAGES = ("torch.nn.", "torch.optim.")
#: Packages whose objects keep to themselves what they know.
_CLOSED = frozenset({*sys.stdlib_module_names, "torch", "numpy", "lens"})
#: An object that holds one of theirs is shared with other threads: it is not the model's alone.
_OF_THREADS = frozenset({"_thread", "threading", "_queue", "queue", "concurrent", "multiprocessing", "asyncio"})
#: By id, for a class need not have a hash.
_ATOMS = frozenset(map(id, (type(None), bool, int, float, complex, str, bytes)))


def reachable(roots: Iterable[Any]) -> tuple[list[Any], bool]:
    """What can be changed in place, each once, the nearest first, and whether that is all.

    These are dicts, lists, sets and deques, also the ``__dict__`` of an object, objects with slots, tensors, NumPy's
    arrays, and random generators. Closed are functions, classes, and objects of Python, torch and NumPy, but for
    modules and optimizers. Linear in the objects met.
    """
    met: dict[int, Any] = {}
    found: list[Any] = []
    queue = deque(roots)
    while queue:
        one = queue.popleft()
        if id(one) in met:
            continue
        if len(met) == MOST:
            return found, False
        met[id(one)] = one
        looked_at = attempt(partial(_look_at, one))
        if not isinstance(looked_at, Raised):  # classes of the user's may refuse; then what is in it is closed
            can_change, parts = looked_at
            if can_change:
                found.append(one)
            queue.extend(part for part in parts if id(type(part)) not in _ATOMS)
    return found, True


def _look_at(one: Any) -> tuple[bool, list[Any]]:
    """Whether an object can be changed in place, and what it holds."""
    return _can_change(one), list(_parts(one))


def slots_of(one: Any) -> tuple[MemberDescriptorType, ...]:
    """The slots of an object of a class that was written in Python."""
    return _slots_of(type(one))  # type: ignore[arg-type]  # mypy takes a class for unhashable


@lru_cache(maxsize=1024)
def _slots_of(kind: type) -> tuple[MemberDescriptorType, ...]:
    own = [vars(cls) for cls in kind.__mro__ if "__slots__" in vars(cls)]
    return tuple(member for names in own for member in names.values() if isinstance(member, MemberDescriptorType))


def is_array(one: Any) -> bool:
    """Whether it is an array of NumPy's in memory that can be written to; those of a file are subclasses."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(one) is numpy.ndarray and one.flags.writeable and not one.dtype.hasobject


def is_generator(one: Any) -> bool:
    """Whether it draws random numbers from a state of its own."""
    return issubclass(type(one), (torch.Generator, random.Random)) or is_numpy_generator(one)


def is_numpy_generator(one: Any) -> bool:
    """Whether it is NumPy's source of random bits, which its generators share."""
    numpy = sys.modules.get("numpy.random")
    return numpy is not None and issubclass(type(one), numpy.BitGenerator)


def _can_change(one: Any) -> bool:
    if issubclass(type(one), (dict, list, set, deque, torch.Tensor)) or is_array(one) or is_generator(one):
        return True
    return _is_open(one) and bool(slots_of(one))


def _parts(one: Any) -> Iterator[Any]:
    """What an object holds."""
    kind = type(one)  # a proxy says that it is of the class of what it stands for
    if issubclass(kind, dict):
        yield from (*dict.keys(one), *dict.values(one))
    elif issubclass(kind, (list, set, deque, tuple, frozenset)):
        yield from tuple(one)
    elif issubclass(kind, torch.Tensor):
        yield one.grad if one.is_leaf else None
    elif type(one).__module__ == "numpy.random._generator":
        yield getattr(one, "bit_generator", None)
    if _is_open(one):
        yield _attributes(one)
        for slot in slots_of(one):
            yield from _content(one, slot)


def _attributes(one: Any) -> dict[str, Any] | None:
    """The attributes of an object that is used by this thread only."""
    try:
        own = object.__getattribute__(one, "__dict__")
    except AttributeError:
        return None
    if type(own) is not dict:
        return None
    packages = (str(type(part).__module__).partition(".")[0] for part in own.values())
    return own if issubclass(type(one), _OPEN) or _OF_THREADS.isdisjoint(packages) else None


def _content(one: Any, slot: MemberDescriptorType) -> Iterator[Any]:
    try:
        yield slot.__get__(one)
    except AttributeError:  # nothing in it
        return


def _is_open(one: Any) -> bool:
    return _is_open_class(type(one))  # type: ignore[arg-type]  # mypy takes a class for unhashable


@lru_cache(maxsize=1024)
def _is_open_class(kind: type) -> bool:
    if issubclass(kind, _OPEN):
        return True
    if issubclass(kind, type):
        return False
    module = str(kind.__module__)
    return module.startswith(_OPEN_PACKAGES) or module.partition(".")[0] not in _CLOSED
