"""What torch's functions write to: by their schemas, by their names, and what neither tells."""

from __future__ import annotations

from functools import lru_cache
from types import FunctionType
from typing import Any, TypeAlias

import torch

#: Names that end in an underscore and change no values.
_NOT_IN_PLACE = frozenset({"requires_grad_", "share_memory_", "rename_", "pin_memory_", "detach_", "_coalesced_"})
#: A parameter: its position and its name.
Place: TypeAlias = tuple[int, str]
#: Functions that write running statistics if a flag says so: the flag, and the statistics. Schemas declare these
#: writes always or never.
_BATCH_STATISTICS: tuple[Place, tuple[Place, ...]] = ((5, "training"), ((3, "running_mean"), (4, "running_var")))
UPDATES_STATISTICS: dict[str, tuple[Place, tuple[Place, ...]]] = {
    **dict.fromkeys(("batch_norm", "native_batch_norm", "_native_batch_norm_legit"), _BATCH_STATISTICS),
    **dict.fromkeys(("_batch_norm_impl_index", "cudnn_batch_norm", "miopen_batch_norm"), _BATCH_STATISTICS),
    "instance_norm": ((5, "use_input_stats"), ((3, "running_mean"), (4, "running_var"))),
}
#: Functions that write to their arguments without torch counting it: those of the fused optimizers and of the scaler.
WRITE_UNCOUNTED = frozenset(
    [
        *("_fused_adam_", "_fused_adamw_", "_fused_sgd_", "_fused_adagrad_"),
        *("_amp_foreach_non_finite_check_and_unscale_", "_amp_update_scale_"),
    ]
)


@lru_cache(maxsize=1024)
def statistics_of(name: str) -> tuple[Place, ...]:
    """Where the running statistics stand among the parameters of a function of this name, whatever its flag says."""
    known = UPDATES_STATISTICS.get(name.partition(".")[0])
    return () if known is None else known[1]


def writes_of(function: Any, name: str, schemas: list[Any]) -> tuple[int | str, ...]:
    """Positions and names of the arguments that a function of this name writes to, whatever its flags say."""
    if isinstance(function, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return _declared_writes(name, schemas)
    in_place = name.endswith("_") and not name.endswith("__")
    operator = name == "__setitem__" or (name.startswith("__i") and name.endswith("__"))
    not_operators = ("__invert__", "__init__", "__iter__", "__index__", "__int__")
    if operator and name not in not_operators:
        return (0,)
    if name in _NOT_IN_PLACE:
        return ()
    if isinstance(function, FunctionType):
        return (0,) if in_place else ()
    declared = _declared_writes(name, [schema for schema in schemas if schema._overloadname == "default"])
    return (0, *(place for place in declared if place != 0)) if in_place else declared


def _declared_writes(name: str, schemas: list[Any]) -> tuple[int | str, ...]:
    """Positions and names of the arguments that schemas say are written to; the first one has no name."""
    places: set[int | str] = set()
    for schema in schemas:
        for position, argument in enumerate(schema._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                places.update([] if argument.kwarg_only else [position])
                places.update([argument.name] if position else [])
    if name in UPDATES_STATISTICS:
        places.difference_update(*UPDATES_STATISTICS[name][1])
    return tuple(sorted(places, key=str))
