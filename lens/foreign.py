"""Code that is not ours: a model, a function of the user's. The only place in lens where whatever is raised is caught.

What such code raises is a finding, not an accident: a verdict tells it. So no shorter list of exceptions would do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from attrs import frozen

_T = TypeVar("_T")
_WIDTH = 200


@frozen
class Raised:
    """What foreign code raised, in the place of its result; as text one line.

    Args:
        error: The exception.
    """

    error: Exception

    def __str__(self) -> str:
        return f"{type(self.error).__name__}: {' '.join(str(self.error).split())[:_WIDTH] or 'no message'}"


def attempt(run: Callable[[], _T]) -> _T | Raised:
    """Run foreign code: its result, or what it raised. Only what ends the process or thread comes through."""
    try:
        return run()
    except Exception as error:  # noqa: BLE001 - see above
        return Raised(error)


def origin(error: BaseException) -> str:
    """File and line of the innermost frame of an error."""
    traceback = error.__traceback__
    if traceback is None:
        return ""
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"
