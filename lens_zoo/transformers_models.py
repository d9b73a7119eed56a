"""Recipes for transformers: every model type, from a configuration that is made small without knowing the model.

All widths of a configuration are divided by one number, head counts and head sizes by its square root each, so the
relations between them stay what they were. Inputs follow from the signature of ``forward`` and the configuration.
Sizes and inputs are tried one after the other until a plain forward pass runs.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from lens.model_specs import ModelCall

_LAYERS = re.compile(r"(.*_)?(layers?|depth|num_blocks)")
_WIDTHS = re.compile(
    r"(.*_)?(hidden_sizes?|hidden_dim|d_model|embed_dim|intermediate_(size|dim)|(ffn|mlp|feedforward)_dim|dim|d_ff|n_embd"
    r"|n_inner|projection_dim|embedding_(size|dim)|lora_rank|dim_feedforward|pooler_output_size|projection_size|rank)"
)
_HEADS = re.compile(r"(.*_)?(num|n|attention|linear_num)_((attention|key_value|kv|key|value|decoder)_)*heads?")
_HEAD_SIZES = re.compile(r"(.*_)?(head_(dim|size)|d_kv|dim_head|rotary_dim|query_pre_attn_scalar)")
#: Names of fields -> the value to which they are cut down.
_CAPS = {
    re.compile(r"(.*_)?(num|n)_(local_|routed_)?experts|moe_num_experts"): 4,
    re.compile(r"num_experts_per_tok(en)?|moe_(topk|k|top_k)|top_k(_experts)?"): 2,
    re.compile(r"attn_layer_period"): 2,
    re.compile(r"n_group|num_group|topk_group|attn_layer_offset|num_nextn_predict_layers|first_k_dense_replace"): 1,
    re.compile(r"max_position_embeddings|n_positions|n_ctx|max_source_positions|sliding_window"): 256,
    re.compile(r"num_queries|num_denoising"): 20,
}
#: Parameters; more would take longer to initialise than to run.
_LARGEST = 120_000_000
_SIDE = 64
_VOCABULARY, _BATCH, _TOKENS = 256, 2, 12
#: What is tried in turn: the divisor of widths, and the number of layers.
_SIZES = ((16, 2), (16, 8), (4, 2), (1, 2))
_SERIES = {"prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2], "num_time_features": 1}
#: What a field becomes that has no value by default though the model needs one.
_MISSING = {"vocab_size": _VOCABULARY, "num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1}
#: Constructor arguments of the types whose defaults give no model that runs.
_SETTINGS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("autoformer", "informer", "time_series_transformer"), _SERIES),
    "chameleon": {"vocabulary_map": {"<image>": 4}},
    "esm": {"vocab_size": 128, "pad_token_id": 1, "mask_token_id": 32, "position_embedding_type": "rotary"},
}
#: Arguments that are plain noise -> their shape; names stand for fields of the configuration.
_SHAPES: dict[str, tuple[int | str, ...]] = {
    "spectrogram": (_BATCH, _TOKENS, "model_in_dim"),
    "mel_spectrogram": (1, "mel_dim", _TOKENS),
    "past_values": (_BATCH, "context_length", "num_input_channels"),
    "past_time_features": (_BATCH, 10, 1),
}
#: Fields of a batch of patches, as vision towers of language models take it: one film of 1 x 4 x 4 patches.
_GRID, _PATCHES = (1, 4, 4), 16
_KINDS_OF_LAYERS = ("layer_types", "layers_block_type", "mlp_layer_types")


def model_types(everything: bool) -> list[str]:
    """All model types that transformers knows."""
    return sorted(CONFIG_MAPPING.keys())


def build(model_type: str) -> ModelCall:
    """A small model of a type, and inputs that it accepts; raises what the first attempt raised if none works."""
    config_class = CONFIG_MAPPING[model_type]
    model_class = _model_class(model_type, config_class)
    failures: list[Exception] = []
    for divisor, layers in _SIZES:
        try:
            config = _shrunk(config_class(**_SETTINGS.get(model_type, {})), divisor, layers)
            with torch.device("meta"):
                size = sum(parameter.numel() for parameter in model_class(config).parameters())
            if size > _LARGEST:
                raise MemoryError(f"{size // 10**6} M parameters at the size at which its parts fit each other")
            model = model_class(config).eval()
        except Exception as error:  # noqa: BLE001 - it is the model's code that runs
            failures.append(error)
            continue
        for inputs in _candidates(model):
            try:
                with torch.no_grad():
                    model(**inputs)
            except Exception as error:  # noqa: BLE001
                failures.append(error)
            else:
                return ModelCall(model, (), inputs)
        if not failures:
            needed = [p.name for p in inspect.signature(model.forward).parameters.values() if p.default is p.empty]
            failures.append(LookupError(f"no inputs are known for it: {', '.join(needed)}"))
    raise next((f for f in reversed(failures) if not isinstance(f, (MemoryError, LookupError))), failures[0])


def _model_class(model_type: str, config_class: type) -> type[nn.Module]:
    """The base model, or else the first model of the package that takes the configuration."""
    names = MODEL_MAPPING_NAMES.get(model_type)
    if names is not None:
        return getattr(transformers, names if isinstance(names, str) else names[0])  # type: ignore[no-any-return]
    package = import_module(config_class.__module__.replace(".configuration_", ".modeling_"))
    fitting = [
        found
        for found in vars(package).values()
        if isinstance(found, type)
        and getattr(found, "config_class", None) is config_class
        and "forward" in vars(found)
        and not found.__name__.endswith("PreTrainedModel")
    ]
    if not fitting:
        raise LookupError("no model takes this configuration by itself")
    return min(fitting, key=lambda found: (not found.__name__.endswith("Model"), "For" not in found.__name__))


def _shrunk(config: Any, divisor: int, count: int) -> Any:
    """A configuration made small in place, with those inside it."""
    fields = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    staged = any(isinstance(fields.get(name), (list, tuple)) for name in ("depths", "hidden_sizes"))
    kinds = [list(dict.fromkeys(fields[name])) for name in _KINDS_OF_LAYERS if fields.get(name)]
    layers = max([count, *map(len, kinds)])
    for name, value in fields.items():
        if isinstance(value, transformers.PreTrainedConfig):
            _shrunk(value, divisor, count)
        elif value is None and name in _MISSING:
            setattr(config, name, _MISSING[name])
        elif isinstance(value, (list, tuple)):
            setattr(config, name, _shorter(name, value, layers))
        elif isinstance(value, int) and not isinstance(value, bool) and value > 1:
            setattr(config, name, _smaller(name, value, layers, 1 if staged else divisor, staged))
    if fields.get("head_dim", 0) is None:
        config.head_dim = config.hidden_size // config.num_attention_heads
    if fields.get("num_key_value_heads", 0) is None:
        config.num_key_value_heads = config.num_attention_heads
    _fit_rotations(config)
    return config


def _fit_rotations(config: Any) -> None:
    """Rotations in three dimensions (mrope) divide half a head in three parts."""
    rope = getattr(config, "rope_parameters", None)
    heads = getattr(config, "num_attention_heads", None)
    if isinstance(rope, dict) and "rope_theta" in rope and isinstance(heads, int):
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        half = int(size * rope.get("partial_rotary_factor", 1)) // 2
        rope["mrope_section"] = [half - 2 * (half // 3), half // 3, half // 3]


def _shorter(name: str, value: Any, layers: int) -> Any:
    kind = type(value)
    if name in _KINDS_OF_LAYERS and len(value):
        distinct = list(dict.fromkeys(value))
        return kind((distinct * layers)[:layers])
    if name == "depths":
        return kind(min(depth, 2) for depth in value)
    if not all(isinstance(item, int) for item in value):
        return value
    if "index" in name or "indices" in name or name in ("fullatt_block_indexes", "mlp_only_layers"):
        return kind(min(item, layers - 1) for item in value)
    return kind(value[:layers]) if len(value) > 16 else value


def _smaller(name: str, value: int, layers: int, divisor: int, staged: bool) -> int:
    root = int(divisor**0.5)
    for pattern, cap in _CAPS.items():
        if pattern.fullmatch(name):
            return min(value, cap)
    if name.endswith("vocab_size") and value > _VOCABULARY:
        return _VOCABULARY
    if name.endswith(("token_id", "token_index")):
        return value if value < _VOCABULARY else _VOCABULARY - 1 - value % 100
    if _LAYERS.fullmatch(name):
        return value if staged else min(value, layers)
    if _HEADS.fullmatch(name):
        return value // root if value % root == 0 else max(1, value) if value > 2 else 1 if divisor > 1 else value
    if _HEAD_SIZES.fullmatch(name):
        return value // root if value % (2 * root) == 0 else value
    if _WIDTHS.fullmatch(name):
        return value // divisor if value % divisor == 0 and value >= 64 else (value + 15) // 16 * 16
    return value


def _candidates(model: Any) -> Iterator[dict[str, Any]]:
    """Arguments for a model, the likeliest first."""
    parameters = inspect.signature(model.forward).parameters
    required = [name for name, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    names = [getattr(model, "main_input_name", "input_ids"), *required]
    if "decoder_input_ids" in parameters:
        names.append("decoder_input_ids")
    usual = [n for n in ("input_ids", "pixel_values", "bbox", "input_features", "input_values") if n in parameters]
    states = ["encoder_hidden_states", "grid_thw", "image_grid_thw", "pixel_values"]
    tried: list[list[str]] = []
    for chosen in (
        names,
        [*names, "pixel_values"],
        [*names, *usual],
        usual,
        ["hidden_states", *required],
        [*names, *states],
    ):
        wanted = [name for name in dict.fromkeys(chosen) if name in parameters]
        if not wanted or wanted in tried:
            continue
        tried.append(wanted)
        for variant in (0, 1) if any(name.startswith(("pixel", "input_")) for name in wanted) else (0,):
            makers = _Inputs(model.config, variant, wanted)
            made = {name: makers.make(name) for name in wanted}
            if all(value is not None for value in made.values()):
                yield made


class _Inputs:
    """Makes arguments by name, of the sizes that a configuration speaks of.

    Args:
        config: The configuration.
        variant: 0: small images, sound without channels; 1: full images, sound with channels, bins before frames.
        wanted: The names of all arguments, because the form of some follows from others.
    """

    def __init__(self, config: Any, variant: int, wanted: list[str]) -> None:
        self.config, self.variant = config, variant
        self.patches = any(name.endswith("grid_thw") for name in wanted)
        self.batch = 1 if any(name.startswith("pixel") for name in wanted) else _BATCH
        self.width = self._find("hidden_size", "d_model", "embed_dim", "n_embd", default=64)
        side = self._find("image_size", "input_size", "img_size", "pretrain_image_size", default=64)
        self.sides = tuple(side) if isinstance(side, (list, tuple)) else (side, side)
        if variant == 0:
            self.sides = tuple(min(side, _SIDE) for side in self.sides)
        self.channels = self._find("num_channels", "in_channels", "in_chans", default=3)
        self.bins = self._find("num_mel_bins", "feature_size", "n_mels", "num_features", "input_dim", default=80)

    def _find(self, *names: str, default: Any) -> Any:
        """The first of these fields, in the configuration or in one inside it."""
        inner = [v for v in vars(self.config).values() if isinstance(v, transformers.PreTrainedConfig)]
        for config in (self.config, *inner):
            for name in names:
                value = getattr(config, name, None)
                if isinstance(value, (int, tuple, list)) and not isinstance(value, bool):
                    return value
        return default

    def make(self, name: str) -> Any:
        """An argument; None if nothing is known of its name."""
        if name == "past_values" and self._find("lags_sequence", default=None):
            return torch.randn(_BATCH, 10)
        if name in _SHAPES:
            dims = [self._find(dim, default=1) if isinstance(dim, str) else dim for dim in _SHAPES[name]]
            return torch.randn(dims)
        maker = getattr(self, name.removeprefix("decoder_"), None)
        return None if maker is None else maker()

    def input_ids(self) -> torch.Tensor:
        """Tokens, above the numbers that special tokens usually have."""
        return torch.randint(5, min(100, self._find("vocab_size", default=100)), (self.batch, _TOKENS))

    def attention_mask(self) -> torch.Tensor:
        """All ones."""
        return torch.ones(self.batch, _TOKENS, dtype=torch.long)

    def past_observed_mask(self) -> torch.Tensor:
        """Everything was seen."""
        return torch.ones(_BATCH, 10)

    def bbox(self) -> torch.Tensor:
        """Boxes of words on a page."""
        return torch.tensor([10, 20, 30, 40]).expand(self.batch, _TOKENS, 4).contiguous()

    def pixel_values(self) -> torch.Tensor:
        """Images, or films if the configuration speaks of frames, or patches."""
        if self.patches:
            patch = self._find("patch_size", default=14)
            if self.variant == 1:
                return torch.randn(_PATCHES, self.channels, patch, patch)
            return torch.randn(_PATCHES, self.channels * self._find("temporal_patch_size", default=1) * patch**2)
        frames = self._find("num_frames", default=None)
        shape = (self.channels, *self.sides) if frames is None else (frames, self.channels, *self.sides)
        return torch.randn(1, *shape)

    def pixel_values_videos(self) -> torch.Tensor:
        """Films."""
        frames = self._find("num_frames", "frames_per_clip", default=4)
        return torch.randn(1, frames, self.channels, *self.sides)

    def grid_thw(self) -> torch.Tensor:
        """How the patches of an image lie."""
        return torch.tensor([_GRID])

    def input_values(self) -> torch.Tensor:
        """Sound: samples, or a spectrogram if the configuration speaks of its bins."""
        bins, length = self._find("num_mel_bins", default=None), self._find("max_length", default=256)
        if bins is not None:
            return torch.randn(1, length, bins)
        return torch.randn(1, 8000) if self.variant == 0 else torch.randn(1, 1, 7680)

    def input_features(self) -> torch.Tensor:
        """A spectrogram: bins first where positions of sources are counted, as Whisper has it."""
        positions = self._find("max_source_positions", default=None)
        if positions is not None:
            return torch.randn(1, self.bins, 2 * positions)
        return torch.randn(1, 128, self.bins) if self.variant == 0 else torch.randn(1, 1, 128, self.bins)

    def input_features_mask(self) -> torch.Tensor:
        """All frames count."""
        return torch.ones(1, 128, dtype=torch.long)

    def hidden_states(self) -> torch.Tensor:
        """What another model would hand over, or patches."""
        return self.pixel_values() if self.patches else torch.randn(1, _TOKENS, self.width)

    def inputs_embeds(self) -> torch.Tensor:
        """What another model would hand over."""
        return torch.randn(1, _TOKENS, self.width)

    image_grid_thw = grid_thw
    encoder_hidden_states = query_embeds = inputs_embeds
    qformer_input_ids = input_ids
