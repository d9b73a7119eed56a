"""Models and inputs by name, for the command line: ``torchvision:resnet18``, ``file.py:make_model``."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from attrs import frozen
from torch import nn

from lens.errors import InputError
from lens.usual_inputs import dtype_of, input_names, usual_shape

_SHAPE = re.compile(r"(?P<shape>\d+(x\d+)*)(:(?P<dtype>\w+))?")
_HINT = "file.py:function, torchvision:NAME, timm:NAME, or transformers:CONFIG"
#: Token ids of generated inputs stay below this.
_VOCABULARY = 100
_VISION_SIZE = "1x3x224x224"


@frozen
class ModelCall:
    """A model with the arguments to call it with."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def load_spec(spec: str, inputs: list[str]) -> ModelCall:
    """The model that a spec names, with random weights, and its inputs.

    Args:
        spec: ``file.py:function`` (the function gives a model, or a model and its arguments), ``torchvision:NAME``,
            ``timm:NAME``, ``transformers:CONFIG`` (a model type such as ``gpt2``, or a configuration class).
        inputs: Shapes such as ``1x3x224x224`` or ``1x16:int64``, one per argument; empty for the usual ones.

    Raises:
        InputError: if the spec or a shape cannot be understood, or the package is not installed.
    """
    source, separator, name = spec.rpartition(":")
    if not separator or not name:
        raise InputError(f"{spec!r} is not a model spec", where="SPEC", hint=f"give {_HINT}")
    if source.endswith(".py"):
        return _from_file(Path(source), name, inputs)
    if source == "transformers":
        model = _transformers(name).eval()
        return ModelCall(model, (), _transformers_kwargs(model, inputs))
    makers: dict[str, Callable[[str], tuple[nn.Module, str]]] = {"torchvision": _torchvision, "timm": _timm}
    if source not in makers:
        raise InputError(f"{spec!r} is not a model spec", where="SPEC", hint=f"give {_HINT}")
    model, usual = makers[source](name)
    return ModelCall(model.eval(), tuple(make_input(text) for text in inputs or [usual]), {})


def make_input(text: str, default_dtype: str = "float32") -> torch.Tensor:
    """A random tensor of a shape such as ``1x3x224x224``, or ``1x16:int64`` (token ids).

    Raises:
        InputError: if the text is no shape or the dtype unknown.
    """
    match = _SHAPE.fullmatch(text)
    dtype = getattr(torch, (match and match["dtype"]) or default_dtype, None)
    if match is None or not isinstance(dtype, torch.dtype):
        raise InputError(
            f"{text!r} is not the shape of an input",
            where="--input",
            hint="write it like 1x3x224x224, or 1x16:int64 for token ids",
        )
    try:
        return _random([int(n) for n in match["shape"].split("x")], dtype)
    except (RuntimeError, TypeError, ValueError) as error:  # too large, or there is no random tensor of this dtype
        hint = "give a smaller shape, or a dtype such as float32 or int64"
        raise InputError(f"no input {text!r} can be made: {error}", where="--input", hint=hint) from error


def _random(shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, dtype=dtype)
    return torch.randint(0, 2 if dtype is torch.bool else _VOCABULARY, shape).to(dtype)


def import_torchvision() -> Any:
    """Import torchvision, also where its compiled operators do not fit this torch (a CUDA build beside a CPU one).

    Raises:
        InputError: if it is not installed.
    """
    if not hasattr(torch.ops.torchvision, "nms") and importlib.util.find_spec("torchvision"):
        try:
            return importlib.import_module("torchvision")
        except RuntimeError:  # "operator torchvision::nms does not exist"
            _forget("torchvision")
            _define_missing_operators()
    return _import("torchvision")


def _define_missing_operators() -> None:
    library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    # The definitions last as long as the library object.
    setattr(torch.ops.torchvision, "lens_definitions", library)  # noqa: B010 - unknown to the namespace


