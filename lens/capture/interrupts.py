"""Keeping signals, such as Ctrl-C, away from the moments in which a trace is put in place and taken away again."""

from __future__ import annotations

import signal
import threading
from contextlib import AbstractContextManager
from types import FrameType

from lens.signal_handlers import Handler, handlers


class InterruptsWait(AbstractContextManager["InterruptsWait"]):
    """Has signals whose handlers are Python's wait until the block ends, except in a block of ``let_through``.

    Only the main thread gets any. No generators: an exception would keep one alive in its traceback, and what it does
    at its end would come when all is over.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Handler] = {}
        self._waiting: list[tuple[int, FrameType | None]] = []
        #: Whether signals go on to their handlers, also if one comes while these are being put back.
        self._open = True

    def __enter__(self) -> InterruptsWait:
        if threading.current_thread() is threading.main_thread():
            self._handlers = handlers()
            try:
                self.hold()
            except BaseException:
                self.resume()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self.resume()

    def let_through(self) -> _LetThrough:
        """For the time of a block, have signals reach their handlers; first those that have waited."""
        return _LetThrough(self)

    def hold(self) -> None:
        """Have signals wait from now on. The program may have put in handlers of its own meanwhile."""
        try:
            self._put_in()
        except BaseException:  # of a signal that was not held yet
            self._put_in()
            raise
        finally:
            self._open = False

    def resume(self) -> None:
        """Put the handlers back, and give them what has waited."""
        self._open = True
        try:
            self._put_back()
        except BaseException:  # of a signal whose handler is back already
            self._put_back()
            raise
        while self._waiting:
            number, frame = self._waiting.pop(0)
            self._handlers[number](number, frame)

    def _put_in(self) -> None:
        for number in self._handlers:
            before = signal.signal(number, self._note)
            if callable(before) and before != self._note:
                self._handlers[number] = before

    def _put_back(self) -> None:
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._note:
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._open:
            self._handlers[number](number, frame)
        else:
            self._waiting.append((number, frame))


class _LetThrough(AbstractContextManager[None]):
    def __init__(self, waiting: InterruptsWait) -> None:
        self._waiting = waiting

    def __enter__(self) -> None:
        try:
            self._waiting.resume()
        except BaseException:
            self._waiting.hold()  # what is to be taken away yet is, undisturbed
            raise

    def __exit__(self, *_: object) -> None:
        self._waiting.hold()
