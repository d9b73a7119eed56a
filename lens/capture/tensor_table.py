"""Which value a tensor object stands for at the moment, and who shares memory with whom."""

from __future__ import annotations

import itertools
import weakref
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from operator import attrgetter, itemgetter
from typing import TypeAlias

import torch

from lens.capture.addresses import Named
from lens.capture.alias_set import SEVERAL, AliasSet
from lens.capture.footprint import Footprint

#: What asking for the storage raises: sparse tensors and wrappers; parameters of lazy modules.
_NO_STORAGE = (RuntimeError, NotImplementedError, ValueError)

_TENSOR, _VERSION, _TRAINED = itemgetter(0), attrgetter("_version"), attrgetter("requires_grad")
#: Of what is known of a fresh tensor.
_VALUE = itemgetter(1)

#: What asking for the count of writes raises: inference tensors; parameters of lazy modules.
_NO_VERSION = (RuntimeError, ValueError)

#: Stands first among the pending ops of a tensor for writes whose number torch does not count, such as NumPy's.
EXPOSED = -1


#: private: makes a tensor that a weak reference gives safe to keep, where only a view in C++ has kept it alive. A torch
#: without it needs no such care. Looked up now, before a backend replaces the methods of tensors.
_FIX_WEAKREF: Callable[[torch.Tensor], None] = getattr(torch.Tensor, "_fix_weakref", lambda _: None)


class TensorRecord(weakref.ref[torch.Tensor]):
    """The state of one live tensor object; a weak reference to it, so that calling the record gives the tensor.

    Attributes:
        value: The value that it stands for.
        pending: Ops known to have written to its memory through another tensor since it was last looked at, besides
            those that ``aliases`` has noted.
        storage: Identity of its memory; None where it has none that can be told.
        held: Values whose payload is this tensor, by reference.
        version: torch's count of writes to it when lens last looked at it; None where there is none (inference
            tensors), or where it does not tell of all writes; ``SEVERAL`` where ``aliases`` has to be asked.
        aliases: The tensors that share its memory, if others did when it was met, or came since.
        looked: How many of the writes to that memory have been looked at for this tensor.
    """

    __slots__ = ("aliases", "held", "looked", "pending", "storage", "value", "version")

    value: int
    storage: int | None
    pending: tuple[int, ...]
    held: tuple[int, ...]
    version: int | None
    aliases: AliasSet | None
    looked: int

    def seen(self, tensor: torch.Tensor) -> None:
        """Note that what was written to the tensor so far has been seen."""
        if self.version == SEVERAL:
            self.aliases.count(tensor)  # type: ignore[union-attr]
        elif self.version is not None:
            self.version = tensor._version

    def has_seen(self, tensor: torch.Tensor) -> bool:
        """Whether all writes to the tensor that torch has counted have been seen, as far as counts tell."""
        if self.version is None or self.version == tensor._version:
            return True
        return self.aliases is not None and self.aliases.has_seen(tensor)

    @property
    def settled(self) -> bool:
        """Whether no op has written to its memory through another tensor since it was last looked at."""
        return not self.pending and (self.aliases is None or self.looked == len(self.aliases.writes))

    def revalue(self, value: int) -> None:
        """Let it stand for another value."""
        old, self.value = self.value, value
        if self.aliases is not None:
            self.aliases.revalue(self, old)

    @property
    def exposed(self) -> bool:
        """Whether its memory can be written to without a trace."""
        return bool(self.pending) and self.pending[0] == EXPOSED


#: A tensor of the model before anything but a use has happened to it: its value alone in a tuple, torch's count of
#: writes to it, its storage, whether it is trained, and its names, with the tensor itself.
Reserved: TypeAlias = "tuple[tuple[int], int, int, bool, Named]"
#: A tensor that an operation made in memory of its own, before anything but a use has happened to it: a weak reference
#: to it, its value alone in a tuple (which the rows that name only this value share), torch's count of writes to it,
#: whether other fresh tensors may share its memory: views of it, or what it is a view of.
Fresh: TypeAlias = "tuple[weakref.ref[torch.Tensor], tuple[int], int, bool]"


