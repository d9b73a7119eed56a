"""Keeping tensors from becoming sequences when their ``__getitem__`` is replaced.

A type that is given a ``__getitem__`` of Python's also gets the slots by which C asks a sequence for an item, and
keeps them when the method is taken away again. Tensors have none; with them ``torch.tensor([x.sum()])`` fails, then
and ever after. So the slots are emptied again, through their address (docs/adr/006-decoration.md).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import cache, partial
from typing import Any

from torch import Tensor

_WORD = ctypes.sizeof(ctypes.c_void_p)
#: Words from the start of a type to its pointer to the slots of sequences, and from there to the two in question
#: (``tp_as_sequence``, ``sq_item``, ``sq_ass_item``: so since CPython 3.10, where objects have no extra head).
_AS_SEQUENCE, _ITEM_SLOTS = 13, (3, 5)


@cache
def unknown_layout() -> str | None:
    """Why the slots cannot be emptied in this Python; None if they can. Tried out on a class of its own."""

    class Scratch:
        pass

    reason = "this Python keeps the slots of its types in an unknown place"
    slots = _slots(Scratch)
    if len(slots) != len(_ITEM_SLOTS) or any(slot.value for slot in slots):
        return reason
    setattr(Scratch, "__getitem__", lambda self, key: key)  # noqa: B010
    was_sequence = ctypes.pythonapi.PySequence_Check(ctypes.py_object(Scratch()))
    delattr(Scratch, "__getitem__")
    for slot in slots:
        slot.value = None
    is_sequence = ctypes.pythonapi.PySequence_Check(ctypes.py_object(Scratch()))
    return None if was_sequence and not is_sequence else reason


def emptying() -> Iterator[partial[Any]]:
    """Calls that empty the slots of ``Tensor`` and of all its subclasses that index as it does."""
    kinds: list[type] = [Tensor]
    for kind in kinds:
        subclasses: list[type] = type.__subclasses__(kind)
        kinds.extend(sub for sub in subclasses if sub not in kinds)
        owner = next(base for base in kind.__mro__ if "__getitem__" in vars(base))
        if issubclass(Tensor, owner):
            for slot in _slots(kind):
                yield partial(setattr, slot, "value", None)


def _slots(kind: type) -> list[ctypes.c_void_p]:
    """The slots of a class, which stand inside of its type object; none if they do not."""
    start = ctypes.c_void_p.from_address(id(kind) + _AS_SEQUENCE * _WORD).value or 0
    size: int = type.__dict__["__basicsize__"].__get__(type)
    if not id(kind) < start < id(kind) + size:
        return []
    return [ctypes.c_void_p.from_address(start + place * _WORD) for place in _ITEM_SLOTS]
