"""What calls are given: the values of the tensors among their arguments, and the templates of these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

import torch

from lens.capture.addresses import AddressBook
from lens.capture.encoding import ATOMS, ArgumentEncoder, slot
from lens.capture.leaves import LeafRecorder
from lens.capture.selection import Selection
from lens.capture.sites import Locator
from lens.functions import PLAIN_TYPES
from lens.ir.tape import RawTemplate
from lens.ir.templates import Slot

SEQUENCES = frozenset({tuple, list})
_MOST_PLANS = 4096
#: Takes some of the arguments of a call.
_Take: TypeAlias = Callable[[Sequence[Any]], Sequence[torch.Tensor]]


class _Group(NamedTuple):
    """An argument that is neither a constant nor a tensor, and the tensors after it, up to the next such."""

    place: int
    tensors: _Take
    places: tuple[int, ...]


class _Plan(NamedTuple):
    """What to do with the arguments of a call, by their types. Constants stand for themselves."""

    #: The template, if all are tensors: most calls have few types of arguments, and share it.
    slots: tuple[Slot, ...] | None
    #: Takes the tensors before the first group out of the arguments.
    tensors: _Take
    #: The places of these tensors and their slots.
    places: tuple[tuple[int, Slot], ...]
    groups: tuple[_Group, ...]


#: Types of the arguments of a call -> its plan.
_PLANS: dict[tuple[type, ...], _Plan] = {}


def _plan(kinds: tuple[type, ...]) -> _Plan:
    tensors: list[list[int]] = [[]]
    others: list[int] = []
    for place, kind in enumerate(kinds):
        if kind in PLAIN_TYPES:
            tensors[-1].append(place)
        elif kind not in ATOMS:
            others.append(place)
            tensors.append([])
    first, *following = tensors
    slots = tuple(map(slot, range(len(first))))
    found = _Plan(
        slots if len(first) == len(kinds) else None,
        _taker(first),
        tuple(zip(first, slots, strict=True)),
        tuple(_Group(place, _taker(after), tuple(after)) for place, after in zip(others, following, strict=True)),
    )
    if len(_PLANS) < _MOST_PLANS:  # it keeps the types alive
        _PLANS[kinds] = found
    return found


def _taker(places: list[int]) -> _Take:
    if len(places) > 1:
        return itemgetter(*places)
    return itemgetter(slice(places[0], places[0] + 1) if places else slice(0))


class OperandRecorder(LeafRecorder):
    """The part of a recorder that takes in arguments. What it needs is that of a ``LeafRecorder``."""

    def __init__(self, addresses: AddressBook, selection: Selection, locator: Locator) -> None:
        super().__init__(addresses, selection, locator)
        self.encoder = ArgumentEncoder(self.value_of)

    def encode(
        self, args: Sequence[Any], kwargs: Mapping[str, Any] | None
    ) -> tuple[list[int], Sequence[RawTemplate], dict[str, RawTemplate] | None]:
        """The values of the tensors among a call's arguments, and the templates of these."""
        given = (*args, *kwargs.values()) if kwargs else args
        kinds = (*map(type, given),)
        slots, tensors, places, groups = _PLANS.get(kinds) or _plan(kinds)
        if slots is not None and not kwargs:
            return self.values_of(given), slots, None
        operands = self.values_of(tensors(given))
        encoded: list[RawTemplate] = [*given]
        for place, its_slot in places:
            encoded[place] = its_slot
        for place, more, after in groups:
            arg = given[place]
            if type(arg) is not tuple or not ATOMS.issuperset(map(type, arg)):
                encoded[place] = self._encoded(arg, operands)
            if after:
                for number, its_place in enumerate(after, len(operands)):
                    encoded[its_place] = slot(number)
                operands += self.values_of(more(given))
        if not kwargs:
            return operands, encoded, None
        by_name = dict(zip(kwargs, encoded[len(args) :], strict=True))
        del encoded[len(args) :]
        return operands, encoded, by_name

    def _encoded(self, arg: Any, operands: list[int]) -> RawTemplate:
        """The template of an argument that is no plain constant or tensor."""
        kind = type(arg)
        if kind in SEQUENCES and arg and PLAIN_TYPES.issuperset(map(type, arg)):
            first = len(operands)
            operands += self.values_of(arg)
            return self.encoder.slots_in(kind, first, len(operands))
        return self.encoder.encode(arg, operands)

    def _values_given(self, items: Sequence[Any]) -> Sequence[int]:
        """The values of the tensors among the arguments or results of a module, in their order.

        An unseen write to one is left for an op to find: asking for a version here would come to the mode.
        """
        if len(items) == 1:
            known = self._fresh.get(id(items[0]))
            if known is not None and known[0]() is items[0]:
                return known[1]  # most modules are given, and return, one tensor that an operation has just made
        values: list[int] = []
        self._values_in(items, values)
        return values

    def _values_in(self, items: Sequence[Any], values: list[int]) -> None:
        by_id, fresh = self._by_id, self._fresh
        for item in items:
            known = fresh.get(id(item))
            if known is not None and known[0]() is item:
                values += known[1]
                continue
            kind = type(item)
            if kind in PLAIN_TYPES:
                record = by_id.get(id(item))
                is_settled = (
                    record is not None
                    and record() is item
                    and not record.pending
                    and (record.aliases is None or record.looked == len(record.aliases.writes))
                )
                values.append(record.value if is_settled else self.value_of(item))  # type: ignore[union-attr]
            elif kind in SEQUENCES:
                self._values_in(item, values)
            elif kind not in ATOMS:
                self.encoder.encode(item, values)

    def values_of(self, tensors: Sequence[torch.Tensor]) -> list[int]:
        """The values of tensors: of the usual ones without a call for each, which takes 1 us."""
        by_id, fresh, reserved = self._by_id, self._fresh, self._reserved
        values: list[int] = []
        for tensor in tensors:
            number = id(tensor)
            known = fresh.get(number)
            if known is not None and known[0]() is tensor and known[2] == tensor._version:
                values += known[1]
                continue
            leaf = reserved.get(number)
            if leaf is not None:
                values.append(leaf[0][0] if leaf[1] == tensor._version else self.value_of(tensor))
                continue
            record = by_id.get(number)
            if (
                record is not None
                and record() is tensor
                and not record.pending
                and (record.aliases is None or record.looked == len(record.aliases.writes))
                and (record.version is None or record.version == tensor._version)
            ):
                values.append(record.value)
            else:
                values.append(self.value_of(tensor))
        return values
