"""Integers of a trace that follow the sizes of its inputs: which they are, and how, from two traces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import combinations, combinations_with_replacement

from attrs import frozen

from lens.errors import InputError

#: How far from a size a number is just beside it.
_NEAR = 2
#: The largest number by which a size is divided with a remainder.
_SMALLEST_PART = 16


@frozen
class Size:
    """An extent of the inputs that differs between two traces.

    Args:
        name: Such as ``s0``.
        first, second: What it is in each trace.
        places: (number of the input, dimension) wherever it occurs.
    """

    name: str
    first: int
    second: int
    places: tuple[tuple[int, int], ...]


@frozen
class Form:
    """How an integer follows from sizes: ``factor`` times the product of ``sizes``, plus ``offset`` and ``plus``."""

    factor: Fraction
    sizes: tuple[str, ...]
    offset: int = 0
    plus: str = ""

    def at(self, sizes: Mapping[str, int]) -> int:
        """The integer at these sizes."""
        product = self.factor.numerator
        for name in self.sizes:
            product *= sizes[name]
        return product // self.factor.denominator + self.offset + (sizes[self.plus] if self.plus else 0)

    def __str__(self) -> str:
        text = "*".join(self.sizes)
        text = text if self.factor.numerator == 1 else f"{self.factor.numerator}*{text}"
        text = text if self.factor.denominator == 1 else f"{text}//{self.factor.denominator}"
        text = f"{text}{self.offset:+}" if self.offset else text
        return f"{text}+{self.plus}" if self.plus else text


def find_sizes(first: Sequence[tuple[int, ...]], second: Sequence[tuple[int, ...]]) -> tuple[Size, ...]:
    """The sizes that differ between the shapes of the inputs of two traces.

    Raises:
        InputError: none differ, or two differ in the same proportion, so that nothing tells which is meant.
    """
    places: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for number, (a, b) in enumerate(zip(first, second, strict=True)):
        for dimension, pair in enumerate(zip(a, b, strict=True)):
            if pair[0] != pair[1]:
                places.setdefault(pair, []).append((number, dimension))
    if not places:
        raise InputError(
            "the inputs of the two traces have the same sizes", hint="trace the model once more with another size"
        )
    sizes = tuple(Size(f"s{i}", *pair, tuple(where)) for i, (pair, where) in enumerate(places.items()))
    for i, one in enumerate(sizes):
        for other in sizes[i + 1 :]:
            if one.first * other.second == one.second * other.first:
                raise InputError(
                    f"two sizes change in the same proportion: {one.first} to {one.second}, "
                    f"{other.first} to {other.second}",
                    hint="choose sizes that tell them apart, such as 11 and 13 for one, 37 and 53 for the other",
                )
    return sizes


def find_form(first: int, second: int, sizes: Sequence[Size]) -> Form | None:
    """How an integer that is ``first`` in one trace and ``second`` in the other follows from sizes; None if unclear.

    A multiple of one size comes before one of two, then what is just beside a size, a fraction of one rounded down, a
    sum of two or of a size and a constant, or what is just beside a multiple. A multiple of one size that is also just
    beside another is unclear.
    """
    beside = [form for form in _shifted(first, second, sizes) if form.factor == 1 and 0 < abs(form.offset) <= _NEAR]
    for candidates in (
        _products(first, second, sizes, 1),
        _products(first, second, sizes, 2),
        beside,
        _rounded(first, second, sizes),
        _shifted(first, second, sizes),
    ):
        found = list(candidates)
        if found:
            simplest = min(found, key=_cost)
            alone = sum(_cost(form) == _cost(simplest) for form in found) == 1
            doubtful = simplest.offset == 0 and simplest.factor != 1 and beside
            return simplest if alone and not doubtful else None
    return None


def _cost(form: Form) -> tuple[int, int]:
    return abs(form.factor.numerator) + form.factor.denominator, abs(form.offset)


def _products(first: int, second: int, sizes: Sequence[Size], degree: int) -> Iterator[Form]:
    for chosen in combinations_with_replacement(sizes, degree):
        a = b = 1
        for size in chosen:
            a, b = a * size.first, b * size.second
        if a and b and first and Fraction(first, a) == Fraction(second, b):
            yield Form(Fraction(first, a), tuple(size.name for size in chosen))


def _rounded(first: int, second: int, sizes: Sequence[Size]) -> Iterator[Form]:
    for size in sizes:
        for part in range(2, _SMALLEST_PART + 1):
            if first and (first, second) == (size.first // part, size.second // part):
                yield Form(Fraction(1, part), (size.name,))


def _shifted(first: int, second: int, sizes: Sequence[Size]) -> Iterator[Form]:
    for size in sizes:
        factor = Fraction(second - first, size.second - size.first)
        offset = first - factor * size.first
        # Any number whose difference is a multiple of the size's is a multiple and a constant: only small ones count.
        if factor.denominator == 1 and (abs(factor) == 1 or abs(offset) <= max(_NEAR, abs(int(factor)))):
            yield Form(factor, (size.name,), int(offset))
    for one, other in combinations(sizes, 2):
        if first == one.first + other.first and second == one.second + other.second:
            yield Form(Fraction(1), (one.name,), plus=other.name)
