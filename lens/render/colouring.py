"""Colours that tell more than the role: a metric, the user's own style, and the legend. Drawing to Drawing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import NoReturn

from attrs import evolve

from lens.errors import RenderError
from lens.foreign import Raised, attempt, origin
from lens.render.drawing import Drawing, Legend, Node
from lens.render.sizes import human_bytes, human_count, human_seconds
from lens.render.themes import ROLES, Theme

METRICS: tuple[str, ...] = ("time", "memory", "parameters", "flops")
#: A user's function: attributes of DOT for a node, such as ``{"fillcolor": "gold"}``, or None.
StyleFunction = Callable[[Node], "Mapping[str, str] | None"]


def colour_by(drawing: Drawing, metric: str, theme: Theme) -> Drawing:
    """Colour every layer by what it takes, in steps from nothing to the most, and add a legend. Linear.

    Inputs and outputs, and layers of which it is unknown, stay as they are.

    Raises:
        RenderError: if there is no such metric.
    """
    if metric not in METRICS:
        raise RenderError(f"there is no metric {metric!r}", where="color_by=", hint=f"give {', '.join(METRICS)}")
    amounts = [_amount(node, metric) for node in drawing.nodes]
    most = max((amount for amount in amounts if amount), default=0)
    steps = len(theme.scale)
    nodes = tuple(
        node if amount is None else evolve(node, fill=theme.scale[_step(amount, most, steps)])
        for node, amount in zip(drawing.nodes, amounts, strict=True)
    )
    shown = {"time": human_seconds, "memory": human_bytes, "parameters": human_count, "flops": human_count}[metric]
    bounds = [most * (step + 1) / steps for step in range(steps)]
    if metric != "time":
        bounds = [math.floor(bound) for bound in bounds]  # all amounts are whole numbers
    colours = {shown(bound): colour for bound, colour in zip(bounds, theme.scale, strict=True) if bound}
    entries = tuple((colour, f"up to {text}") for text, colour in colours.items())
    title = {"time": "time", "memory": "size of the tensors", "flops": "floating point operations"}.get(metric, metric)
    return evolve(drawing, nodes=nodes, legend=Legend(title, entries))


def _amount(node: Node, metric: str) -> float | None:
    if node.role in ("input", "output"):
        return None
    if metric == "time":
        return node.cost.seconds or None
    if metric == "memory":
        return node.cost.nbytes or None
    if metric == "parameters":
        return sum(weight.numel for weight in node.weights) or None
    return node.cost.flops or None


def _step(amount: float, most: float, steps: int) -> int:
    return min(steps - 1, math.ceil(steps * amount / most) - 1)  # the quotient may be rounded up


def legend_of_roles(drawing: Drawing, theme: Theme) -> Drawing:
    """Add what the colours of the roles mean, for the roles that occur."""
    used = {node.role for node in drawing.nodes}
    entries = tuple((theme.fills[role], text) for role, text in ROLES.items() if role in used)
    return evolve(drawing, legend=Legend("colours", entries))


def restyle(drawing: Drawing, style: StyleFunction) -> Drawing:
    """Give every node the attributes that a function of the user chooses for it, numbers as text.

    Raises:
        RenderError: if it raises, or gives something else than a mapping.
    """

    def tell(error: Exception) -> NoReturn:
        what = f"style raised {Raised.of(error)} for {node.label}"
        raise RenderError(what, where=origin(error), hint="mend the function that style= was given") from error

    nodes = []
    for node in drawing.nodes:
        chosen = attempt(partial(style, node), tell)
        if chosen and not isinstance(chosen, Mapping):
            raise RenderError(
                f"style gave a {type(chosen).__name__} for {node.label}",
                where="style=",
                hint='give a dict of attributes of DOT, such as {"fillcolor": "gold"}, or None',
            )
        attributes = tuple((str(name), str(value)) for name, value in chosen.items()) if chosen else ()
        nodes.append(evolve(node, style=attributes) if attributes else node)
    return evolve(drawing, nodes=tuple(nodes))
