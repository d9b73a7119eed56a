"""Where the titles of modules go: to a place at the rim of the box that no arrow crosses, as a first layout shows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from attrs import frozen

from lens.render.drawing import Drawing
from lens.render.graphviz_text import Title, to_dot, usual_title
from lens.render.images import lay_out
from lens.render.themes import Theme

#: Titles are moved, and boxes widened, this often at most; not where one layout takes long.
_ROUNDS = 6
_MOST_EDGES = 1500
_STEPS = 12
_INCH = 72.0
#: Between an arrow and a title.
_MARGIN = 4.0
Point = tuple[float, float]
Interval = tuple[float, float]


@frozen
class Rim:
    """The strip of a box in which its title stands: from the left, in points, what of it is taken by arrows."""

    width: float
    title: Interval
    arrows: tuple[Interval, ...]

    @property
    def crossed(self) -> int:
        """How many arrows cross the title."""
        return sum(left < self.title[1] and self.title[0] < right for left, right in self.arrows)

    def free_place(self) -> float | None:
        """Where the title could begin: at the left, at the right, or in the middle between two arrows."""
        wide = self.title[1] - self.title[0]
        edges = [0.0]
        for left, right in sorted(self.arrows):
            edges += [left - _MARGIN, max(edges[-1], right + _MARGIN)]
        edges.append(self.width)
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            if end - start >= wide:
                return 0.0 if start == 0 else end - wide if end == self.width else (start + end - wide) / 2
        return None


def settled_dot(drawing: Drawing, theme: Theme, direction: str) -> str:
    """The DOT text of a drawing with every title where no arrow crosses it, in boxes wide enough for that.

    Raises:
        RenderError: if no program here can lay it out.
    """
    if not drawing.clusters or len(drawing.edges) > _MOST_EDGES:
        return to_dot(drawing, theme, direction)
    titles = {cluster.id: usual_title(cluster, direction) for cluster in drawing.clusters}
    best, fewest = "", len(titles) + 1
    for _ in range(_ROUNDS):
        text = to_dot(drawing, theme, direction, titles)
        rims = rims_of(json.loads(lay_out(text, "json0")), titles)
        crossed = {name: rim for name, rim in rims.items() if rim.crossed}
        if len(crossed) < fewest:
            best, fewest = text, len(crossed)
        if not crossed:
            break
        titles |= {name: _moved(titles[name], rim) for name, rim in crossed.items()}
    return best


def _moved(title: Title, rim: Rim) -> Title:
    """The title in a free place of its rim, or else at the left with more room beside it. Boxes never get narrower."""
    place, wide, room = rim.free_place(), round(rim.title[1] - rim.title[0]), title.before + title.after
    if place is None:
        return Title(0, room + wide)
    return Title(round(place), max(0, room - round(place)))


def rims_of(layout: dict[str, Any], titles: Mapping[str, Title]) -> dict[str, Rim]:
    """Per cluster of a layout (graphviz's json0) the strip with its title."""
    curves = [list(_curve(edge["pos"])) for edge in layout.get("edges", ())]
    found = {}
    for box in layout.get("objects", ()):
        if "bb" in box and "lp" in box:
            x, y = _point(box["lp"])
            wide, high = float(box["lwidth"]) * _INCH, float(box["lheight"]) * _INCH
            left, right = x - wide / 2, float(box["bb"].split(",")[2])
            title = titles[box["name"]]
            passing = (_passing(curve, y - high / 2, y + high / 2) for curve in curves)
            arrows = tuple((a - left, b - left) for a, b in filter(None, passing) if a < right and left < b)
            found[box["name"]] = Rim(right - left - _MARGIN, (title.before, wide - title.after), arrows)
    return found


def _passing(curve: list[Point], low: float, high: float) -> Interval | None:
    """From where to where, from left to right, a curve is between two heights."""
    xs: list[float] = []
    for (x0, y0), (x1, y1) in zip(curve, curve[1:], strict=False):
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
