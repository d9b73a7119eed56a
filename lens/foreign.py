"""Code that is not ours: a model, a function of the user's. The only place in lens where whatever is raised is caught.

What such code raises is a finding, not an accident: a verdict tells it. So no shorter list of exceptions would do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from traceback import walk_tb
from typing import NoReturn, TypeVar, overload

from attrs import frozen

from lens.signal_handlers import is_from_handler

_T = TypeVar("_T")
_WIDTH = 200


@frozen
class Raised:
    """What foreign code raised, in the place of its result; as text one line.

    Not the exception itself: its frames lead to those that called, and so to whoever kept it, with all their tensors.

    Args:
        kind: The class of the exception.
        message: Its text.
    """

    kind: type[Exception]
    message: str

    @classmethod
    def of(cls, error: Exception) -> Raised:
        """What stands for an exception."""
        return cls(type(error), message_of(error))

    def __str__(self) -> str:
        return f"{self.kind.__name__}: {' '.join(self.message.split())[:_WIDTH] or 'no message'}"


@overload
def attempt(run: Callable[[], _T], use: Callable[[Exception], NoReturn]) -> _T: ...
@overload
def attempt(run: Callable[[], _T], use: Callable[[Exception], object] | None = None) -> _T | Raised: ...
def attempt(run: Callable[[], _T], use: Callable[[Exception], object] | None = None) -> _T | Raised:
    """Run foreign code: its result, or what it raised. Only what ends the process or thread comes through,
    and what a signal handler raises, such as a time limit of the user's.

    Args:
        run: The code.
        use: Given the exception itself, before it is let go; may raise another in its place.
    """
    try:
        return run()
    except Exception as error:
        if is_from_handler(error):
            raise
        if use is not None:
            use(error)
        return Raised.of(error)


def message_of(error: BaseException) -> str:
    """The text of an exception, whose class may be foreign, too; empty if that raises."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - see above
        return ""


def origin(error: BaseException) -> str:
    """File and line of the innermost frame of an error."""
    return next((line for _, line in _frames(error)), "")


def origin_in(owner: object, error: BaseException) -> str:
    """File and line of the innermost frame of an error in the package of an object's class; empty if none is."""
    package = _package(type(owner).__module__)
    return next((line for module, line in _frames(error) if _package(module) == package), "")


def _package(module: str) -> str:
    return module.partition(".")[0]


def _frames(error: BaseException) -> Iterator[tuple[str, str]]:
    """Module, and file with line, of the frames of an error, innermost first."""
    found = walk_tb(error.__traceback__)
    for frame, line in reversed(list(found)):
        yield str(frame.f_globals.get("__name__")), f"{frame.f_code.co_filename}:{line}"
