"""Entries: what a history tells of one pass of one layer (paper, Supplementary Table 1, right column)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lens.errors import AmbiguousKeyError
from lens.ir.elements import Leaf, Location, Op, Scope, Value
from lens.ir.entry_index import EntryRow
from lens.ir.facets import Ancestry, Conditionals, Containment, Distances
from lens.ir.naming import layer_type
from lens.ir.templates import Seq, Slot, Template

if TYPE_CHECKING:
    from lens.history import ModelHistory


class _EntryView:
    """What all parts of an entry look at: its row, and the history around it."""

    def __init__(self, history: ModelHistory, row: EntryRow) -> None:
        self._history = history
        self._row = row

    @property
    def _op(self) -> Op | None:
        return None if self._row.op is None else self._history.graph.ops[self._row.op]

    @property
    def _leaf(self) -> Leaf | None:
        return None if self._row.leaf is None else self._history.graph.leaves[self._row.leaf]

    @property
    def _value(self) -> Value:
        return self._history.graph.values[self._row.value]

    def _names(self, numbers: tuple[int, ...] | list[int]) -> list[str]:
        return [self._history.index.rows[n].name for n in numbers]


class _Names(_EntryView):
    """Labels and keys."""

    @property
    def layer_label(self) -> str:
        """The layer's label, such as ``conv2d_3_5``."""
        return self._row.label

    @property
    def layer_label_w_pass(self) -> str:
        """The label with the pass, such as ``conv2d_3_5:4``."""
        return self._row.label_with_pass

    @property
    def operation_num(self) -> int | None:
        """How many operations had been performed when this one was done; None for inputs, buffers and outputs."""
        return None if self._row.op is None else self._row.op + 1

    @property
    def layer_type(self) -> str:
        """The type of operation, such as ``conv2d``; ``input``, ``output``, ``buffer`` for the others."""
        if self._op is not None:
            return layer_type(self._op.function)
        return self._row.label.partition("_")[0]

    @property
    def layer_type_num(self) -> int:
        """Which layer of its type it is, from 1."""
        return int(self._row.label.split("_")[1])

    @property
    def layer_total_num(self) -> int | None:
        """Which layer of the model it is, from 1; None for inputs, buffers and outputs, which are counted apart."""
        return int(self._row.label.split("_")[2]) if self._op is not None else None

    @property
    def pass_num(self) -> int:
        """Which pass of its layer it is, from 1."""
        return self._row.pass_num

    @property
    def layer_passes_total(self) -> int:
        """How many passes its layer has."""
        return self._row.pass_total

    @property
    def lookup_keys(self) -> list[str | int]:
        """All keys that lead to this entry."""
        return [*self._history.index.keys_of(self._row), self._row.number]

    @property
    def same_layer_operations(self) -> list[str]:
        """The other passes of its layer."""
        rows = self._history.index.find(self._row.label)
        return [row.label_with_pass for row in rows if row != self._row]


class _TensorFacts(_EntryView):
    """The tensor."""

    @property
    def tensor_contents(self) -> Any:
        """The saved tensor. Raises AbsentValueError or StaleValueError if it cannot be given."""
        return self._history.payloads.read(self._row.value, self._row.name)

    @property
    def is_saved(self) -> bool:
        """Whether its tensor was saved."""
        return self._row.value in self._history.payloads

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """Extents of the tensor."""
        return self._value.type.shape

    @property
    def tensor_dtype(self) -> str:
        """Its dtype, such as ``float32``."""
        return self._value.type.dtype

    @property
    def tensor_fsize(self) -> int:
        """Its size in bytes."""
        return self._value.type.nbytes

    @property
    def is_part_of_iterable_output(self) -> bool:
        """Whether the operation returned a list or tuple of which this is one tensor."""
        return isinstance(self._op.form, Seq) if self._op is not None else False

    @property
    def iterable_output_index(self) -> int | None:
        """Its place in that list or tuple, from 0; None if there is none."""
        if self._op is None or not isinstance(self._op.form, Seq):
            return None
        wanted = Slot(self._row.index)
        items = self._op.form.items
        return next((i for i, item in enumerate(items) if item == wanted), self._row.index)


