"""What a renderer is, and what it is given.

A renderer is a frozen attrs class whose fields are its options; it turns a history into a text, bytes, or the files
of a folder. It is pure: it writes nothing itself, and gives the same for the same history.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

from lens.errors import RenderError
from lens.ir.elements import OpId
from lens.ir.entry_index import EntryIndex
from lens.ir.facets import Facet, Labels, why_no_facets
from lens.ir.graph import Graph
from lens.ir.payloads import PayloadStore

#: A text, bytes, or files by their names, for a folder.
Rendered: TypeAlias = str | bytes | Mapping[str, str | bytes]
#: What stands in text for bytes of a file's name that are no UTF-8.
_NO_UTF8 = re.compile("[\ud800-\udfff]")


class Traced(Protocol):
    """A ``ModelHistory``, as far as renderers look at it."""

    graph: Graph
    payloads: PayloadStore

    @property
    def index(self) -> EntryIndex: ...  # noqa: D102 - the entries and their keys

    @property
    def flop_counter(self) -> Callable[[OpId], int | None] | None: ...  # noqa: D102 - None without torch

    def __iter__(self) -> Iterator[Any]: ...


@runtime_checkable
class Renderer(Protocol):
    """The protocol of renderers. One that inherits from it needs no more than ``name``, ``suffix`` and ``render``.

    Attributes:
        name: What ``history.export(to=...)`` and ``lens export --to`` call it.
        suffix: The ending of its files, such as ``.json``; empty for a folder.
        requires: Facet types that it looks at; the passes that provide them are run first if they are missing.
        needs_model: Whether it needs the model's parameters and functions, which no trace file holds.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    requires: ClassVar[tuple[type[Facet], ...]] = (Labels,)
    needs_model: ClassVar[bool] = False

    def render(self, history: Traced) -> Rendered:
        """The history in another form. Raises RenderError if it has none."""
        ...


def why_no_renderer(candidate: Any) -> str:
    """Why this renderer, or class of renderers, does not declare what one declares; empty if it does."""
    parts = ("name", "suffix", "requires", "needs_model", "render")
    missing = [part for part in parts if not hasattr(candidate, part)]
    if missing:
        return f"it has no {missing[0]}"
    for part in ("name", "suffix"):
        text = getattr(candidate, part)
        if not isinstance(text, str):
            return f"its {part} is a {type(text).__name__}"
    why = why_no_facets(candidate.requires)
    return f"its requires is {why}" if why else ""


def in_utf8(text: str) -> str:
    """Text that UTF-8 has a form for, as names of files may be none."""
    return _NO_UTF8.sub("\ufffd", text)


def optional(package: str, where: str, hint: str = "pip install 'lens-trace[export]'") -> Any:
    """A package that lens can do without. Raises RenderError if it is not installed."""
    try:
        return import_module(package)
    except ImportError as error:
        raise RenderError(f"{package} is not installed", where=where, hint=hint) from error
