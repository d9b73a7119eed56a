"""The one error tree of lens.

Every error says what went wrong, where (an operation, a file and line, a key), and what to do now.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class LensError(Exception):
    """Root of all errors that lens raises on purpose.

    Args:
        what: What went wrong, one sentence.
        where: The operation, file position or key concerned; may be empty.
        hint: What the reader can do now; may be empty.
    """

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.hint:
            lines.append(f"  to do: {self.hint}")
        return "\n".join(lines)


class InputError(LensError, ValueError):
    """An argument given to lens has the wrong type, value or shape."""


class BackendError(LensError):
    """A capture backend is unknown, unavailable or broke its contract."""


class GraphError(LensError):
    """A graph breaks a structural rule of the IR."""


class TextError(LensError, ValueError):
    """A text is not the text form of a graph."""


class PassError(LensError):
    """A pass is unknown, misconfigured, or broke its contract."""


class PluginError(LensError):
    """A plugin package has a manifest that lens cannot use."""


class UnknownKeyError(LensError, KeyError):
    """No entry of a history answers to this key."""


class UnknownAttributeError(LensError, AttributeError):
    """Entries have no attribute of this name."""


def nearest(name: object, known: Iterable[str]) -> str:
    """The known name that is most like a wrong one; all known names if none is like it."""
    names = list(known)
    return ", ".join(get_close_matches(str(name), names, n=1) or names)


def unknown_attribute(owner: object, name: str) -> AttributeError:
    """What to raise for an attribute that an object has not: with the nearest names, unless the name is private."""
    if name.startswith("_"):  # asked for by copy, pickle and notebooks
        return AttributeError(name)
    near = get_close_matches(name, [known for known in dir(owner) if known[0] != "_"], n=3)
    return UnknownAttributeError(
        f"a {type(owner).__name__} has no attribute {name!r}",
        where=repr(owner),
        hint=f"did you mean {', '.join(near)}?" if near else "dir() of it lists the attributes",
    )


class AmbiguousKeyError(LensError, KeyError):
    """A key names several entries, or an attribute differs between the passes of a layer."""


class PayloadError(LensError):
    """The value of a tensor is asked for and cannot be given."""


class AbsentValueError(PayloadError):
    """The value was not saved."""


class StaleValueError(PayloadError):
    """The value was saved by reference and overwritten afterwards by something lens did not see."""


class FileFormatError(LensError, ValueError):
    """A file is not a lens trace, is damaged, or was written by a newer lens."""


class RenderError(LensError):
    """A picture or an export could not be made."""


class ReplayError(LensError):
    """An operation of a graph cannot be run again."""


class GuardError(LensError):
    """An exported program was given an input for which the model would have gone another way."""
