"""What an entry tells of itself: names, tensor, function call, parameters (paper, Supplementary Table 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lens.ir.elements import Leaf, Location, Op, Value
from lens.ir.entry_index import EntryRow
from lens.ir.naming import layer_type
from lens.ir.templates import Seq, Slot, Template
from lens.render.values import StoredTensor

if TYPE_CHECKING:
    from lens.history import ModelHistory


class EntryView:
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


class Names(EntryView):
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


class TensorFacts(EntryView):
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


class CallFacts(EntryView):
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
        states = None if self._op is None else self._history.payloads.rng_states.get(self._op.id)
        if states is None:
            return None
        return {device: s.read() if isinstance(s, StoredTensor) else s for device, s in states.items()}

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


class ParameterFacts(EntryView):
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
