"""``torch.func``: each outermost transform is one operation; what happens inside it works on wrappers."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from threading import get_ident
from types import FrameType
from typing import Any, TypeAlias

import torch

from lens.capture.patches import Entries, patched
from lens.capture.regions import Observer, Sight, note_closed_over, run_region, running, tensors_in
from lens.ir.elements import FnRef

#: Where a transformed function meets torch: module, attribute, name of the transform. They are looked up at each
#: call, so functions that were transformed before the trace are seen, too.
#: private: where one is missing, the transform's result is an external leaf, and disclosed
_CALLS = (
    ("torch._functorch.apis", "vmap_impl", "vmap"),
    ("torch._functorch.apis", "_chunked_vmap", "vmap"),
    ("torch._functorch.eager_transforms", "grad_impl", "grad"),
    ("torch._functorch.eager_transforms", "grad_and_value_impl", "grad_and_value"),
    ("torch._functorch.eager_transforms", "_jvp_with_argnums", "jvp"),
    ("torch._functorch.eager_transforms", "_vjp_with_argnums", "vjp"),
)
#: Transforms made of others: seen as one operation if the transform is made during the trace, else as their parts.
_MAKERS = ("jacrev", "jacfwd", "hessian")
#: Private, too: who has the older ``vmap``, by which autograd takes many gradients at once (``is_grads_batched``).
_LEGACY = ("torch._vmap_internals", "torch.autograd.functional")
#: Where a function that ``functionalize`` made begins and ends. Private: without them its result is an external leaf.
_BEGIN, _END = "_func_increment_nesting", "_func_decrement_nesting"

#: What has begun so: the frame that makes both calls, and what to do at the end.
_Begun: TypeAlias = list[tuple[FrameType, ExitStack, list[list[Any]]]]


def watch_transforms(sight: Sight) -> None:
    """Record transforms of ``torch.func`` as opaque operations."""
    for owner, attribute, wrap in _patches():
        sight.patch(owner, attribute, wrap)
    transforms = import_module("torch._functorch.eager_transforms")
    if hasattr(transforms, _BEGIN) and hasattr(transforms, _END):
        begun: _Begun = []
        sight.patch(transforms, _BEGIN, _wrap_beginning, (sight, begun))
        # no patch of the sight's, which would be hidden while the function runs
        sight.stack.enter_context(patched(transforms, _END, _wrap_end, begun))


@functools.cache
def _patches() -> tuple[tuple[Any, str, Callable[..., Any]], ...]:
    """Module, attribute and wrapper of everything to be patched."""
    patches = [(import_module(module), attribute, _call_wrapper(name)) for module, attribute, name in _CALLS]
    for module in map(import_module, _LEGACY):
        patches.append((module, "_vmap", _wrap_legacy_vmap))
    for module in map(import_module, ("torch.func", "torch._functorch.eager_transforms")):
        patches += [(module, name, _maker_wrapper(name)) for name in _MAKERS]
        patches.append((module, "linearize", _call_wrapper("linearize")))
    return tuple(patches)


def _call_wrapper(name: str) -> Callable[..., Any]:
    ref = FnRef("torch.func", name)

    def wrap(original: Callable[..., Any], entries: Entries) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = run_region(entries, ref, original, args, kwargs, sys._getframe(1))
            if name in ("vjp", "linearize"):
                return _with_pullback(result, entries, name, (args, kwargs))
            return result

        return call

    return wrap


def _with_pullback(result: Any, entries: Entries, name: str, given: Any) -> Any:
    """The result of ``vjp`` or ``linearize``, whose second part is a function of what went in."""
    stack = entries.get(get_ident())
    if not stack:
        return result
    function = result[1]
    inputs = tensors_in(stack[-1].recorder, given)
    ref = FnRef("torch.func", f"{name}_fn")

    @functools.wraps(function)
    def pullback(*args: Any, **kwargs: Any) -> Any:
        note_closed_over(inputs)
        return run_region(entries, ref, function, args, kwargs, sys._getframe(1), closed_over=inputs)

    return (result[0], pullback, *result[2:])


def _maker_wrapper(name: str) -> Callable[..., Any]:
    ref = FnRef("torch.func", name)

    def wrap(original: Callable[..., Any], entries: Entries) -> Callable[..., Any]:
        def make(*args: Any, **kwargs: Any) -> Any:
            transformed = original(*args, **kwargs)
            if not entries:
                return transformed

            @functools.wraps(transformed)
            def call(*given: Any, **named: Any) -> Any:
                return run_region(entries, ref, transformed, given, named, sys._getframe(1))

            return call

        return make

    return wrap


def _wrap_legacy_vmap(original: Callable[..., Any], entries: Entries) -> Callable[..., Any]:
    ref = FnRef("torch._vmap_internals", "vmap")

    def make(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
        mapped = original(function, *args, **kwargs)

        @functools.wraps(mapped)
        def call(*given: Any) -> Any:
            if function.__module__ != torch.autograd.__name__:
                return run_region(entries, ref, mapped, given, {}, sys._getframe(1))
            with ExitStack() as stack:  # a part of ``torch.autograd.grad``, which is an operation
                sights: list[Sight] = [sight for sight in entries.get(get_ident()) or () if sight.open]
                for sight in reversed(sights):
                    stack.enter_context(sight.covered(Observer(sight.recorder)))
                return mapped(*given)

        return call

    return make


def _wrap_beginning(original: Callable[..., int], entries: Entries) -> Callable[..., int]:
    """The first call of a function that ``functionalize`` made: its arguments are names of the frame that calls."""
    ref = FnRef("torch.func", "functionalize")

    def begin(reapply_views: bool) -> int:
        level = original(reapply_views)
        frame = sys._getframe(1)
        given = frame.f_locals
        known: list[tuple[Sight, _Begun]] = [one for one in entries.get(get_ident()) or () if one[0].open]
        if known and {"args", "kwargs", "func"} <= given.keys():
            remove = "mutations" if reapply_views else "mutations_and_views"
            again = frame.f_globals["functionalize"](given["func"], remove=remove)
            stack = ExitStack()
            found = [
                stack.enter_context(
                    running(sight, ref, (again, *given["args"]), given["kwargs"], frame.f_back, may_write=True)
                )
                for sight, _ in reversed(known)
            ]
            known[-1][1].append((frame, stack, found))
        return level

    return begin


def _wrap_end(original: Callable[[], int], entries: Entries) -> Callable[[], int]:
    """The last call of such a function, also when it fails. What it returns is a name of the frame by now."""

    def end() -> int:
        level = original()
        frame = sys._getframe(1)
        for begun in entries.get(get_ident()) or ():
            if begun and begun[-1][0] is frame:
                _, stack, found = begun.pop()
                with stack:
                    for results in found if "outputs" in frame.f_locals else ():
                        results.append(frame.f_locals["outputs"])
        return level

    return end
