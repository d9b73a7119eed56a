"""The summaries of a history: layers in order, by what they take, by type, by module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal, TypeAlias

from attrs import define

from lens.errors import InputError, nearest
from lens.ir.elements import Op
from lens.ir.op_arguments import parameters_of
from lens.render.columns import Column, Table
from lens.render.sizes import human_bytes, human_count, human_seconds, human_shape

if TYPE_CHECKING:
    from lens.history import ModelHistory

By: TypeAlias = Literal["layer", "module", "type", "time", "memory", "parameters", "flops"]
KINDS: tuple[By, ...] = ("layer", "module", "type", "time", "memory", "parameters", "flops")


def summarize(history: ModelHistory, by: By, depth: int | None, limit: int | None) -> Table:
    """The summary of a history as a table; see ``ModelHistory.summary``. Linear."""
    if by not in KINDS:
        raise InputError(f"there is no summary by {by!r}", where="summary(by=)", hint=f"give {nearest(by, KINDS)}")
    for name, number in (("depth", depth), ("limit", limit)):
        if number is not None and not (type(number) is int and number >= 1):
            raise InputError(f"{name} cannot be {number!r}", where=f"summary({name}=)", hint="give 1, more, or None")
    if by == "layer":
        return _layers(history, limit)
    if by == "module":
        return _modules(history, depth, limit)
    name_of = _type_of if by == "type" else _name
    return _sorted(history, _totals(history, lambda op: (name_of(history, op),)), by, limit)


def head_of(history: ModelHistory) -> tuple[str, ...]:
    """Facts about the model and the run, one per line."""
    total = human_bytes(history.tensor_fsize_total)
    saved = human_bytes(history.tensor_fsize_saved)
    weights = human_bytes(history.total_params_fsize)
    ops = len(history.graph.ops)
    lines = [
        f"{history.model_name}: {ops} operations in {len(history.layer_list)} layers",
        f"  tensors     {history.num_tensors_total} ({total}), saved {history.num_tensors_saved} ({saved}, marked *)",
        f"  parameters  {history.total_params:,} in {history.total_param_tensors} tensors ({weights})",
        f"  modules     {len(history.module_addresses)}",
        f"  structure   {_structure(history)}",
        f"  time        {human_seconds(history.elapsed_time_function_calls)} in operations,"
        f" {human_seconds(history.elapsed_time_lens_logging)} in lens",
    ]
    if history.orphans:
        lines.append(f"  orphans     {len(history.orphans)} operations trimmed")
    gaps = history.gaps
    if gaps:
        lines.append(f"  gaps        {len(gaps)}, the first: {gaps[0].what}; see history.gaps")
    if history.graph.meta.stopped:
        lines.append(f"  STOPPED     at {history.graph.meta.stopped}, as stop_at= asked")
    fault = history.graph.meta.fault
    if fault is not None:
        lines.append(f"  FAULT       the forward pass raised {fault.type}: {fault.message}")
    return tuple(lines)


def _structure(history: ModelHistory) -> str:
    loops = history.model_max_recurrent_loops
    facts = [
        f"recurrent (up to {loops} passes)" if history.model_is_recurrent else "feedforward",
        "branching" if history.model_is_branching else "no branching",
    ]
    if history.model_has_conditional_branching:
        facts.append("conditional")
    return ", ".join(facts)


def _layers(history: ModelHistory, limit: int | None) -> Table:
    """Every entry but the running statistics of normalisation layers, in order of execution, with its ordinal."""
    size, params = Column("size", human_bytes, right=True), Column("params", "{:,}".format, right=True)
    columns = Column("", right=True), Column("layer"), Column("shape"), size, params, Column("module")
    ordinals = {row.number: place for place, row in enumerate(history.numbered)}
    rows = []
    for entry in history:
        if history.index.is_statistic(entry._row):
            continue
        names = entry.modules_exited or [entry.containing_module_origin or ""]
        mark, kind = "*" if entry.is_saved else "", f"{human_shape(entry.tensor_shape)} {entry.tensor_dtype}"
        module = names[0] or entry.buffer_address or ""
        sizes = entry.tensor_fsize, entry.num_params_total or None
        rows.append((f"{ordinals.get(entry._row.number, '')}{mark}", entry._row.name, kind, *sizes, module))
    return Table(columns, tuple(rows), head_of(history), limit)


@define
class _Total:
    """What a layer, a type or a module takes together."""

    calls: int = 0
    seconds: float = 0.0
    nbytes: int = 0
    params: int = 0
    flops: int = 0

    def add(self, history: ModelHistory, op: Op) -> None:
        values = history.graph.values
        self.calls += 1
        self.seconds += op.duration
        self.nbytes += sum(values[v].type.nbytes for v in op.results)
        if history.flop_counter is not None:
            self.flops += history.flop_counter(op.id) or 0


def _name(history: ModelHistory, op: Op) -> str:
    rows = history.index.by_op[op.id]
    return rows[0].label if rows else str(op.function)


def _type_of(history: ModelHistory, op: Op) -> str:
    return _name(history, op).partition("_")[0]


def _totals(history: ModelHistory, names_of: Callable[[Op], Iterable[str]]) -> dict[str, _Total]:
    """The totals of the groups that operations belong to; parameters count once per group."""
    graph = history.graph
    totals: dict[str, _Total] = {}
    seen: set[tuple[str, int]] = set()
    for op in graph.ops:
        if op.interior:
            continue  # a composite beside its interior, which is counted
        weights = parameters_of(graph, op)
        for name in names_of(op):
            total = totals.setdefault(name, _Total())
            total.add(history, op)
            fresh = [leaf for leaf in weights if (name, leaf.id) not in seen]
            seen.update((name, leaf.id) for leaf in fresh)
            total.params += sum(graph.values[leaf.value].type.numel for leaf in fresh)
    return totals


_COSTS = (
    Column("calls", right=True),
    Column("time", human_seconds, right=True),
    Column("share", "{:.1%}".format, right=True),
    Column("memory", human_bytes, right=True),
    Column("params", "{:,}".format, right=True),
    Column("flops", human_count, right=True),
)


def _costs(total: _Total, seconds: float) -> tuple[float | None, ...]:
    share = total.seconds / seconds if seconds else 0.0
    return total.calls, total.seconds, share, total.nbytes, total.params or None, total.flops or None


def _sorted(history: ModelHistory, totals: dict[str, _Total], by: By, limit: int | None) -> Table:
    field = {"memory": "nbytes", "parameters": "params", "flops": "flops"}.get(by, "seconds")
    order = sorted(totals.items(), key=lambda item: -getattr(item[1], field))
    seconds = history.elapsed_time_function_calls
    rows = tuple((name, *_costs(total, seconds)) for name, total in order)
    title = f"{history.model_name}: by {by}"
    return Table((Column("type" if by == "type" else "layer"), *_COSTS), rows, (title,), limit, is_sorted=True)


def _modules(history: ModelHistory, depth: int | None, limit: int | None) -> Table:
    """A row per module, its submodules included, in the order of the model; the model itself first."""

    def names_of(op: Op) -> list[str]:
        inside = history.graph.modules_of(op)
        return list(dict.fromkeys(["", *(scope.address for scope in inside)]))  # the model may call itself

    totals = _totals(history, names_of)
    owned: Counter[str] = Counter()
    for parameter in history.graph.meta.parameters:
        words = parameter.address.split(".")
        owned.update({".".join(words[:cut]): parameter.type.numel for cut in range(len(words))})
    seconds = history.elapsed_time_function_calls
    rows = []
    for module in history.graph.meta.modules:
        level = len(module.address.split(".")) if module.address else 0
        if depth is None or level <= depth:
            total = totals.get(module.address, _Total())
            total.params = owned[module.address] or total.params  # those that a tied module reads are another's
            calls = history.index.calls[module.address]
            cost = _costs(total, seconds)
            rows.append(("  " * level + (module.address or "(model)"), module.cls, calls, *cost))
    columns = (Column("module"), Column("class"), Column("calls", right=True), Column("ops", right=True), *_COSTS[1:])
    return Table(columns, tuple(rows), (f"{history.model_name}: by module",), limit)
