"""What calls are given: the values of the tensors among their arguments, and the templates of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch

from lens.capture.addresses import AddressBook
from lens.capture.encoding import ATOMS, ArgumentEncoder, slot
from lens.capture.leaves import TENSOR_TYPES, LeafRecorder
from lens.capture.selection import Selection
from lens.capture.sites import Locator
from lens.ir.tape import RawTemplate
from lens.ir.templates import Slot

_SEQUENCES = frozenset({tuple, list})
_MOST_PLANS = 4096


#: Stands in a plan for what is neither a constant nor a tensor.
_OTHER = Slot(-1)
#: Which arguments of a call are no constants that stand for themselves, and the slots that they get: None for tensors
#: after something else, which may take slots of its own.
_Plan: TypeAlias = "tuple[tuple[int, Slot | None], ...]"
#: Types of the arguments of a call -> its plan.
_PLANS: dict[tuple[type, ...], _Plan] = {}


def _plan(kinds: tuple[type, ...]) -> _Plan:
    places = [place for place, kind in enumerate(kinds) if kind not in ATOMS]
    are_tensors = [kinds[place] in TENSOR_TYPES for place in places]
    first = [*are_tensors, False].index(False)
    slots: list[Slot | None] = [*map(slot, range(first)), *(None if one else _OTHER for one in are_tensors[first:])]
    found = tuple(zip(places, slots, strict=True))
    if len(_PLANS) < _MOST_PLANS:  # it keeps the types alive
        _PLANS[kinds] = found
    return found


class OperandRecorder(LeafRecorder):
    """The part of a recorder that takes in arguments. What it needs is that of a ``LeafRecorder``."""

    def __init__(self, addresses: AddressBook, selection: Selection, locator: Locator) -> None:
        super().__init__(addresses, selection, locator)
        self.encoder = ArgumentEncoder(self.value_of)

    def _encode(
        self, args: Sequence[Any], kwargs: Mapping[str, Any] | None, operands: list[int]
    ) -> tuple[list[RawTemplate], dict[str, RawTemplate] | None]:
        """The templates of a call's arguments; the values of the tensors among them are appended to ``operands``."""
        given = (*args, *kwargs.values()) if kwargs else args
        kinds = (*map(type, given),)
        plan = _PLANS.get(kinds)
        if plan is None:
            plan = _plan(kinds)
        by_id, reserved = self._by_id, self.tensors.reserved
        encoded: list[RawTemplate] = [*given]
        for place, its_slot in plan:
            arg = given[place]
            if its_slot is _OTHER:
                if type(arg) is not tuple or not ATOMS.issuperset(map(type, arg)):
                    encoded[place] = self._encoded(arg, operands)
                continue
            encoded[place] = its_slot or slot(len(operands))
            # The usual kinds of tensor without a call: 1 us per operation.
            number = id(arg)
            leaf = reserved.get(number)
            if leaf is not None:
                operands.append(leaf[0] if leaf[1] == arg._version else self.value_of(arg))
                continue
            record = by_id.get(number)
            if (
                record is not None
                and record() is arg
                and not record.pending
                and (record.version is None or record.version == arg._version)  # type: ignore[union-attr]
            ):
                operands.append(record.value)
            else:
                operands.append(self.value_of(arg))
        if not kwargs:
            return encoded, None
        by_name = dict(zip(kwargs, encoded[len(args) :], strict=True))
        del encoded[len(args) :]
        return encoded, by_name

    def _encoded(self, arg: Any, operands: list[int]) -> RawTemplate:
        """The template of an argument that is no plain constant or tensor."""
        kind = type(arg)
        if kind in _SEQUENCES and arg and TENSOR_TYPES.issuperset(map(type, arg)):
            first = len(operands)
            operands += self._values_of(arg)
            return self.encoder.slots_in(kind, first, len(operands))
        return self.encoder.encode(arg, operands)

    def _values_in(self, items: Sequence[Any], values: list[int]) -> None:
        """Append the values of the tensors among the arguments or results of a module, in their order.

        An unseen write to one is left for an op to find: asking for a version here would come to the mode.
        """
        by_id = self._by_id
        for item in items:
            kind = type(item)
            if kind in TENSOR_TYPES:
                record = by_id.get(id(item))
                is_settled = record is not None and record() is item and not record.pending
                values.append(record.value if is_settled else self.value_of(item))  # type: ignore[union-attr]
            elif kind in _SEQUENCES:
                self._values_in(item, values)
            elif kind not in ATOMS:
                self.encoder.encode(item, values)

    def _values_of(self, tensors: Sequence[torch.Tensor]) -> list[int]:
        """The values of the tensors in a list, without a call for each."""
        by_id = self._by_id
        return [
            record.value
            if (record := by_id.get(id(tensor))) is not None
            and record() is tensor
            and not record.pending
            and (record.version is None or record.version == tensor._version)
            else self.value_of(tensor)
            for tensor in tensors
        ]
