"""Where the titles of modules go: to the side of the box where no arrow crosses them, as a first layout shows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from lens.render.drawing import Drawing
from lens.render.graphviz_text import Title, to_dot
from lens.render.images import lay_out
from lens.render.themes import Theme

#: Larger drawings, and denser ones, are slow to lay out: once only; their titles stay on the left.
_MOST_NODES = 1000
_MOST_EDGES_PER_NODE = 2
_STEPS = 12
#: The room beside a title that arrows cross on either side, in widths of the title.
_MORE_ROOM = 2
_INCH = 72.0
#: Between the border of a box and its title.
_MARGIN = 6.0
Point = tuple[float, float]


def settled_dot(drawing: Drawing, theme: Theme, direction: str) -> str:
    """The DOT text of a drawing with every title on the side of its box that fewer arrows cross, and room beside it.

    Raises:
        RenderError: if no program here can lay it out.
    """
    nodes = len(drawing.nodes)
    slow = nodes > _MOST_NODES or len(drawing.edges) > _MOST_EDGES_PER_NODE * nodes
    if direction not in ("up", "down") or not drawing.clusters or slow:
        return to_dot(drawing, theme, direction)
    titles = {cluster.id: Title() for cluster in drawing.clusters}
    for room in (1, _MORE_ROOM):
        crossed = crossings(json.loads(lay_out(to_dot(drawing, theme, direction, titles), "json0")), titles)
        hopeless = {name for name, (left, right) in crossed.items() if left and right} if room == 1 else set()
        for name, (left, right) in crossed.items():
            side = "right" if right < left else "left"
            titles[name] = Title(side, _MORE_ROOM if name in hopeless else titles[name].room)
        if not hopeless:
            break
    return to_dot(drawing, theme, direction, titles)


def crossings(layout: dict[str, Any], titles: Mapping[str, Title]) -> dict[str, tuple[int, int]]:
    """Per cluster of a layout (graphviz's json0), how many arrows cross its title if left, and if right."""
    curves = [list(_curve(edge["pos"])) for edge in layout.get("edges", ())]
    found = {}
    for box in layout.get("objects", ()):
        if "bb" in box and "lp" in box:
            x0, _, x1, _ = map(float, box["bb"].split(","))
            y, half = float(box["lp"].split(",")[1]), float(box["lheight"]) * _INCH / 2
            width = float(box["lwidth"]) * _INCH / (1 + titles[box["name"]].room)
            beside = [[x for x, height in curve if abs(height - y) <= half] for curve in curves]
            left = sum(any(0 <= x - x0 - _MARGIN <= width for x in xs) for xs in beside)
            right = sum(any(0 <= x1 - _MARGIN - x <= width for x in xs) for xs in beside)
            found[box["name"]] = left, right
    return found


def _curve(position: str) -> Iterator[Point]:
    """Points on the curves of an edge, from graphviz's ``e,x,y x,y x,y ...``: an end, then Bezier's points."""
    for part in position.split(";"):
        words = part.split()
        points = [_point(word) for word in words if word[0] not in "es"]
        for start in range(0, len(points) - 3, 3):
            a, b, c, d = points[start : start + 4]
            for step in range(_STEPS + 1):
                t = step / _STEPS
                weights = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3
                parts = list(zip(weights, (a, b, c, d), strict=True))
                yield sum(w * x for w, (x, _) in parts), sum(w * y for w, (_, y) in parts)
        yield from (_point(word[2:]) for word in words if word[0] in "es")


def _point(word: str) -> Point:
    x, y = word.split(",")
    return float(x), float(y)