class _CallFacts(_EntryView):
    """The function call."""

    @property
    def func_applied(self) -> Any:
        """The function itself; None for inputs, buffers and outputs. Raises ReplayError if it is not installed."""
        if self._op is None:
            return None
        from lens.functions import resolve  # torch is optional for looking at a trace

        return resolve(self._op.function)

    @property
    def func_applied_name(self) -> str | None:
        """Its name."""
        return None if self._op is None else self._op.function.name

    @property
    def creation_args(self) -> tuple[Any, ...]:
        """Its positional arguments; a tensor that was not saved is the label of its layer."""
        return tuple(self._argument(arg) for arg in self._op.args) if self._op is not None else ()

    @property
    def creation_kwargs(self) -> dict[str, Any]:
        """Its keyword arguments, likewise."""
        kwargs = self._op.kwargs if self._op is not None else ()
        return {name: self._argument(arg) for name, arg in kwargs}

    @property
    def func_position_args_non_tensor(self) -> list[Any]:
        """Its positional arguments that are no tensors."""
        args = self._op.args if self._op is not None else ()
        return [self._argument(arg) for arg in args if not isinstance(arg, Slot)]

    @property
    def func_keyword_args_non_tensor(self) -> dict[str, Any]:
        """Its keyword arguments that are no tensors."""
        kwargs = self._op.kwargs if self._op is not None else ()
        return {name: self._argument(arg) for name, arg in kwargs if not isinstance(arg, Slot)}

    def _argument(self, template: Template) -> Any:
        from lens.replay.arguments import build  # torch is optional for looking at a trace

        assert self._op is not None
        store, names = self._history.payloads, self._history.index.by_value
        tensors = [
            store.read(v) if v in store else (names[v].name if v in names else f"%{v}") for v in self._op.operands
        ]
        return build(template, tensors, store.objects)

    @property
    def func_time_elapsed(self) -> float | None:
        """Seconds spent in the call."""
        return None if self._op is None else self._op.duration

    @property
    def func_rng_states(self) -> dict[str, Any] | None:
        """States of the random number generators before the call, by device; None if it drew no number."""
        return None if self._op is None else self._history.payloads.rng_states.get(self._op.id)

    @property
    def function_is_inplace(self) -> bool:
        """Whether it wrote to one of its tensors instead of making a new one."""
        return self._op is not None and self._op.function.mutates and self._value.alias_of is not None

    @property
    def gradfunc_name(self) -> str | None:
        """The class of its autograd node, such as ``ReluBackward0``."""
        return self._value.grad_fn

    @property
    def location(self) -> Location | None:
        """The line of the user's code that led to it."""
        source = self._op or self._leaf
        return source.location if source is not None else None


class _ParameterFacts(_EntryView):
    """The parameters that the operation reads."""

    @property
    def _parameters(self) -> list[Leaf]:
        graph = self._history.graph
        operands = self._op.operands if self._op is not None else ()
        leaves = (graph.values[v].leaf for v in dict.fromkeys(operands))
        found = (graph.leaves[leaf] for leaf in leaves if leaf is not None)
        return [leaf for leaf in found if leaf.kind == "parameter"]

    @property
    def computed_with_params(self) -> bool:
        """Whether it reads parameters."""
        return bool(self._parameters)

    @property
    def parameter_addresses(self) -> list[str]:
        """The addresses of its parameters."""
        return [leaf.addresses[0] for leaf in self._parameters]

    @property
    def num_param_tensors(self) -> int:
        """How many parameter tensors it reads."""
        return len(self._parameters)

    @property
    def parent_param_shapes(self) -> list[tuple[int, ...]]:
        """Their shapes."""
        return [self._history.graph.values[leaf.value].type.shape for leaf in self._parameters]

    @property
    def num_params_total(self) -> int:
        """How many numbers they hold together."""
        return sum(self._history.graph.values[leaf.value].type.numel for leaf in self._parameters)

    @property
    def parent_params_fsize(self) -> int:
        """Their size in bytes."""
        return sum(self._history.graph.values[leaf.value].type.nbytes for leaf in self._parameters)


