"""What a node of a program tells about the operation that it stands for, in torch's own words."""

from __future__ import annotations

import linecache
from typing import Any

from lens.ir.elements import Location, Op
from lens.ir.facets import Labels
from lens.ir.graph import Graph


def node_meta(graph: Graph, op: Op) -> dict[str, Any]:
    """``nn_module_stack`` (module calls), ``stack_trace`` (the line) and ``custom`` (label, pass, function)."""
    labels = graph[Labels]
    custom: dict[str, Any] = {"lens_function": str(op.function)}
    if labels.results[op.id]:
        custom["lens_label"] = labels.results[op.id][0]
        custom["lens_pass"] = labels.pass_num[op.id]
    if op.location is not None:
        custom["lens_location"] = str(op.location)
    chain = graph.scopes_of(op)
    custom["lens_module"] = chain[-1].address if chain else ""
    stack = {f"{s.address}@{s.call}": (s.address, s.cls) for s in chain}
    return {"nn_module_stack": stack, "stack_trace": _trace(op.location), "custom": custom}


def _trace(location: Location | None) -> str | None:
    if location is None:
        return None
    source = linecache.getline(location.file, location.line).strip()
    return f'  File "{location.file}", line {location.line}, in {location.function}\n    {source}'
