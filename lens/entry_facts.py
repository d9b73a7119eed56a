"""What an entry tells of itself: names, tensor, function call, parameters (paper, Supplementary Table 1)."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any

from lens.ir.elements import Leaf, Location, Op, Value
from lens.ir.entry_index import EntryRow
from lens.ir.naming import layer_type
from lens.ir.op_arguments import parameters_of
from lens.ir.templates import Node, Opaque, Seq, Slot, Template, holds_slots, map_nodes, slots
from lens.ir.types import TensorType

if TYPE_CHECKING:
    import torch

    from lens.history_entries import HistoryEntries


class EntryView:
    """What all parts of an entry look at: its row, and the history around it."""

    def __init__(self, history: HistoryEntries, row: EntryRow) -> None:
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
        """All keys that lead to this entry, alone or with other passes; the ordinal only if ordinals count it."""
        keys = self._history.index.keys_of(self._row)
        number = bisect_left(self._history.numbered, self._row.number, key=lambda row: row.number)
        counted = number < len(self._history.numbered) and self._history.numbered[number].number == self._row.number
        return [*keys, number] if counted else [*keys]

    @property
    def same_layer_operations(self) -> list[str]:
        """The other passes of its layer; empty if there are none."""
        rows = self._history.index.passes_of(self._row)
        return [row.label_with_pass for row in rows if row.number != self._row.number]


class TensorFacts(EntryView):
    """The tensor."""

    @property
    def tensor_contents(self) -> torch.Tensor:
        """The saved tensor. Raises AbsentValueError or StaleValueError if it cannot be given."""
        tensor: torch.Tensor = self._history.payloads.read(self._row.value, self._row.name)
        return tensor

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
        return self._op is not None and isinstance(self._op.form, Seq)

    @property
    def iterable_output_index(self) -> int | None:
        """Its place in that list or tuple, from 0; None if there is none."""
        if self._op is None or not isinstance(self._op.form, Seq):
            return None
        wanted = Slot(self._row.index)
        items = self._op.form.items
        return next((i for i, item in enumerate(items) if item == wanted), self._row.index)


#: How a call says that it is to write to its first argument, if its name does not.
_INPLACE = ("inplace", True)


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
        """Its name; None for inputs, buffers and outputs."""
        return None if self._op is None else self._op.function.name

    @property
    def creation_args(self) -> tuple[Any, ...]:
        """Its positional arguments, empty if it is no call; for what was not saved the label or ``@address``."""
        return tuple(self._argument(arg) for arg in self._op.args) if self._op is not None else ()

    @property
    def creation_kwargs(self) -> dict[str, Any]:
        """Its keyword arguments, empty if it is no call; for what was not saved the label or ``@address``."""
        return {name: self._argument(arg) for name, arg in self._kwargs}

    @property
    def func_position_args_non_tensor(self) -> list[Any]:
        """Its positional arguments that are, and hold, no tensors."""
        args = self._op.args if self._op is not None else ()
        return [self._argument(arg) for arg in args if not holds_slots(arg)]

    @property
    def func_keyword_args_non_tensor(self) -> dict[str, Any]:
        """Its keyword arguments that are, and hold, no tensors."""
        return {name: self._argument(arg) for name, arg in self._kwargs if not holds_slots(arg)}

    @property
    def _kwargs(self) -> tuple[tuple[str, Template], ...]:
        return () if self._op is None else self._op.keywords

    def _argument(self, template: Template) -> Any:
        """An argument, with names of the tensors that were not saved and descriptions of objects that are not kept."""
        from lens.replay.arguments import build  # torch is optional for looking at a trace

        def described(node: Node) -> Template | None:
            if isinstance(node, Opaque) and node.index not in store.objects:
                return f"<{f'{node.type} {node.text}'.strip()}>"
            return None

        assert self._op is not None
        store, name_of = self._history.payloads, self._history.index.name_of
        read = {number: self._op.operands[number] for number in slots(template)}
        tensors = {number: store.read(v) if v in store else name_of(v) for number, v in read.items()}
        return build(map_nodes(template, described), tensors, store.objects)

    @property
    def func_time_elapsed(self) -> float | None:
        """Seconds spent in the call; None for inputs, buffers and outputs."""
        return None if self._op is None else self._op.duration

    @property
    def flops(self) -> int | None:
        """Floating point operations of the call by torch's formulas, 0 for all but products and convolutions.

        None for inputs, buffers and outputs, and where torch cannot tell.
        """
        counter = self._history.flop_counter
        return None if self._op is None or counter is None else counter(self._op.id)

    @property
    def macs(self) -> int | None:
        """Multiplications with addition of the call: half of ``flops``."""
        return None if self.flops is None else self.flops // 2

    @property
    def func_rng_states(self) -> dict[str, Any] | None:
        """States of the random number generators before the call, by device; None if it drew no number."""
        return None if self._op is None else self._history.payloads.states_before(self._op.id)

    @property
    def function_is_inplace(self) -> bool:
        """Whether it wrote to one of its tensors instead of making a new one, as with ``out=`` and ``inplace=True``."""
        if self._op is None or self._value.alias_of is None:
            return False
        return self._op.function.mutates or any(
            name == "out" or (name, arg) == _INPLACE for name, arg in self._op.kwargs
        )

    @property
    def gradfunc_name(self) -> str | None:
        """The class of its autograd node, such as ``ReluBackward0``; ``Node`` after 10,000 tensors; None if none."""
        return self._value.grad_fn

    @property
    def location(self) -> Location | None:
        """The line of the user's code that led to it; None where it is unknown, and for inputs and outputs."""
        source = self._op or self._leaf
        return source.location if source is not None else None


class ParameterFacts(EntryView):
    """The parameters that the operation reads."""

    @property
    def _parameters(self) -> list[Leaf]:
        return [] if self._op is None else parameters_of(self._history.graph, self._op)

    @property
    def _parameter_types(self) -> list[TensorType]:
        return [self._history.graph.values[leaf.value].type for leaf in self._parameters]

    @property
    def computed_with_params(self) -> bool:
        """Whether it reads parameters, trainable or frozen."""
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
        """The shapes of its parameters; empty if it reads none."""
        return [kind.shape for kind in self._parameter_types]

    @property
    def num_params_total(self) -> int:
        """How many numbers its parameters hold together."""
        return sum(kind.numel for kind in self._parameter_types)

    @property
    def parent_params_fsize(self) -> int:
        """The size of its parameters in bytes."""
        return sum(kind.nbytes for kind in self._parameter_types)
