"""Model Explorer's JSON: operations as nodes, module calls as namespaces that fold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from lens.ir.elements import Leaf, Op, Scope, ScopeId, ValueId
from lens.ir.entry_index import EntryIndex
from lens.ir.facets import Conditionals, Containment, Recurrence
from lens.ir.graph import Graph
from lens.ir.op_arguments import argument_names, parameters_of
from lens.ir.printer import print_template
from lens.render.renderer import Renderer, Traced
from lens.render.sizes import human_seconds
from lens.render.themes import LIGHT

#: A piece of JSON.
Json = dict[str, Any]
_LONGEST_VALUE = 500


@frozen
class ModelExplorerRenderer(Renderer):
    """JSON for Model Explorer, which opens it by its ending."""

    name = "model-explorer"
    suffix = ".json"

    def render(self, history: Traced) -> str:
        """One collection of one graph, as text."""
        graph = explorer_graph(history.graph)
        return json.dumps({"label": graph["id"], "graphs": [graph]})


def explorer_graph(graph: Graph) -> Json:
    """The graph as Model Explorer's data: ``id``, ``nodes``, ``groupNodeAttributes``. Linear."""
    return _Explorer(graph).graph_json()


class _Explorer:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.index = EntryIndex(graph)
        self.containment = graph.get(Containment)
        recurrence = graph.get(Recurrence)
        self.passes = [] if recurrence is None else recurrence.passes()
        self.layer = () if recurrence is None else recurrence.layer
        conditionals = graph.get(Conditionals)
        self.tests: dict[ValueId, list[str]] = {}
        for condition in conditionals.conditions if conditionals else ():
            read = graph.reads[condition.read]
            self.tests.setdefault(read.value, []).append(f"{condition.construct}: {read.result}")
        self.namespaces: dict[ScopeId | None, str] = {None: ""}
        for scope in graph.scopes:
            self.namespaces[scope.id] = self._namespace(scope)

    def graph_json(self) -> Json:
        graph = self.graph
        nodes = [self._leaf(leaf) for leaf in graph.leaves if leaf.kind != "parameter"]
        nodes += [self._op(op) for op in graph.ops]
        nodes += [self._output(place, value) for place, value in enumerate(graph.outputs.values)]
        groups = {self.namespaces[s.id]: _group(s) for s in graph.scopes if not s.is_model}
        meta = graph.meta
        facts = {"model": meta.model, "backend": meta.backend, "torch": meta.torch, "lens": meta.lens}
        return {"id": meta.model or "model", "nodes": nodes, "groupNodeAttributes": {"": facts, **groups}}

    def _namespace(self, scope: Scope) -> str:
        """The calls around a module and itself, each by what its address adds to the one around it."""
        if scope.is_model:
            return ""
        outer = None if scope.parent is None else self.graph.scopes[scope.parent]
        name = scope.address.removeprefix(f"{outer.address}.") if outer else scope.address
        call = f":{scope.call}" if self.index.calls[scope.address] > 1 else ""
        part = f"{name}{call}".replace("/", "\u2215") or scope.cls
        return f"{self.namespaces[scope.parent]}/{part}".removeprefix("/")

    def _op(self, op: Op) -> Json:
        rows = self.index.by_op.get(op.id, [])
        texts = [self.index.name_of(v) for v in op.operands]
        names, weights = argument_names(op), [leaf.value for leaf in parameters_of(self.graph, op)]
        attributes: list[tuple[str, Any]] = [("function", str(op.function))]
        for place, template in [*((str(i), a) for i, a in enumerate(op.args)), *op.kwargs]:
            attributes.append((f"argument {place}", print_template(template, texts)[:_LONGEST_VALUE]))
        attributes += [("tensor", f"{self.index.name_of(v)} {self.graph.values[v].type}") for v in weights]
        attributes += [("condition", test) for v in op.results for test in self.tests.get(v, ())]
        attributes += self._recurrence(op)
        if op.location is not None:
            attributes.append(("source", str(op.location)))
        attributes.append(("time", human_seconds(op.duration)))
        edges = [(v, names[i] if i < len(names) else "written") for i, v in enumerate(op.reads)]
        label = rows[0].name if rows else str(op.function)
        modules = self.graph.modules_of(op)
        role = "parameters" if weights else "condition" if any(v in self.tests for v in op.results) else ""
        namespace = self.namespaces[modules[-1].id if modules else None]
        return self._node(f"op{op.id}", label, namespace, attributes, edges, op.writes, role)

    def _leaf(self, leaf: Leaf) -> Json:
        row = self.index.by_value.get(leaf.value)
        attributes = [("kind", leaf.kind), *(("address", address) for address in leaf.addresses)]
        scope = None if self.containment is None or leaf.kind == "input" else self.containment.leaves[leaf.id]
        label = row.name if row is not None else leaf.kind
        role = leaf.kind if leaf.kind in LIGHT.fills else "buffer"
        return self._node(f"leaf{leaf.id}", label, self.namespaces[scope], attributes, [], [leaf.value], role)

    def _output(self, place: int, value: ValueId) -> Json:
        attributes = [("kind", "output"), ("type", str(self.graph.values[value].type))]
        label = self.index.outputs[place].label
        return self._node(f"output{place}", label, "", attributes, [(value, "")], [], "output")

    def _node(
        self,
        name: str,
        label: str,
        namespace: str,
        attributes: Sequence[tuple[str, Any]],
        reads: Sequence[tuple[ValueId, str]],
        writes: Sequence[ValueId],
        role: str,
    ) -> Json:
        edges, inputs = [], []
        for place, (value, argument) in enumerate(reads):
            source = self._source(value)
            if source is not None:
                output = str(self.graph.values[value].index)
                edges.append({"sourceNodeId": source, "sourceNodeOutputId": output, "targetNodeInputId": str(place)})
                inputs.append(_metadata(place, argument=argument))
        outputs = [self._metadata_of(place, value) for place, value in enumerate(writes)]
        return {
            "id": name,
            "label": label,
            "namespace": namespace,
            "attrs": [{"key": key, "value": value} for key, value in attributes],
            "incomingEdges": edges,
            "inputsMetadata": inputs,
            "outputsMetadata": outputs,
            "style": {"backgroundColor": LIGHT.fills[role]} if role else {},
        }

    def _metadata_of(self, place: int, value: ValueId) -> Json:
        kind = self.graph.values[value].type
        return _metadata(place, tensor_shape=str(kind), dtype=kind.dtype, device=kind.device, value=f"%{value}")

    def _source(self, value: ValueId) -> str | None:
        """The node that made a value; None for parameters, which are attributes of those that read them."""
        producer, leaf = self.graph.values[value].producer, self.graph.leaf_of(value)
        if producer is not None:
            return f"op{producer}"
        return None if leaf is None or leaf.kind == "parameter" else f"leaf{leaf.id}"

    def _recurrence(self, op: Op) -> list[tuple[str, Any]]:
        """Which pass of its layer, with links to the one before and the one after."""
        rows = self.index.by_op.get(op.id, [])
        if not rows or rows[0].pass_total < 2:
            return []
        number, total = rows[0].pass_num, rows[0].pass_total
        found: list[tuple[str, Any]] = [("pass", f"{number} of {total} of {rows[0].label}")]
        passes = self.passes[self.layer[op.id]] if self.layer else []
        near = [f"op{other}" for other in passes[max(0, number - 2) : number + 1] if other != op.id]
        return [*found, ("passes beside", {"type": "node_ids", "nodeIds": near})] if near else found


def _metadata(place: int, **facts: str) -> Json:
    return {"id": str(place), "attrs": [{"key": key, "value": value} for key, value in facts.items() if value]}


def _group(scope: Scope) -> Mapping[str, str]:
    return {
        "class": scope.cls,
        "address": scope.address,
        "call": str(scope.call),
        "mode": "train" if scope.training else "eval",
    }
