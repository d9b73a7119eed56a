"""The options of passes and renderers, which are the fields of their classes: as text, and which are true or false."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from attrs import NOTHING, Attribute, fields, has

from lens.errors import LensError, RenderError, nearest

#: Words of Python that JSON writes otherwise.
_PYTHON: Mapping[str, object] = {"True": True, "False": False, "None": None}


def read_option(text: str) -> object:
    """The value of an option: JSON, or what a word of Python stands for, or else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return read_word(text)


def read_word(word: str) -> object:
    """What a word that is no JSON stands for: itself, unless it is ``True``, ``False`` or ``None``."""
    return _PYTHON.get(word, word)


def options_of(cls: Any) -> dict[str, Attribute[Any]]:
    """The fields of a class by what it calls them when it is made; none if it is no attrs class."""
    return {attribute.alias: attribute for attribute in fields(cls) if attribute.init} if has(cls) else {}


def options_text(cls: Any) -> str:
    """The options of a class with their defaults, as ``read_option`` takes these; empty if it has none."""
    return ", ".join(f"{option}={_text(attribute.default)}" for option, attribute in options_of(cls).items())


def _text(default: object) -> str:
    if default is NOTHING:
        return "(required)"
    try:
        return json.dumps(default)
    except (TypeError, ValueError):
        return str(default)


def check_options(
    what: str, cls: Any, given: Mapping[str, object], kind: type[LensError] = RenderError, where: str = ""
) -> None:
    """Raise ``kind`` if a class has no such option, or if one that is true or false is given something else.

    A class that is no attrs class says itself what it takes.
    """
    options = options_of(cls)
    for name, value in given.items() if has(cls) else ():
        if name not in options:
            hint = f"its options are {nearest(name, options)}" if options else "it has no options"
            raise kind(f"{what} has no option {name!r}", where=where or f"{name}=", hint=hint)
        if options[name].type in (bool, "bool") and not isinstance(value, bool):
            wrong = f"{name} of {what} cannot be {value!r:.40}"
            raise kind(wrong, where=where or f"{name}=", hint="give True or False")
