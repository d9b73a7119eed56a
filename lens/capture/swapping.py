"""Where torch's functions are found by attribute, and putting others in their place for a while.

One function is found in many places: ``torch.nn.functional.relu``, a name that a module of the user imported, a
method and its operator, a cell that a decorator of torch's keeps it in. All of them are changed, so that what was one
object stays one object.
"""

from __future__ import annotations

import inspect
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from importlib import import_module
from types import (
    BuiltinFunctionType,
    FunctionType,
    MethodDescriptorType,
    ModuleType,
    SimpleNamespace,
    WrapperDescriptorType,
)
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn, overrides
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch.overrides import TorchFunctionMode

from lens.capture.item_slots import emptying
from lens.capture.patches import Property
from lens.functions import Kind, describe, is_openable, unpatched

#: What puts a replacement in, and what puts the original back.
Swap: TypeAlias = "tuple[partial[Any], partial[Any]]"
#: A name in a module or an object that stands for a function of torch.
Place: TypeAlias = tuple[dict[str, Any], str]
#: Makes the replacement of a function, given as what torch reports it (``Tensor.add`` for ``Tensor.__add__``).
Wrap: TypeAlias = Callable[[Any, Any], Callable[..., Any]]

#: C functions that torch tells no mode of.
_UNTOLD = frozenset({"from_numpy", "frombuffer", "from_file", "as_subclass", "_make_subclass", "__new__"})
_C_MODULES = ("_nn", "_linalg", "_special", "_fft", "_sparse", "_nested")
_BASE = Tensor.__mro__[1]


class SwapTable:
    """The replacements of all functions of torch that work on tensors, made once, and their places.

    Args:
        wrap: Makes a replacement.
    """

    def __init__(self, wrap: Wrap) -> None:
        _fill_caches()
        self._wrap = wrap
        #: By id of the original: the original and its replacement.
        self._replacements: dict[int, tuple[Any, Any]] = {}
        for function, reported in _functions():
            if id(function) not in self._replacements:
                self._replacements[id(function)] = function, wrap(function, reported)
        self._of_classes = [*self._in_tensor(), *self._in_cells(), *self._in_operators(), *self._in_namespace()]
        self._of_modules: list[Place] = []
        self._modules_seen = 0

    def places(self, model: Iterable[nn.Module]) -> list[Place]:
        """Where the replacements are to be put for a trace of a model with these modules, besides torch's classes.

        Modules of Python are searched once, and again when others have been loaded; those of the model's classes
        and the main one, whose names come and go, every time.
        """
        if self._modules_seen != len(sys.modules):
            self._modules_seen = len(sys.modules)
            self._of_modules = [place for m in list(sys.modules.values()) for place in self._in_names(_names(m))]
        modules = list(model)
        own = [sys.modules.get(name) for name in {"__main__", *(type(m).__module__ for m in modules)}]
        return [*self._of_modules, *(place for owner in (*own, *modules) for place in self._in_names(_names(owner)))]

    def put(self, places: Iterable[Place]) -> None:
        """Put all replacements in."""
        perform([*(put for put, _ in self._of_classes), *emptying()])
        perform([partial(names.__setitem__, name, self.replacement(names.get(name))) for names, name in places])

    def restore(self, places: Iterable[Place]) -> None:
        """Put the originals back, except under names that the program has given something else meanwhile."""
        mine = ((names, name, names.get(name)) for names, name in places)
        found = [(names, name, unpatched(value)) for names, name, value in mine if value is not None]
        actions = [partial(names.__setitem__, name, old) for names, name, old in found if id(old) in self._replacements]
        perform([*actions, *(restore for _, restore in self._of_classes), *emptying()])

    def replacement(self, function: Any) -> Any:
        """What stands in for a function; itself if nothing does."""
        known = self._replacements.get(id(function))
        return known[1] if known is not None and known[0] is function else function

    def _in_names(self, names: dict[str, Any]) -> Iterator[Place]:
        for name, value in list(names.items()):
            if id(value) in self._replacements:
                yield names, name

    def _in_tensor(self) -> Iterator[Swap]:
        for name in {**vars(_BASE), **vars(Tensor)}:
            value = unpatched(inspect.getattr_static(Tensor, name))
            if inspect.isgetsetdescriptor(value):
                yield from self._property(name, value)
            elif id(value) in self._replacements:
                yield _attribute(Tensor, name, self._replacements[id(value)][1])

    def _property(self, name: str, value: Any) -> Iterator[Swap]:
        getter, setter = value.__get__, value.__set__
        if describe(getter).recorded or describe(setter).recorded:
            wrapped = Property(self._wrap(getter, getter), self._wrap(setter, setter), value.__delete__)
            wrapped.lens_original = value
            yield _attribute(Tensor, name, wrapped)

    def _in_cells(self) -> Iterator[Swap]:
        """Functions of C that one of Python keeps in its closure: ``Tensor.__pow__`` keeps ``TensorBase.pow``."""
        for function, _ in list(self._replacements.values()):
            for cell in getattr(function, "__closure__", None) or ():
                content = cell.cell_contents
                if not isinstance(content, FunctionType) and id(content) in self._replacements:
                    swap = partial(setattr, cell, "cell_contents")
                    yield partial(swap, self._replacements[id(content)][1]), partial(swap, content)

    def _in_operators(self) -> Iterator[Swap]:
        for kind in (OpOverloadPacket, OpOverload, HigherOrderOperator):
            if "__call__" in vars(kind):
                yield _attribute(kind, "__call__", self._wrap(kind.__call__, None))

    def _in_namespace(self) -> Iterator[Swap]:
        """``torch._C._VariableFunctions``: it takes no attributes, so it is replaced where Python finds it."""
        original = torch._C._VariableFunctions
        members = {name: getattr(original, name) for name in dir(original) if not name.startswith("__")}
        stand_in = SimpleNamespace(**members)
        for names, name in self._in_names(vars(stand_in)):
            names[name] = self.replacement(names[name])
        yield _attribute(torch._C, "_VariableFunctions", stand_in)
        if getattr(torch._VF, "vf", None) is original:  # private: without it, torch._VF is found like any module
            yield _attribute(torch._VF, "vf", stand_in)


