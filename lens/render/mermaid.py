"""The lowering of a drawing to a Mermaid flowchart, for Markdown pages that draw it themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from attrs import frozen

from lens.errors import RenderError
from lens.render.drawing import Drawing, Edge, Node
from lens.render.graphviz_text import rank_direction, without_control
from lens.render.picture import Options, compose, warn_of_collapse
from lens.render.renderer import Renderer, Traced
from lens.render.themes import Theme, contrast, find_theme

#: What Mermaid takes unless its page raises maxEdges and maxTextSize.
MOST_EDGES, MOST_TEXT = 500, 50_000
_SHAPES = {"ellipse": '(["{}"])', "box": '["{}"]', "module": '[["{}"]]'}
_SPECIAL = str.maketrans({c: f"#{ord(c)};" for c in '#"&<>`\\'} | {"\n": " ", "\r": " "})
_COLOUR, _NUMBER = "#[0-9a-fA-F]{3,8}|[a-zA-Z]+", r"\d+(\.\d+)?"
#: Attribute of DOT -> its name here, the values that it may have, and their unit.
_STYLES = {
    "fillcolor": ("fill", _COLOUR, ""),
    "color": ("stroke", _COLOUR, ""),
    "penwidth": ("stroke-width", _NUMBER, "px"),
    "fontcolor": ("color", _COLOUR, ""),
    "fontsize": ("font-size", _NUMBER, "px"),
}
_WAY_OUT = 'draw less: depth=1, collapse=["blocks.*"], view="rolled" or max_nodes=100; or a picture: history.draw(path)'


@frozen
class MermaidRenderer(Options, Renderer):
    """A Mermaid flowchart, with the options of a picture.

    Of the attributes that ``style`` gives, Mermaid has fillcolor, color, penwidth, fontcolor and fontsize.

    Args:
        limits: Whether to refuse what Mermaid would not draw: more than 500 edges or 50,000 characters.
    """

    name = "mermaid"
    suffix = ".mmd"
    limits: bool = True

    def render(self, history: Traced) -> str:
        """The text of the flowchart. Raises RenderError if it is above Mermaid's limits, or on an unknown style."""
        drawing = compose(history, self)
        warn_of_collapse(drawing)
        text = to_mermaid(drawing, find_theme(self.theme), self.direction)
        for count, most, what in ((len(drawing.edges), MOST_EDGES, "edges"), (len(text), MOST_TEXT, "characters")):
            if self.limits and count > most:
                raise RenderError(
                    f"the flowchart has {count:,} {what}, Mermaid takes {most:,}",
                    where=drawing.title[0],
                    hint=f"{_WAY_OUT}; limits=False writes it for a page that raised maxEdges and maxTextSize",
                )
        return text


def to_mermaid(drawing: Drawing, theme: Theme, direction: str = "up") -> str:
    """The text of a drawing as a flowchart. Linear. Raises RenderError if the direction or a style is unknown."""
    lines = [f"flowchart {rank_direction(direction)}"]

    def inside(parent: str | None, indent: str) -> Iterator[str]:
        nodes, clusters = drawing.inside[parent]
        for node in nodes:
            shape = _SHAPES[node.shape].format(_text(filter(None, (node.head, *node.lines))))
            yield f"{indent}{node.id}{shape}{'' if node.fill else f':::{node.role}'}"
        for cluster in clusters:
            yield f'{indent}subgraph {cluster.id}["{_text(cluster.lines)}"]'
            yield from inside(cluster.id, f"{indent}  ")
            yield f"{indent}end"

    lines += inside(None, "  ")
    lines += [f"  {_edge(edge)}" for edge in drawing.edges]
    lines += [
        f"  classDef {role} fill:{fill},stroke:{theme.line},color:{contrast(fill, theme)}"
        for role, fill in theme.fills.items()
        if any(node.role == role for node in drawing.nodes)
    ]
    for node in drawing.nodes:
        if style := _style(node, theme):
            lines.append(f"  style {node.id} {','.join(f'{name}:{value}' for name, value in style.items())}")
    return "\n".join([*lines, *_notes(drawing, theme), *_legend(drawing, theme)]) + "\n"


def _style(node: Node, theme: Theme) -> dict[str, str]:
    """What of a node's look is not its role's. Raises RenderError if Mermaid has no such attribute."""
    style = {"fill": node.fill, "color": contrast(node.fill, theme)} if node.fill else {}
    if node.dashed:
        style["stroke-dasharray"] = "5 5"
    if node.mark:
        style |= {"stroke": theme.marks[node.mark], "stroke-width": "3px"}
    for attribute, value in node.style:
        name, form, ending = _STYLES.get(attribute, ("", "", ""))
        if not name or not re.fullmatch(form, value):
            raise RenderError(
                f"Mermaid has no {attribute}={value!r:.80}",
                where=f"style= gave it for {node.name}",
                hint=f"give {', '.join(_STYLES)}; colours as #rrggbb or by name",
            )
        style[name] = f"{value}{ending}"
    return style


def _notes(drawing: Drawing, theme: Theme) -> Iterator[str]:
    """What a picture says below its title, as a node of its own."""
    if drawing.notes:
        colour = theme.marks["gap"]
        yield f'  notes["{_text(drawing.notes)}"]'
        yield f"  style notes fill:{theme.background},stroke:{colour},color:{colour}"


def _legend(drawing: Drawing, theme: Theme) -> Iterator[str]:
    if drawing.legend is not None:
        yield f'  subgraph legend["{_text((drawing.legend.title,))}"]'
        yield from (f'    legend{i}["{_text((text,))}"]' for i, (_, text) in enumerate(drawing.legend.entries))
        yield "  end"
        for i, (colour, _) in enumerate(drawing.legend.entries):
            yield f"  style legend{i} fill:{colour},stroke:{theme.line},color:{contrast(colour, theme)}"


def _edge(edge: Edge) -> str:
    arrow = "-.->" if edge.after else "==>" if edge.branch else "-->"
    label = _text(("IF", *edge.lines) if edge.branch else edge.lines)
    between = f'|"{label}"|' if label else ""
    return f"{edge.source} {arrow}{between} {edge.target}"


def _text(lines: Iterable[str]) -> str:
    return "<br/>".join(without_control(line).translate(_SPECIAL) for line in lines)
