"""Objects as they are now, to be put back so: one memento for each."""

from __future__ import annotations

import random
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Sequence
from functools import partial
from operator import is_
from typing import Any, Protocol

import torch

from lens.capture.tensor_table import storage_of, version_of
from lens.foreign import Raised, attempt
from lens.ir.payloads import has_elements
from lens.reachable import is_array, is_generator, is_numpy_generator, slots_of
from lens.validate.comparing import same


class Memento(Protocol):
    """What an object was."""

    def put_back(self) -> None:
        """Make the object what it was. What still is so is left alone, but for arrays and generators."""
        ...

    def again(self) -> Memento:
        """What the same object is now."""
        ...


def mementos_of(objects: Sequence[Any]) -> tuple[list[Memento], list[str]]:
    """What objects, as ``reachable`` finds them, are now, and which of them, in words, could not be looked at.

    Memory that several of them show is copied once, if that is less than to copy what each shows. Linear.
    """
    shared, apart = _shared_memory(objects)
    found: list[Memento] = []
    unknown = []
    for one, copied in (*((one, id(one) not in apart) for one in objects), *((whole, True) for whole in shared)):
        memento = attempt(partial(_memento_of, one, copied))
        if isinstance(memento, Raised):
            unknown.append(f"a {type(one).__name__}, which could not be looked at ({memento})")
        elif memento is not None:
            found.append(memento)
    return found, unknown


def _memento_of(one: Any, copied: bool) -> Memento | None:
    """What an object is now; without its contents if these are not to be copied."""
    kind = type(one)  # a proxy says that it is of the class of what it stands for
    if issubclass(kind, torch.Tensor):
        return TensorMemento(one, copied)
    for parent, memento in ((dict, _OfDict), (list, _OfList), (set, _OfSet), (deque, _Contents)):
        if issubclass(kind, parent):
            return memento(one)
    if is_array(one) or is_generator(one):
        return _OfState(one) if copied else None
    return _OfSlots(one)


def _shared_memory(objects: Sequence[Any]) -> tuple[list[Any], set[int]]:
    """Memory that several tensors or arrays show, as one flat tensor or array, and the ids of what shows it."""
    groups: dict[tuple[str, int], list[tuple[Any, Any, int]]] = defaultdict(list)
    for one in objects:
        found = attempt(partial(_memory_of, one))
        if found is not None and not isinstance(found, Raised):
            key, whole, size = found
            groups[key].append((one, whole, size))
    shared, apart = [], set()
    for members in groups.values():
        whole = members[0][1]
        if sum(size for _, _, size in members) > whole.nbytes:  # one tensor, too, may show an element many times
            shared.append(whole)
            apart |= {id(one) for one, _, _ in members}
    return shared, apart


def _memory_of(one: Any) -> tuple[tuple[str, int], Any, int] | None:
    """The memory of a tensor or array: a name of it, all of it, and how many bytes the object shows."""
    if issubclass(type(one), torch.Tensor):
        if not has_memory(one):
            return None
        storage = one.untyped_storage()
        flat = torch.empty(0, dtype=torch.uint8, device=one.device)
        with torch.no_grad():
            flat.set_(storage, 0, (storage.nbytes(),), (1,))
        return ("torch", storage.data_ptr()), flat, _without_repeats(one.detach()).numel() * one.element_size()
    if not is_array(one):
        return None
    whole = one
    while is_array(whole.base):
        whole = whole.base
    return ("numpy", id(whole)), whole, one.nbytes


def _is_there(tensor: torch.Tensor) -> bool:
    """Whether a tensor has elements that can be read: dense ones may have given their memory back, as FSDP does."""
    if not has_elements(tensor):
        return False
    dense = not tensor.is_nested and tensor.layout is torch.strided
    return not dense or not tensor.numel() or has_memory(tensor)


def has_memory(tensor: torch.Tensor) -> bool:
    """Whether what a tensor shows is there: it is dense, of plain memory, and this was not given back."""
    if tensor.is_nested or tensor.layout is not torch.strided or not has_elements(tensor) or not tensor.numel():
        return False
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return bool((tensor.storage_offset() + last + 1) * tensor.element_size() <= tensor.untyped_storage().nbytes())


