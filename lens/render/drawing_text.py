"""The text form of a drawing, for tests and for reading. Leaves out what differs from run to run: times, places."""

from __future__ import annotations

from collections.abc import Iterator

from lens.render.drawing import Drawing, Edge, Node


def print_drawing(drawing: Drawing) -> str:
    """One line per node and edge; clusters as braces around their nodes. Linear."""
    names = {node.id: node.name for node in drawing.nodes}
    lines = [f"title {_joined(drawing.title)}"]
    lines += [f"note {_joined((note,))}" for note in drawing.notes]
    if drawing.legend is not None:
        lines.append(f"legend {_joined((drawing.legend.title, *(f'{c} {t}' for c, t in drawing.legend.entries)))}")

    def inside(parent: str | None, indent: str) -> Iterator[str]:
        nodes, clusters = drawing.inside[parent]
        yield from (indent + _node(node) for node in nodes)
        for cluster in clusters:
            yield f"{indent}{{ {_joined(cluster.lines)}"
            yield from inside(cluster.id, f"{indent}  ")
            yield f"{indent}}}"

    lines += inside(None, "")
    lines += [_edge(edge, names) for edge in drawing.edges]
    return "\n".join(lines) + "\n"


def _node(node: Node) -> str:
    words = [node.shape, node.role, "dashed" if node.dashed else "", node.mark, node.head, node.fill]
    style = [f"{key}={value}" for key, value in node.style]
    return f"{' '.join(filter(None, (*words, *style)))}: {_joined(node.lines)}"


def _edge(edge: Edge, names: dict[str, str]) -> str:
    arrow = "..>" if edge.after else "->"
    lines = ("IF", *edge.lines) if edge.branch else edge.lines
    label = f" [{_joined(lines)}]" if lines else ""
    return f"{_joined((names[edge.source],))} {arrow} {_joined((names[edge.target],))}{label}"


def _joined(lines: tuple[str, ...]) -> str:
    return " | ".join(line.replace("\\", "\\\\").replace("\n", "\\n") for line in lines)