class _GraphFacts(_EntryView):
    """The place in the computational graph."""

    @property
    def parent_layers(self) -> list[str]:
        """Layers whose tensors it reads."""
        return self._names(self._history.index.parents[self._row.number])

    @property
    def child_layers(self) -> list[str]:
        """Layers that read its tensor."""
        return self._names(self._history.index.children[self._row.number])

    @property
    def sibling_layers(self) -> list[str]:
        """Layers that share a parent with it."""
        index = self._history.index
        near = [c for p in index.parents[self._row.number] for c in index.children[p]]
        return self._names([n for n in dict.fromkeys(near) if n != self._row.number])

    @property
    def spouse_layers(self) -> list[str]:
        """Layers that share a child with it."""
        index = self._history.index
        near = [p for c in index.children[self._row.number] for p in index.parents[c]]
        return self._names([n for n in dict.fromkeys(near) if n != self._row.number])

    @property
    def _ancestors(self) -> list[int]:
        return self._history.reach(self._row.number, self._history.index.parents)

    @property
    def orig_ancestors(self) -> list[str]:
        """Its ancestors that have no parents themselves."""
        parents = self._history.index.parents
        return self._names([n for n in self._ancestors if not parents[n]])

    @property
    def internally_initialized_parents(self) -> list[str]:
        """Parents that make a tensor from no tensor."""
        numbers = self._history.index.parents[self._row.number]
        return self._names([n for n in numbers if self._history.entry(n).initialized_inside_model])

    @property
    def internally_initialized_ancestors(self) -> list[str]:
        """Ancestors that make a tensor from no tensor."""
        entry = self._history.entry
        return self._names([n for n in self._ancestors if entry(n).initialized_inside_model])

    @property
    def output_descendents(self) -> list[str]:
        """Outputs that descend from it."""
        index = self._history.index
        reached = self._history.reach(self._row.number, index.children)
        return self._names([n for n in reached if index.rows[n].output is not None])

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
        """The address of the buffer, if it is one."""
        return self._leaf.addresses[0] if self._leaf is not None and self.is_buffer_layer else None

    @property
    def has_input_ancestor(self) -> bool:
        """Whether it is computed from the inputs of the model."""
        if self._row.op is not None:
            return self._history.graph[Ancestry].from_input[self._row.op]
        return self.is_input_layer or self.min_distance_from_input is not None

    @property
    def is_output_ancestor(self) -> bool:
        """Whether an output of the model descends from it."""
        if self._row.op is not None:
            return self._history.graph[Ancestry].to_output[self._row.op]
        return self.is_output_layer or self.min_distance_from_output is not None

    @property
    def min_distance_from_input(self) -> int | None:
        """Minimum number of operations from an input, itself counted; None if it does not descend from one."""
        return self._distance("from_input", min)

    @property
    def max_distance_from_input(self) -> int | None:
        """Maximum number of operations from an input."""
        return self._distance("from_input", max)

    @property
    def min_distance_from_output(self) -> int | None:
        """Minimum number of operations to an output, itself counted; None if none descends from it."""
        return self._distance("to_output", min)

    @property
    def max_distance_from_output(self) -> int | None:
        """Maximum number of operations to an output."""
        return self._distance("to_output", max)

    def _distance(self, end: str, pick: Any) -> int | None:
        column = getattr(self._history.graph[Distances], f"{pick.__name__}_{end}")
        if self._row.op is not None:
            return column[self._row.op]  # type: ignore[no-any-return]
        at_the_end = self.is_input_layer if end == "from_input" else self.is_output_layer
        if at_the_end:
            return 0
        index = self._history.index
        near = (index.parents if end == "from_input" else index.children)[self._row.number]
        found = [self._history.entry(n)._distance(end, pick) for n in near]
        known = [distance for distance in found if distance is not None]
        return pick(known) if known else None

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


