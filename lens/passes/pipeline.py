"""Pipelines as text: ``"granularity{level=leaf},orphans,labels"``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from attrs import fields_dict, has

from lens.errors import PassError
from lens.passes.protocol import Pass

_STEP = re.compile(r"\s*(?P<name>[\w.-]+)\s*(?:\{(?P<options>[^{}]*)\})?\s*(?:,|$)")


def parse_pipeline(text: str, known: Mapping[str, Callable[..., Pass]]) -> tuple[Pass, ...]:
    """The passes that a text names.

    Args:
        text: Names separated by commas, options in braces: ``name{option=value,...}``. Values are JSON; a bare word
            is a string.
        known: Pass classes by name.

    Raises:
        PassError: on an unknown name or option, or a text that is no pipeline.
    """
    passes = []
    place = 0
    while place < len(text):
        match = _STEP.match(text, place)
        if match is None:
            raise PassError(
                "this is not a pipeline",
                where=f"{text!r}, from {text[place:]!r}",
                hint='write it like "granularity{level=leaf},orphans,labels"',
            )
        passes.append(_make(match["name"], match["options"] or "", known))
        place = match.end()
    return tuple(passes)


def print_pipeline(passes: tuple[Pass, ...]) -> str:
    """The text of a pipeline; ``parse_pipeline`` reads it back. Options at their default are left out."""
    return ",".join(one.name + _options_text(one) for one in passes)


def _options_text(one: Pass) -> str:
    kind: Any = type(one)
    if not has(kind):
        return ""
    options = [
        f"{name}={json.dumps(getattr(one, name))}"
        for name, attribute in fields_dict(kind).items()
        if getattr(one, name) != attribute.default
    ]
    return "{" + ",".join(options) + "}" if options else ""


def _make(name: str, options: str, known: Mapping[str, Callable[..., Pass]]) -> Pass:
    if name not in known:
        raise PassError(
            f"there is no pass {name!r}",
            where="the pipeline",
            hint=f"known passes: {', '.join(sorted(known))}",
        )
    arguments = {}
    for item in filter(None, (part.strip() for part in options.split(","))):
        option, _, value = item.partition("=")
        arguments[option.strip()] = read_option(value.strip())
    try:
        return known[name](**arguments)
    except (TypeError, ValueError) as error:
        raise PassError(
            f"pass {name!r} does not take these options: {error}",
            where=f"{name}{{{options}}}",
            hint="`lens passes` lists the options of every pass",
        ) from error


def read_option(text: str) -> object:
    """The value of an option: JSON, or else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
