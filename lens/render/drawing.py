"""The drawing: the document between a graph and a picture.

``drafting`` makes one from a graph; ``rolling``, ``collapsing`` and ``colouring`` turn one into another;
``graphviz_text`` and ``pydot_objects`` lower one. The visual code is that of the paper's Figures 2 and 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from attrs import frozen

from lens.render.sizes import human_shape


@frozen
class Weight:
    """A parameter that a layer reads."""

    id: int
    shape: tuple[int, ...]
    numel: int
    nbytes: int


@frozen
class Cost:
    """What a layer takes: seconds, bytes of its tensors, floating point operations (None where unknown)."""

    seconds: float = 0.0
    nbytes: int = 0
    flops: int | None = None

    def __add__(self, other: Cost) -> Cost:
        known = [cost.flops for cost in (self, other) if cost.flops is not None]
        return Cost(self.seconds + other.seconds, self.nbytes + other.nbytes, sum(known) if known else None)


@frozen
class Node:
    """A layer, one pass of it, or a collapsed module.

    Args:
        id: Unique in the drawing, and the id of its element in an SVG.
        label: The layer's label; a collapsed module's ``@address``.
        suffix: ``:2`` for a pass, `` (x3)`` for all, `` (2 of 3)`` for some, nothing for the only one.
        size: Shape and bytes of its tensor.
        weights: Its parameters.
        module: The address of the module whose one operation it is; for leaves the address.
        call: The call of that module, as ``:2``.
        role: input, output, parameters, buffer, external, condition, fault, or plain: what decides its colour.
        shape: ``ellipse``; ``box`` for the one operation of a module; ``module`` for a collapsed module.
        dashed: Whether it makes a tensor inside the model.
        cluster: The cluster it stands in, if any.
        pass_num, passes: Which pass of how many.
        tests: For conditions: (construct, outcome) such as ``("if", "True")``.
        head: A bold word above the label, such as IF.
        notes: Further lines.
        mark: ``gap``, ``fault`` or nothing: what decides its border.
        tooltip: More about it.
        cost: What it takes.
        members: How many layers it stands for.
        group: Nodes with the same group are results of the same call.
        fill: Its colour, where that is not its role's.
        style: Attributes of DOT from the user's style function.
    """

    id: str
    label: str
    suffix: str = ""
    size: str = ""
    weights: tuple[Weight, ...] = ()
    module: str = ""
    call: str = ""
    role: str = "plain"
    shape: str = "ellipse"
    dashed: bool = False
    cluster: str | None = None
    pass_num: int = 1
    passes: int = 1
    tests: tuple[tuple[str, str], ...] = ()
    head: str = ""
    notes: tuple[str, ...] = ()
    mark: str = ""
    tooltip: str = ""
    cost: Cost = Cost()
    members: int = 1
    group: int | None = None
    fill: str = ""
    style: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """The label with its suffix: unique in the drawing."""
        return f"{self.label}{self.suffix}"

    @property
    def type(self) -> str:
        """The layer's type, such as ``conv2d``; empty for collapsed modules."""
        return "" if self.shape == "module" else self.label.partition("_")[0]

    @property
    def lines(self) -> tuple[str, ...]:
        """The text, first the label."""
        tests = [": ".join(filter(None, test)) for test in self.tests]
        if self.shape == "module":
            count = sum(weight.numel for weight in self.weights)
            texts = [self.module, self.size, f"params: {count:,}" if count else ""]
        else:
            shapes = ", ".join(human_shape(weight.shape) for weight in self.weights)
            texts = [self.size, f"params: {shapes}" if shapes else "", f"{self.module}{self.call}"]
        return self.name, *filter(None, (*texts, *tests, *self.notes))


@frozen
class Edge:
    """Tensors going from one layer to another.

    Args:
        source, target: Ids of nodes.
        argument: Where the tensor stands in the call, where that matters.
        branch: Whether the evaluation of a condition begins here.
        after: Whether no tensor goes here: what failed came after.
        leaving, entering: In rolled drawings, the passes of the source and of the target, where that differs by pass.
    """

    source: str
    target: str
    argument: str = ""
    branch: bool = False
    after: bool = False
    leaving: tuple[int, ...] = ()
    entering: tuple[int, ...] = ()

    @property
    def lines(self) -> tuple[str, ...]:
        """The text, from the target to the source."""
        entering = f"In {pass_ranges(self.entering)}" if self.entering else ""
        leaving = f"Out {pass_ranges(self.leaving)}" if self.leaving else ""
        return tuple(filter(None, (entering, self.argument, leaving)))


@frozen
class Cluster:
    """The box of a module of several operations: one call, or in rolled drawings all of them.

    Args:
        id: Unique in the drawing.
        address, cls: The module and its class.
        suffix: ``:2`` for a call, `` (x3)`` for all, nothing for the only one.
        parent: The cluster around it, if any.
        call, calls: Which call of how many.
        aliases: The module's other addresses.
    """

    id: str
    address: str
    cls: str
    suffix: str = ""
    parent: str | None = None
    call: int = 1
    calls: int = 1
    aliases: tuple[str, ...] = ()

    @property
    def lines(self) -> tuple[str, ...]:
        """The text: address and class."""
        return f"@{self.address}{self.suffix}", f"({self.cls})"


@frozen
class Legend:
    """What the colours mean: pairs of colour and text."""

    title: str
    entries: tuple[tuple[str, str], ...]


@frozen(slots=False)
class Drawing:
    """A picture before it is laid out. Clusters stand after their parents, nodes in order of execution."""

    title: tuple[str, ...] = ()
    nodes: tuple[Node, ...] = ()
    edges: tuple[Edge, ...] = ()
    clusters: tuple[Cluster, ...] = ()
    notes: tuple[str, ...] = ()
    legend: Legend | None = None
    rolled: bool = False

    @cached_property
    def chains(self) -> dict[str | None, tuple[Cluster, ...]]:
        """Per cluster (and for none), the clusters around and including it, outermost first."""
        found: dict[str | None, tuple[Cluster, ...]] = {None: ()}
        for cluster in self.clusters:
            found[cluster.id] = (*found[cluster.parent], cluster)
        return found

    @cached_property
    def inside(self) -> dict[str | None, tuple[list[Node], list[Cluster]]]:
        """Per cluster (and for none), the nodes and the clusters directly in it, in order."""
        found: dict[str | None, tuple[list[Node], list[Cluster]]] = {None: ([], [])}
        found |= {cluster.id: ([], []) for cluster in self.clusters}
        for node in self.nodes:
            found[node.cluster][0].append(node)
        for cluster in self.clusters:
            found[cluster.parent][1].append(cluster)
        return found


def in_few_words(names: Sequence[str]) -> str:
    """The names, or the first ones and how many more there are."""
    return ", ".join(names if len(names) <= 3 else [*names[:2], f"and {len(names) - 2} more"])


def pass_ranges(passes: tuple[int, ...]) -> str:
    """Numbers of passes in short, such as ``1-3, 7``."""
    runs: list[list[int]] = []
    for number in sorted(set(passes)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    texts = ["-".join(map(str, run)) for run in runs]
    return ", ".join(texts if len(texts) <= 6 else [*texts[:3], "...", *texts[-2:]])