class _ModuleFacts(_GraphFacts):
    """The modules around the operation."""

    @property
    def _scopes(self) -> list[Scope]:
        found = self._history.graph.get(Containment)
        if self._row.op is not None:
            scope = found.ops[self._row.op] if found else self._history.graph.ops[self._row.op].scope
        else:
            scope = (
                found.leaves[self._row.leaf] if found and self.is_buffer_layer and self._row.leaf is not None else None
            )
        return [s for s in self._history.graph.scope_chain(scope) if s.parent is not None]

    def _scopes_with(self, end: str) -> list[str]:
        values = set(self._history.index.values_of[self._row.number])
        scopes = self._history.scopes_by(end)
        found = {s for v in values for s in scopes.get(v, ())}
        index, graph = self._history.index, self._history.graph
        return [index.scope_label(graph.scopes[s]) for s in sorted(found)]

    @property
    def is_computed_inside_submodule(self) -> bool:
        """Whether it was performed inside a submodule."""
        return bool(self._scopes)

    @property
    def containing_module_origin(self) -> str | None:
        """The innermost module in which it was performed."""
        return self.containing_module_origin_nested[-1] if self._scopes else None

    @property
    def containing_module_origin_nested(self) -> list[str]:
        """All modules in which it was performed, outermost first."""
        return [self._history.index.scope_label(scope) for scope in self._scopes]

    @property
    def modules_entered(self) -> list[str]:
        """Modules that its tensor was handed to."""
        return self._scopes_with("inputs")

    @property
    def modules_exited(self) -> list[str]:
        """Modules that returned its tensor."""
        return [] if self._row.output is not None else self._scopes_with("outputs")

    @property
    def is_submodule_output(self) -> bool:
        """Whether a submodule returned its tensor."""
        return bool(self.modules_exited)

    @property
    def is_bottom_level_submodule_output(self) -> bool:
        """Whether it is the one operation of a module."""
        return bool(self._scopes) and self._scopes[-1].stop - self._scopes[-1].start == 1


class OpEntry(_Names, _TensorFacts, _CallFacts, _ParameterFacts, _ModuleFacts):
    """One pass of one layer."""

    def __repr__(self) -> str:
        kind = self._value.type
        module = self.containing_module_origin
        return f"<{self._row.name} {kind}{f' in {module}' if module else ''}>"

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, OpEntry) and other._history is self._history
        return same and isinstance(other, OpEntry) and other._row == self._row

    def __hash__(self) -> int:
        return hash(self._row)


class LayerEntry:
    """A layer, or the outputs of a module, of several passes.

    Attributes that all passes share are given directly; for the others name the pass.
    """

    def __init__(self, key: str, passes: list[OpEntry]) -> None:
        self._key = key
        self.passes = tuple(passes)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(OpEntry, name):
            raise AttributeError(f"a layer has no attribute {name!r}")
        if name == "tensor_contents" and len(self.passes) > 1:
            raise self._differs(name)
        first, *others = (getattr(entry, name) for entry in self.passes)
        if any(other != first for other in others):
            raise self._differs(name)
        return first

    def _differs(self, name: str) -> AmbiguousKeyError:
        first = self.passes[0]._row
        return AmbiguousKeyError(
            f"{name} differs between the {len(self.passes)} passes of {self._key!r}",
            where=self._key,
            hint=f"choose one: history[{first.label_with_pass!r}], or history[{self._key!r}].passes[0]",
        )

    def __len__(self) -> int:
        return len(self.passes)

    def __repr__(self) -> str:
        return f"<{self._key} (x{len(self.passes)}): {', '.join(map(repr, self.passes))}>"
