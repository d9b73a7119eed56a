"""What users say to draw: the options, and the methods of a history that take them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Literal, TypedDict

from attrs import frozen

from lens.errors import RenderError
from lens.options import check_options
from lens.render.collapsing import collapse_depth, collapse_modules, fit
from lens.render.colouring import StyleFunction, colour_by, legend_of_roles, restyle
from lens.render.drafting import make_drawing
from lens.render.drawing import Drawing
from lens.render.files import path_of, write_out
from lens.render.graphviz_text import to_dot
from lens.render.images import format_of
from lens.render.pydot_objects import to_pydot
from lens.render.renderer import Renderer, Traced
from lens.render.rolling import roll
from lens.render.themes import Theme, find_theme
from lens.render.titles import rendered
from lens.stages import stage
from lens.user_warnings import warn_user

if TYPE_CHECKING:
    import pydot
    from typing_extensions import Unpack

#: A notebook shows the picture of drawings of up to so many nodes by itself.
_NOTEBOOK_NODES = 150
Metric = Literal["time", "memory", "parameters", "flops"]


class DrawOptions(TypedDict, total=False):
    """The options of a picture, as keywords; see ``Options``."""

    view: Literal["unrolled", "rolled"]
    depth: int | None
    collapse: str | Sequence[str]
    max_nodes: int | None
    buffers: bool
    statistics: bool
    color_by: Metric | None
    legend: bool
    style: StyleFunction | None
    theme: str | Theme
    direction: Literal["up", "down", "right", "left"]


@frozen
class Options:
    """The options of a picture.

    Args:
        view: ``unrolled``: every pass of a layer is a node; ``rolled``: all passes are one.
        depth: Modules at this depth are one node each; 1 is the modules that the model itself calls.
        collapse: Addresses of modules that are one node each; ``blocks.*`` is every module directly in ``blocks``.
        max_nodes: Larger drawings are collapsed further, and crowded ones where neither depth nor collapse is given;
            a note and a warning say so. None never collapses.
        buffers: Whether buffers are shown.
        statistics: Whether the running statistics of normalisation layers are shown among them.
        color_by: Colour the layers by ``time``, ``memory``, ``parameters`` or ``flops``, with a legend.
        legend: Explain the colours.
        style: A function of a node (``lens.render.drawing.Node``) that gives attributes of DOT for it, or None.
        theme: ``light``, ``dark``, ``print``, or a ``lens.render.themes.Theme``.
        direction: Where the output stands: ``up``, ``down``, ``right``, ``left``.
    """

    view: str = "unrolled"
    depth: int | None = None
    collapse: str | Sequence[str] = ()
    max_nodes: int | None = 1000
    buffers: bool = True
    statistics: bool = False
    color_by: str | None = None
    legend: bool = False
    style: StyleFunction | None = None
    theme: str | Theme = "light"
    direction: str = "up"

    @classmethod
    def of(cls, given: DrawOptions) -> Options:
        """The options given as keywords. Raises RenderError if there is no such option, or on a wrong value."""
        check_options("a picture", cls, given)
        return cls(**given)

    def __attrs_post_init__(self) -> None:
        if self.view not in ("unrolled", "rolled"):
            raise RenderError(f"there is no view {self.view!r}", where="view=", hint="give unrolled or rolled")
        for name, least in (("depth", 1), ("max_nodes", 10)):
            number = getattr(self, name)
            if number is not None and not (type(number) is int and number >= least):
                raise RenderError(f"{name} cannot be {number!r}", where=f"{name}=", hint=f"give {least}, more, or None")
        style: object = self.style
        if style is not None and not callable(style):
            hint = "give a function of a node that gives a dict of attributes of DOT, or None"
            raise RenderError(f"style cannot be {style!r:.80}", where="style=", hint=hint)
        named: object = (self.collapse,) if isinstance(self.collapse, str) else self.collapse
        if not isinstance(named, Collection) or not all(isinstance(address, str) for address in named):
            hint = 'give the address of a module, such as "layer1.0" or "blocks.*", or a list of them'
            raise RenderError(f"collapse cannot be {self.collapse!r:.80}", where="collapse=", hint=hint)


def compose(history: Traced, options: Options) -> Drawing:
    """The drawing of a history that has labels, by the options. Linear."""
    theme = find_theme(options.theme)
    rolled = options.view == "rolled"
    if options.color_by == "flops" and history.flop_counter is None:
        hint = "draw with history.draw, where torch is installed"
        raise RenderError("nothing here counts FLOPs", where='color_by="flops"', hint=hint)
    counted = history.flop_counter if options.color_by == "flops" else None
    drawing = make_drawing(history.graph, buffers=options.buffers, statistics=options.statistics, flops=counted)
    if options.collapse:
        addresses = [options.collapse] if isinstance(options.collapse, str) else options.collapse
        drawing = collapse_modules(drawing, addresses)
    if options.depth is not None:
        drawing = collapse_depth(drawing, options.depth)
    if options.max_nodes is not None:
        chosen = bool(options.collapse) or options.depth is not None
        drawing = fit(drawing, options.max_nodes, rolled, uncrowd=not chosen)
    elif rolled:
        drawing = roll(drawing)
    if options.legend:
        drawing = legend_of_roles(drawing, theme)
    if options.color_by is not None:
        drawing = colour_by(drawing, options.color_by, theme)
    return drawing if options.style is None else restyle(drawing, options.style)


def warn_of_collapse(drawing: Drawing) -> None:
    """Warn whoever called lens, if not all of the graph is shown."""
    for note in drawing.notes:
        if note.startswith("Collapsed"):
            warn_user(note)


@frozen
class DotRenderer(Options, Renderer):
    """DOT text for graphviz, with the options of a picture."""

    name = "dot"
    suffix = ".dot"

    def render(self, history: Traced) -> str:
        """The text before it is laid out. Linear."""
        drawing = compose(history, self)
        warn_of_collapse(drawing)
        return to_dot(drawing, find_theme(self.theme), self.direction)


class Pictures:
    """The methods of a history that draw."""

    def drawing(self: Traced, **options: Unpack[DrawOptions]) -> Drawing:
        """The drawing before it is laid out; options as for ``draw``. ``lens.render.drawing_text`` prints it."""
        return compose(self, Options.of(options))

    def draw(
        self: Traced,
        path: str | PathLike[str],
        *,
        format: str | None = None,  # noqa: A002 - what users call it
        **options: Unpack[DrawOptions],
    ) -> str:
        """Draw the graph into a file and give its path.

        Args:
            path: The file; its ending chooses the format (svg, png, pdf, dot) unless ``format`` does.
            format: One of svg, png, pdf, dot.
            **options: ``view``, ``depth``, ``collapse``, ``max_nodes``, ``buffers``, ``statistics``, ``color_by``,
                ``legend``, ``style``, ``theme``, ``direction``: see ``lens.render.picture.Options``.

        Raises:
            InputError: if the path is none.
            RenderError: on an unknown option or format, an unwritable path, or if no renderer is there (pdf needs
                ``dot``).
        """
        kind = format_of(path, format)
        chosen = Options.of(options)
        with stage("drawing"):
            drawing = compose(self, chosen)
            warn_of_collapse(drawing)
            look = find_theme(chosen.theme), chosen.direction
            write_out(path_of(path), to_dot(drawing, *look) if kind == "dot" else rendered(drawing, kind, *look))
        return str(path)

    def to_pydot(self: Traced, **options: Unpack[DrawOptions]) -> pydot.Dot:
        """The picture as a ``pydot.Dot``; options as for ``draw``. Needs pydot (``pip install lens-trace[export]``).

        Raises:
            RenderError: on an unknown option, or if pydot is not installed.
        """
        chosen = Options.of(options)
        drawing = compose(self, chosen)
        warn_of_collapse(drawing)
        return to_pydot(drawing, find_theme(chosen.theme), chosen.direction)

    def _repr_svg_(self: Traced) -> str | None:
        """The picture for notebooks; None if the drawing is large or nothing here can lay it out."""
        drawing = compose(self, Options(max_nodes=None))
        if len(drawing.nodes) > _NOTEBOOK_NODES:
            return None
        try:
            return rendered(drawing, "svg").decode()
        except RenderError:
            return None
