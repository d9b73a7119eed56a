"""The options of passes and renderers, which are the fields of their classes: as text, and which are true or false."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from attrs import NOTHING, fields_dict, has

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


def options_text(cls: Any) -> str:
    """The options of a class with their defaults, as ``read_option`` takes these; empty if it has none."""
    options = fields_dict(cls) if has(cls) else {}
    return ", ".join(f"{option}={_text(attribute.default)}" for option, attribute in options.items())


def _text(default: object) -> str:
    if default is NOTHING:
        return "(required)"
    try:
        return json.dumps(default)
    except (TypeError, ValueError):
        return str(default)


def wrong_flag(cls: Any, given: Mapping[str, object]) -> str:
    """The first option that is true or false and is given something else; empty if there is none."""
    options = fields_dict(cls) if has(cls) else {}
    flags = (option for option, attribute in options.items() if attribute.type in (bool, "bool"))
    return next((flag for flag in flags if not isinstance(given.get(flag, True), bool)), "")