def _forget(package: str) -> None:
    """Remove the half-imported modules of a package, so that it can be imported again."""
    for name in [n for n in sys.modules if n == package or n.startswith(f"{package}.")]:
        del sys.modules[name]


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"{package} cannot be imported: {error}",
            where="SPEC",
            hint=f"pip install {package}, or pip install 'lens-trace[models]'",
        ) from error


def _import_file(path: Path) -> ModuleType:
    """The module of a file, as Python would import it in its folder: it can import its neighbours, and be found."""
    name, folder = _module_name(path), str(path.resolve().parent)
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None or not path.exists():
        raise InputError(f"there is no file {path}", where="SPEC", hint="check the path")
    module = importlib.util.module_from_spec(module_spec)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)
    except BaseException:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise
    return module


def _module_name(path: Path) -> str:
    """What the module of a file is called: as the file, unless another module is called so."""
    name = re.sub(r"\W", "_", path.stem)
    known = sys.modules[name] if name in sys.modules else importlib.util.find_spec(name)
    file = getattr(known, "__file__", None) or getattr(known, "origin", None)
    is_free = known is None or (file is not None and Path(file).resolve() == path.resolve())
    return name if is_free else f"lens_model_{name}"


def _from_file(path: Path, name: str, inputs: list[str]) -> ModelCall:
    function = getattr(_import_file(path), name, None)
    if not callable(function):
        raise InputError(f"{path} has no function {name!r}", where="SPEC", hint="check the name")
    made = function()
    model, *given = made if isinstance(made, tuple) else (made,)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{name}() gave a {type(model).__name__}, not a module",
            where=str(path),
            hint="let it return a model, or a model and its arguments",
        )
    if inputs:
        given = [make_input(text) for text in inputs]
    if not given:
        raise InputError(
            "the model has no inputs",
            where=str(path),
            hint=f"give --input SHAPE, or let {name}() return a model and its arguments",
        )
    return ModelCall(model, tuple(given), {})


def _torchvision(name: str) -> tuple[nn.Module, str]:
    models = import_torchvision().models
    try:
        return models.get_model(name, weights=None), _VISION_SIZE
    except ValueError as error:
        raise InputError(str(error), where="SPEC", hint="see torchvision.models.list_models()") from error


def _timm(name: str) -> tuple[nn.Module, str]:
    import_torchvision()
    timm = _import("timm")
    try:
        model = timm.create_model(name, pretrained=False)
    except RuntimeError as error:
        raise InputError(str(error), where="SPEC", hint="see timm.list_models()") from error
    size = model.default_cfg.get("input_size", (3, 224, 224))
    return model, "x".join(str(n) for n in (1, *size))


def _transformers(name: str) -> nn.Module:
    if importlib.util.find_spec("torchvision"):
        import_torchvision()
    transformers = _import("transformers")
    cls = getattr(transformers, name, None)
    try:
        config = cls() if isinstance(cls, type) else transformers.AutoConfig.for_model(name)
        model: nn.Module = transformers.AutoModel.from_config(config)
    except (ValueError, KeyError) as error:
        raise InputError(
            f"transformers has no model for {name!r}",
            where="SPEC",
            hint="give a model type such as gpt2, or a configuration class such as GPT2Config",
        ) from error
    return model


def _transformers_kwargs(model: nn.Module, inputs: list[str]) -> dict[str, Any]:
    """Arguments by name: transformers' models take many. A decoder gets the tokens of the encoder."""
    names, cls = input_names(model), type(model).__name__
    if len(inputs) > len(names):
        raise InputError(
            f"{cls} is given {' and '.join(names)}, and no {len(inputs)} inputs",
            where="--input",
            hint="let a function in a file return the model and its arguments: file.py:function",
        )
    made: dict[str, Any] = {}
    for place, name in enumerate(names):
        text = inputs[place] if place < len(inputs) else usual_shape(name, model.config)
        if place >= len(inputs) and "input_ids" in made:
            made[name] = made["input_ids"]
        elif text is not None:
            made[name] = make_input(text, dtype_of(name))
        else:
            hint = f"give the shape of {name}: --input SHAPE"
            raise InputError(f"the usual input of {cls} is not known", where="--input", hint=hint)
    return made
