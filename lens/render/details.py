"""One entry as text: what ``print(history["conv2d_3"])`` shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lens.render.columns import printable
from lens.render.sizes import human_bytes, human_count, human_seconds, human_shape

if TYPE_CHECKING:
    from lens.entry import LayerEntry, OpEntry

_MOST_NAMES = 6
_MOST_PASSES = 20


def describe(entry: OpEntry) -> str:
    """All that a reader wants to know of an entry, one fact per line; what it does not have is left out."""
    numbered = f", layer {entry.layer_total_num}, operation {entry.operation_num}" if entry.operation_num else ""
    passes = f", pass {entry.pass_num} of {entry.layer_passes_total}" if entry.layer_passes_total > 1 else ""
    head = f"{entry.layer_label}: {entry.layer_type} number {entry.layer_type_num}{numbered}{passes}"
    return "\n".join([printable(head), *(f"  {name:11} {printable(text)}" for name, text in _facts(entry) if text)])


def _facts(entry: OpEntry) -> Iterator[tuple[str, str]]:
    saved = "saved" if entry.is_saved else "not saved"
    size = human_bytes(entry.tensor_fsize)
    yield "tensor", f"{human_shape(entry.tensor_shape)} {entry.tensor_dtype}, {size}, {saved}"
    if entry.func_applied_name is not None:
        flops = f", {human_count(entry.flops)} FLOPs" if entry.flops else ""
        place = ", in place" if entry.function_is_inplace else ""
        yield "function", f"{entry._op.function if entry._op else ''}{place}, {_seconds(entry)}{flops}"
    weights = zip(entry.parameter_addresses, entry.parent_param_shapes, strict=True)
    yield "parameters", ", ".join(f"{address} {human_shape(shape)}" for address, shape in weights)
    yield "buffer", entry.buffer_address or ""
    yield "module", " > ".join(entry.containing_module_origin_nested)
    yield "output of", _names(entry.modules_exited)
    yield "parents", _names(entry.parent_layers)
    yield "children", _names(entry.child_layers)
    yield "distance", _distances(entry)
    yield "condition", "only serves to evaluate a condition" if entry.in_cond_branch else ""
    yield "gradient", entry.gradfunc_name or ""
    yield "code", f"{entry.location} in {entry.location.function}" if entry.location else ""
    yield "keys", ", ".join(map(repr, entry.lookup_keys))


def _seconds(entry: OpEntry) -> str:
    return human_seconds(entry.func_time_elapsed or 0.0)


def _names(names: Sequence[str]) -> str:
    more = f", ... {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def _distances(entry: OpEntry) -> str:
    ends = (
        ("from the input", entry.min_distance_from_input, entry.max_distance_from_input),
        ("to the output", entry.min_distance_from_output, entry.max_distance_from_output),
    )
    known = [(end, low, high) for end, low, high in ends if low is not None]
    return ", ".join(f"{low if low == high else f'{low} to {high}'} {end}" for end, low, high in known)


def describe_passes(layer: LayerEntry) -> str:
    """A layer of several passes: each in a line, and how to choose one."""
    rows = [
        f"  {printable(p.layer_label_w_pass)}  {human_shape(p.tensor_shape)} {p.tensor_dtype}, {_seconds(p)}, "
        f"from {printable(_names(p.parent_layers)) or 'nothing'}"
        for p in layer.passes[:_MOST_PASSES]
    ]
    if len(layer) > _MOST_PASSES:
        rows.append(f"  ... {len(layer) - _MOST_PASSES} more")
    first = layer.passes[0].layer_label_w_pass
    return "\n".join([f"{layer._key}: {len(layer)} passes; history[{first!r}] is the first", *rows])
