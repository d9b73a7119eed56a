"""Sizes as people read them."""

from __future__ import annotations

_UNITS = ("B", "KB", "MB", "GB", "TB")


def human_bytes(count: float) -> str:
    """A number of bytes with a unit, in steps of 1024: ``18.8 MB``."""
    place = 0
    while count >= 1024 and place < len(_UNITS) - 1:
        count, place = count / 1024, place + 1
    return f"{count:.{min(place, 1)}f} {_UNITS[place]}"


def human_shape(shape: tuple[int, ...]) -> str:
    """A shape as it stands in pictures: ``1x64x32x32``; ``scalar`` for none."""
    return "x".join("?" if n < 0 else str(n) for n in shape) or "scalar"


def human_seconds(seconds: float) -> str:
    """A duration with a fitting unit: ``12.3 ms``."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= factor:
            return f"{seconds / factor:.1f} {unit}"
    return f"{seconds * 1e9:.0f} ns" if seconds else "0 s"


def human_count(count: float) -> str:
    """A number in short: ``1.2 M``."""
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f}"
