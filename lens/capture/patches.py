"""Replacing an attribute of torch for one thread, safely with several traces at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeAlias

#: Per thread, what its traces have put in, innermost last.
Entries: TypeAlias = dict[int, list[Any]]

_LOCK = threading.Lock()


class Property(property):
    """A property that stands in for one of C; a plain one takes no attributes, and here the original is kept in one."""

    lens_original: Any


class patched(AbstractContextManager[Entries]):  # noqa: N801  # used as a function is
    """Have ``owner.name`` know ``entry`` in this thread, until the block ends, however it ends.

    The first trace replaces the attribute by ``wrap(original, entries)``, the last one puts the original back; in
    between the wrapper looks up the entries of its thread. Threads that trace nothing get the original behaviour.
    Gives the entries, for ``hidden``. A class, because a trace enters some thirty of them.
    """

    def __init__(
        self, owner: Any, name: str, wrap: Callable[[Callable[..., Any], Entries], Callable[..., Any]], entry: Any
    ) -> None:
        self.owner, self.name, self.wrap, self.entry = owner, name, wrap, entry

    def __enter__(self) -> Entries:
        with _LOCK:
            current = getattr(self.owner, self.name)
            entries: Entries | None = getattr(current, "lens_entries", None)
            if entries is None:
                entries = {}
                wrapper: Any = self.wrap(current, entries)
                wrapper.lens_entries = entries
                wrapper.lens_original = current
                wrapper.lens_inherited = isinstance(self.owner, type) and self.name not in vars(self.owner)
                setattr(self.owner, self.name, wrapper)
            self.entries = entries
            self.thread = threading.get_ident()
            entries.setdefault(self.thread, []).append(self.entry)
            return entries

    def __exit__(self, *_: object) -> None:
        entries, owner, name = self.entries, self.owner, self.name
        with _LOCK:
            entries[self.thread].pop()
            if not entries[self.thread]:
                del entries[self.thread]
            current = getattr(owner, name)
            if not entries and getattr(current, "lens_entries", None) is entries:
                if current.lens_inherited:
                    delattr(owner, name)
                else:
                    setattr(owner, name, current.lens_original)


@contextmanager
def hidden(patches: Sequence[Entries]) -> Iterator[None]:
    """Give this thread the original behaviour of these patches, until the block ends."""
    thread = threading.get_ident()
    shown = [entries.get(thread) for entries in patches]
    for entries in patches:
        entries[thread] = []  # kept, so that another thread's trace does not take the patch away
    try:
        yield
    finally:
        for entries, stack in zip(patches, shown, strict=True):
            if stack is None:
                del entries[thread]
            else:
                entries[thread] = stack
