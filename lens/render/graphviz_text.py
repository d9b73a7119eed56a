"""The lowering of a drawing to the DOT language of graphviz, as attributes for any writer and as text."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from attrs import frozen

from lens.errors import RenderError
from lens.render.drawing import Cluster, Drawing, Edge, Node
from lens.render.themes import LIGHT, Theme, contrast

#: Where the output stands, seen from the input -> graphviz's name for it.
DIRECTIONS: Mapping[str, str] = {"up": "BT", "down": "TB", "right": "LR", "left": "RL"}
#: From so many nodes on, the layout takes fewer rounds: the pictures are much the same.
_LARGE = 400
#: What XML cannot hold.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_NODE_FONT, _EDGE_FONT, _BOX_FONT = 11, 9, 11
#: The width of a letter at font size 1, about.
_LETTER = 0.56
Attributes = dict[str, str]


@frozen
class Title:
    """Where the title of a box stands, and how much room is left beside it, in widths of the title."""

    side: str = "left"
    room: int = 1


NO_TITLES: Mapping[str, Title] = MappingProxyType({})


def to_dot(
    drawing: Drawing, theme: Theme = LIGHT, direction: str = "up", titles: Mapping[str, Title] = NO_TITLES
) -> str:
    """The DOT text of a drawing. Linear. Raises RenderError if the direction is unknown."""
    lowering = Lowering(drawing, theme, direction, titles)
    lines = ["digraph lens {"]
    for kind, attributes in lowering.defaults().items():
        lines.append(f"  {kind} [{_text(attributes)}]")
    lines += _inside(lowering, None, "  ")
    for edge in drawing.edges:
        label = _text(lowering.edge(edge))
        lines.append(f"  {edge.source} -> {edge.target}{f' [{label}]' if label else ''}")
    return "\n".join([*lines, "}\n"])


def _inside(lowering: Lowering, parent: str | None, indent: str) -> Iterator[str]:
    for node in lowering.nodes[parent]:
        yield f"{indent}{node.id} [{_text(lowering.node(node))}]"
    for cluster in lowering.clusters[parent]:
        yield f"{indent}subgraph {cluster.id} {{"
        yield f"{indent}  graph [{_text(lowering.cluster(cluster))}]"
        yield from _inside(lowering, cluster.id, f"{indent}  ")
        yield f"{indent}}}"


def _text(attributes: Attributes) -> str:
    return " ".join(f"{key}={value}" for key, value in attributes.items())


class Lowering:
    """The attributes of DOT for every part of a drawing. Values are quoted, or HTML in angle brackets.

    Args:
        drawing: The drawing.
        theme: Its colours.
        direction: Where the output stands: up, down, right or left.
        titles: How the titles of clusters are set, where that is not the usual way.
    """

    def __init__(self, drawing: Drawing, theme: Theme, direction: str, titles: Mapping[str, Title] = NO_TITLES) -> None:
        if direction not in DIRECTIONS:
            raise RenderError(
                f"there is no direction {direction!r}", where="direction=", hint=f"give {', '.join(DIRECTIONS)}"
            )
        self.drawing, self.theme, self.direction, self.titles = drawing, theme, direction, titles
        self.nodes: dict[str | None, list[Node]] = defaultdict(list)
        self.clusters: dict[str | None, list[Cluster]] = defaultdict(list)
        for node in drawing.nodes:
            self.nodes[node.cluster].append(node)
        for cluster in drawing.clusters:
            self.clusters[cluster.parent].append(cluster)

    def defaults(self) -> dict[str, Attributes]:
        """What holds for the graph and for all nodes and edges."""
        theme = self.theme
        font = {"fontname": quoted(theme.font), "fontcolor": quoted(theme.text)}
        graph = {
            **font,
            "label": self._title(),
            "labelloc": "t",
            "labeljust": "l",
            "rankdir": DIRECTIONS[self.direction],
            "bgcolor": quoted(theme.background),
            "nodesep": "0.25",
            "ranksep": "0.35",
            "tooltip": quoted(self.drawing.title[0] if self.drawing.title else ""),
        }
        if len(self.drawing.nodes) > _LARGE:
            graph |= {"nslimit": "4", "nslimit1": "4", "mclimit": "0.3"}
        node = {
            **font,
            "fontsize": str(_NODE_FONT),
            "color": quoted(theme.line),
            "style": "filled",
            "shape": "ellipse",
            "margin": quoted("0.14,0.06"),
            "height": "0.3",
        }
        edge = {**font, "fontsize": str(_EDGE_FONT), "color": quoted(theme.line), "arrowsize": "0.7"}
        return {"graph": graph, "node": node, "edge": edge}

    def node(self, node: Node) -> Attributes:
        """The attributes of a node."""
        theme = self.theme
        fill = node.fill or theme.fills[node.role]
        head = f'<font point-size="13"><b>{html(node.head)}</b></font><br/>' if node.head else ""
        attributes = {
            "id": quoted(node.id),
            "label": f"<{head}{_bold_first(node.lines)}>",
            "fillcolor": quoted(fill),
            "tooltip": quoted(node.tooltip or node.name),
        }
        if node.shape != "ellipse":
            attributes["shape"] = "box"
        if node.shape == "module":
            attributes["peripheries"] = "2"
        if node.dashed:
            attributes["style"] = quoted("filled,dashed")
        if node.mark:
            attributes |= {"color": quoted(theme.marks[node.mark]), "penwidth": "2.5"}
        colour = contrast(fill, theme)
        if colour != theme.text:
            attributes["fontcolor"] = quoted(colour)
        return attributes | {key: quoted(value) for key, value in node.style}

    def edge(self, edge: Edge) -> Attributes:
        """The attributes of an edge."""
        lines = [html(line) if line == edge.argument else f"<b>{html(line)}</b>" for line in edge.lines]
        if edge.branch:
            lines.insert(0, '<font point-size="13"><b>IF</b></font>')
        attributes: Attributes = {}
        if lines:
            spaced = [f"&#160;{line}&#160;" for line in (lines if self.direction == "up" else lines[::-1])]
            attributes["label"] = f"<{'<br/>'.join(spaced)}>"
        if edge.branch:
            attributes["penwidth"] = "2"
        if edge.after:
            attributes |= {"style": "dotted", "color": quoted(self.theme.marks["fault"])}
        return attributes

    def cluster(self, cluster: Cluster) -> Attributes:
        """The attributes of the box of a module.

        Beside its title there is room, so that an arrow from the middle of the box does not cross it.
        """
        depth = len(self.drawing.chains[cluster.id])
        address, cls = cluster.lines
        title = self.titles.get(cluster.id, Title())
        letters = max(len(address), len(cls)) if self.direction in ("up", "down") else 0
        space = f'<td width="{round(letters * _LETTER * _BOX_FONT * title.room)}"></td>'
        rows = (f"<b>{html(address)}</b>", html(cls))
        cells = [f'<td align="{title.side}"><font point-size="{_BOX_FONT}">{row}</font></td>' for row in rows]
        cells = [f"{space}{cell}" if title.side == "right" else f"{cell}{space}" for cell in cells]
        table = '<table border="0" cellborder="0" cellspacing="0" cellpadding="0"><tr>'
        return {
            "id": quoted(cluster.id),
            "label": f"<{table}{'</tr><tr>'.join(cells)}</tr></table>>",
            "labelloc": "b" if self.direction == "up" else "t",
            "labeljust": title.side[0],
            "style": "rounded",
            "color": quoted(self.theme.box),
            "penwidth": {1: "2", 2: "1.5"}.get(depth, "1"),
            "tooltip": quoted(" ".join(cluster.lines)),
        }

    def _title(self) -> str:
        """The title, the notes and the legend as a table."""
        drawing = self.drawing
        rows = [f'<font point-size="16"><b>{html(line)}</b></font>' for line in drawing.title[:1]]
        rows += [f'<font point-size="12">{html(line)}</font>' for line in drawing.title[1:]]
        accent = self.theme.marks["gap"]
        rows += [f'<font point-size="11" color="{accent}">{html(note)}</font>' for note in drawing.notes]
        if drawing.legend is not None:
            cells = "".join(
                f'<tr><td border="1" width="18" bgcolor="{colour}"></td><td align="left">{html(text)}</td></tr>'
                for colour, text in drawing.legend.entries
            )
            title = f'<tr><td colspan="2" align="left"><b>{html(drawing.legend.title)}</b></td></tr>'
            table = f'<table border="0" cellborder="0" cellspacing="3" cellpadding="1">{title}{cells}</table>'
            rows.append(f'<font point-size="11">{table}</font>')
        lines = "".join(f'<tr><td align="left">{row}</td></tr>' for row in rows)
        return f'<<table border="0" cellborder="0" cellspacing="1" cellpadding="1">{lines}</table>>'


def _bold_first(lines: Sequence[str]) -> str:
    """The lines of a label, the name of the layer bold."""
    return "<br/>".join((f"<b>{html(lines[0])}</b>", *map(html, lines[1:])))


def without_control(text: str) -> str:
    """Text without the characters that XML cannot hold."""
    return _CONTROL.sub("\ufffd", text)


def html(text: str) -> str:
    """Text inside HTML labels: special characters as entities, line ends as breaks, never nothing."""
    text = without_control(text.replace("\r\n", "\n"))
    for special, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("\n", "<br/>")):
        text = text.replace(special, entity)
    return text if text.strip() else "&#160;"


def quoted(text: str) -> str:
    """Text as a quoted string in which graphviz finds no escapes but ends of lines."""
    text = without_control(text).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + text.replace("\n", "\\n") + '"'
