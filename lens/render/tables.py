"""Histories as pandas tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lens.errors import RenderError

if TYPE_CHECKING:
    import pandas

    from lens.history import ModelHistory

_COLUMNS = (
    "layer_label",
    "pass_num",
    "layer_type",
    "func_applied_name",
    "tensor_shape",
    "tensor_dtype",
    "tensor_fsize",
    "num_params_total",
    "func_time_elapsed",
    "containing_module_origin",
    "parent_layers",
    "child_layers",
    "is_saved",
)


def pandas_table(history: ModelHistory) -> pandas.DataFrame:
    """One row per entry. Raises RenderError if pandas is not installed."""
    try:
        import pandas as pd
    except ImportError as error:
        raise RenderError(
            "pandas is not installed", where="to_pandas", hint="pip install 'lens-trace[pandas]'"
        ) from error
    rows = [{name: getattr(entry, name) for name in _COLUMNS} for entry in history]
    return pd.DataFrame(rows, columns=list(_COLUMNS))
