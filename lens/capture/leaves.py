"""Leaves: tensors that the graph begins with, and which value a tensor stands for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from operator import itemgetter

import torch
from torch.nn.parameter import is_lazy

from lens.capture.addresses import AddressBook
from lens.capture.keeping import Keeper
from lens.capture.memory import Memory
from lens.capture.selection import Selection, fits
from lens.capture.sites import Locator
from lens.capture.tensor_table import Reserved, TensorRecord, TensorTable
from lens.capture.unseen import odd_type
from lens.functions import PLAIN_TYPES
from lens.ir.elements import LeafKind
from lens.ir.places import Site
from lens.ir.tape import Tape, ValueRow

#: Of a tensor with its names, and of a reserved one.
_TENSOR, _STORAGE = itemgetter(0), itemgetter(2)
#: The row of a value that is described at the end.
_UNDESCRIBED: ValueRow = ((), None, None, None, None, None)


class LeafRecorder:
    """The part of a recorder that knows tensors, and makes leaves of those that no operation made.

    Args:
        addresses: The names of the model's tensors and modules.
        selection: Which values to hold.
        locator: Finds the user's line of a call.
    """

    def __init__(self, addresses: AddressBook, selection: Selection, locator: Locator) -> None:
        self.tape = Tape()
        self.keeper = Keeper(selection)
        self.tensors = TensorTable(self.keeper.held)
        self.addresses = addresses
        self.locator = locator
        self.call_site: Site = None
        #: What a tensor is that was never met and is not the model's.
        self.stranger: LeafKind = "external"
        #: Set by a backend that can tell the value of a tensor which comes as an object never met.
        self.recognise: Callable[[torch.Tensor], int | None] = lambda _: None
        # Looked up once: these are read for every operation.
        self._by_id, self._fresh, self._reserved = self.tensors.by_id, self.tensors.fresh, self.tensors.reserved
        self._values = self.tape.values
        self._hold_leaves = self.keeper.everything or self.keeper.leaves
        self.memory = Memory(self)  # type: ignore[arg-type]

    def value_of(self, tensor: torch.Tensor) -> int:
        """The value that a tensor stands for; a tensor never met becomes a leaf."""
        fresh = self._fresh.get(id(tensor))
        if fresh is not None and fresh[0]() is tensor and fresh[2] == tensor._version:
            return fresh[1][0]
        reserved = self._reserved.get(id(tensor))
        if reserved is not None and reserved[1] == tensor._version:
            return reserved[0][0]
        record = self.tensors.find(tensor)
        if record is None:
            named = self.addresses.tensor(tensor)
            if named is not None:
                return self.leaf(tensor, named[1], named[2])
            known = self.recognise(tensor)
            if known is not None:
                return known
            # A tensor without data cannot hide where its values come from.
            kind: LeafKind = "constant" if tensor.is_meta else self.stranger
            names = (f"tensor_{len(self.tape.leaves) + 1}",) if kind == "input" else ()
            return self.leaf(tensor, kind, names, self.locator.find(sys._getframe(1), self.call_site))
        if not (record.settled and (record.version is None or record.version == tensor._version)):
            self.memory.catch_up(record, tensor)
        return record.value

    def knows(self, tensor: torch.Tensor) -> bool:
        """Whether the trace has met a tensor before, or its model holds it."""
        return self.tensors.is_met(tensor) or self.addresses.tensor(tensor) is not None

    def leaf(self, tensor: torch.Tensor, kind: LeafKind, addresses: tuple[str, ...], site: Site = None) -> int:
        """Make a tensor a leaf of the graph and give its value."""
        values = self._values
        value = len(values)
        record = self.tensors.add(tensor, value)
        alias = self.tensors.alias(record, ())
        self.memory.leaf_storages.add(record.storage)
        if self.memory.exposed:
            self.memory.expose_again(record, tensor)
            self.memory.snap(record, tensor)
        try:
            values.append((tensor.shape, tensor.dtype, tensor.device, tensor.layout, alias, None))
        except (RuntimeError, ValueError):  # nested tensors and parameters of lazy modules have no shape
            values.append((*odd_type(tensor), alias, None))
        self.tape.leaves.append((kind, value, addresses, tensor.requires_grad, site))
        if self._holds(addresses) and not is_lazy(tensor):
            self.keeper.hold(record, value, tensor, raw=kind in ("parameter", "buffer"))
        return value

    def prepare(self) -> None:
        """Give the parameters and buffers of the model their values; sealing leaves out what nothing uses."""
        values, begin = self._values, len(self._values)
        named, known = self.addresses.registered(), self._by_id
        if not (PLAIN_TYPES.issuperset(map(type, map(_TENSOR, named.values()))) and known.keys().isdisjoint(named)):
            # The others are met when they are used: subclasses, and what a lazy module has yet to shape.
            named = {n: one for n, one in named.items() if type(one[0]) in PLAIN_TYPES and n not in known}
        rest = self.tensors.reserve(named, begin)
        reserved = self.tensors.reserved
        values += [_UNDESCRIBED] * len(reserved)
        self.memory.leaf_storages.update(map(_STORAGE, reserved.values()))
        for tensor, kind, addresses in rest:
            self.leaf(tensor, kind, addresses)
        self.tape.prepared = range(begin, len(values))
        self.tensors.met = self._met
        if self.memory.exposed:
            self.tensors.meet_reserved()

    def _met(self, record: TensorRecord, reserved: Reserved) -> None:
        """A reserved leaf is written to, or shares its memory: describe it as it is now, and hold it if wanted."""
        self._describe(reserved)
        (value,), _, _, _, (tensor, _, addresses) = reserved
        if self._hold_leaves is True or self._holds(addresses):
            self.keeper.hold(record, value, tensor, raw=True)
        if self.memory.exposed:
            self.memory.snap(record, tensor)

    def _describe(self, *reserved: Reserved) -> None:
        values, leaves = self._values, self.tape.leaves
        for (value,), _, _, trainable, (tensor, kind, addresses) in reserved:
            values[value] = (tensor.shape, tensor.dtype, tensor.device, tensor.layout, None, None)
            leaves.append((kind, value, addresses, trainable, None))

    def end(self) -> None:
        """The run is over: describe the leaves to which nothing happened but uses."""
        if self._hold_leaves is True:
            self.tensors.meet_reserved()
        elif self._hold_leaves:
            reserved = self.tensors.reserved
            self.tensors.meet_reserved([number for number, leaf in reserved.items() if self._holds(leaf[4][2])])
        self._describe(*self.tensors.reserved.values())

    def _holds(self, addresses: tuple[str, ...]) -> bool:
        """Whether a leaf of these names is wanted."""
        wanted = self._hold_leaves
        return wanted if isinstance(wanted, bool) else any(fits(address, wanted) for address in addresses)
