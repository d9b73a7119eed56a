"""Where the titles of modules go: once all else is laid out, to a place at the rim of the box that no arrow crosses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from attrs import frozen

from lens.render.drawing import Drawing
from lens.render.graphviz_text import to_dot, usual_room
from lens.render.images import lay_out, program_for
from lens.render.themes import LIGHT, Theme

#: Boxes are widened this often at most, and only where a layout takes little time.
_ROUNDS = 4
_MOST_EDGES = 1000
_STEPS = 12
_INCH = 72.0
#: Between an arrow and a title.
_MARGIN = 4.0
Point = tuple[float, float]
Interval = tuple[float, float]


@frozen
class Rim:
    """The strip of a box in which its title stands, at the left: widths of both, and what arrows take, in points."""

    width: float
    title: float
    arrows: tuple[Interval, ...]

    @property
    def crossed(self) -> bool:
        """Whether an arrow crosses the title."""
        return any(left < self.title and right > 0 for left, right in self.arrows)

    def free_place(self) -> float | None:
        """Where the title could begin instead: at the left, at the right, or in the middle between two arrows."""
        edges = [0.0]
        for left, right in sorted(self.arrows):
            edges += [left - _MARGIN, max(edges[-1], right + _MARGIN)]
        edges.append(self.width)
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            if end - start >= self.title:
                return 0.0 if start == 0 else end - self.title if end == self.width else (start + end - self.title) / 2
        return None


def rendered(drawing: Drawing, kind: str, theme: Theme = LIGHT, direction: str = "up") -> bytes:
    """The picture of a drawing, with every title where no arrow crosses it, in boxes wide enough for that.

    Raises:
        RenderError: if no program here can lay it out.
    """
    program_for(kind)
    return lay_out(placed_text(drawing, theme, direction), kind, placed=True)


def placed_text(drawing: Drawing, theme: Theme, direction: str) -> str:
    """The DOT text of a drawing with the places of everything. Raises RenderError if no program can lay it out."""
    room = {cluster.id: usual_room(cluster, direction) for cluster in drawing.clusters}
    best, fewest = "", len(room) + 1
    for _ in range(_ROUNDS if len(drawing.edges) <= _MOST_EDGES else 1):
        text = lay_out(to_dot(drawing, theme, direction, room), "dot").decode().replace("\\\n", "")
        rims = rims_of(json.loads(lay_out(text, "json0", placed=True)), room) if room else {}
        hopeless = [name for name, rim in rims.items() if rim.crossed and rim.free_place() is None]
        if len(hopeless) < fewest:
            best, fewest = _with_titles(text, rims), len(hopeless)
        if not hopeless:
            break
        room |= {name: room[name] + round(rims[name].title) for name in hopeless}
    return best


def _with_titles(text: str, rims: Mapping[str, Rim]) -> str:
    """A text with places, the titles moved to free ones."""

    def moved(found: re.Match[str]) -> str:
        rim = rims[found["name"]]
        place = rim.free_place() if rim.crossed else None
        return found[0] if not place else f'{found["before"]}lp="{float(found["x"]) + place:.2f},'

    return re.sub(
        r'(?P<before>^\s*subgraph (?P<name>cluster_\d+) {.*?)\blp="(?P<x>[-\d.]+),', moved, text, flags=re.M | re.S
    )


def rims_of(layout: dict[str, Any], room: Mapping[str, int]) -> dict[str, Rim]:
    """Per cluster of a layout (graphviz's json0) the strip with its title."""
    curves = [list(_curve(edge["pos"])) for edge in layout.get("edges", ())]
    spans = [(min(y for _, y in curve), max(y for _, y in curve), curve) for curve in curves if curve]
    found = {}
    for box in layout.get("objects", ()):
        if "bb" in box and "lp" in box:
            x, y = _point(box["lp"])
            wide, high = float(box["lwidth"]) * _INCH, float(box["lheight"]) * _INCH
            left, right = x - wide / 2, float(box["bb"].split(",")[2])
            low, top = y - high / 2, y + high / 2
            passing = (_passing(curve, low, top) for least, most, curve in spans if most >= low and least <= top)
            arrows = tuple((a - left, b - left) for a, b in filter(None, passing) if a < right and left < b)
            found[box["name"]] = Rim(right - left - 2 * _MARGIN, wide - room[box["name"]], arrows)
    return found


def _passing(curve: list[Point], low: float, high: float) -> Interval | None:
    """From where to where, from left to right, a curve is between two heights."""
    xs: list[float] = []
    for (x0, y0), (x1, y1) in pairwise(curve):
        if max(y0, y1) >= low and min(y0, y1) <= high:
            steep = (x1 - x0) / (y1 - y0) if y1 != y0 else 0.0
            xs += [x0 + (min(max(y, low), high) - y0) * steep for y in (y0, y1)] if steep else [x0, x1]
    return (min(xs), max(xs)) if xs else None


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
