"""Recipes for torchvision and timm."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import timm
import torch
from torch import nn

from lens.model_specs import ModelCall, import_torchvision

_vision = import_torchvision().models
#: Sides that are tried in turn; the last resort is what the model says of itself.
_SIDES = (64, 96, 128, 224, 256)
_FRAMES = 16
#: Words of size in the names of timm, smallest first.
_SIZE_WORDS = re.findall(
    r"\w+",
    "test nanovit atto zepto femto pico nano xxtiny xtiny tiny xxs xxsmall xs small mini little "
    "s0 s1 b0 m0 t0 s t base medium b m large l xl huge giant gigantic",
)


def torchvision_names(everything: bool) -> list[str]:
    """All models of torchvision."""
    return sorted(_vision.list_models())


def torchvision_is_feedforward(name: str) -> bool:
    """Whether no layer of it recurs: heads of detectors and optical flow have layers that run several times."""
    return name in _vision.list_models(module=_vision) or name in _vision.list_models(module=_vision.video)


def build_torchvision(name: str) -> ModelCall:
    """A model without weights and the smallest input that it takes."""
    detection = name in _vision.list_models(module=_vision.detection)
    options: dict[str, Any] = {"weights": None}
    if detection or name in _vision.list_models(module=_vision.segmentation):
        options["weights_backbone"] = None
    if detection and not name.startswith("ssd"):  # whose sizes are fixed
        options.update(min_size=_SIDES[1], max_size=_SIDES[2])
    model = _vision.get_model(name, **options).eval()
    if detection:
        return ModelCall(model, ([torch.rand(3, 96, 128)],), {})
    if name in _vision.list_models(module=_vision.optical_flow):
        return ModelCall(model, (torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128)), {})
    film = name in _vision.list_models(module=_vision.video)
    return _smallest(model, ((1, 3, _FRAMES, side, side) if film else (1, 3, side, side) for side in _SIDES))


def timm_names(everything: bool) -> list[str]:
    """All models of timm, or one small member of every family."""
    if everything:
        return sorted(timm.list_models())
    return [min(timm.list_models(module=family), key=_size) for family in timm.list_modules()]


def _size(name: str) -> tuple[float, float, str]:
    """How big a model is, as far as its name tells."""
    words = name.split("_")
    ranks = [_SIZE_WORDS.index(word) for word in words if word in _SIZE_WORDS]
    numbers = [float(n) for n in re.findall(r"\d+", name)]
    return (min(ranks, default=len(_SIZE_WORDS) / 2), sum(numbers), name)


def timm_is_feedforward(name: str) -> bool:
    """Image classifiers do not recur; Sequencer has LSTMs, though each is one operation."""
    return True


def build_timm(name: str) -> ModelCall:
    """A model without weights and the smallest input that it takes."""
    model: Any = timm.create_model(name, pretrained=False).eval()
    channels, *sides = model.default_cfg.get("input_size", (3, 224, 224))
    return _smallest(model, ((1, channels, *square) for square in [(side, side) for side in _SIDES] + [tuple(sides)]))


def _smallest(model: nn.Module, shapes: Iterator[tuple[int, ...]]) -> ModelCall:
    """The first of these shapes that the model takes; raises what the last one raised."""
    failure: Exception | None = None
    for shape in shapes:
        image = torch.randn(shape)
        try:
            with torch.no_grad():
                model(image)
        except Exception as error:  # noqa: BLE001 - models say in many ways that an input is too small
            failure = error
        else:
            return ModelCall(model, (image,), {})
    assert failure is not None
    raise failure
