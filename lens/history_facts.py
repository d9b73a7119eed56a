"""What a history tells of the model and the run (paper, Supplementary Table 1, left column)."""

from __future__ import annotations

from lens.history_entries import HistoryEntries
from lens.ir.elements import ValueId
from lens.ir.facets import Conditionals, OrphanOp, Orphans
from lens.ir.gaps import Gap, find_gaps


class HistoryFacts(HistoryEntries):
    """The attributes of the model."""

    @property
    def model_name(self) -> str:
        """Name of the model's class."""
        return self.graph.meta.model

    @property
    def random_seed_used(self) -> int | None:
        """The seed that was set before the forward pass; None if none was asked for."""
        return self.graph.meta.seed

    @property
    def model_is_recurrent(self) -> bool:
        """Whether a layer has more than one pass."""
        return self.model_max_recurrent_loops > 1

    @property
    def model_max_recurrent_loops(self) -> int:
        """The largest number of passes of a layer."""
        return max((row.pass_total for row in self.index.rows), default=0)

    @property
    def model_is_branching(self) -> bool:
        """Whether a layer has more than one child."""
        return any(len(children) > 1 for children in self.index.children)

    @property
    def model_has_conditional_branching(self) -> bool:
        """Whether the control flow depends on a tensor of the model."""
        found = self.graph.get(Conditionals)
        return found is not None and (bool(found.conditions) or any(found.final))

    @property
    def layer_list(self) -> list[str]:
        """Labels of all layers, in order of first execution."""
        return list(dict.fromkeys(row.label for row in self.index.rows))

    @property
    def input_layers(self) -> list[str]:
        """Labels of the inputs."""
        return self._labels_where("is_input_layer")

    @property
    def output_layers(self) -> list[str]:
        """Labels of the outputs."""
        return [row.label for row in self.index.outputs]

    @property
    def buffer_layers(self) -> list[str]:
        """Labels of the buffers that were used."""
        return self._labels_where("is_buffer_layer")

    @property
    def internally_initialized_layers(self) -> list[str]:
        """Labels of layers that make a tensor from no tensor, as ``torch.rand`` does."""
        return self._labels_where("initialized_inside_model")

    @property
    def internally_terminated_bool_layers(self) -> list[str]:
        """Labels of layers whose tensor is a single Boolean that nothing in the graph reads."""
        return self._labels_where("is_terminal_bool_layer")

    @property
    def layers_computed_with_params(self) -> list[str]:
        """Labels of layers that read parameters."""
        return self._labels_where("computed_with_params")

    @property
    def num_tensors_total(self) -> int:
        """Number of tensors of the entries, each counted once: output nodes mostly show one of another entry."""
        return len(self._values)

    @property
    def tensor_fsize_total(self) -> int:
        """Size of all tensors in bytes."""
        return sum(map(self._fsize, self._values))

    @property
    def num_tensors_saved(self) -> int:
        """Number of tensors that were saved."""
        return len(self._saved_values)

    @property
    def tensor_fsize_saved(self) -> int:
        """Size of the saved tensors in bytes."""
        return sum(self._fsize(value) for value in self._saved_values)

    @property
    def _values(self) -> set[ValueId]:
        return {row.value for row in self.index.rows}

    @property
    def _saved_values(self) -> set[ValueId]:
        return {row.value for row in self._as_saved if row.value in self.payloads}

    def _fsize(self, value: ValueId) -> int:
        return self.graph.values[value].type.nbytes

    @property
    def total_param_tensors(self) -> int:
        """Number of the model's parameter tensors, frozen ones included."""
        return len(self.graph.meta.parameters)

    @property
    def total_param_layers(self) -> int:
        """Number of layers that read parameters."""
        return len(self.layers_computed_with_params)

    @property
    def total_params(self) -> int:
        """Number of the model's parameters, frozen ones included."""
        return sum(parameter.type.numel for parameter in self.graph.meta.parameters)

    @property
    def total_params_trainable(self) -> int:
        """Number of the model's parameters that require a gradient."""
        return sum(parameter.type.numel for parameter in self.graph.meta.parameters if parameter.trainable)

    @property
    def total_params_fsize(self) -> int:
        """Size of the model's parameters in bytes, frozen ones included."""
        return sum(parameter.type.nbytes for parameter in self.graph.meta.parameters)

    @property
    def module_addresses(self) -> list[str]:
        """Addresses of all submodules, called or not."""
        return [module.address for module in self.graph.meta.modules if module.address]

    @property
    def module_types(self) -> dict[str, str]:
        """Address of a submodule -> name of its class."""
        return {m.address: m.cls for m in self.graph.meta.modules if m.address}

    @property
    def module_num_passes(self) -> dict[str, int]:
        """Address of a submodule -> how often it was called."""
        return {address: self.index.calls[address] for address in self.module_addresses}

    @property
    def module_pass_children(self) -> dict[str, list[str]]:
        """Module call (``address:call``) -> the calls made directly inside it, none for the innermost."""
        names = [f"{scope.address}:{scope.call}" for scope in self.graph.scopes]
        children: dict[str, list[str]] = {names[s.id]: [] for s in self.graph.scopes if not s.is_model}
        for scope in self.graph.scopes:
            if scope.parent is not None and names[scope.parent] in children:
                children[names[scope.parent]].append(names[scope.id])
        return children

    @property
    def top_level_module_passes(self) -> list[str]:
        """Module calls (``address:call``) that are inside no other."""
        roots = {None, *(scope.id for scope in self.graph.scopes if scope.is_model)}
        return [f"{s.address}:{s.call}" for s in self.graph.scopes if s.parent in roots and not s.is_model]

    @property
    def pass_start_time(self) -> float:
        """When the forward pass started, Unix time in seconds."""
        return self.graph.meta.started

    @property
    def pass_end_time(self) -> float:
        """When the forward pass ended, Unix time in seconds."""
        return self.graph.meta.started + self.graph.meta.forward_seconds

    @property
    def elapsed_time_total(self) -> float:
        """Seconds that the recorded forward pass and the analysis took."""
        return self.elapsed_time_function_calls + self.elapsed_time_lens_logging

    @property
    def elapsed_time_function_calls(self) -> float:
        """Seconds spent in the operations; a composite counts by its interior."""
        return sum(op.duration for op in self.graph.ops if not op.interior)

    @property
    def elapsed_time_lens_logging(self) -> float:
        """Seconds that lens spent recording and analysing, with what the model's own Python code took."""
        return self.logging_seconds

    @property
    def total_flops(self) -> int:
        """Floating point operations of all layers; those that torch cannot tell count as none."""
        counter = self.flop_counter
        return 0 if counter is None else sum(counter(op.id) or 0 for op in self.graph.ops if not op.interior)

    @property
    def orphans(self) -> tuple[OrphanOp, ...]:
        """Operations that were trimmed because they have nothing to do with the model's inputs and outputs."""
        found = self.graph.get(Orphans)
        return found.ops if found is not None else ()

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """What the backend could not see: tensors of unknown origin, values that left the tensor world, ..."""
        return find_gaps(self.graph)

    def _labels_where(self, attribute: str) -> list[str]:
        found = (entry.layer_label for entry in self if getattr(entry, attribute))
        return list(dict.fromkeys(found))
