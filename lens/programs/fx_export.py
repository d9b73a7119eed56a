"""``history.to_fx()``: the trace as a ``torch.fx.GraphModule``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, Literal

from attrs import field, frozen
from torch import nn

from lens.errors import RenderError
from lens.ir.facets import Facet, Labels
from lens.programs.building import Builder
from lens.programs.fx_module import Program
from lens.programs.noise import recorded_noise
from lens.render.renderer import Traced

Noise = Literal["draw", "recorded"]
#: The name of the class in the source code that is written out.
_CLASS = "Program"


@frozen
class FxRenderer:
    """A torch.fx program, as a folder with source code and weights that Python imports.

    Args:
        model: Where parameters and buffers come from; by default the trace.
        guards: Whether the program raises when an input would have gone another way than the traced one.
        noise: ``draw``: random operations draw anew; ``recorded``: what they drew in the run stands as constants.
    """

    name: ClassVar[str] = "fx"
    suffix: ClassVar[str] = ""
    requires: ClassVar[tuple[type[Facet], ...]] = (Labels,)
    needs_model: ClassVar[bool] = True
    model: nn.Module | None = None
    guards: bool = True
    noise: Noise = field(default="draw")

    def __attrs_post_init__(self) -> None:
        if self.noise not in ("draw", "recorded"):
            raise RenderError(f"noise cannot be {self.noise!r}", where="noise=", hint='give "draw" or "recorded"')
        if self.model is not None and not isinstance(self.model, nn.Module):
            raise RenderError(f"model is a {type(self.model).__name__}", where="model=", hint="give a torch.nn.Module")

    def program(self, history: Traced, *, flat: bool = False) -> Program:
        """The program. Linear. Raises RenderError, ReplayError or StaleValueError.

        Args:
            history: A finished trace, with labels.
            flat: Whether it takes the input tensors one by one and gives a tuple of tensors.
        """
        if history.graph.meta.fault is not None:
            raise RenderError(
                "the forward pass of this trace raised: it is no whole program",
                where=str(history.graph.meta.fault.location or history.graph.meta.fault.type),
                hint="trace a call that returns; the structure can be exported as it is",
            )
        noise = recorded_noise(history.graph, history.payloads) if self.noise == "recorded" else {}
        builder = Builder(history.graph, history.payloads, self.model, self.guards, flat, noise)
        return builder.build()

    def render(self, history: Traced) -> Mapping[str, str | bytes]:
        """The files of the folder. Errors as for ``program``."""
        with TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that submodules are pickled
            self.program(history).to_folder(folder, _CLASS)
            files = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}
        # the paths in the code are those of the folder that is gone
        code = files["module.py"].decode().replace(f"r'{folder}/", "HERE / r'")
        return {**files, "module.py": f"from pathlib import Path\n\nHERE = Path(__file__).parent\n{code}"}
