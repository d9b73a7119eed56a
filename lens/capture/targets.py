"""What can be traced: a module, a method of one, a function, or a block of code; each as a module to name things by."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from torch import nn

from lens.errors import InputError
from lens.functions import is_filled


def root_of(target: Callable[..., Any]) -> nn.Module:
    """The module whose parts give tensors and modules their names.

    For a method of a module that module; for any other function a module made for the purpose, whose children are the
    modules that the function finds in its closure, its globals, its defaults and what it is bound to.
    """
    if isinstance(target, nn.Module):
        return target
    owner = getattr(target, "__self__", None)
    if isinstance(owner, nn.Module):
        return owner
    function = target
    while isinstance(function, partial):
        function = function.func
    name = getattr(function, "__name__", type(function).__name__)
    return gathered(name, dict(_modules_of(target)))


def gathered(name: str, modules: object) -> nn.Module:
    """A module of a class of this name that does nothing and holds these modules by name. Raises InputError."""
    if not isinstance(modules, Mapping):
        hint = 'give a module, or several by name: {"encoder": encoder, "decoder": decoder}'
        raise InputError(f"model cannot be a {type(modules).__name__}", where="lens.tracing(model)", hint=hint)
    root: nn.Module = type(name, (nn.Module,), {})()
    for address, module in modules.items():
        if not isinstance(module, nn.Module):
            raise InputError(
                f"{address!r} is a {type(module).__name__}", where="lens.tracing", hint="give modules by their names"
            )
        root._modules[address] = module  # not by add_module, which refuses names such as ``type``
    return root


def _modules_of(target: Callable[..., Any]) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(target, partial):
        yield from _modules_of(target.func)
        found = {f"args[{place}]": arg for place, arg in enumerate(target.args)} | target.keywords
    else:
        function = inspect.unwrap(target)
        found = dict(getattr(getattr(target, "__self__", None), "__dict__", {}))
        code = getattr(function, "__code__", None)
        if code is not None:
            known = function.__globals__
            found |= {name: known[name] for name in code.co_names if name in known}
            cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
            found |= {name: cell.cell_contents for name, cell in cells if is_filled(cell)}
            found |= {f"defaults[{place}]": default for place, default in enumerate(function.__defaults__ or ())}
        elif not inspect.isroutine(target):
            found |= getattr(target, "__dict__", {})
    yield from ((name, module) for name, module in found.items() if isinstance(module, nn.Module))
