"""The summary of a history as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lens.render.sizes import human_bytes, human_seconds, human_shape

if TYPE_CHECKING:
    from lens.history import ModelHistory

_MOST_ROWS = 60


def summarize(history: ModelHistory, most_rows: int = _MOST_ROWS) -> str:
    """Facts about the model, then a table of its layers; the middle of a long table is left out.

    Running statistics of normalisation layers are not listed, though they count as entries.
    """
    rows = [("", "layer", "shape", "size", "params", "module")]
    for number, entry in enumerate(history):
        if history.index.is_statistic(entry._row):
            continue
        shape = f"{human_shape(entry.tensor_shape)} {entry.tensor_dtype}"
        params = f"{entry.num_params_total:,}" if entry.computed_with_params else ""
        saved = "*" if entry.is_saved else ""
        names = entry.modules_exited or [entry.containing_module_origin or ""]
        module = names[0] or entry.buffer_address or ""
        size = human_bytes(entry.tensor_fsize)
        rows.append((f"{number}{saved}", entry._row.name, shape, size, params, module))
    lines = _table(rows)
    if len(lines) > most_rows + 1:
        half = most_rows // 2
        left_out = len(lines) - 1 - 2 * half
        lines = [*lines[: half + 1], f"  ... {left_out} more ...", *lines[-half:]]
    return "\n".join([*_head(history), "", *lines])


def _head(history: ModelHistory) -> list[str]:
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
    if history.gaps:
        lines.append(f"  gaps        {len(history.gaps)}, the first: {history.gaps[0].what}; see history.gaps")
    fault = history.graph.meta.fault
    if fault is not None:
        lines.append(f"  FAULT       the forward pass raised {fault.type}: {fault.message}")
    return lines


def _structure(history: ModelHistory) -> str:
    loops = history.model_max_recurrent_loops
    facts = [
        f"recurrent (up to {loops} passes)" if history.model_is_recurrent else "feedforward",
        "branching" if history.model_is_branching else "no branching",
    ]
    if history.model_has_conditional_branching:
        facts.append("conditional")
    return ", ".join(facts)


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    right = (0, 3, 4)
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
