"""The history of a forward pass: what users hold in their hands (paper, "The ModelHistory object")."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from os import PathLike
from typing import Any

from lens import registry
from lens.entry import LayerEntry, OpEntry
from lens.errors import UnknownKeyError
from lens.exports import Exports
from lens.ir.elements import ScopeId, ValueId
from lens.ir.entry_index import EntryIndex
from lens.ir.facets import Conditionals, OrphanOp, Orphans
from lens.ir.gaps import Gap, find_gaps
from lens.ir.graph import Graph
from lens.ir.payloads import PayloadStore
from lens.passes.manager import PassRecord
from lens.render.picture import Pictures
from lens.render.summary import summarize
from lens.render.trace_file import read_trace, write_trace


class ModelHistory(Pictures, Exports):
    """A full record of one forward pass.

    Index it with a label (``conv2d_2_4``, ``conv2d_2``, ``conv2d_2:1``), a module address (``features.3``,
    ``block:2``), a buffer address, or an ordinal; iterate over it to get every pass of every layer in order of
    execution.

    Attributes:
        graph: The typed graph, with facets.
        payloads: The saved values.
        pass_records: What the analysis passes took.
        logging_seconds: Time that lens itself took, during and after the forward pass.
    """

    def __init__(
        self,
        graph: Graph,
        payloads: PayloadStore,
        pass_records: Sequence[PassRecord] = (),
        logging_seconds: float = 0.0,
    ) -> None:
        self.graph = graph
        self.payloads = payloads
        self.pass_records = tuple(pass_records)
        self.logging_seconds = logging_seconds

    @cached_property
    def index(self) -> EntryIndex:
        """The entries and their keys."""
        return EntryIndex(self.graph)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the facts without the derived caches."""
        return {k: v for k, v in vars(self).items() if k not in ("index", "_by_scope_end")}

    # Entries

    def __len__(self) -> int:
        """Number of entries: one per pass of every layer, inputs, buffers and outputs included."""
        return len(self.index.rows)

    def __iter__(self) -> Iterator[OpEntry]:
        return (OpEntry(self, row) for row in self.index.rows)

    def entry(self, number: int) -> OpEntry:
        """The entry at a position among all entries, saved or not."""
        return OpEntry(self, self.index.rows[number])

    def __getitem__(self, key: str | int) -> Any:
        """The entry of a key: an ``OpEntry``, or a ``LayerEntry`` if the key names several passes.

        Raises:
            UnknownKeyError: a KeyError that names the nearest keys.
            AmbiguousKeyError: if the key is both a label and a module address.
        """
        if isinstance(key, str):
            rows = self.index.find(key)
            entries = [OpEntry(self, row) for row in rows]
            return entries[0] if len(entries) == 1 else LayerEntry(key, entries)
        if not isinstance(key, int) or isinstance(key, bool):
            raise UnknownKeyError(
                f"a layer cannot be looked up by a {type(key).__name__}",
                where=f"history[{key!r}]",
                hint="use a label, a module address, or an ordinal",
            )
        numbered = self._numbered
        if not -len(numbered) <= key < len(numbered):
            raise UnknownKeyError(
                f"there is no layer number {key}",
                where=f"{len(numbered)} entries",
                hint=f"ordinals go from {-len(numbered)} to {len(numbered) - 1}",
            )
        return OpEntry(self, numbered[key])

    def __contains__(self, key: object) -> bool:
        try:
            self[key]  # type: ignore[index]
        except KeyError:
            return False
        return True

    @property
    def _numbered(self) -> Sequence[Any]:
        """The rows that ordinals count: the saved ones if only some are saved, else all."""
        rows = self.index.rows
        saved = [row for row in rows if row.value in self.payloads]
        return saved or rows

    def reach(self, start: int, edges: Sequence[tuple[int, ...]]) -> list[int]:
        """Entries that can be reached over edges, in order of execution, the start left out. Linear."""
        seen = {start}
        stack = [start]
        while stack:
            for near in edges[stack.pop()]:
                if near not in seen:
                    seen.add(near)
                    stack.append(near)
        return sorted(seen - {start})

    @cached_property
    def _by_scope_end(self) -> dict[str, dict[ValueId, list[ScopeId]]]:
        ends: dict[str, dict[ValueId, list[ScopeId]]] = {"inputs": {}, "outputs": {}}
        for scope in self.graph.scopes:
            if scope.parent is not None:
                for end, found in ends.items():
                    for value in getattr(scope, end):
                        found.setdefault(value, []).append(scope.id)
        return ends

    def scopes_by(self, end: str) -> dict[ValueId, list[ScopeId]]:
        """Per value, the module calls that have it among their ``inputs`` or ``outputs``."""
        return self._by_scope_end[end]

    def _labels_where(self, attribute: str) -> list[str]:
        found = (entry.layer_label for entry in self if getattr(entry, attribute))
        return list(dict.fromkeys(found))

    # The model (paper, Supplementary Table 1, left column)

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
        """Number of tensors: every entry but the output nodes, which are tensors counted already."""
        return len(self.index.rows) - len(self.index.outputs)

    @property
    def tensor_fsize_total(self) -> int:
        """Their size in bytes."""
        return sum(self._fsize(row.value) for row in self.index.rows if row.output is None)

    @property
    def num_tensors_saved(self) -> int:
        """Number of tensors that were saved."""
        return len(self._saved_values)

    @property
    def tensor_fsize_saved(self) -> int:
        """Their size in bytes."""
        return sum(self._fsize(value) for value in self._saved_values)

    @property
    def _saved_values(self) -> set[ValueId]:
        return {row.value for row in self.index.rows if row.value in self.payloads}

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
    def total_params_fsize(self) -> int:
        """Their size in bytes."""
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
        """Module call (``address:call``) -> the calls made directly inside it."""
        children: dict[str, list[str]] = {}
        for scope in self.graph.scopes:
            if scope.parent is not None:
                outer = self.graph.scopes[scope.parent]
                children.setdefault(f"{outer.address}:{outer.call}", [])
                children[f"{outer.address}:{outer.call}"].append(f"{scope.address}:{scope.call}")
        return {call: inner for call, inner in children.items() if not call.startswith(":")}

    @property
    def top_level_module_passes(self) -> list[str]:
        """Module calls (``address:call``) that are inside no other."""
        roots = {scope.id for scope in self.graph.scopes if scope.parent is None}
        return [f"{s.address}:{s.call}" for s in self.graph.scopes if s.parent in roots]

    @property
    def pass_start_time(self) -> float:
        """When the forward pass started, Unix time in seconds."""
        return self.graph.meta.started

    @property
    def pass_end_time(self) -> float:
        """When it ended."""
        return self.graph.meta.started + self.graph.meta.forward_seconds

    @property
    def elapsed_time_total(self) -> float:
        """Seconds that the recorded forward pass and the analysis took."""
        return self.elapsed_time_function_calls + self.elapsed_time_lens_logging

    @property
    def elapsed_time_function_calls(self) -> float:
        """Seconds spent in the operations."""
        return sum(op.duration for op in self.graph.ops)

    @property
    def elapsed_time_lens_logging(self) -> float:
        """Seconds that lens spent recording and analysing."""
        return self.logging_seconds

    @property
    def orphans(self) -> tuple[OrphanOp, ...]:
        """Operations that were trimmed because they have nothing to do with the model's inputs and outputs."""
        found = self.graph.get(Orphans)
        return found.ops if found is not None else ()

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """What the backend could not see: tensors of unknown origin, values that left the tensor world, ..."""
        return find_gaps(self.graph)

    # Out

    def __str__(self) -> str:
        return summarize(self)

    def __repr__(self) -> str:
        return f"<ModelHistory of {self.model_name}: {len(self)} entries>"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """The summary, in notebooks that show no picture."""
        printer.text(str(self))

    def save(self, path: str | PathLike[str], *, payloads: bool = True, beside: bool = False) -> str:
        """Write the history to a file that ``lens.load`` reads, and give its path.

        Args:
            path: The file.
            payloads: Whether to write the saved values too.
            beside: Whether to write these into a file of their own, ``PATH.safetensors``; they are then read from
                there, one by one, when they are asked for (``pip install lens-trace[export]``).

        Raises:
            FileFormatError: if the path cannot be written.
        """
        return write_trace(self, path, payloads, beside)


def load(path: str | PathLike[str]) -> ModelHistory:
    """The history that ``history.save(path)`` wrote. Needs neither the model nor torch.

    Raises:
        FileFormatError: the file is not a lens trace, damaged, or from a newer version.
    """
    graph, payloads, seconds = read_trace(path, registry.facet_classes())
    return ModelHistory(graph, payloads, logging_seconds=seconds)
