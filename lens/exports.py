"""Out to other tools: the methods of a history that go through the registered renderers."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import fields_dict, has

from lens import registry
from lens.errors import RenderError
from lens.ir.facets import Facet
from lens.ir.graph import Graph
from lens.ir.payloads import PayloadStore
from lens.passes.manager import PassManager
from lens.render.files import write_out
from lens.render.networks import network
from lens.render.renderer import Rendered, Renderer, Traced
from lens.render.tables import data_frame

if TYPE_CHECKING:
    import networkx
    import pandas

S = TypeVar("S", bound="Exports")


class Exports:
    """The methods of a history that export it."""

    graph: Graph
    payloads: PayloadStore
    logging_seconds: float

    def with_facets(self: S, *kinds: type[Facet]) -> S:
        """This history with these facets; the passes that provide those it lacks are run. Raises PassError."""
        missing = [kind for kind in kinds if self.graph.get(kind) is None]
        if not missing:
            return self
        providers = registry.providers()
        unknown = [kind.name for kind in missing if kind not in providers]
        if unknown:
            raise RenderError(
                f"no pass provides the facet {unknown[0]!r}",
                where=f"graph of {self.graph.meta.model}",
                hint="install the package that provides it; `lens passes` lists what each pass provides",
            )
        passes = dict.fromkeys(providers[kind] for kind in missing)
        result = PassManager(tuple(passes), providers).run(self.graph, self.payloads)
        make: Any = type(self)
        made: S = make(result.graph, result.payloads, result.records, self.logging_seconds)
        return made

    def export(self: Traced, path: str | PathLike[str], to: str | None = None, **options: Any) -> str:
        """Write this history in the form of another tool, and give the path.

        Args:
            path: The file, or the folder for renderers that make several files. Files appear whole or not at all.
            to: The renderer, one that ``lens export --list`` shows; by default the one of the path's ending.
            **options: The renderer's options.

        Raises:
            RenderError: no such renderer or option, an unwritable path, or a history that has no such form.
        """
        name = to or renderer_of(path)
        return write_rendered(render(self, make_renderer(name, options)), path)

    def to_pandas(self: Traced, table: str = "layers") -> pandas.DataFrame:
        """A table as a typed ``DataFrame``. Needs pandas (``pip install lens-trace[pandas]``).

        Args:
            table: ``layers`` (one row per entry), ``operations``, ``values``, ``scopes``, ``parameters``, ``edges``;
                docs/exports.md describes their columns.

        Raises:
            RenderError: there is no such table, or pandas is not installed.
        """
        return data_frame(self, table)

    def to_networkx(self: Traced) -> networkx.MultiDiGraph:
        """The entries as nodes by label, an edge per tensor that one reads from another. Needs networkx.

        Raises:
            RenderError: networkx is not installed (``pip install lens-trace[export]``).
        """
        return network(self)

    def to_mermaid(self: Traced, **options: Any) -> str:
        """The picture as a Mermaid flowchart, for Markdown pages.

        Args:
            **options: Those of ``draw``, and ``limits=False`` for a Mermaid whose limits were raised.

        Raises:
            RenderError: the drawing is larger than Mermaid takes; the message says what to do.
        """
        return str(render(self, make_renderer("mermaid", options)))


def make_renderer(name: str, options: Mapping[str, Any]) -> Renderer:
    """The registered renderer of a name. Raises PluginError or RenderError if there is no such renderer or option."""
    cls = registry.find("renderers", name)
    known = fields_dict(cls) if has(cls) else {}
    for option in options:
        if option not in known:
            near = get_close_matches(option, known, n=1) or known
            hint = f"its options are {', '.join(near)}" if near else "it has no options"
            raise RenderError(f"{name} has no option {option!r}", where=f"{option}=", hint=hint)
    made: Renderer = cls(**options)
    return made


def renderer_of(path: str | PathLike[str]) -> str:
    """The name of the renderer for a path, by its ending. Raises RenderError if none or several have that ending."""
    suffix = Path(path).suffix
    fitting = [name for name, cls in renderer_classes().items() if suffix and cls.suffix == suffix]
    if len(fitting) != 1:
        raise RenderError(
            f"the path does not tell the format: {' or '.join(fitting) if fitting else 'none'} has this ending",
            where=str(path),
            hint=f"name the renderer: {', '.join(fitting or renderer_classes())}",
        )
    return fitting[0]


def renderer_classes() -> dict[str, type[Renderer]]:
    """All registered renderers by name."""
    return {name: registry.find("renderers", name) for name in sorted(registry.names("renderers"))}


def render(history: Any, renderer: Renderer) -> Rendered:
    """What a renderer makes of a history, with the facets that it requires. Raises RenderError."""
    return renderer.render(history.with_facets(*renderer.requires))


def write_rendered(rendered: Rendered, path: str | PathLike[str]) -> str:
    """Write what a renderer made, each file whole or not at all, and give the path. Raises RenderError."""
    target = Path(path)
    files: Mapping[str, str | bytes] = rendered if isinstance(rendered, Mapping) else {"": rendered}
    for name, content in files.items():
        write_out(target / name, content)
    return str(target)
