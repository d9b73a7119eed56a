"""Where torch's functions are found by attribute, and putting others in their place for a while.

One function is found in many places: ``torch.nn.functional.relu``, a name that a module of the user imported, a
method and its operator, a cell that a decorator of torch's keeps it in. All of them are changed, so that what was one
object stays one object.
"""

from __future__ import annotations

import inspect
import operator
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import (
    BuiltinFunctionType,
    FunctionType,
    MethodDescriptorType,
    ModuleType,
    SimpleNamespace,
    WrapperDescriptorType,
)
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn, overrides
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch.overrides import TorchFunctionMode

from lens.capture.bindings import Place, binding, bound_at, reached_from
from lens.capture.item_slots import emptying
from lens.capture.keeping import UNSEEN
from lens.capture.patches import Property, awake, compile_as, fill_tables, is_asleep
from lens.functions import Kind, describe, is_filled, is_openable, unpatched

#: Makes the replacement of a function, given as what torch reports it (``Tensor.add`` for ``Tensor.__add__``).
Wrap: TypeAlias = Callable[[Any, Any], Callable[..., Any]]

#: C functions that torch tells no mode of.
_UNTOLD = frozenset({"from_numpy", "frombuffer", "from_file", "as_subclass", "_make_subclass", "__new__"})
_C_MODULES = ("_nn", "_linalg", "_special", "_fft", "_sparse", "_nested")
_BASE = Tensor.__mro__[1]
#: private: has modes told, also where the program has switched that off; without it the first trace cannot be there
_MODES_HEARD: Callable[[], AbstractContextManager[None]] = getattr(torch._C, "_EnableTorchFunction", nullcontext)
#: Longer tuples are data.
_MOST_PARTS = 1000
#: What operators are probed with. Made here, once: while a trace begins, modes of others may look on.
with UNSEEN():
    _PROBED = torch.zeros(1, device="cpu")


class Swap(NamedTuple):
    """An attribute: what has it, its name, the replacement, and what puts that in and what puts the original back."""

    owner: Any
    name: str
    new: Any
    put: partial[Any]
    back: partial[Any]


class SwapTable:
    """The replacements of all functions of torch that work on tensors, made once, and their places.

    Args:
        wrap: Makes a replacement.
    """

    def __init__(self, wrap: Wrap) -> None:
        fill_tables()
        self._wrap = wrap
        #: By id of the original: the original and its replacement.
        self._replacements: dict[int, tuple[Any, Any]] = {}
        for function, reported in _functions():
            if id(function) not in self._replacements:
                self._replacements[id(function)] = function, wrap(function, reported)
        #: By id of the replacement: it, and the original.
        self._originals = {id(new): (new, old) for old, new in self._replacements.values()}
        #: The same for unchangeable containers of functions, while a trace runs.
        self._containers: dict[int, tuple[Any, Any]] = {}
        swaps = (*self._in_tensor(), *self._in_cells(), *self._in_operators(), *self._in_namespace())
        #: By the identity of what has the attribute, and its name.
        self._of_classes = {(id(swap.owner), swap.name): swap for swap in swaps}
        self._of_modules: list[Place] = []
        #: The names of the modules that were searched.
        self._loaded: set[str] = set()
        for original, new in self._replacements.values():
            compile_as(original, new)

    def places(self, model: Iterable[nn.Module]) -> list[Place]:
        """Where the replacements are to be put for a trace of a model with these modules, besides torch's classes.

        Modules of Python are searched once, and again when others have been loaded; the main one, and what the
        model's code reaches (``bindings``), every time.
        """
        loaded = []
        if self._loaded != sys.modules.keys():
            loaded = [m for name in sys.modules.keys() - self._loaded if isinstance(m := sys.modules[name], ModuleType)]
            self._of_modules = [place for m in list(sys.modules.values()) for place in self._in_names(_names(m))]
            loaded = loaded if self._loaded else []  # before the first trace: too many
            self._loaded = set(sys.modules)
        main = self._in_names(_names(sys.modules.get("__main__")))
        reached = (place for place in reached_from(model, loaded) if self._is_ours(bound_at(place)))
        patched = ((p.owner, p.name) for p in awake() if isinstance(p.owner, ModuleType))
        others = [
            (vars(owner), name) for owner, name in patched if self._is_ours(unpatched(getattr(owner, name, None)))
        ]
        return [*self._of_modules, *main, *reached, *others]

    def put(self, places: Iterable[Place]) -> None:
        """Put all replacements in."""
        swaps = dict(self._of_classes)
        for key, current in self._shared():
            if _is_over(current, swaps[key].new):
                del swaps[key]
            else:
                _set_beneath(swaps[key].new, current)
        perform([*(swap.put for swap in swaps.values()), *emptying()])
        perform([binding(place, self.replacement(bound_at(place))) for place in places])

    def restore(self, places: Iterable[Place]) -> None:
        """Put the originals back, except where the program has bound something else meanwhile."""
        swaps = dict(self._of_classes)
        for key, current in self._shared():
            swap = swaps[key]
            if current is not swap.new:  # it goes when what has been put over it goes
                del swaps[key]
            elif (beneath := _beneath(swap.new)) is not None:
                swaps[key] = swap._replace(back=partial(setattr, swap.owner, swap.name, beneath))
        perform([*self._freeing(places), *(swap.back for swap in swaps.values()), *emptying()])

    def _shared(self) -> list[tuple[tuple[int, str], Any]]:
        """The attributes that traces by other backends have replaced as well, and what is there now."""
        keys = {(id(made.owner), made.name): made.owner for made in awake()}
        return [(key, vars(owner).get(key[1])) for key, owner in keys.items() if key in self._of_classes]

    def free(self, model: Iterable[nn.Module]) -> None:
        """After that, have the program forget the replacements that it found and bound while they were in place."""
        perform(self._freeing(self.places(model)))
        self._containers = {}

    def _freeing(self, places: Iterable[Place]) -> list[partial[Any]]:
        found = ((place, value, self._original(value)) for place in places if (value := bound_at(place)) is not None)
        return [binding(place, original) for place, value, original in found if original is not value]

    def replacement(self, function: Any) -> Any:
        """What stands in for a function, or for an unchangeable container of some; itself if nothing does."""
        known = self._replacements.get(id(function))
        if known is not None:
            return known[1]
        new = _exchanged(function, self.replacement)
        if new is not function:
            self._containers[id(new)] = new, function
        return new

    def _original(self, value: Any) -> Any:
        known = self._originals.get(id(value)) or self._containers.get(id(value))
        return known[1] if known is not None else _exchanged(value, self._original)

    def _is_ours(self, value: Any) -> bool:
        """Whether a value is a function that is replaced, a replacement, or a container of some."""
        if type(value) is tuple:
            return len(value) < _MOST_PARTS and any(map(self._is_ours, value))
        if type(value) in (staticmethod, classmethod):
            return self._is_ours(value.__func__)
        return id(value) in self._replacements or id(value) in self._originals

    def _in_names(self, names: dict[str, Any]) -> Iterator[Place]:
        for name, value in list(names.items()):
            if id(value) in self._replacements or id(value) in self._originals:
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
            wrapped.lens_original, wrapped.lens_patch = value, wrapped.fset
            yield _attribute(Tensor, name, wrapped)

    def _in_cells(self) -> Iterator[Swap]:
        """Functions of C that one of Python keeps in its closure: ``Tensor.__pow__`` keeps ``TensorBase.pow``."""
        for function, _ in list(self._replacements.values()):
            for cell in filter(is_filled, getattr(function, "__closure__", None) or ()):
                content = cell.cell_contents
                if not isinstance(content, FunctionType) and id(content) in self._replacements:
                    bind = partial(setattr, cell, "cell_contents")
                    new = self._replacements[id(content)][1]
                    yield Swap(cell, "cell_contents", new, partial(bind, new), partial(bind, content))

    def _in_operators(self) -> Iterator[Swap]:
        for kind in (OpOverloadPacket, OpOverload, HigherOrderOperator):
            if "__call__" in vars(kind):
                yield _attribute(kind, "__call__", self._wrap(kind.__call__, None))

    def _in_namespace(self) -> Iterator[Swap]:
        """``torch._C._VariableFunctions``: it takes no attributes, so it is replaced where Python finds it."""
        original = torch._C._VariableFunctions
        members = {name: getattr(original, name) for name in dir(original) if not name.startswith("__")}
        stand_in = SimpleNamespace(**members)
        for name, member in members.items():
            setattr(stand_in, name, self.replacement(member))
        yield _attribute(torch._C, "_VariableFunctions", stand_in)
        if getattr(torch._VF, "vf", None) is original:  # private: without it, torch._VF is found like any module
            yield _attribute(torch._VF, "vf", stand_in)


