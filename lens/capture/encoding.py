"""Python arguments and results as templates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any

import torch
from torch import nn

from lens.ir.tape import RawTemplate
from lens.ir.templates import Map, Opaque, Seq, Slice, Slot, Symbol

#: Shared slot nodes; calls with more tensors than this make their own.
SLOTS = tuple(Slot(i) for i in range(4096))

#: Types of the constants that stand for themselves in a template.
ATOMS = frozenset({type(None), bool, int, float, complex, str})

#: torch's constants -> the kind of symbol that they become.
_SYMBOLS: dict[type, str] = {
    torch.dtype: "dtype",
    torch.device: "device",
    torch.layout: "layout",
    torch.memory_format: "memory_format",
    torch.qscheme: "qscheme",
    type(Ellipsis): "builtin",
    type(NotImplemented): "builtin",
}


class _Shape(IntEnum):
    ATOM = 0
    TENSOR = 1
    TUPLE = 2
    LIST = 3
    NAMED_TUPLE = 4
    MAPPING = 5
    DATACLASS = 6
    SLICE = 7
    SYMBOL = 8
    NUMBER = 9
    OTHER = 10


_KNOWN_TYPES: dict[type, _Shape] = {
    **dict.fromkeys(ATOMS, _Shape.ATOM),
    torch.Tensor: _Shape.TENSOR,
    nn.Parameter: _Shape.TENSOR,
    tuple: _Shape.TUPLE,
    list: _Shape.LIST,
    torch.Size: _Shape.LIST,
    dict: _Shape.MAPPING,
    slice: _Shape.SLICE,
    **dict.fromkeys(_SYMBOLS, _Shape.SYMBOL),
}
_SEQ_KINDS: dict[type, str] = {list: "list", tuple: "tuple", torch.Size: "size"}


class ArgumentEncoder:
    """Encodes arguments; tensors become slots, numbered into the list of values given along.

    Args:
        value_of: The value that a tensor stands for.
    """

    def __init__(self, value_of: Callable[[torch.Tensor], int]) -> None:
        self._value_of = value_of
        self._shapes = dict(_KNOWN_TYPES)
        self._symbols: dict[Any, Symbol] = {}
        #: The opaque objects met so far, by index, for replay.
        self.objects: list[Any] = []
        self._object_numbers: dict[int, int] = {}

    def encode(self, obj: Any, operands: list[int]) -> RawTemplate:
        """The template of an object; the values of its tensors are appended to ``operands``."""
        shape = self._shapes.get(type(obj))
        if shape is _Shape.ATOM:
            return obj  # type: ignore[no-any-return]
        if shape is _Shape.TENSOR:
            return self._operand(obj, operands)
        return self.encode_with(obj, lambda tensor: self._operand(tensor, operands))

    def _operand(self, tensor: torch.Tensor, operands: list[int]) -> Slot:
        operands.append(self._value_of(tensor))
        return slot(len(operands) - 1)

    def encode_with(self, obj: Any, visit: Callable[[torch.Tensor], Slot]) -> RawTemplate:
        """The template of an object, with what ``visit`` gives in place of each tensor."""
        kind = type(obj)
        shape = self._shapes.get(kind)
        if shape is None:
            shape = self._shapes[kind] = _classify(kind)
        match shape:
            case _Shape.ATOM:
                return obj  # type: ignore[no-any-return]
            case _Shape.TENSOR:
                return visit(obj)
            case _Shape.TUPLE:
                return tuple([self.encode_with(item, visit) for item in obj])
            case _Shape.LIST:
                items = tuple([self.encode_with(item, visit) for item in obj])
                return Seq(_SEQ_KINDS.get(kind) or "list", items)  # type: ignore[arg-type]
            case _Shape.NAMED_TUPLE:
                items = tuple([self.encode_with(item, visit) for item in obj])
                return Seq(qualified_name(kind), items)  # type: ignore[arg-type]
            case _Shape.SYMBOL:
                return self._symbol(kind, obj)
            case _Shape.NUMBER:
                return _plain_number(obj)
            case _Shape.SLICE:
                parts = (self.encode_with(p, visit) for p in (obj.start, obj.stop, obj.step))
                return Slice(*parts)  # type: ignore[arg-type]
            case _Shape.MAPPING:
                pairs = [(self.encode_with(k, visit), self.encode_with(v, visit)) for k, v in obj.items()]
                return Map("dict" if kind is dict else qualified_name(kind), tuple(pairs))  # type: ignore[arg-type]
            case _Shape.DATACLASS:
                fields = [(f.name, getattr(obj, f.name, None)) for f in dataclasses.fields(obj)]
                pairs = [(name, self.encode_with(item, visit)) for name, item in fields]
                return Map(qualified_name(kind), tuple(pairs))  # type: ignore[arg-type]
        return self._opaque(obj)

    def _symbol(self, kind: type, obj: Any) -> Symbol:
        found = self._symbols.get(obj)
        if found is None:
            found = self._symbols[obj] = Symbol(_SYMBOLS[kind], str(obj))
        return found

    def _opaque(self, obj: Any) -> Opaque:
        number = self._object_numbers.setdefault(id(obj), len(self.objects))
        if number == len(self.objects):
            self.objects.append(obj)
        shape = getattr(obj, "shape", None)
        name = getattr(obj, "__qualname__", "") if callable(obj) else ""
        text = f"shape {tuple(shape)}" if isinstance(shape, tuple) else name
        return Opaque(qualified_name(type(obj)), text, number)


def slot(index: int) -> Slot:
    """The slot node of an index."""
    return SLOTS[index] if index < len(SLOTS) else Slot(index)


def qualified_name(kind: type) -> str:
    """Module and name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _classify(kind: type) -> _Shape:
    if issubclass(kind, torch.Tensor):
        return _Shape.TENSOR
    if issubclass(kind, (bool, int, float, complex, str)):
        return _Shape.NUMBER
    if issubclass(kind, tuple):
        return _Shape.NAMED_TUPLE
    if issubclass(kind, list):
        return _Shape.LIST
    if issubclass(kind, Mapping):
        return _Shape.MAPPING
    if dataclasses.is_dataclass(kind):
        return _Shape.DATACLASS
    return _Shape.OTHER


def _plain_number(obj: Any) -> bool | int | float | complex | str:
    """An instance of a subclass (``IntEnum``, ``numpy.float64``) as the plain constant that it stands for."""
    if isinstance(obj, int):
        return int(obj)
    if isinstance(obj, float):
        return float(obj)
    return complex(obj) if isinstance(obj, complex) else str.__str__(obj)
