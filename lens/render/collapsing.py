"""Smaller drawings: modules, the results of one call, and long middles as one node each. Drawing to Drawing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator

from attrs import evolve

from lens.errors import RenderError
from lens.render.crowding import Crowd, crowd
from lens.render.drawing import Cluster, Cost, Drawing, Edge, Node
from lens.render.joining import joined
from lens.render.rolling import roll, without_empty
from lens.render.sizes import human_bytes

#: More results of one call than this are drawn as one node where a drawing is too large.
_MOST_RESULTS = 16
#: More arrows than this beside the nodes, on average, cannot be told apart.
_MOST_PASSING = 40
#: More than this in the whole drawing fill it, however high it is.
_MOST_PASSING_IN_ALL = 8000
#: How many nodes stay at each end of a drawing whose middle is left out.
_END = 30


def collapse_depth(drawing: Drawing, depth: int) -> Drawing:
    """Every module at this depth as one node; 1 is the modules that the model itself calls. Linear."""
    return collapse(drawing, {chain[-1].id for chain in drawing.chains.values() if len(chain) == depth})


def collapse_modules(drawing: Drawing, addresses: Collection[str]) -> Drawing:
    """All calls of the named modules as one node each; ``blocks.*`` names the modules directly inside ``blocks``.

    Raises:
        RenderError: if there is no box of such a module.
    """
    chosen: set[str] = set()
    for address in addresses:
        found = {c.id for c in drawing.clusters if _names(address, c)}
        if not found:
            known = ", ".join(dict.fromkeys(cluster.address for cluster in drawing.clusters))
            raise RenderError(
                f"no module {address!r} with several operations was called",
                where=f"collapse={address!r}",
                hint=f"these can be collapsed: {known[:500] or 'none'}",
            )
        chosen |= found
    return collapse(drawing, chosen)


def _names(address: str, cluster: Cluster) -> bool:
    names = cluster.address, *cluster.aliases
    if address.endswith(".*"):
        return any(name.rpartition(".")[0] == address[:-2] for name in names)
    return any(address in (name, f"{name}:{cluster.call}") for name in names)


def collapse(drawing: Drawing, clusters: Collection[str]) -> Drawing:
    """These clusters (ids) as one node each, the outermost where they are nested. Linear."""
    outermost: dict[str | None, Cluster] = {}
    for cluster, chain in drawing.chains.items():
        found = next((c for c in chain if c.id in clusters), None)
        if found is not None:
            outermost[cluster] = found
    inside: dict[str, list[Node]] = defaultdict(list)
    for node in drawing.nodes:
        if node.cluster in outermost:
            inside[outermost[node.cluster].id].append(node)
    leaving = _leaving(drawing, {node.id: cluster for cluster, nodes in inside.items() for node in nodes})
    by_id = {cluster.id: cluster for cluster in drawing.clusters}
    return _with(drawing, [(_module_node(by_id[c], nodes, leaving.get(c)), nodes) for c, nodes in inside.items()])


def bundle_results(drawing: Drawing) -> Drawing:
    """The results of every call that has many of them as one node. Linear."""
    groups: dict[int, list[Node]] = defaultdict(list)
    for node in drawing.nodes:
        if node.group is not None:
            groups[node.group].append(node)
    many = [nodes for nodes in groups.values() if len(nodes) > _MOST_RESULTS]
    return _with(drawing, [(_bundle(nodes), nodes) for nodes in many])


def elide_middle(drawing: Drawing, end: int) -> Drawing:
    """The first and the last nodes, and one for all between them. Linear."""
    middle = list(drawing.nodes[end:-end])
    node = _stand_in("middle", middle)
    notes = f"{middle[0].name} ... {middle[-1].name}", human_bytes(node.cost.nbytes)
    return _with(drawing, [(evolve(node, label=f"{node.members:,} more layers", notes=notes), middle)])


def fit(drawing: Drawing, most: int, rolled: bool, *, uncrowd: bool) -> Drawing:
    """The drawing, rolled if so asked, with no more than about so many nodes; a note says what was collapsed.

    First the results of calls with many of them become one node, then modules, the deepest first, then the middle.
    Modules are collapsed too where arrows crowd a drawing (every layer of a DenseNet feeds all later ones), and where
    that does not help and there are thousands the middle is left out (every step of a loop takes a part of the input),
    unless ``uncrowd`` is False.
    """
    homes = _homes(drawing, None, rolled)
    total, found = len(set(homes.values())), _crowd(drawing, homes)
    if total <= most and not (uncrowd and _is_too_much(found)):
        return roll(drawing) if rolled else drawing
    done = []
    if total > most or found.passing > _MOST_PASSING_IN_ALL:
        bundled = bundle_results(drawing)
        done += ["many results of one call"] if len(bundled.nodes) < len(drawing.nodes) else []
        drawing = bundled
    for depth in (None, *range(max(map(len, drawing.chains.values())), 0, -1)):
        homes = _homes(drawing, depth, rolled)
        found = _crowd(drawing, homes)
        if len(set(homes.values())) <= most and not (uncrowd and _is_too_much(found)):
            break
    if depth is not None:
        drawing = collapse_depth(drawing, depth)
        done.append(f"modules at depth {depth}")
    drawing = roll(drawing) if rolled else drawing
    is_full = uncrowd and found.passing > _MOST_PASSING_IN_ALL and len(drawing.nodes) > 2 * _END
    if len(drawing.nodes) > most or is_full:
        drawing = elide_middle(drawing, min(_END, most // 2))
        done.append("the middle")
    if not done:
        return drawing
    why = "arrows would crowd it; " if total <= most else ""
    shown = f"{total:,} layers in {len(drawing.nodes):,} nodes"
    note = f"Collapsed: {', '.join(done)} ({shown}); {why}max_nodes=None shows all"
    return evolve(drawing, notes=(*drawing.notes, note))


def _homes(drawing: Drawing, depth: int | None, rolled: bool) -> dict[str, tuple[str, str]]:
    """Per node, what would stand for it with the modules at a depth collapsed."""
    found: dict[str, tuple[str, str]] = {}
    for node in drawing.nodes:
        chain = drawing.chains[node.cluster]
        if depth is not None and len(chain) >= depth:
            box = chain[depth - 1]
            found[node.id] = "module", box.address if rolled else box.id
        else:
            found[node.id] = ("layer", node.label) if rolled and node.passes > 1 else ("", node.id)
    return found


def _is_too_much(found: Crowd) -> bool:
    return found.mean > _MOST_PASSING or found.passing > _MOST_PASSING_IN_ALL


def _crowd(drawing: Drawing, homes: dict[str, tuple[str, str]]) -> Crowd:
    return crowd(homes.values(), ((homes[edge.source], homes[edge.target]) for edge in drawing.edges))


def _leaving(drawing: Drawing, owner: dict[str, str]) -> dict[str, str]:
    """Per collapsed cluster, the last node inside whose tensor goes outside."""
    found: dict[str, str] = {}
    order = {node.id: place for place, node in enumerate(drawing.nodes)}
    for edge in drawing.edges:
        cluster = owner.get(edge.source)
        if cluster is not None and owner.get(edge.target) != cluster and not edge.after:
            found[cluster] = max(found.get(cluster, edge.source), edge.source, key=order.__getitem__)
    return found


def _module_node(cluster: Cluster, nodes: list[Node], leaving: str | None) -> Node:
    node = _stand_in(f"module{cluster.id.removeprefix('cluster')}", nodes)
    tests = sum(len(node.tests) for node in nodes)
    result = next((node for node in nodes if node.id == leaving), nodes[-1])
    failed = any(node.role == "fault" for node in nodes)
    mark = "fault" if failed else next((node.mark for node in nodes if node.mark), "")
    notes = [f"{tests} {'test' if tests == 1 else 'tests'} inside"] if tests else []
    notes += dict.fromkeys(note for node in nodes if node.mark for note in node.notes[-1:])
    label, cls = cluster.lines
    count = f"{node.members:,} layers"
    return evolve(
        node,
        label=f"@{cluster.address}",
        suffix=cluster.suffix,
        size=result.size,
        module=cls,
        role="fault" if failed else node.role,
        cluster=cluster.parent,
        pass_num=cluster.call,
        passes=cluster.calls,
        notes=(count, *notes),
        mark=mark,
        tooltip=f"{label} {cls}\n{count}, {nodes[0].name} to {nodes[-1].name}",
    )


def _stand_in(name: str, nodes: list[Node]) -> Node:
    """A node for several, with all that they take."""
    weights = tuple(dict.fromkeys(weight for node in nodes for weight in node.weights))
    count, cost = sum(node.members for node in nodes), sum((node.cost for node in nodes), Cost())
    role = "parameters" if weights else "plain"
    return Node(name, "", weights=weights, role=role, shape="module", cost=cost, members=count)


def _bundle(nodes: list[Node]) -> Node:
    first, last = nodes[0], nodes[-1]
    return evolve(
        first,
        label=f"{first.label} ... {last.label}",
        notes=(*first.notes, f"{len(nodes):,} results"),
        cost=sum((node.cost for node in nodes), Cost()),
        members=len(nodes),
    )


def _with(drawing: Drawing, replacements: list[tuple[Node, list[Node]]]) -> Drawing:
    """The drawing with nodes in the place of others. Arrows inside what is replaced go, parallel ones become one."""
    if not replacements:
        return drawing
    first = {members[0].id: node for node, members in replacements}
    home = {member.id: node.id for node, members in replacements for member in members}
    nodes = tuple(first.get(node.id, node) for node in drawing.nodes if node.id not in home or node.id in first)
    clusters = without_empty(drawing.clusters, nodes)
    return evolve(drawing, nodes=nodes, edges=tuple(_moved(drawing, home)), clusters=clusters)


def _moved(drawing: Drawing, home: dict[str, str]) -> Iterator[Edge]:
    """The arrows between the nodes that stand for others. ``home``: id of a node -> of what stands for it."""
    whole = {*home.values()}
    passes = {node.id: node.passes for node in drawing.nodes if node.id not in home}
    moved = []
    for edge in drawing.edges:
        source, target = home.get(edge.source, edge.source), home.get(edge.target, edge.target)
        if edge.source not in home or source != target:
            argument = "" if target in whole else edge.argument
            moved.append(((source, target, False, edge.after), argument, edge))
    for new, old in joined(moved):
        branch = any(edge.branch for edge in old)
        leaving = _united((edge.leaving for edge in old), passes.get(new.source))
        entering = _united((edge.entering for edge in old), passes.get(new.target))
        yield evolve(new, branch=branch, leaving=leaving, entering=entering)


def _united(parts: Iterable[tuple[int, ...]], most: int | None) -> tuple[int, ...]:
    """All passes in the parts, nothing if these are all that a node has; what stands for several nodes has none."""
    found = [*parts]
    numbers = {number for part in found for number in part}
    return () if most in (None, len(numbers)) or not all(found) else tuple(sorted(numbers))
