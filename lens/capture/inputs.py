"""The arguments of the traced call: how they are given, checked and named."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from lens.errors import InputError


def positional(args: Any) -> tuple[Any, ...]:
    """A tuple is the positional arguments; anything else, a list too, is one argument."""
    return args if isinstance(args, tuple) else (args,)


def named(kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """The keyword arguments. Raises InputError if they are none."""
    if kwargs is None or isinstance(kwargs, Mapping):
        return dict(kwargs or {})
    raise InputError(f"kwargs cannot be a {type(kwargs).__name__}", where="kwargs=", hint='give kwargs={"mask": mask}')


def check_seed(seed: object) -> None:
    """Raises InputError if this is neither None nor a number that ``torch.manual_seed`` takes."""
    if seed is not None and not (isinstance(seed, int) and type(seed) is not bool and -(2**63) <= seed < 2**64):
        short = f"{seed!r:.40}" if isinstance(seed, (str, int, float)) else type(seed).__name__
        raise InputError(f"seed cannot be {short}", where="seed=", hint="give a whole number, such as seed=0, or None")


def check_call(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, functions: bool = False) -> None:
    """Refuse what cannot be traced, or is a function where only modules will do. Raises InputError."""
    if isinstance(model, type) or not (callable(model) if functions else isinstance(model, nn.Module)):
        hint = "give a torch.nn.Module" + (", or a function" if functions else "")
        hint = "give an instance: Model()" if isinstance(model, type) else hint
        raise InputError(f"lens traces modules, this is a {type(model).__name__}", where="model", hint=hint)
    if not all(isinstance(name, str) for name in kwargs):
        raise InputError("kwargs must have names as keys", where=f"kwargs={kwargs!r}"[:80])
    signature = _signature(model)
    if signature is None:
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        given = [*(type(arg).__name__ for arg in args), *(f"{name}=" for name in kwargs)]
        raise InputError(
            f"the arguments do not fit the model: {error}",
            where=f"{_name_of(model)}{signature}, given ({', '.join(given)})",
            hint="a tuple is several positional arguments, anything else is one; wrap a tuple that is one "
            "argument as (value,)",
        ) from error


def _name_of(model: Callable[..., Any]) -> str:
    return f"{type(model).__name__}.forward" if isinstance(model, nn.Module) else getattr(model, "__qualname__", "call")


def _signature(model: Callable[..., Any]) -> inspect.Signature | None:
    """The signature of forward; None where it is decorated or not to be had, so that it may not be the real one."""
    forward = model.forward if isinstance(model, nn.Module) else model
    if hasattr(forward, "__wrapped__"):
        return None
    try:
        return inspect.signature(forward)
    except (TypeError, ValueError):
        return None


def named_tensors(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    """The tensors of a call, each once, with all their names, such as ``x``, ``batch['image']``, ``states[0]``."""
    found: dict[int, tuple[list[str], torch.Tensor]] = {}
    for argument_name, argument in _argument_names(model, args, kwargs):
        for name, tensor in _within(argument_name, argument):
            found.setdefault(id(tensor), ([], tensor))[0].append(name)
    return ((tuple(names), tensor) for names, tensor in found.values())


def _argument_names(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[str, Any]]:
    names = _positional_names(model) if args else ()
    for place, argument in enumerate(args):
        yield (names[place] if place < len(names) else f"args[{place}]"), argument
    yield from kwargs.items()


def _positional_names(model: Callable[..., Any]) -> Sequence[str]:
    """What the positional parameters of forward are called, as far as that can be known."""
    forward = model.forward if isinstance(model, nn.Module) else model
    function = forward.__func__ if type(forward) is MethodType else forward
    if type(function) is FunctionType and not vars(function):  # a signature takes 0.1 ms
        code, first = function.__code__, 0 if function is forward else 1
        return code.co_varnames[first : code.co_argcount]
    signature = _signature(model)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in signature.parameters.values() if p.kind in kinds] if signature is not None else ()


def _within(name: str, obj: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(obj, torch.Tensor):
        yield name, obj
    elif isinstance(obj, Mapping):
        for key, item in obj.items():
            yield from _within(f"{name}[{key!r}]", item)
    elif isinstance(obj, (list, tuple)):
        for place, item in enumerate(obj):
            yield from _within(f"{name}[{place}]", item)
    elif dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        for field in dataclasses.fields(obj):
            yield from _within(f"{name}.{field.name}", getattr(obj, field.name, None))
