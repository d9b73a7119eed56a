"""The lowering of a drawing to the DOT language of graphviz, as attributes for any writer and as text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from lens.errors import RenderError
from lens.render.crowding import crowd
from lens.render.drawing import Cluster, Drawing, Edge, Node
from lens.render.themes import LIGHT, Theme, contrast

#: Where the output stands, seen from the input -> graphviz's name for it.
DIRECTIONS: Mapping[str, str] = {"up": "BT", "down": "TB", "right": "LR", "left": "RL"}
#: From so many nodes on, the layout takes fewer rounds: the pictures are much the same. So it does with so many arrows
#: passing by nodes.
_LARGE, _MUCH_PASSING = 400, 1500
#: With more arrows passing by nodes, in all and on average, curves around all nodes would take minutes: straight arrows
#: go below the nodes. A loop of 96 steps and a stack of their results (195 nodes): 1 s instead of more than 90.
_MOST_PASSING, _MOST_PASSING_A_RANK = 2000, 15
#: What XML cannot hold.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_NODE_FONT, _EDGE_FONT, _BOX_FONT = 11, 9, 11
_TABLE = '<table border="0" cellborder="0" cellspacing="0" cellpadding="0">'
#: The second line around collapsed modules.
_FRAMED = '<table border="1" cellborder="0" cellspacing="0" cellpadding="1">'
_IF_TEXT = '<font point-size="13"><b>IF</b></font>'
#: The width of a letter at font size 1, about.
_LETTER = 0.56
Attributes = dict[str, str]
#: Cluster -> the room beside its title, in points.
NO_ROOM: Mapping[str, int] = MappingProxyType({})


def rank_direction(direction: str) -> str:
    """Graphviz's name for a direction. Raises RenderError if there is none."""
    if not isinstance(direction, str) or direction not in DIRECTIONS:
        hint = f"give {', '.join(DIRECTIONS)}"
        raise RenderError(f"there is no direction {direction!r}", where="direction=", hint=hint)
    return DIRECTIONS[direction]


def usual_room(cluster: Cluster, direction: str) -> int:
    """As much as the title is wide, so that an arrow from the middle of the box does not cross it."""
    letters = max(map(len, cluster.lines)) if direction in ("up", "down") else 0
    return round(letters * _LETTER * _BOX_FONT)


def to_dot(drawing: Drawing, theme: Theme = LIGHT, direction: str = "up", room: Mapping[str, int] = NO_ROOM) -> str:
    """The DOT text of a drawing. Linear. Raises RenderError if the direction is unknown."""
    lowering = Lowering(drawing, theme, direction, room)
    lines = ["digraph lens {"]
    for kind, attributes in lowering.defaults().items():
        lines.append(f"  {kind} [{_text(attributes)}]")
    lines += _inside(lowering, None, "  ")
    for edge in drawing.edges:
        label = _text(lowering.edge(edge))
        lines.append(f"  {edge.source} -> {edge.target}{f' [{label}]' if label else ''}")
    return "\n".join([*lines, "}\n"])