class TensorTable:
    """Records of all tensors that the trace has met and that are still alive.

    Tensors are known by ``id`` together with a weak reference: no attribute is left on any tensor, and an id that
    Python uses again is recognised.

    Most parameters are used and nothing else happens to them: no write, no other tensor in their memory. They are
    reserved together before the run, which keeps them alive, and get a record when something else happens. So do most
    results of operations, the fresh ones, and the views of these: they get theirs when they are found, or when a tensor
    comes in memory that no record has, which may be that of one of them. Most are dead before
    (docs/adr/010-fresh-results.md). So of tensors in one memory, all that live are fresh, or none.

    Args:
        held: The values whose payloads are held: those of fresh tensors by reference.
    """

    def __init__(self, held: Container[int] = ()) -> None:
        self._held = held
        self.by_id: dict[int, TensorRecord] = {}
        #: One record stands for itself: most tensors share their memory with no other. A number is the id of a
        #: reserved tensor.
        self._by_storage: dict[int | None, TensorRecord | AliasSet | int] = {}
        #: Whether tensors are met when torch has said what they are views of; a backend below autograd sets it off.
        self.tied = True
        self.reserved: dict[int, Reserved] = {}
        #: By id. An entry whose tensor is dead stays until the id is used again, or all are met.
        self.fresh: dict[int, Fresh] = {}
        #: The values that fresh tensors were before, by id, where they are held, too: so these live.
        self._held_before: dict[int, list[int]] = {}
        #: Told of a reserved tensor that gets its record.
        self.met: Callable[[TensorRecord, Reserved], None] = lambda record, reserved: None

    def find(self, tensor: torch.Tensor) -> TensorRecord | None:
        """The record of a tensor, if it was met before."""
        number = id(tensor)
        fresh = self.fresh.get(number)
        if fresh is not None and fresh[0]() is tensor:
            if fresh[3]:
                self._meet_all_fresh()
                return self.by_id[number]
            del self.fresh[number]
            return self._meet_fresh(tensor, fresh)
        record = self.by_id.get(number)
        if record is None:
            return self._meet(number) if number in self.reserved else None
        return record if record() is tensor else None

    def is_met(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor was met before."""
        number = id(tensor)
        fresh, record = self.fresh.get(number), self.by_id.get(number)
        known = (fresh is not None and fresh[0]() is tensor) or (record is not None and record() is tensor)
        return known or number in self.reserved

    def is_up_to_date(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor was met before, and no write since then has been missed, as far as torch counts them."""
        record = self.find(tensor)
        return record is not None and record.has_seen(tensor)

    def records(self) -> list[TensorRecord]:
        """The records of all tensors met, of dead ones too. Linear."""
        self._meet_all_fresh()
        return list(self.by_id.values())

    def reserve(self, named: Mapping[int, Named], value: int) -> list[Named]:
        """Reserve tensors of the model, with values from ``value`` on; the rest, which need records, are given back.

        In one go and with nothing but C for each: met one by one between operations, which drive this code and its
        tables out of the caches, each cost three times as much (measured on resnet50 at 64 px).

        Args:
            named: The tensors by id.
            value: The value of the first.
        """
        tensors = [*map(_TENSOR, named.values())]
        try:
            storages = [tensor.untyped_storage()._cdata for tensor in tensors]
            versions = [*map(_VERSION, tensors)]
        except _NO_STORAGE:
            return [*named.values()]
        if len(set(storages)) < len(storages) or not self._by_storage.keys().isdisjoint(storages):
            taken = Counter(storages) + Counter(self._by_storage.keys())
            alone = {number for number, storage in zip(named, storages, strict=True) if taken[storage] == 1}
            self.reserve({number: named[number] for number in named if number in alone}, value)
            return [one for number, one in named.items() if number not in alone]
        values: Iterator[tuple[int]] = zip(itertools.count(value))
        facts = zip(values, versions, storages, map(_TRAINED, tensors), named.values(), strict=False)
        self.reserved.update(zip(named, facts, strict=True))
        self._by_storage.update(zip(storages, named, strict=True))
        return []

    def _meet(self, number: int) -> TensorRecord:
        """Give a reserved tensor its record."""
        reserved = (value,), version, storage, _, named = self.reserved.pop(number)
        record = TensorRecord(named[0])
        record.value, record.version, record.storage = value, version, storage
        record.pending = record.held = ()
        record.aliases, record.looked = None, 0
        self.by_id[number] = self._by_storage[storage] = record
        self.met(record, reserved)
        return record

    def meet_reserved(self, ids: Sequence[int] | None = None) -> None:
        """Give reserved tensors their records: all, or those of these ids."""
        for number in list(self.reserved) if ids is None else ids:
            self._meet(number)

    def _meet_fresh(self, tensor: torch.Tensor, fresh: Fresh) -> TensorRecord:
        """Give a fresh tensor its record."""
        record = TensorRecord(tensor)
        _, (record.value,), record.version, _ = fresh
        record.pending, record.aliases, record.looked = (), None, 0
        record.held = (*self._held_before.pop(id(tensor), ()), record.value) if record.value in self._held else ()
        storage = record.storage = storage_of(tensor)
        self.by_id[id(tensor)] = record  # whole: an interrupt may come before any line
        if storage is not None:
            self._register(record, tensor, self._by_storage.get(storage))
        return record

    def _meet_all_fresh(self) -> None:
        taken = (self.fresh.pop(number, None) for number in list(self.fresh))  # another thread may add or take some
        for fresh in sorted(filter(None, taken), key=_VALUE):  # ids that are used again stand where they stood
            tensor = fresh[0]()
            if tensor is not None:
                self._meet_fresh(tensor, fresh)

    def shown(self, tensor: torch.Tensor, result: torch.Tensor) -> Fresh | None:
        """What is known of a fresh tensor, if a result is this tensor or a new view of it; None for any other.

        From a view on, the tensor is one of those that share their memory, and so is the view.
        """
        known = self.fresh.get(id(tensor))
        if known is None or known[0]() is not tensor:
            return None
        if result is tensor:
            if known[1][0] in self._held:
                self._held_before.setdefault(id(tensor), []).append(known[1][0])
            return known
        base = result._base
        if base is None or not (base is tensor or base is tensor._base) or weakref.getweakrefcount(result):
            return None
        if not known[3]:
            known = self.fresh[id(tensor)] = (*known[:3], True)
        return known

    def add(self, tensor: torch.Tensor, value: int) -> TensorRecord:
        """A new record; it has ``aliases`` if other tensors have its memory."""
        record = TensorRecord(tensor)
        record.value = value
        record.pending = record.held = ()
        record.aliases, record.looked = None, 0
        try:
            record.version = tensor._version
        except _NO_VERSION:
            record.version = None
        storage = record.storage = storage_of(tensor)
        self.by_id[id(tensor)] = record
        if storage is not None:
            self._register(record, tensor, self._known(storage))
        return record

    def _known(self, storage: int | None) -> TensorRecord | AliasSet | int | None:
        """Who has this memory, as far as is known; if nobody that lives, fresh tensors may."""
        known = self._by_storage.get(storage)
        if self.fresh and not self._is_in_use(known, storage):
            self._meet_all_fresh()
            return self._by_storage.get(storage)
        return known

    @staticmethod
    def _is_in_use(known: TensorRecord | AliasSet | int | None, storage: int | None) -> bool:
        if type(known) is TensorRecord:
            return known.storage == storage and known() is not None
        return known.has_others() if type(known) is AliasSet else known is not None

    def _register(
        self, record: TensorRecord, tensor: torch.Tensor, known: TensorRecord | AliasSet | int | None
    ) -> None:
        """Note a record as one of those that have its memory, besides the known ones."""
        storage = record.storage
        if isinstance(known, int):
            known = self._meet(known)
        if not self._is_in_use(known, storage):  # new memory, or memory used again
            self._by_storage[storage] = record
        elif type(known) is AliasSet:
            known.add(record, tensor)
        else:
            self._by_storage[storage] = aliases = AliasSet(self.tied)
            other = known()  # type: ignore[operator,misc]
            aliases.add(known, other)  # type: ignore[arg-type]
            aliases.add(record, tensor)

    def alias(self, record: TensorRecord, preferred: Sequence[int]) -> int | None:
        """The value that a tensor just added shares memory with: one of the preferred ones, else the newest."""
        aliases = record.aliases
        if aliases is None:
            return None
        for value in preferred:
            if aliases.standing_for(value, record) is not None:
                return value
        newest = aliases.newest(record)
        return None if newest is None else newest.value

    def move(self, record: TensorRecord, tensor: torch.Tensor) -> bool:
        """Note that a tensor may have been given other memory (``set_``, ``.data = ...``); whether it was."""
        storage = storage_of(tensor)
        if storage is None or storage == record.storage:
            return False
        if record.version == SEVERAL:
            record.version = tensor._version
        record.storage, record.aliases = storage, None
        self._register(record, tensor, self._known(storage))
        return True

    def is_alone(self, record: TensorRecord) -> bool:
        """Whether no other tensor has the memory of this one."""
        return self._by_storage.get(record.storage) is record

    def aliases(self, record: TensorRecord, tensor: torch.Tensor) -> AliasSet | None:
        """The tensors that share the memory of this one, if others that live do."""
        if record.storage is None:  # perhaps of a lazy module, and shaped since
            self.move(record, tensor)
        return record.aliases if record.aliases is not None and record.aliases.has_others(record) else None

    def members(self, record: TensorRecord) -> list[tuple[TensorRecord, torch.Tensor]]:
        """The other live records on the same memory, with their tensors, oldest first. Linear in them."""
        return [] if self.is_alone(record) else self.on(record.storage, record)

    def on(self, storage: int | None, but: TensorRecord) -> list[tuple[TensorRecord, torch.Tensor]]:
        """The live records on a memory, but for one, with their tensors. Linear in them."""
        live = ((m, m()) for m in self.records_on(storage) if m is not but)
        found = [(member, tensor) for member, tensor in live if tensor is not None]
        for _, tensor in found:
            _FIX_WEAKREF(tensor)
        return found

    def held_on(self, storage: int | None, where: Footprint) -> list[TensorRecord]:
        """The records of live tensors there of which something is held, and that a write there would reach."""
        known = None if storage is None else self._known(storage)
        if type(known) is AliasSet:
            return known.take_held(where)
        return [record for record in self.records_on(storage) if record.held]

    def records_on(self, storage: int | None) -> list[TensorRecord]:
        """The records of live tensors on a memory, oldest first. Linear in them."""
        known = None if storage is None else self._known(storage)
        if isinstance(known, int):
            known = self._meet(known)
        if type(known) is AliasSet:
            return known.live()
        return [known] if type(known) is TensorRecord and self._is_in_use(known, storage) else []


def version_of(tensor: torch.Tensor) -> int | None:
    """torch's count of writes to a tensor's memory; None for those that have none, such as inference tensors."""
    try:
        return None if tensor.is_inference() else tensor._version
    except ValueError:  # a parameter that a lazy module has yet to shape
        return None


def storage_of(tensor: torch.Tensor) -> int | None:
    """An identity of a tensor's memory, good while the tensor lives; None for tensors without a storage."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except _NO_STORAGE:
        return None