def perform(actions: Iterable[partial[Any]]) -> None:
    """Call all, within C: no signal handler of Python's, so no KeyboardInterrupt, comes in between."""
    deque(map(partial.__call__, actions), maxlen=0)


def _attribute(owner: Any, name: str, replacement: Any) -> Swap:
    put = partial(setattr, owner, name, replacement)
    own = vars(owner).get(name)
    if own is None or getattr(own, "lens_inherited", False):  # replaced by another trace just now
        return put, partial(delattr, owner, name)
    return put, partial(setattr, owner, name, unpatched(own))


def _names(owner: Any) -> dict[str, Any]:
    return vars(owner) if isinstance(owner, (ModuleType, nn.Module)) else {}


def _fill_caches() -> None:
    """Have torch fill the tables of its functions that it keeps by identity, before anything is replaced."""
    overrides.get_overridable_functions()
    overrides.get_default_nowrap_functions()
    with suppress(ImportError, AttributeError):  # private: where it is missing there is no such table to fill
        import_module("torch.utils._device")._device_constructors()


def _functions() -> Iterator[tuple[Any, Any]]:
    """Every function that a mode is told of, and as what it is told."""
    for owner in (torch._C._VariableFunctions, *(getattr(torch._C, name, None) for name in _C_MODULES)):
        # dsmm equals mm, as Python compares functions of C, and so does what is known of them: mm is to come first.
        for name in sorted(dir(owner), key=lambda name: not hasattr(torch.ops.aten, name)):
            function = getattr(owner, name)
            if isinstance(function, BuiltinFunctionType) and _is_wanted(function, name):
                yield function, function
    for name, function in vars(_BASE).items():
        if isinstance(function, (MethodDescriptorType, WrapperDescriptorType)) and _is_wanted(function, name):
            yield function, _reported(function) if name.startswith("__") else function
    listed = (f for functions in overrides.get_overridable_functions().values() for f in functions)
    owners = [Tensor, *(m for name, m in list(sys.modules.items()) if name.partition(".")[0] == "torch")]
    held = (function for owner in owners for function in list(vars(owner).values()))
    openable = (function for function in held if type(function) is FunctionType and is_openable(function))
    for function in (*listed, *openable):
        if type(function) is FunctionType:
            yield function, function


def _is_wanted(function: Any, name: str) -> bool:
    return name not in _UNTOLD and describe(function).kind is not Kind.METADATA


class _Probe(TorchFunctionMode):
    """Notes as what a call is reported, and lets nothing run."""

    def __init__(self) -> None:
        super().__init__()
        self.reported: Any = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reported = func


def _reported(operator: Any) -> Any:
    """As what torch reports an operator: ``Tensor.add`` for ``Tensor.__add__`` and ``Tensor.__radd__``."""
    tensor = torch.zeros(1)
    for arguments in ((tensor, tensor), (tensor,)):
        probe = _Probe()
        try:
            with probe:
                operator(*arguments)
        except TypeError:
            continue
        if probe.reported is not None:
            return probe.reported
    return operator
