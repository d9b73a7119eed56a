"""Warnings that name the line of the user's that called lens."""

from __future__ import annotations

import sys
import warnings

#: Whose code may stand between that line and the warning.
_BETWEEN = frozenset({"lens", "torch", "contextlib"})


def warn_user(message: str) -> None:
    """Warn at the first line outwards that is neither lens's nor of what lens runs under."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
