"""lens: run any PyTorch model once, unchanged, and record every tensor operation of its forward pass.

``history = lens.trace(model, x)``, then ``print(history)``, ``history["conv2d_3"].tensor_contents``,
``history.draw("model.svg")``. Importing lens does not import torch; the first use of a name does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: Public name -> the module that it comes from.
_EXPORTS = {
    "trace": "lens.session",
    "load": "lens.session",
    "get_model_activations": "lens.paper",
    "get_model_structure": "lens.paper",
    "show_model_graph": "lens.paper",
    "validate_saved_activations": "lens.paper",
    "ModelHistory": "lens.history",
    "LayerEntry": "lens.entry",
    "OpEntry": "lens.entry",
    "Graph": "lens.ir.graph",
    "LensError": "lens.errors",
}
__all__ = ["__version__", *sorted(_EXPORTS)]

if TYPE_CHECKING:
    from lens.entry import LayerEntry, OpEntry
    from lens.errors import LensError
    from lens.history import ModelHistory
    from lens.ir.graph import Graph
    from lens.paper import (
        get_model_activations,
        get_model_structure,
        show_model_graph,
        validate_saved_activations,
    )
    from lens.session import load, trace


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = globals()[name] = getattr(import_module(_EXPORTS[name]), name)
        return value
    raise AttributeError(f"module 'lens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
