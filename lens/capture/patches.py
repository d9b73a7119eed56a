"""Replacing an attribute of torch for one thread, safely with several traces at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

#: Per thread, what its traces have put in, innermost last.
Entries: TypeAlias = dict[int, list[Any]]

_LOCK = threading.Lock()


@contextmanager
def patched(
    owner: Any,
    name: str,
    wrap: Callable[[Callable[..., Any], Entries], Callable[..., Any]],
    entry: Any,
) -> Iterator[None]:
    """Have ``owner.name`` know ``entry`` in this thread, until the block ends, however it ends.

    The first trace replaces the attribute by ``wrap(original, entries)``, the last one puts the original back; in
    between the wrapper looks up the entries of its thread. Threads that trace nothing get the original behaviour.
    """
    thread = threading.get_ident()
    with _LOCK:
        current = getattr(owner, name)
        entries = getattr(current, "lens_entries", None)
        if entries is None:
            entries = {}
            wrapper: Any = wrap(current, entries)
            wrapper.lens_entries = entries
            wrapper.lens_original = current
            wrapper.lens_inherited = name not in vars(owner)
            setattr(owner, name, wrapper)
        entries.setdefault(thread, []).append(entry)
    try:
        yield
    finally:
        with _LOCK:
            entries[thread].pop()
            if not entries[thread]:
                del entries[thread]
            current = getattr(owner, name)
            if not entries and getattr(current, "lens_entries", None) is entries:
                if current.lens_inherited:
                    delattr(owner, name)
                else:
                    setattr(owner, name, current.lens_original)
