"""The signals for which a program has a handler in Python, which may raise at any moment: Ctrl-C, an alarm."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeAlias

Handler: TypeAlias = Callable[[int, FrameType | None], Any]

#: Those whose handlers raise in practice: to ask of all costs 25 us, of these 5.
_NAMES = ("SIGINT", "SIGTERM", "SIGALRM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGVTALRM", "SIGPROF", "SIGXCPU")
_SIGNALS = tuple(int(getattr(signal, name)) for name in (*_NAMES, "SIGBREAK") if hasattr(signal, name))


def handlers() -> dict[int, Handler]:
    """By its number: the handler of each signal that has one in Python."""
    found = {number: signal.getsignal(number) for number in _SIGNALS}
    return {number: handler for number, handler in found.items() if callable(handler)}


def is_from_handler(error: BaseException) -> bool:
    """Whether a signal handler raised this: then the code in which it came has nothing to do with it."""
    codes = {getattr(handler, "__code__", None) for handler in handlers().values()}
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code in codes:
            return True
        traceback = traceback.tb_next
    return False
