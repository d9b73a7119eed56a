"""What long work is doing, for somebody who waits at a terminal.

Work says in which stage it is (``stage``), which does nothing unless somebody shows it (``progress``): then a thread of
its own looks now and then, so that nothing is done per operation.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from shutil import get_terminal_size
from threading import Event, Lock, Thread
from time import monotonic
from typing import TextIO

from attrs import define, field, frozen

from lens.errors import InputError

#: To the beginning of the line, and all behind that wiped.
_WIPE = "\r\x1b[K"


@frozen
class _Stage:
    name: str
    count: Callable[[], int] | None
    total: int

    def __str__(self) -> str:
        if self.count is None:
            return self.name
        return f"{self.name}: {self.count():,}{f' of {self.total:,}' if self.total else ''} operations"


@define
class _Display:
    stream: TextIO
    after: float
    stages: list[_Stage] = field(factory=list)
    begun: float = 0.0
    shown: bool = False
    lock: Lock = field(factory=Lock)
    done: Event = field(factory=Event)

    def watch(self) -> None:
        """Show the stage again and again, until it is all over."""
        while not self.done.wait(min(0.2, self.after / 4)):
            with self.lock:
                seconds = monotonic() - self.begun
                if self.stages and seconds >= self.after:
                    text = f"lens: {self.stages[-1]}, {seconds:.0f} s"
                    self.write(f"{_WIPE}{text[: get_terminal_size().columns - 1]}")
                    self.shown = True

    def write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()

    @contextmanager
    def within(self, entered: _Stage) -> Iterator[None]:
        if not self.stages:
            self.begun = monotonic()
        self.stages.append(entered)
        try:
            yield
        finally:
            with self.lock:
                self.stages.pop()
                if self.shown and not self.stages:
                    self.shown = False
                    self.write(_WIPE)


_display: ContextVar[_Display | None] = ContextVar("lens_display", default=None)


def stage(name: str, count: Callable[[], int] | None = None, total: int = 0) -> AbstractContextManager[None]:
    """Say what the work in the block is; costs nothing to speak of if nobody shows it.

    Args:
        name: Such as ``drawing``.
        count: How many operations are done by now; it is called from another thread.
        total: How many there are, if that is known.
    """
    display = _display.get()
    return nullcontext() if display is None else display.within(_Stage(name, count, total))


@contextmanager
def progress(stream: TextIO | None = None, *, after: float = 2.0) -> Iterator[None]:
    """Show on a terminal what lens is doing in the block, when it takes long: ``with lens.progress(): ...``.

    The line goes when the work is done. Nothing is shown where the stream is no terminal.

    Args:
        stream: Where to; by default standard error.
        after: For how many seconds a stage goes on before it is shown.
    """
    target = sys.stderr if stream is None else stream
    if not hasattr(target, "isatty"):
        raise InputError(f"a {type(stream).__name__} is no stream", where="lens.progress", hint="give sys.stderr")
    if not target.isatty():
        yield
        return
    display = _Display(target, after)
    token = _display.set(display)
    Thread(target=display.watch, daemon=True, name="lens progress").start()
    try:
        yield
    finally:
        _display.reset(token)
        display.done.set()
