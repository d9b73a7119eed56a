"""Replacing an attribute of torch for one thread, safely with several traces at once."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, lru_cache, partial
from importlib import import_module
from threading import get_ident
from typing import Any, TypeAlias

from torch import overrides

#: Per thread, what its traces have put in, innermost last.
Entries: TypeAlias = dict[int, list[Any]]
#: Makes the replacement of an attribute, which looks up the entries of its thread. A function of a module, so that
#: the replacement is made once in a process.
Wrap: TypeAlias = Callable[[Any, Entries], Any]

#: Held by whoever replaces attributes of torch, so that no one takes what another is taking away for the original.
LOCK = threading.RLock()


class Property(property):
    """A property that stands in for one of C; a plain one takes no attributes, and here the original is kept in one."""

    lens_original: Any
    lens_patch: Any


class Patch:
    """A replacement for ``owner.name``, in place while some thread has an entry.

    Threads that have none get the original behaviour.
    """

    def __init__(self, owner: Any, name: str, wrap: Wrap) -> None:
        self.owner, self.name = owner, name
        self._wrap = wrap
        self._original: Any = None
        self._wrapper: Any = None
        #: Puts the original back, if that is no replacement of lens's.
        self._back: partial[Any] | None = None
        self.entries: Entries = {}
        _MADE.append(self)

    def add(self, entry: Any) -> Entries:
        """Have the replacement know an entry in this thread. Gives the entries, for ``hidden``."""
        with LOCK:
            if not self.entries:
                self._put()
            self.entries.setdefault(get_ident(), []).append(entry)
            return self.entries

    def drop(self, thread: int, entry: Any) -> None:
        """Forget an entry of a thread; after the last one the original is back. Any thread may say so."""
        with LOCK:
            stack = self.entries.get(thread)
            if type(stack) is list and len(stack) == 1 and stack[0] is entry:
                del self.entries[thread]
            else:
                _remove(self.entries, thread, entry)
            self.leave()

    def leave(self) -> None:
        """Put the original back if nobody has an entry, and nobody else's replacement of ours is there."""
        if not self.entries and getattr(self.owner, self.name) is self._wrapper:
            self._take_away()

    def _take_away(self) -> None:
        """Put back what was there, without the replacements below that nobody needs any more."""
        if self._back is not None:
            self._back()
            return
        lowest = self._wrapper
        while is_asleep(lowest.lens_original):
            lowest = lowest.lens_original
        if getattr(lowest, "lens_inherited", False) or _is_inherited(self.owner, self.name, lowest.lens_original):
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, lowest.lens_original)

    def _put(self) -> None:
        current = getattr(self.owner, self.name)
        if current is not self._original:
            self.entries = {}  # an old replacement that somebody still calls stays asleep
            self._original, self._wrapper = current, self._wrap(current, self.entries)
            self._wrapper.lens_original, self._wrapper.lens_patch = current, self
            compile_as(current, self._wrapper)
            self._wrapper.lens_inherited = inherited = self.name not in vars(self.owner)
            self._back = None
            if not hasattr(current, "lens_original"):
                undo = partial(setattr, self.owner, self.name, current)
                self._back = partial(delattr, self.owner, self.name) if inherited else undo
        setattr(self.owner, self.name, self._wrapper)


class _Cover(list[Any]):
    """What stands for the entries of a thread while they are hidden; it takes those of traces that begin meanwhile."""

    def __init__(self, beneath: list[Any]) -> None:
        super().__init__()
        self.beneath = beneath


def _remove(entries: Entries, thread: int, entry: Any) -> None:
    """Remove the newest such entry, hidden ones included. The list is left as it is: its thread may be reading it."""
    covers: list[_Cover] = []
    stack = entries.get(thread, [])
    while isinstance(stack, _Cover) and all(one is not entry for one in stack):
        covers.append(stack)
        stack = stack.beneath
    place = max((place for place, one in enumerate(stack) if one is entry), default=len(stack))
    rest = [*stack[:place], *stack[place + 1 :]]
    if isinstance(stack, _Cover):
        stack[:] = rest
    elif covers:
        covers[-1].beneath = rest
    else:
        entries[thread] = rest
    if _is_empty(entries.get(thread, [])):
        entries.pop(thread, None)


