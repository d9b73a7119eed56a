"""Guards: a program holds one way through the model, and says so when an input would go another way."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lens.errors import GuardError
from lens.ir.templates import Map, Opaque, Seq, Slice, Slot, Symbol, Template

#: How a read is made again, by its kind.
_AGAIN = {"item": "item", "bool": "__bool__", "int": "__int__", "float": "__float__", "index": "__index__"}
_AGAIN |= {"tolist": "tolist", "complex": "__complex__"}


class ReadGuard(nn.Module):
    """Raises GuardError if a tensor no longer tells what it told in the run that was traced.

    Compiled or exported code cannot raise an error of lens: there, a recorded truth value is an assertion of torch's
    (RuntimeError), and other reads are not checked.

    Args:
        kind: The way out of the tensor world, one of ``GUARDED``.
        expected: What was read.
        where: The line that read it.
    """

    def __init__(self, kind: str, expected: Any, where: str) -> None:
        super().__init__()
        self.kind, self.expected, self.where = kind, expected, where

    def forward(self, value: torch.Tensor) -> None:
        """Check one read."""
        if torch.compiler.is_compiling():
            if self.kind == "bool":
                truth = value if self.expected else value.logical_not()
                torch.ops.aten._assert_async.msg(truth, f"this input goes another way at {self.where}")
            return
        found = getattr(value.detach(), _AGAIN[self.kind])()
        if isinstance(found, list):
            found = tuple(found)
        if not _is_equal(self.expected, found):
            raise GuardError(
                f"this input goes another way than the traced one: {self.kind}() gave {self.expected!r}, now {found!r}",
                where=self.where,
                hint="trace the model on this input; to_fx(guards=False) runs the recorded way whatever the input",
            )


class ShapeGuard(nn.Module):
    """Raises GuardError if a tensor whose shape follows from data has another shape than in the run that was traced.

    An extent that differs as one of an operand does follows from that one. Compiled or exported code does not check.

    Args:
        expected: The shape that it had; None for extents that may be any.
        operands: The shapes of what it was made of.
        function: What made it.
        where: The line that made it.
    """

    def __init__(
        self, expected: tuple[int | None, ...], operands: tuple[tuple[int, ...], ...], function: str, where: str
    ) -> None:
        super().__init__()
        self.expected, self.operands, self.function, self.where = expected, operands, function, where

    def forward(self, made: torch.Tensor, *operands: torch.Tensor) -> None:
        """Check one tensor, made of these."""
        if torch.compiler.is_compiling():
            return
        found = tuple(made.shape)
        follow = {
            pair
            for then, now in zip(self.operands, operands, strict=True)
            for pair in zip(then, now.shape, strict=False)
        }
        pairs = zip(self.expected, found, strict=False)
        alike = all(a is None or a == b or (a, b) in follow for a, b in pairs)
        if not alike or len(found) != len(self.expected):
            expected = str(self.expected).replace("None", "?")
            raise GuardError(
                f"this input goes another way than the traced one: {self.function} gave {expected}, now {found}",
                where=self.where,
                hint="sizes that follow from data are constants: trace the model on this input; to_fx(guards=False) "
                "runs the recorded way whatever the input",
            )


class ArgumentGuard(nn.Module):
    """Raises GuardError if what is no tensor in an argument is not as in the trace; opaque objects are not compared."""

    def __init__(self, name: str, expected: Template) -> None:
        super().__init__()
        self.name, self.expected = name, expected

    def forward(self, given: Any) -> None:
        """Check one argument."""
        different = _difference(self.name, self.expected, given)
        if different:
            raise _other_argument(different, self.name)


class SharedGuard(nn.Module):
    """Raises GuardError if two arguments that were one tensor in the trace are not."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, given: torch.Tensor, first: torch.Tensor) -> None:
        """Check one pair."""
        if not (torch.compiler.is_compiling() or given is first or torch.equal(given, first)):
            raise _other_argument(f"{self.name} and another argument as one tensor", self.name)


def _other_argument(traced_with: str, where: str) -> GuardError:
    return GuardError(
        f"the program was traced with {traced_with}",
        where=where,
        hint="trace the model with the arguments that you need, tensors that may differ as different tensors",
    )


def _difference(place: str, expected: Template, given: Any) -> str:
    """Where an argument first differs from its template, and what stood there; empty if nowhere."""
    parts: list[tuple[str, Template, Any]] = []
    match expected:
        case Opaque():
            return ""
        case Slot():
            alike, shown = isinstance(given, torch.Tensor), "a tensor"
        case Symbol():
            alike, shown = str(given) == expected.name, expected.name
        case Slice():
            alike, shown = isinstance(given, slice), "a slice"
            names = ("start", "stop", "step")
            parts = [(f"{place}.{n}", getattr(expected, n), getattr(given, n, None)) for n in names]
        case Seq(_, items):
            alike, shown = isinstance(given, (tuple, list)) and len(given) == len(items), f"{len(items)} items"
            if alike:
                parts = [(f"{place}[{i}]", *pair) for i, pair in enumerate(zip(items, given, strict=True))]
        case Map(_, pairs):
            entries = _entries(given)
            keys = [key for key, _ in pairs if isinstance(key, (bool, int, float, str))]
            alike, shown = len(entries) == len(pairs) and all(key in entries for key in keys), f"the keys {keys}"
            if alike:
                parts = [(f"{place}[{key!r}]", item, entries[key]) for key, item in pairs if key in keys]
        case _:
            alike, shown = _is_argument(expected, given), repr(expected)
    if not alike:
        return f"{place} = {shown}"
    return next(filter(None, (_difference(*part) for part in parts)), "")


def _entries(given: Any) -> Mapping[Any, Any]:
    if isinstance(given, Mapping):
        return given
    fields = dataclasses.fields(given) if dataclasses.is_dataclass(given) else ()
    return {field.name: getattr(given, field.name, None) for field in fields}


def _is_argument(expected: Any, given: Any) -> bool:
    """Whether a constant is the recorded one; an instance of a subclass (``IntEnum``) is what it stands for."""
    kind = type(expected)
    return isinstance(given, kind) and (kind is not int or not isinstance(given, bool)) and _is_equal(expected, given)


def _is_equal(expected: Any, found: Any) -> bool:
    if isinstance(expected, tuple) and isinstance(found, tuple):
        return len(expected) == len(found) and all(map(_is_equal, expected, found))
    return bool(found == expected or (found != found and expected != expected))  # nan is nan


#: The kinds of reads that can be checked.
GUARDED = frozenset(_AGAIN)
