"""Themes: the colours of pictures as data."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from attrs import evolve, field, frozen

from lens.errors import RenderError

#: Role of a node -> what a legend says of it.
ROLES: Mapping[str, str] = MappingProxyType(
    {
        "input": "input",
        "output": "output",
        "parameters": "layer with parameters",
        "buffer": "buffer",
        "condition": "value of a condition",
        "external": "origin not seen",
        "fault": "failed",
    }
)


def _constant(colours: Mapping[str, str]) -> Mapping[str, str]:
    return MappingProxyType({**colours})


@frozen
class Theme:
    """The look of a picture. Make your own with ``attrs.evolve(LIGHT, ...)``.

    Args:
        name: Its name.
        background, text, line: Colours of the ground, of text, and of borders and arrows.
        box: Colour of the boxes of modules.
        fills: Role of a node -> its colour.
        marks: ``gap`` and ``fault`` -> the colour of the border.
        scale: Colours of a metric from the least to the most.
        font: The font's name. Layouts know the widths of Arial, Times and Courier.
    """

    name: str
    background: str
    text: str
    line: str
    box: str
    fills: Mapping[str, str] = field(converter=_constant)
    marks: Mapping[str, str] = field(converter=_constant)
    scale: tuple[str, ...]
    font: str = "Arial"


LIGHT = Theme(
    "light",
    "white",
    "#111111",
    "#222222",
    "#666666",
    {
        "input": "#98fb98",
        "output": "#ff9999",
        "parameters": "#d0d0d0",
        "buffer": "#eeeeee",
        "condition": "#fff27a",
        "external": "#ffe3c2",
        "fault": "#ffd0d0",
        "plain": "white",
    },
    {"gap": "#e07b00", "fault": "#cc0000"},
    ("#ffffff", "#ffeda0", "#feb24c", "#fc4e2a", "#b10026"),
)
DARK = Theme(
    "dark",
    "#1b1e24",
    "#f0f0f0",
    "#b8bec9",
    "#7d8694",
    {
        "input": "#1f7a3a",
        "output": "#a83232",
        "parameters": "#5a606b",
        "buffer": "#3c414a",
        "condition": "#8a7a00",
        "external": "#7a4a12",
        "fault": "#6e1a1a",
        "plain": "#262a32",
    },
    {"gap": "#ffa640", "fault": "#ff5c5c"},
    ("#262a32", "#4a2f6b", "#8c2981", "#de4968", "#fe9f6d"),
)
PRINT = evolve(
    LIGHT,
    name="print",
    text="black",
    line="black",
    box="black",
    fills={**LIGHT.fills, "input": "#c8f5c8", "output": "#ffc4c4", "condition": "#fff7ad"},
    scale=("#ffffff", "#d9d9d9", "#bdbdbd", "#969696", "#636363"),
)
THEMES: Mapping[str, Theme] = MappingProxyType({theme.name: theme for theme in (LIGHT, DARK, PRINT)})


def find_theme(theme: str | Theme) -> Theme:
    """A theme by name, or as it is. Raises RenderError if the name is unknown."""
    if isinstance(theme, Theme):
        return theme
    if not isinstance(theme, str) or theme not in THEMES:
        raise RenderError(f"there is no theme {theme!r}", where="theme=", hint=f"give {', '.join(THEMES)}, or a Theme")
    return THEMES[theme]


def contrast(colour: str, theme: Theme) -> str:
    """The colour of text that can be read on a colour given as ``#rrggbb``; the theme's on others."""
    if not colour.startswith("#") or len(colour) != 7:
        return theme.text
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#111111" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#ffffff"
