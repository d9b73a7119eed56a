"""The inputs that models of transformers usually get: their names, and their shapes by the configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

_TOKENS = "1x16"
_DECODER = "decoder_input_ids"


def input_names(model: nn.Module) -> list[str]:
    """What a model takes in any case: its main input, and the tokens of its decoder if it has one."""
    config: Any = model.config
    decodes = getattr(config, "is_encoder_decoder", False) and _DECODER in inspect.signature(model.forward).parameters
    main = getattr(model, "main_input_name", "input_ids")
    return [*([main] if isinstance(main, str) else main), *([_DECODER] if decodes else [])]


def dtype_of(name: str) -> str:
    """The dtype of an input of this name: token ids are integers."""
    return "int64" if name.endswith("_ids") else "float32"


def usual_shape(name: str, config: Any) -> str | None:
    """The shape of an input of this name, such as ``1x3x224x224``; None if nothing is known of it."""
    maker = _SHAPES.get(name)
    return None if maker is None else maker(_Sizes(config))


class _Sizes:
    """The sizes that a configuration, or one inside it, speaks of."""

    def __init__(self, config: Any) -> None:
        inner = [part for part in vars(config).values() if hasattr(part, "model_type")]
        self.configs = (config, *inner)

    def find(self, *names: str, default: Any = None) -> Any:
        """The first of these that there is."""
        for config in self.configs:
            for name in names:
                size = getattr(config, name, None)
                if isinstance(size, (int, list, tuple)) and not isinstance(size, bool):
                    return size
        return default


def _image(sizes: _Sizes) -> str:
    return _pixels(sizes, sizes.find("num_frames"))  # some films go by the name of images


def _film(sizes: _Sizes) -> str:
    return _pixels(sizes, sizes.find("num_frames", "frames_per_clip", default=16))


def _pixels(sizes: _Sizes, frames: int | None) -> str:
    side = sizes.find("image_size", "input_size", "img_size", "crop_size", default=224)
    height, width = ([*side] * 2)[-2:] if isinstance(side, (list, tuple)) and side else (side, side)
    channels = sizes.find("num_channels", "in_channels", "in_chans", default=3)
    return "x".join(map(str, (1, *([] if frames is None else [frames]), channels, height, width)))


def _sound(sizes: _Sizes) -> str:
    """Samples, by channel if the configuration speaks of these; or a spectrogram if it speaks of its bins."""
    bins, channels = sizes.find("num_mel_bins"), sizes.find("audio_channels")
    if bins is not None:
        return f"1x{sizes.find('max_length', default=1024)}x{bins}"
    return "1x16000" if channels is None else f"1x{channels}x16000"


def _spectrogram(sizes: _Sizes) -> str:
    """Times and features; Whisper and its like have bins first, and as many times as they have positions for."""
    features = sizes.find("input_feat_per_channel", "feature_projection_input_dim")
    bins, positions = sizes.find("num_mel_bins", default=80), sizes.find("max_source_positions")
    if features is None and positions is not None:
        return f"1x{bins}x{2 * positions}"
    return f"1x128x{bins if features is None else features}"


_SHAPES: Mapping[str, Callable[[_Sizes], str]] = {
    "input_ids": lambda _: _TOKENS,
    _DECODER: lambda _: _TOKENS,
    "pixel_values": _image,
    "pixel_values_videos": _film,
    "input_values": _sound,
    "input_features": _spectrogram,
}
