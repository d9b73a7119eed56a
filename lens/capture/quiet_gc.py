"""Keeping the garbage collector from going through all that a trace makes, again and again."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

from attrs import define, field

from lens.capture.patches import put_back_in_children

#: How many new objects make a collection of them due during a trace, nearly all of whose objects stay: some 6,000
#: operations. Measured: 1.5 us less per operation of conv, batch norm and relu x 50 with 10,000 than with Python's 700,
#: and with 50,000 another 1.2 to 1.5 us less on loops of 4,000 operations. The old objects, the few hundred thousand of
#: torch among them, stay where they are: to freeze and unfreeze them would have no collection come due any more in a
#: program that traces again and again, and gains nothing beside this.
_YOUNG_OBJECTS = 50_000


@define
class _Setting:
    """A setting of the process, while traces of any thread need it: the first changes it, the last puts it back.

    Args:
        read: Gives what it is.
        change: Changes it, given what it is.
        put_back: Makes it what it was.
    """

    read: Callable[[], Any]
    change: Callable[[Any], None]
    put_back: Callable[[Any], None]
    users: int = 0
    was: Any = None
    lock: Any = field(factory=RLock)

    @contextmanager
    def changed(self) -> Iterator[None]:
        """Have it changed until the block ends, however it ends: an interrupt may come at any call in here."""
        counted = False
        try:
            with self.lock:
                if not self.users:
                    self.was = self.read()
                self.users += 1
                counted = True
                if self.users == 1:
                    self.change(self.was)
            yield
        finally:
            with self.lock:
                self.users -= counted
                if counted and not self.users:
                    self.put_back(self.was)

    def put_back_at_once(self) -> None:
        """In a forked process: the traces are those of the other one."""
        if self.users:
            self.put_back(self.was)
        self.users, self.lock = 0, RLock()


def _raise_threshold(was: tuple[int, ...]) -> None:
    if was[0]:
        gc.set_threshold(max(was[0], _YOUNG_OBJECTS), *was[1:])


_THRESHOLD = _Setting(gc.get_threshold, _raise_threshold, lambda was: gc.set_threshold(*was))
_COLLECTOR = _Setting(gc.isenabled, lambda was: gc.disable(), lambda was: gc.enable() if was else None)
for _setting in (_THRESHOLD, _COLLECTOR):
    put_back_in_children(_setting.put_back_at_once)
#: Have collections come due after more objects than usual. Collection itself stays on.
collections_put_off = _THRESHOLD.changed
#: Switch automatic collection off for a stretch of lens's own work, which makes no cycles but many objects. Measured on
#: sealing and the passes of 400,000 ops: 35 us per op with the collector on, 21 with it off.
collector_off = _COLLECTOR.changed