def _inside(lowering: Lowering, parent: str | None, indent: str) -> Iterator[str]:
    nodes, clusters = lowering.drawing.inside[parent]
    for node in nodes:
        yield f"{indent}{node.id} [{_text(lowering.node(node))}]"
    for cluster in clusters:
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
        room: The room beside the titles of clusters, where it is not the usual one.
    """

    def __init__(self, drawing: Drawing, theme: Theme, direction: str, room: Mapping[str, int] = NO_ROOM) -> None:
        self.drawing, self.theme, self.direction, self.room = drawing, theme, direction, room
        self.rankdir = rank_direction(direction)
        self.places = {node.id: place for place, node in enumerate(drawing.nodes)}

    def defaults(self) -> dict[str, Attributes]:
        """What holds for the graph and for all nodes and edges."""
        theme = self.theme
        font = {"fontname": quoted(theme.font), "fontcolor": quoted(theme.text)}
        graph = {
            **font,
            "label": self._title(),
            "labelloc": "t",
            "labeljust": "l",
            "rankdir": self.rankdir,
            "bgcolor": quoted(theme.background),
            "nodesep": "0.25",
            "ranksep": "0.35",
            "tooltip": tooltip(self.drawing.title[0] if self.drawing.title else ""),
        }
        nodes, edges = len(self.drawing.nodes), len(self.drawing.edges)
        crowded = crowd(self.places, ((edge.source, edge.target) for edge in self.drawing.edges))
        if nodes > _LARGE or edges > max(_LARGE, 2 * nodes) or crowded.passing > _MUCH_PASSING:
            graph |= {"nslimit": "4", "nslimit1": "4", "mclimit": "0.3"}
        if crowded.passing > _MOST_PASSING and crowded.mean > _MOST_PASSING_A_RANK:
            graph |= {"splines": "line", "nslimit": "0.5", "outputorder": "edgesfirst"}
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
        framed = node.shape == "module"
        lines = [f"&#160;{html(line)}&#160;" if framed else html(line) for line in node.lines]
        texts = [_IF_TEXT if node.head else "", f"<b>{lines[0]}</b>", "<br/>".join(lines[1:])]
        attributes = {
            "id": quoted(node.id),
            "label": _rows(texts, _FRAMED if framed else _TABLE),
            "fillcolor": quoted(fill),
            "tooltip": tooltip(node.tooltip or node.name),
        }
        if node.shape != "ellipse":
            attributes["shape"] = "box"
        if framed:
            attributes["margin"] = quoted("0.05")
        if node.dashed:
            attributes["style"] = quoted("filled,dashed")
        if node.mark:
            attributes |= {"color": quoted(theme.marks[node.mark]), "penwidth": "2.5"}
        colour = contrast(fill, theme)
        if colour != theme.text:
            attributes["fontcolor"] = quoted(colour)
        return attributes | {key: tooltip(value) if key == "tooltip" else quoted(value) for key, value in node.style}

    def edge(self, edge: Edge) -> Attributes:
        """The attributes of an edge."""
        lines = [html(line) if line == edge.argument else f"<b>{html(line)}</b>" for line in edge.lines]
        if edge.branch:
            lines.insert(0, _IF_TEXT)
        texts = [f"&#160;{line}&#160;" for line in (lines if self.direction == "up" else lines[::-1])]
        attributes = {"label": _rows(texts)} if texts else {}
        if edge.branch:
            attributes["penwidth"] = "2"
        if edge.after:
            attributes |= {"style": "dotted", "color": quoted(self.theme.marks["fault"])}
        if self.places[edge.source] > self.places[edge.target]:
            attributes["weight"] = "0"  # a step back in time: it does not pull its ends together
        return attributes

    def cluster(self, cluster: Cluster) -> Attributes:
        """The attributes of the box of a module."""
        depth = len(self.drawing.chains[cluster.id])
        room = self.room.get(cluster.id, usual_room(cluster, self.direction))
        address, cls = map(html, cluster.lines)
        cells = f'<td align="left">{{}}</td><td width="{room}"></td>'
        rows = "".join(f"<tr>{cells.format(text)}</tr>" for text in (f"<b>{address}</b>", cls))
        return {
            "id": quoted(cluster.id),
            "label": f"<{_TABLE}{rows}</table>>",
            "labelloc": "b" if self.direction == "up" else "t",
            "labeljust": "l",
            "fontsize": str(_BOX_FONT),
            "style": "rounded",
            "color": quoted(self.theme.box),
            "penwidth": {1: "2", 2: "1.5"}.get(depth, "1"),
            "tooltip": tooltip(" ".join(cluster.lines)),
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


def _rows(texts: Sequence[str], table: str = _TABLE) -> str:
    """A label of rows: lines of unlike fonts in one row would touch."""
    rows = "".join(f"<tr><td>{text}</td></tr>" for text in texts if text)
    return f"<{table}{rows}</table>>"


def without_control(text: str) -> str:
    """Text without the characters that XML cannot hold."""
    return _CONTROL.sub("\ufffd", text)


def html(text: str) -> str:
    """Text inside HTML labels: special characters as entities, line ends as breaks, never nothing.

    Graphviz finds its escapes there too (``\\N`` is the name of the node), so that each backslash is two.
    """
    text = without_control(text.replace("\r\n", "\n")).replace("\\", "\\\\")
    for special, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("\n", "<br/>")):
        text = text.replace(special, entity)
    return text if text.strip() else "&#160;"


def quoted(text: str) -> str:
    """Text as a quoted string in which graphviz finds no escapes but ends of lines."""
    text = without_control(text).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + text.replace("\n", "\\n") + '"'


def tooltip(text: str) -> str:
    """Text as a quoted tooltip, in which graphviz looks twice for escapes, and for entities."""
    return quoted(text.replace("&", "&amp;").replace("\\", "\\\\"))
