"""The expected texts: one readable file per granularity, a section per case."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from lens.ir.graph import Graph
from lens.ir.printer import print_graph

#: Granularity -> the capabilities without which a backend cannot give it.
GRANULARITIES: Mapping[str, tuple[str, ...]] = {
    "leaf": ("functions", "composites"),
    "api": ("functions",),
    "aten": ("aten",),
}
_HEAD = "=== "
_GRAD_FN = re.compile(r" \^\w+")


def path_of(granularity: str) -> Path:
    """The file of a granularity."""
    return Path(__file__).parent / "expected" / f"{granularity}.txt"


def read(granularity: str) -> dict[str, str]:
    """Case name -> expected text; empty if there is no file."""
    path = path_of(granularity)
    if not path.exists():
        return {}
    sections = path.read_text(encoding="utf-8").split(_HEAD)[1:]
    return {name: text.strip() + "\n" for name, _, text in (section.partition("\n") for section in sections)}


def write(granularity: str, texts: Mapping[str, str]) -> Path:
    """Write the file of a granularity and give its path."""
    path = path_of(granularity)
    path.write_text("\n".join(f"{_HEAD}{name}\n{text}" for name, text in texts.items()), encoding="utf-8")
    return path


_NO_OPERATORS = re.compile(r"^ *read (?:tolist|numpy|dlpack|data_ptr) .*\n", re.MULTILINE)


def without_python_data(text: str) -> str:
    """A text without the reads that are no operators."""
    return _NO_OPERATORS.sub("", text)


def normal_text(graph: Graph) -> str:
    """The text of a graph without times, locations and facts about the run; with the fault that ended it, if any.

    The names of autograd nodes are left out too: they say nothing about the backend, and change with the version. So
    are, at the level of ATen, reads that are no operators there, if the backend does not claim to see them.
    """
    text = print_graph(graph, locations=False, times=False, meta=False, facets=False)
    text = _GRAD_FN.sub("", text)
    if "aten" in graph.meta.capabilities and "python_data" not in graph.meta.capabilities:
        text = without_python_data(text)
    fault = graph.meta.fault
    return text if fault is None else f"{text}fault {fault.type} in {fault.function or 'no operation'}\n"