def _is_empty(stack: list[Any]) -> bool:
    return not stack and (not isinstance(stack, _Cover) or _is_empty(stack.beneath))


#: All patches of this process; there are as many as places that lens replaces.
_MADE: list[Patch] = []


#: What else replaces attributes, and how it puts them back in a forked process.
_OTHERS: list[Callable[[], object]] = []


def put_back_in_children(put_back: Callable[[], object]) -> None:
    """Have this called in every process that is forked from this one, before patches are taken away there."""
    _OTHERS.append(put_back)


def _put_all_back() -> None:
    """In a forked process: the traces are those of the other one, and the threads of all but one."""
    try:
        for put_back in _OTHERS:
            put_back()
        over = awake()
        for made in over:
            made.entries.clear()
        for made in over:
            made.leave()
    finally:
        LOCK.release()


if hasattr(os, "register_at_fork"):  # whoever forks holds the lock, so that no other thread is in the middle of it
    os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=_put_all_back)


def awake() -> list[Patch]:
    """The patches that some thread has an entry of."""
    return [made for made in _MADE if made.entries]


def is_asleep(value: Any) -> bool:
    """Whether a value is a replacement of lens's that no trace needs any more.

    ``lens_patch`` of a replacement has the entries for which it is there: a ``Patch``, or what else replaces functions.
    """
    made = getattr(value, "lens_patch", None)
    return made is not None and not made.entries


def _is_inherited(owner: Any, name: str, value: Any) -> bool:
    return isinstance(owner, type) and any(vars(base).get(name) is value for base in owner.__mro__[1:])


def compile_as(original: Any, replacement: Any) -> None:
    """Have TorchScript, compiling inside of a traced forward, take a replacement for the operator that it replaces."""
    builtins: Any = sys.modules.get("torch.jit._builtins")
    find, register = (getattr(builtins, name, None) for name in ("_find_builtin", "_register_builtin"))
    if find is not None and register is not None:  # private: without them such a compilation fails
        name = find(original)
        if name is not None:
            register(replacement, name)


@lru_cache(maxsize=256)
def patch(owner: Any, name: str, wrap: Wrap) -> Patch:
    """The one patch of this process that puts this replacement there."""
    return Patch(owner, name, wrap)


@contextmanager
def patched(owner: Any, name: str, wrap: Wrap, entry: Any) -> Iterator[Entries]:
    """Have ``owner.name`` know ``entry`` in this thread, until the block ends, however it ends."""
    replaced, thread = patch(owner, name, wrap), get_ident()
    entries = replaced.add(entry)
    try:
        yield entries
    finally:
        replaced.drop(thread, entry)


@contextmanager
def hidden(patches: Sequence[Entries]) -> Iterator[None]:
    """Give this thread the original behaviour of these patches, until the block ends."""
    thread = get_ident()
    covers: list[tuple[Entries, _Cover]] = []
    try:
        with LOCK:
            for entries in patches:
                covers.append((entries, _Cover(entries.get(thread, []))))
                entries[thread] = covers[-1][1]
        yield
    finally:
        with LOCK:
            for entries, cover in reversed(covers):
                stack = entries.get(thread)
                while isinstance(stack, _Cover) and stack is not cover:  # an interrupt has left it there
                    stack = stack.beneath
                if stack is cover:  # not so if the trace has ended, in another thread
                    entries[thread] = cover.beneath
                    if _is_empty(cover.beneath):
                        del entries[thread]


@cache
def fill_tables() -> None:
    """Have torch fill the tables of its functions that it keeps by identity, before any of these is replaced."""
    overrides.get_overridable_functions()
    overrides.get_default_nowrap_functions()
    with suppress(ImportError, AttributeError):  # private: where it is missing there is no such table to fill
        import_module("torch.utils._device")._device_constructors()
