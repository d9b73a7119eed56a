"""Keeping Ctrl-C away from the moments in which a trace is put in place and taken away again."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import Any, TypeAlias

LetThrough: TypeAlias = Callable[[], AbstractContextManager[None]]


@contextmanager
def interrupts_wait() -> Iterator[LetThrough]:
    """Have SIGINT wait until the block ends, except in blocks of what this gives (only the main thread gets any)."""
    handler: Any = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield nullcontext
        return
    waiting: list[tuple[int, FrameType | None]] = []

    def note(number: int, frame: FrameType | None) -> None:
        waiting.append((number, frame))

    def resume() -> None:
        signal.signal(signal.SIGINT, handler)
        while waiting:
            handler(*waiting.pop())

    @contextmanager
    def let_through() -> Iterator[None]:
        nonlocal handler
        resume()
        try:
            yield
        finally:
            handler = signal.signal(signal.SIGINT, note)  # the program may have put in its own

    signal.signal(signal.SIGINT, note)
    try:
        yield let_through
    finally:
        resume()
