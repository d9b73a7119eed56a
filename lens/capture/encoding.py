"""Python arguments and results as templates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, TypeAlias

import torch
from torch import nn

from lens.functions import unpatched
from lens.ir.tape import RawTemplate
from lens.ir.templates import Map, Opaque, Seq, Slice, Slot, Symbol

#: Shared slot nodes; calls with more tensors than this make their own.
SLOTS = tuple(Slot(i) for i in range(4096))
FIRST_SLOT = SLOTS[0]

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


_SEQ_KINDS: dict[type, str] = {list: "list", torch.Size: "size"}

#: What is put in the place of a tensor.
Visit: TypeAlias = Callable[[torch.Tensor], Slot]


class ArgumentEncoder:
    """Encodes arguments; tensors become slots, numbered into the list of values given along.

    Args:
        value_of: The value that a tensor stands for.
    """

    def __init__(self, value_of: Callable[[torch.Tensor], int]) -> None:
        self._value_of = value_of
        self._symbols: dict[Any, Symbol] = {}
        #: The opaque objects met so far, by index, for replay.
        self.objects: list[Any] = []
        self._object_numbers: dict[int, int] = {}
        self._sequences: dict[tuple[type, int, int], RawTemplate] = {}
        #: Whether a tensor subclass was among the arguments.
        self.has_met_subclass = False
        #: How each type is encoded; types met for the first time are added.
        self._encoders: dict[type, Callable[[Any, Visit], RawTemplate]] = {
            **dict.fromkeys(ATOMS, self._atom),
            **dict.fromkeys(_SYMBOLS, self._symbol),
            torch.Tensor: self._tensor,
            nn.Parameter: self._tensor,
            tuple: self._tuple,
            list: self._list,
            torch.Size: self._list,
            dict: self._mapping,
            slice: self._slice,
        }

    def encode(self, obj: Any, operands: list[int]) -> RawTemplate:
        """The template of an object; the values of its tensors are appended to ``operands``."""
        if type(obj) in ATOMS:
            return obj  # type: ignore[no-any-return]

        def operand(tensor: torch.Tensor) -> Slot:
            operands.append(self._value_of(tensor))
            return slot(len(operands) - 1)

        return self.encode_with(obj, operand)

    def encode_with(self, obj: Any, visit: Visit) -> RawTemplate:
        """The template of an object, with what ``visit`` gives in place of each tensor."""
        encoder = self._encoders.get(type(obj))
        if encoder is None:
            encoder = self._encoders[type(obj)] = self._encoder_for(type(obj))
        return encoder(obj, visit)

    def slots_in(self, kind: type, first: int, end: int) -> RawTemplate:
        """The template of a list or tuple of tensors only, whose slots are those from ``first`` to ``end``."""
        found = self._sequences.get((kind, first, end))
        if found is None:
            slots = SLOTS[first:end] if end <= len(SLOTS) else tuple([slot(i) for i in range(first, end)])
            found = self._sequences[kind, first, end] = Seq("list", slots) if kind is list else slots
        return found

    def _encoder_for(self, kind: type) -> Callable[[Any, Visit], RawTemplate]:
        for base, encoder in (
            (torch.Tensor, self._tensor),
            ((bool, int, float, complex, str), self._number),
            (tuple, self._named_tuple),
            (list, self._list),
            (Mapping, self._mapping),
        ):
            if issubclass(kind, base):
                self.has_met_subclass |= base is torch.Tensor
                return encoder
        return self._dataclass if dataclasses.is_dataclass(kind) else self._opaque

    def _atom(self, obj: Any, visit: Visit) -> RawTemplate:
        return obj  # type: ignore[no-any-return]

    def _tensor(self, obj: torch.Tensor, visit: Visit) -> RawTemplate:
        return visit(obj)

    def _tuple(self, obj: tuple[Any, ...], visit: Visit) -> RawTemplate:
        if ATOMS.issuperset(map(type, obj)):  # a size
            return (*obj,)
        return tuple([self.encode_with(item, visit) for item in obj])

    def _list(self, obj: Any, visit: Visit) -> RawTemplate:
        return Seq(_SEQ_KINDS.get(type(obj), "list"), self._tuple(obj, visit))  # type: ignore[arg-type]

    def _named_tuple(self, obj: Any, visit: Visit) -> RawTemplate:
        return Seq(qualified_name(type(obj)), self._tuple(obj, visit))  # type: ignore[arg-type]

    def _mapping(self, obj: Mapping[Any, Any], visit: Visit) -> RawTemplate:
        pairs = [(self.encode_with(k, visit), self.encode_with(v, visit)) for k, v in obj.items()]
        kind = type(obj)
        return Map("dict" if kind is dict else qualified_name(kind), tuple(pairs))  # type: ignore[arg-type]

    def _dataclass(self, obj: Any, visit: Visit) -> RawTemplate:
        fields = [(f.name, getattr(obj, f.name, None)) for f in dataclasses.fields(obj)]
        pairs = tuple([(name, self.encode_with(item, visit)) for name, item in fields])
        return Map(qualified_name(type(obj)), pairs)  # type: ignore[arg-type]

    def _slice(self, obj: slice, visit: Visit) -> RawTemplate:
        parts = (self.encode_with(p, visit) for p in (obj.start, obj.stop, obj.step))
        return Slice(*parts)  # type: ignore[arg-type]

    def _symbol(self, obj: Any, visit: Visit) -> RawTemplate:
        found = self._symbols.get(obj)
        if found is None:
            found = self._symbols[obj] = Symbol(_SYMBOLS[type(obj)], str(obj))
        return found

    def _number(self, obj: Any, visit: Visit) -> RawTemplate:
        """An instance of a subclass (``IntEnum``, ``numpy.float64``) as the plain constant that it stands for."""
        if isinstance(obj, int):
            return int(obj)
        if isinstance(obj, float):
            return float(obj)
        return complex(obj) if isinstance(obj, complex) else str.__str__(obj)

    def _opaque(self, obj: Any, visit: Visit) -> RawTemplate:
        obj = unpatched(obj)
        number = self._object_numbers.setdefault(id(obj), len(self.objects))
        if number == len(self.objects):
            self.objects.append(obj)
        return Opaque(qualified_name(type(obj)), _described(obj), number)


def _described(obj: Any) -> str:
    if isinstance(obj, Enum):
        return f"{type(obj).__name__}.{obj._name_ or obj._value_}"
    shape = getattr(obj, "shape", None)
    if isinstance(shape, tuple):
        return f"shape {tuple(shape)}"
    return getattr(obj, "__qualname__", "") if callable(obj) else ""


def slot(index: int) -> Slot:
    """The slot node of an index."""
    return SLOTS[index] if index < len(SLOTS) else Slot(index)


def qualified_name(kind: type) -> str:
    """Module and name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


#: A read result longer than this many elements is described instead of kept.
_MOST_READ_ELEMENTS = 64


def shorten(result: Any) -> RawTemplate:
    """What was read, as a constant; long lists and arrays as a description."""
    if result is None or isinstance(result, (bool, int, float, complex, str)):
        return result
    shape = getattr(result, "shape", None)
    if shape is not None:
        return f"{type(result).__name__} {getattr(result, 'dtype', '')}{list(shape)}"
    if isinstance(result, list):
        flat = all(isinstance(x, (bool, int, float, complex)) for x in result)
        return tuple(result) if flat and len(result) <= _MOST_READ_ELEMENTS else f"list of {len(result)}"
    return type(result).__name__
