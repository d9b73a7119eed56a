"""The renderers of programs. Their names and options are known without torch, which they need once they render."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from attrs import frozen

from lens.ir.facets import Containment, Labels
from lens.render.renderer import Renderer, Traced

if TYPE_CHECKING:
    from torch import nn

    from lens.programs.fx_module import Program

_CLASS = "Program"


@frozen
class FxRenderer(Renderer):
    """A torch.fx program, as a folder with source code and weights that Python imports.

    Args:
        model: Where parameters and buffers come from; by default the trace.
        guards: Whether the program raises when an input would have gone another way than the traced one.
        noise: ``draw``: random operations draw anew; ``recorded``: what they drew in the run stands as constants.
    """

    name = "fx"
    suffix = ""
    requires = (Labels, Containment)
    needs_model = True
    model: nn.Module | None = None
    guards: bool = True
    noise: str = "draw"

    def program(self, history: Traced) -> Program:
        """The program. Linear. Raises RenderError, ReplayError or StaleValueError."""
        from lens.programs.building import make_program

        return make_program(history, self.model, guards=self.guards, noise=self.noise)

    def render(self, history: Traced) -> Mapping[str, str | bytes]:
        """The files of the folder. Errors as for ``program``."""
        with TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that submodules are pickled
            self.program(history).to_folder(folder, _CLASS)
            files = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}
        # The code names the folder that is gone.
        code = files["module.py"].decode().replace(f"r'{folder}/", "HERE / r'")
        return {**files, "module.py": f"from pathlib import Path\n\nHERE = Path(__file__).parent\n{code}"}


@frozen
class OnnxRenderer(Renderer):
    """A runnable ONNX model: inputs by the names of the arguments, outputs by their labels.

    Args:
        model: Where parameters and buffers come from; by default the trace.
        noise: ``recorded``: what random operations drew in the run stands as constants, so the numbers are those of
            the run; ``draw``: they draw anew.
        optimize: Whether torch's exporter merges nodes, which then have the label of one of their operations.
    """

    name = "onnx"
    suffix = ".onnx"
    requires = (Labels, Containment)
    needs_model = True
    model: nn.Module | None = None
    noise: str = "recorded"
    optimize: bool = False

    def converted(self, history: Traced) -> Any:
        """torch's ``ONNXProgram``. Raises RenderError: the model has no such form, or onnx is not installed."""
        from lens.programs.onnx_file import convert_history

        return convert_history(history, self.model, self.noise, self.optimize)

    def render(self, history: Traced) -> bytes:
        """The file. Errors as for ``converted``."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            self.converted(history).save(path, external_data=False)
            return path.read_bytes()

    def write(self, history: Traced, path: str | PathLike[str]) -> str:
        """Write the file, with the weights of models beyond 1 GiB in another beside it, and give its path."""
        from lens.programs.onnx_file import save

        return save(self.converted(history), path)
