"""What an entry tells of its place: in the graph, and in the modules (paper, Supplementary Table 1)."""

from __future__ import annotations

from typing import Literal

from lens.entry_facts import EntryView
from lens.ir.elements import Scope
from lens.ir.facets import Conditionals, Containment


class GraphFacts(EntryView):
    """The place in the computational graph."""

    @property
    def parent_layers(self) -> list[str]:
        """Layers whose tensors it reads, in the order of its arguments."""
        return self._names(self._history.index.parents[self._row.number])

    @property
    def child_layers(self) -> list[str]:
        """Layers that read its tensor."""
        return self._names(self._history.index.children[self._row.number])

    @property
    def sibling_layers(self) -> list[str]:
        """Layers that share a parent with it, in order of execution."""
        index = self._history.index
        near = (c for p in index.parents[self._row.number] for c in index.children[p])
        return self._names(sorted({*near} - {self._row.number}))

    @property
    def spouse_layers(self) -> list[str]:
        """Layers that share a child with it, in order of execution."""
        index = self._history.index
        near = (p for c in index.children[self._row.number] for p in index.parents[c])
        return self._names(sorted({*near} - {self._row.number}))

    @property
    def orig_ancestors(self) -> list[str]:
        """Its ancestors that have no parents themselves."""
        return self._names(self._history._origins.of(self._row.number))

    @property
    def internally_initialized_parents(self) -> list[str]:
        """Parents that make a tensor from no tensor."""
        numbers = self._history.index.parents[self._row.number]
        return self._names([n for n in numbers if self._history.entry(n).initialized_inside_model])

    @property
    def internally_initialized_ancestors(self) -> list[str]:
        """Ancestors that make a tensor from no tensor."""
        return self._names(self._history._initialized.of(self._row.number))

    @property
    def output_descendents(self) -> list[str]:
        """Outputs that descend from it."""
        return self._names(self._history._endings.of(self._row.number))

    @property
    def is_input_layer(self) -> bool:
        """Whether it is an input of the model."""
        return self._leaf is not None and self._leaf.kind == "input"

    @property
    def is_output_layer(self) -> bool:
        """Whether it is an output node of the model."""
        return self._row.output is not None

    @property
    def is_buffer_layer(self) -> bool:
        """Whether it is a buffer of the model."""
        return self._leaf is not None and self._leaf.kind == "buffer"

    @property
    def buffer_address(self) -> str | None:
        """The address of the buffer; None if it is none."""
        return self._leaf.addresses[0] if self._leaf is not None and self.is_buffer_layer else None

    @property
    def has_input_ancestor(self) -> bool:
        """Whether it is computed from the inputs of the model, or is one."""
        return self.min_distance_from_input is not None

    @property
    def is_output_ancestor(self) -> bool:
        """Whether an output of the model descends from it, or it is one."""
        return self.min_distance_from_output is not None

    @property
    def min_distance_from_input(self) -> int | None:
        """Minimum number of operations from an input, itself counted; None if it does not descend from one."""
        return self._distance("min", "from_input")

    @property
    def max_distance_from_input(self) -> int | None:
        """Maximum number of operations from an input; None if it does not descend from one."""
        return self._distance("max", "from_input")

    @property
    def min_distance_from_output(self) -> int | None:
        """Minimum number of operations to an output, itself counted; None if none descends from it."""
        return self._distance("min", "to_output")

    @property
    def max_distance_from_output(self) -> int | None:
        """Maximum number of operations to an output; None if none descends from it."""
        return self._distance("max", "to_output")

    def _distance(self, bound: Literal["min", "max"], end: Literal["from_input", "to_output"]) -> int | None:
        column: tuple[int | None, ...] = getattr(self._history._distances, f"{bound}_{end}")
        op = self._op
        if op is not None and (end == "from_input" or len(op.results) == 1):
            return column[op.id]
        at_the_end = self.is_input_layer if end == "from_input" else self.is_output_layer
        if at_the_end:
            return 0
        index = self._history.index
        near = (index.parents if end == "from_input" else index.children)[self._row.number]
        entries = [self._history.entry(n) for n in near]
        found = [e._distance(bound, end) if e._op is None else column[e._op.id] for e in entries]
        known = [distance for distance in found if distance is not None]
        itself = 0 if op is None else 1  # one of several results: the others may lead elsewhere
        pick = min if bound == "min" else max
        return pick(known) + itself if known else None

    @property
    def initialized_inside_model(self) -> bool:
        """Whether it makes a new tensor from no tensor, as ``torch.rand`` does."""
        if self._op is not None:
            return not self._op.operands
        return self._leaf is not None and self._leaf.kind == "external"

    @property
    def terminated_inside_model(self) -> bool:
        """Whether nothing reads its tensor and it is no output."""
        return not self._history.index.children[self._row.number] and not self.is_output_layer

    @property
    def in_cond_branch(self) -> bool:
        """Whether it only serves to evaluate a condition."""
        found = self._history.graph.get(Conditionals)
        return found is not None and self._row.op is not None and found.in_branch[self._row.op]

    @property
    def is_terminal_bool_layer(self) -> bool:
        """Whether nothing in the graph reads its tensor, which is a single Boolean."""
        kind = self._value.type
        return self.terminated_inside_model and kind.dtype == "bool" and kind.numel == 1


class ModuleFacts(GraphFacts):
    """The modules around the operation."""

    @property
    def _scopes(self) -> list[Scope]:
        graph, found = self._history.graph, self._history.graph.get(Containment)
        if self._op is not None:
            return list(graph.modules_of(self._op))
        scope = found.leaves[self._row.leaf] if found and self._row.leaf is not None and self.is_buffer_layer else None
        return [s for s in graph.scope_chain(scope) if not s.is_model]

    def _scopes_with(self, end: str) -> list[str]:
        values = set(self._history.index.values_of[self._row.number])
        scopes = self._history._by_scope_end[end]
        found = {s for v in values for s in scopes.get(v, ())}
        index, graph = self._history.index, self._history.graph
        return [index.scope_label(graph.scopes[s]) for s in sorted(found)]

    @property
    def is_computed_inside_submodule(self) -> bool:
        """Whether it was performed inside a submodule."""
        return bool(self._scopes)

    @property
    def containing_module_origin(self) -> str | None:
        """The innermost module in which it was performed; None outside of all submodules."""
        return self.containing_module_origin_nested[-1] if self._scopes else None

    @property
    def containing_module_origin_nested(self) -> list[str]:
        """All modules in which it was performed, outermost first; empty outside of all submodules."""
        return [self._history.index.scope_label(scope) for scope in self._scopes]

    @property
    def modules_entered(self) -> list[str]:
        """Modules that its tensor was handed to, outermost first."""
        return self._scopes_with("inputs")

    @property
    def modules_exited(self) -> list[str]:
        """Modules that returned its tensor, outermost first."""
        return [] if self._row.output is not None else self._scopes_with("outputs")

    @property
    def is_submodule_output(self) -> bool:
        """Whether a submodule returned its tensor."""
        return bool(self.modules_exited)

    @property
    def is_bottom_level_submodule_output(self) -> bool:
        """Whether it is the one operation of a module."""
        return self._op is not None and bool(self._scopes) and self._scopes[-1].stop - self._scopes[-1].start == 1
