"""Out to other tools: the methods of a history that go through the registered renderers."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from lens import registry
from lens.errors import InputError, LensError, RenderError
from lens.foreign import Raised, attempt, origin, origin_in
from lens.ir.facets import Facet, why_no_facets
from lens.ir.graph import Graph
from lens.ir.payloads import PayloadStore
from lens.options import check_options, options_text
from lens.passes.manager import PassManager
from lens.render.files import path_of, write_out
from lens.render.networks import network
from lens.render.renderer import Rendered, Renderer, Traced
from lens.render.tables import data_frame
from lens.stages import stage

if TYPE_CHECKING:
    import networkx
    import pandas
    from torch import fx, nn

S = TypeVar("S", bound="Exports")


class Exports:
    """The methods of a history that export it."""

    graph: Graph
    payloads: PayloadStore
    logging_seconds: float

    def with_facets(self: S, *kinds: type[Facet]) -> S:
        """This history with these facets; the passes that provide those it lacks are run.

        Raises:
            InputError: one of these is no type of a facet.
            RenderError: no pass provides one.
            PassError: a pass fails.
        """
        why_not = why_no_facets(kinds)
        if why_not:
            raise InputError(
                f"what is asked for is {why_not}",
                where="with_facets",
                hint="give classes of facets, such as lens.ir.facets.Labels",
            )
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
        result = PassManager((), providers).provide(self.graph, kinds, self.payloads)
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
            InputError: the path is none.
            PluginError: there is no such renderer, or it cannot be loaded.
            RenderError: no such option, an unwritable path, or a history that has no such form.
        """
        name = renderer_of(path) if to is None else to
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

    def to_fx(self, model: nn.Module | None = None, *, guards: bool = True, noise: str = "draw") -> fx.GraphModule:
        """The trace as a ``torch.fx`` program: the recorded operations, on the tensors of the model.

        It takes and gives what the model does, and has its parameters and buffers under their addresses; it can be
        pickled, written out (``to_folder``), exported and compiled. Linear.

        Args:
            model: Where parameters and buffers come from, as they are now; by default the trace, as the run found
                them. Buffers that the program writes to are copies.
            guards: Whether it raises GuardError when an input would have gone another way than the traced one.
            noise: ``"draw"``: random operations draw anew; ``"recorded"``: what they drew in the run stands as
                constants.

        Raises:
            RenderError: a tensor is neither in the trace nor in the model, or an operation cannot be in a program.
            ReplayError: a function or argument of the run is not there, as in a loaded trace.
            StaleValueError: a tensor was changed since the trace; give the model.
        """
        renderer: Any = make_renderer("fx", {"model": model, "guards": guards, "noise": noise})
        program: fx.GraphModule = renderer.program(self.with_facets(*renderer.requires))
        return program

    def to_onnx(
        self,
        path: str | PathLike[str],
        model: nn.Module | None = None,
        *,
        noise: str = "recorded",
        optimize: bool = False,
    ) -> str:
        """Write the trace as an ONNX model that runs, and give the path. Needs onnx and onnxscript.

        Args:
            path: The file; weights of more than 1 GiB stand in another beside it.
            model: As for ``to_fx``.
            noise: As for ``to_fx``; here the noise of the run is the default, so that the numbers are those of the run.
            optimize: Whether torch's exporter merges nodes, which then have the label of one of their operations.

        Raises:
            RenderError: an operation has no form in ONNX (the message names it), and all that ``to_fx`` raises.
        """
        path_of(path)  # before the work
        renderer: Any = make_renderer("onnx", {"model": model, "noise": noise, "optimize": optimize})
        written: str = renderer.write(self.with_facets(*renderer.requires), path)
        return written

    def to_onnx_structure(self: Traced, path: str | PathLike[str]) -> str:
        """Write the graph alone as an ONNX file for viewers, which nothing can run, and give the path. Needs onnx.

        Raises:
            RenderError: onnx is not installed, or the path cannot be written.
        """
        return write_rendered(render(self, make_renderer("onnx-structure", {})), path)

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
    check_options(name, cls, options)

    def refuse(error: Exception) -> NoReturn:
        if isinstance(error, LensError):
            raise error
        why = error.args[0] if error.args else error  # attrs gives more than the text
        raise RenderError(
            f"{name} does not take these options: {why}",
            where=f"{options!r:.80}",
            hint=f"its options: {options_text(cls) or 'none'}",
        ) from error

    made: Renderer = attempt(lambda: cls(**options), refuse)
    return made


def renderer_of(path: str | PathLike[str]) -> str:
    """The name of the renderer for a path, by its ending. Raises RenderError if none or several have that ending."""
    suffix = path_of(path).suffix
    known = renderer_classes()
    fitting = [name for name, cls in known.items() if suffix and cls.suffix == suffix]
    if len(fitting) != 1:
        raise RenderError(
            f"the path does not tell the format: {' or '.join(fitting) if fitting else 'none'} has this ending",
            where=str(path),
            hint=f"name the renderer: {', '.join(fitting or known)}",
        )
    return fitting[0]


def renderer_classes() -> dict[str, type[Renderer]]:
    """All registered renderers by name, as far as they can be used; of the others a warning."""
    return dict(sorted(registry.usable("renderers").items()))


def render(history: Any, renderer: Renderer) -> Rendered:
    """What a renderer makes of a history, with the facets that it requires. Raises RenderError."""

    def tell(error: Exception) -> NoReturn:
        if isinstance(error, LensError):
            raise error
        what = f"{renderer.name} failed: {Raised.of(error)}"
        raise RenderError(what, where=origin_in(renderer, error) or origin(error), hint="mend the renderer") from error

    with stage(f"making {renderer.name}"):
        given = history.with_facets(*renderer.requires)
        return attempt(lambda: renderer.render(given), tell)


def write_rendered(rendered: Rendered, path: str | PathLike[str]) -> str:
    """Write what a renderer made, each file whole or not at all, and give the path. Raises RenderError."""
    target = path_of(path)
    files: Mapping[str, str | bytes] = rendered if isinstance(rendered, Mapping) else {"": rendered}
    if not files:
        raise RenderError("the renderer gave no file", where=str(target), hint="a renderer gives at least one file")
    for name, content in files.items():
        if not isinstance(content, (str, bytes)) or not _is_inside(name):
            raise RenderError(
                f"the renderer gave a {type(content).__name__} for the file {name!r}",
                where=str(target),
                hint="a renderer gives text or bytes, for names of files in the folder",
            )
    for name, content in files.items():
        write_out(target / name, content)
    return str(target)


def _is_inside(name: object) -> bool:
    return isinstance(name, str) and "\0" not in name and not Path(name).is_absolute() and ".." not in Path(name).parts
