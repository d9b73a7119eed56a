"""What an operation is given: which argument an operand is, which parameters it reads, and all of it as text."""

from __future__ import annotations

from collections.abc import Sequence

from lens.ir.elements import Leaf, Op
from lens.ir.graph import Graph
from lens.ir.printer import print_template
from lens.ir.templates import Slot, slots


def argument_names(op: Op) -> list[str]:
    """Per operand, the argument that it is or is in: its position, or its name. Linear."""
    arguments = [(str(i), arg) for i, arg in enumerate(op.args)] + list(op.kwargs)
    names = [""] * len(op.operands)
    for name, template in arguments:
        for slot in [template.index] if isinstance(template, Slot) else slots(template):
            names[slot] = name
    return names


def parameters_of(graph: Graph, op: Op) -> list[Leaf]:
    """The parameters that an op reads, each once, in the order of its arguments. Linear in its operands."""
    leaves = map(graph.leaf_of, dict.fromkeys(op.operands))
    return [leaf for leaf in leaves if leaf is not None and leaf.kind == "parameter"]


def print_arguments(op: Op, texts: Sequence[str]) -> str:
    """The arguments of a call as text; ``texts`` are those of its operands. Linear."""
    named = (f"{name}={print_template(arg, texts)}" for name, arg in op.kwargs)
    return ", ".join([*(print_template(arg, texts) for arg in op.args), *named])
