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
    "tracing": "lens.session",
    "load": "lens.history",
    "generalize": "lens.programs.generalize",
    "get_model_activations": "lens.paper",
    "get_model_structure": "lens.paper",
    "show_model_graph": "lens.paper",
    "validate_saved_activations": "lens.paper",
    "validation_report": "lens.validation",
    "progress": "lens.stages",
    "ModelHistory": "lens.history",
    "LayerEntry": "lens.entry",
    "OpEntry": "lens.entry",
    "Graph": "lens.ir.graph",
    "LensError": "lens.errors",
}
#: Subpackages that are reached as attributes: ``lens.capture.backends()``.
_PACKAGES = ("capture", "validate")
__all__ = ["__version__", *sorted(_EXPORTS), *_PACKAGES]

if TYPE_CHECKING:
    from lens.entry import LayerEntry as LayerEntry
    from lens.entry import OpEntry as OpEntry
    from lens.errors import LensError as LensError
    from lens.history import ModelHistory as ModelHistory
    from lens.history import load as load
    from lens.ir.graph import Graph as Graph
    from lens.paper import get_model_activations as get_model_activations
    from lens.paper import get_model_structure as get_model_structure
    from lens.paper import show_model_graph as show_model_graph
    from lens.paper import validate_saved_activations as validate_saved_activations
    from lens.programs.generalize import generalize as generalize
    from lens.session import trace as trace
    from lens.session import tracing as tracing
    from lens.stages import progress as progress
    from lens.validation import validation_report as validation_report


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = globals()[name] = getattr(import_module(_EXPORTS[name]), name)
        return value
    if name in _PACKAGES:
        return import_module(f"lens.{name}")
    raise AttributeError(f"module 'lens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
