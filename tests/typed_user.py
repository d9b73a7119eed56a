"""What a user with a strict type checker writes. ``make lint`` checks it with the rest, and a test does so alone."""

from __future__ import annotations

import torch
from torch import nn

import lens
import lens.capture.selection as lens_selection
from lens.errors import AmbiguousKeyError


def activations(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    history: lens.ModelHistory = lens.trace(model, x, save=["relu_1"], seed=0)
    found: dict[str, torch.Tensor] = {}
    for entry in history:
        if entry.is_saved:
            found[entry.layer_label_w_pass] = entry.tensor_contents
    return found


def as_in_the_paper(model: nn.Module, x: torch.Tensor) -> str:
    mixed: list[str | int | lens_selection.Predicate] = ["conv2d_1", "layer4", -2, lambda op: op.type == "relu"]
    lens.trace(
        model, x, save=["relu", lambda op: op.shape[-1] == 7], stop_at=["layer1", lambda op: op.dtype == "float32"]
    )
    history = lens.get_model_activations(model, x, mixed, transform=torch.float16, detach=True, theme="dark")
    structure = lens.get_model_structure(model, x, backend="decoration", stop_at="layer1")
    assert lens.validate_saved_activations(model, x, backend="decoration")
    return lens.show_model_graph(model, x, "model.svg", view="rolled", depth=len(history), stop_at=structure.layer_list)


def questions(history: lens.ModelHistory) -> list[str]:
    one: lens.OpEntry = history.one("conv2d_1")
    shape: tuple[int, ...] = one.tensor_shape
    seconds: float | None = one.func_time_elapsed
    flops: int | None = one.flops
    several = history["block"]
    labels: list[str] = [p.layer_label for p in several.passes]
    if isinstance(several, lens.LayerEntry):
        labels += [p.layer_label_w_pass for p in several]
    pools: list[lens.OpEntry] = history.layers("maxpool2d", parent_type="relu", where=lambda e: e.tensor_fsize > 0)
    between: int = history.count_between("conv2d_1", pools[0], "conv2d")
    path: list[str] = next(history.paths("conv2d_1", -1))
    table: str = str(history.summary("module", depth=1))
    same: bool = history.diff(history, atol=1e-6).same
    graph: lens.Graph = history.graph
    return [*labels, *path, table, f"{shape}{seconds}{flops}{between}{same}{graph}"]


def careful(path: str) -> bool:
    try:
        history = lens.load(path)
        return lens.validate_saved_activations(nn.ReLU(), torch.ones(2)) and len(history.layer_list) > 0
    except AmbiguousKeyError as error:
        return bool(error.hint)
    except lens.LensError:
        return False