def _exchanged(value: Any, change: Callable[[Any], Any]) -> Any:
    """A container that cannot be changed, with its functions changed; itself if there is none, or it is no such."""
    if type(value) is tuple and len(value) < _MOST_PARTS:
        parts = tuple(map(change, value))
        return value if all(map(operator.is_, parts, value)) else parts
    if type(value) in (staticmethod, classmethod):
        inner = change(value.__func__)
        return value if inner is value.__func__ else type(value)(inner)
    return value


def perform(actions: Iterable[partial[Any]]) -> None:
    """Call all, within C: no signal handler of Python's, so no KeyboardInterrupt, comes in between."""
    deque(map(partial.__call__, actions), maxlen=0)


def _attribute(owner: Any, name: str, replacement: Any) -> Swap:
    put = partial(setattr, owner, name, replacement)
    own = vars(owner).get(name)
    back: partial[Any] = partial(setattr, owner, name, unpatched(own))
    if own is None or getattr(own, "lens_inherited", False):  # replaced by another trace just now
        back = partial(delattr, owner, name)
    return Swap(owner, name, replacement, put, back)


def _is_over(value: Any, replacement: Any) -> bool:
    """Whether a value is the replacement, or one that was put over it."""
    while value is not replacement and hasattr(value, "lens_original"):
        value = value.lens_original
    return value is replacement


def _set_beneath(replacement: Any, other: Any) -> None:
    """Have a replacement, which takes the place of another trace's, call that in the threads that it is for."""
    entries = other.lens_patch.entries
    for part, instead in zip(_parts(replacement), _parts(other), strict=True):
        part.beneath = instead, entries
    _parts(replacement)[-1].covers = other


def _beneath(replacement: Any) -> Any:
    """Forget what a replacement has taken the place of; give it, if it is still needed."""
    other = _parts(replacement)[-1].covers
    for part in _parts(replacement):
        part.beneath = part.covers = None
    return None if other is None or is_asleep(other) else other


def _parts(value: Any) -> tuple[Any, ...]:
    return (value.fget, value.fset) if isinstance(value, property) else (value,)


def _names(owner: Any) -> dict[str, Any]:
    return vars(owner) if isinstance(owner, (ModuleType, nn.Module)) else {}


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
    for function in map(unpatched, (*listed, *openable)):
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
    for arguments in ((_PROBED, _PROBED), (_PROBED,)):
        probe = _Probe()
        try:
            with _MODES_HEARD(), probe:
                operator(*arguments)
        except TypeError:
            continue
        if probe.reported is not None:
            return probe.reported
    return operator
