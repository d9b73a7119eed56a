"""Pipelines as text: ``"granularity{level=leaf},orphans,labels"``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NoReturn

from lens.errors import PassError
from lens.foreign import Raised, attempt
from lens.options import check_options, read_word
from lens.passes.protocol import Pass

_NAME = re.compile(r"\s*(?P<name>[\w.-]+)\s*(?P<opens>\{)?")
_NEXT = re.compile(r"\s*(?:,|$)")
_OPTION = re.compile(r"\s*(?P<name>\w+)\s*=\s*")
_WORD = re.compile(r"[^,{}]*")
_BEHIND_OPTION = re.compile(r"\s*(?:,|(?=\}))")
_CLOSE = re.compile(r"\s*\}")
_JSON = json.JSONDecoder()


def parse_pipeline(text: str, known: Mapping[str, Callable[..., Pass]]) -> tuple[Pass, ...]:
    """The passes that a text names.

    Args:
        text: Names separated by commas, options in braces: ``name{option=value,...}``. Values are JSON; a bare word
            is a string, but True, False and None are what they are in Python.
        known: Pass classes by name.

    Raises:
        PassError: on an unknown name or option, or a text that is no pipeline.
    """
    passes = []
    place = 0
    while place < len(text):
        start = place
        name = _expect(_NAME, text, start)
        options, place = _options(text, name.end()) if name["opens"] else ({}, name.end())
        following = _expect(_NEXT, text, place)
        passes.append(_make(name["name"], options, text[start:place].strip(), known))
        place = following.end()
    return tuple(passes)


def _expect(pattern: re.Pattern[str], text: str, place: int) -> re.Match[str]:
    match = pattern.match(text, place)
    if match is None:
        raise PassError(
            "this is not a pipeline",
            where=f"{text!r}, from {text[place:]!r}",
            hint='write it like "granularity{level=leaf},orphans,labels"',
        )
    return match


def _options(text: str, place: int) -> tuple[dict[str, object], int]:
    """The options whose braces are open at a place of the text, and where they end."""
    options: dict[str, object] = {}
    while match := _OPTION.match(text, place):
        if match["name"] in options:
            raise PassError(f"option {match['name']!r} is given twice", where=text, hint="leave one of them out")
        options[match["name"]], place = _value(text, match.end())
        place = _expect(_BEHIND_OPTION, text, place).end()
    return options, _expect(_CLOSE, text, place).end()


def _value(text: str, place: int) -> tuple[object, int]:
    """The value of an option at a place of the text, and where it ends: JSON, or else words."""
    with suppress(ValueError):
        value, end = _JSON.raw_decode(text, place)
        if _BEHIND_OPTION.match(text, end):
            return value, end
    word = _expect(_WORD, text, place)
    return read_word(word[0].strip()), word.end()


def _make(name: str, options: Mapping[str, object], text: str, known: Mapping[str, Callable[..., Pass]]) -> Pass:
    if name not in known:
        raise PassError(
            f"there is no pass {name!r}",
            where="the pipeline",
            hint=f"known passes: {', '.join(sorted(known))}",
        )
    check_options(f"pass {name!r}", known[name], options, PassError, where=text)

    def refuse(error: Exception) -> NoReturn:
        plain = isinstance(error, (TypeError, ValueError)) and error.args  # attrs gives more than the text
        raise PassError(
            f"pass {name!r} does not take these options: {error.args[0] if plain else Raised.of(error)}",
            where=text,
            hint="`lens passes` lists the options of every pass",
        ) from error

    cls = known[name]
    return attempt(lambda: cls(**options), refuse)