class TensorMemento:
    """Where a tensor lies, what is there, its gradient, and whether it asks for one.

    Args:
        tensor: The tensor.
        copied: Whether to copy what is there. If not, and it changes, ``contents`` must be given before it is put back.
    """

    def __init__(self, tensor: torch.Tensor, copied: bool = True) -> None:
        self.tensor = tensor
        #: Shows the same memory for good, wherever the tensor goes.
        self.shown = tensor.detach()
        copy = attempt(_without_repeats(self.shown).clone) if copied and _is_there(tensor) else None
        self.contents = None if isinstance(copy, Raised) else copy
        self._nbytes = self.shown.untyped_storage().nbytes() if has_memory(tensor) else None
        self._version = version_of(tensor)
        self._is_leaf = tensor.is_leaf
        self._asks_for_grad = tensor.requires_grad
        self._grad = tensor.grad if tensor.is_leaf else None

    def is_written(self) -> bool:
        """Whether torch counted a write since."""
        return version_of(self.shown) != self._version

    def put_back(self) -> None:
        """Make the tensor what it was; a derivative through it is lost."""
        with torch.inference_mode(self.tensor.is_inference()), torch.no_grad():
            if _place(self.tensor) != _place(self.shown):
                self.tensor.data = self.shown
            if self._nbytes is not None and not has_memory(self.shown):  # it was given back, and is taken again
                self.shown.untyped_storage().resize_(self._nbytes)
            if self.contents is not None:
                place = _without_repeats(self.shown)
                if not _is_same(place, self.contents):
                    place.copy_(self.contents)
            if self._is_leaf:
                self._put_back_grad()

    def _put_back_grad(self) -> None:
        tensor = self.tensor
        if not tensor.is_leaf and not tensor._is_view():
            tensor.detach_()
        if tensor.is_leaf and tensor.requires_grad != self._asks_for_grad:
            tensor.requires_grad_(self._asks_for_grad)
        if tensor.is_leaf and tensor.grad is not self._grad:
            tensor.grad = self._grad

    def again(self) -> TensorMemento:
        """What the tensor is now; the copy of before is used again if it is what is there."""
        now = self.tensor.detach()
        unchanged = self.contents is not None and _is_there(now) and _is_same(_without_repeats(now), self.contents)
        found = TensorMemento(self.tensor, copied=self.contents is not None and not unchanged)
        if unchanged:
            found.contents = self.contents
        return found


class _Contents:
    """What a container holds: the objects themselves, which have mementos of their own."""

    __slots__ = ("_held", "_one")

    def __init__(self, one: Any) -> None:
        self._one = one
        self._held = self._now()

    def put_back(self) -> None:
        now = self._now()
        if len(now) != len(self._held) or not all(map(is_, now, self._held)):
            self._fill()

    def again(self) -> Memento:
        return type(self)(self._one)

    def _now(self) -> tuple[Any, ...]:
        return tuple(self._one)

    def _fill(self) -> None:
        self._one.clear()
        self._one.extend(self._held)


class _OfList(_Contents):
    __slots__ = ()

    def _fill(self) -> None:
        list.__setitem__(self._one, slice(None), self._held)


class _OfSet(_Contents):
    __slots__ = ()

    def _fill(self) -> None:
        self._one.clear()
        self._one.update(self._held)


class _OfDict(_Contents):
    """By the methods of the plain class: those of others may do more."""

    __slots__ = ()

    @property
    def _kind(self) -> Any:
        return OrderedDict if isinstance(self._one, OrderedDict) else dict

    def _now(self) -> tuple[Any, ...]:
        kind = self._kind
        return (*kind.keys(self._one), *kind.values(self._one))

    def _fill(self) -> None:
        kind, middle = self._kind, len(self._held) // 2
        kind.clear(self._one)
        for key, value in zip(self._held[:middle], self._held[middle:], strict=True):
            kind.__setitem__(self._one, key, value)


class _OfSlots(_Contents):
    __slots__ = ()
    _EMPTY = object()

    def _now(self) -> tuple[Any, ...]:
        return tuple(self._read(slot) for slot in slots_of(self._one))

    def _read(self, slot: Any) -> Any:
        try:
            return slot.__get__(self._one)
        except AttributeError:
            return self._EMPTY

    def _fill(self) -> None:
        for slot, now, then in zip(slots_of(self._one), self._now(), self._held, strict=True):
            if then is self._EMPTY and now is not self._EMPTY:
                slot.__delete__(self._one)
            elif then is not now:
                slot.__set__(self._one, then)


class _OfState:
    """Of an array or a random generator: what it tells of itself is a copy."""

    def __init__(self, one: Any) -> None:
        self._one = one
        self._read, self._write = _access(one)
        self._state = self._read()

    def put_back(self) -> None:
        self._write(self._state)

    def again(self) -> Memento:
        return _OfState(self._one)


def _access(one: Any) -> tuple[Callable[[], Any], Callable[[Any], object]]:
    """How the state of an array or a generator is read, and how it is set."""
    if is_array(one):
        return one.copy, partial(one.__setitem__, ...)
    if isinstance(one, random.Random):
        return one.getstate, one.setstate
    if is_numpy_generator(one):
        return partial(getattr, one, "state"), partial(setattr, one, "state")
    return one.get_state, one.set_state


def _is_same(tensor: torch.Tensor, contents: torch.Tensor) -> bool:
    """False also of tensors whose class cannot compare them."""
    return attempt(partial(same, tensor, contents)) is True


def _place(tensor: torch.Tensor) -> tuple[object, ...]:
    """Where a tensor lies; nothing of those that do not lie in one piece of memory."""
    if tensor.is_nested or tensor.layout is not torch.strided:
        return ()
    geometry = tensor.storage_offset(), tensor.stride(), tensor.shape, tensor.is_conj(), tensor.is_neg()
    return storage_of(tensor), tensor.dtype, *geometry


def _without_repeats(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor with one element for those that an expanded one repeats."""
    if not tensor.is_nested and tensor.layout is torch.strided:
        for dimension, step in enumerate(tensor.stride()):
            if step == 0:
                tensor = tensor.narrow(dimension, 0, min(1, tensor.shape[dimension]))
    return tensor
