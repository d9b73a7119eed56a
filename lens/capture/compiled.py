"""``torch.compile``: what was compiled runs eagerly while it is traced, so that its operations are seen."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from threading import get_ident
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from lens.capture.module_calls import MODULE_CALL
from lens.capture.patches import Entries
from lens.capture.regions import Sight
from lens.functions import unpatched
from lens.ir.gaps import NO_SCOPE

_P = ParamSpec("_P")
_T = TypeVar("_T")

#: private: the function that turns the compiler's stance into what runs; without it, ``set_stance`` for all threads
_STANCE = "_callback_from_stance"
#: private: empty as long as nothing was compiled, or the compiler was reset since; without it, as if something was
_USED = "cached_backends"


def never_compiled(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """The function, which a compiled function that calls it runs as it is. The compiler is not loaded for that."""
    disabled: list[Callable[_P, _T]] = []  # made once: 200 us

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(function))  # type: ignore[no-untyped-call]
        return disabled[0](*args, **kwargs)

    call._torchdynamo_disable = True  # type: ignore[attr-defined]  # private: else it tries to compile this
    return call


def watch_compiled(sight: Sight) -> None:
    """Run compiled code of this thread eagerly."""
    if "torch._dynamo.eval_frame" in sys.modules:
        _run_eagerly(sight)
    else:
        sight.patch(torch, "compile", _wrap_compile)


def _run_eagerly(sight: Sight) -> None:
    eval_frame = sys.modules["torch._dynamo.eval_frame"]
    if hasattr(eval_frame, _STANCE):
        sight.patch(eval_frame, _STANCE, _wrap_stance)
        sight.patch(eval_frame, "set_fullgraph_compiled_frame_count", _wrap_count)
    else:
        sight.stack.enter_context(torch.compiler.set_stance("force_eager"))
    # Costs up to 0.8 ms, because Python then renews the call slot of every module class; so only where it is of use.
    # Functions that the compiler is to pass over, of which torch makes some at import, have None for a backend.
    used = any(backend is not None for backend in getattr(eval_frame, _USED, {0: True}).values())
    if used or sight.recorder.addresses.has_compiled:
        sight.patch(nn.Module, "__call__", _wrap_module_call)


def _wrap_compile(original: Callable[..., Any], entries: Entries) -> Callable[..., Any]:
    """``torch.compile`` in a process that has not loaded the compiler yet."""

    def compile_eagerly(*args: Any, **kwargs: Any) -> Any:
        compiled = original(*args, **kwargs)
        sights = entries.get(get_ident())
        if sights and "torch._dynamo.eval_frame" in sys.modules:
            _run_eagerly(sights[-1])
        return compiled

    return compile_eagerly


def _wrap_stance(original: Callable[..., Any], entries: Entries) -> Callable[..., Any]:
    def callback_from_stance(callback: Any) -> Any:
        sights = entries.get(get_ident())
        if not sights:
            return original(callback)
        frame = sys._getframe(1)
        if getattr(frame.f_locals.get("fn"), "__func__", None) is _module_call():
            for sight in sights:
                sight.recorder.tape.unseen.append((NO_SCOPE, sight.recorder.site(frame)))
        return None

    return callback_from_stance


def _module_call() -> Any:
    """What ``module.compile()`` compiles."""
    return unpatched(getattr(nn.Module, MODULE_CALL))


def _wrap_count(original: Callable[[int], int], entries: Entries) -> Callable[[int], int]:
    """``fullgraph=True`` complains where nothing was compiled; a count from before means that it is not asked."""

    def set_fullgraph_compiled_frame_count(value: int) -> int:
        return 0 if entries.get(get_ident()) else original(value)

    return set_fullgraph_compiled_frame_count


def _wrap_module_call(original: Callable[..., Any], entries: Entries) -> Callable[..., Any]:
    """A module after ``module.compile()`` would pass by the method that the trace watches."""

    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self._compiled_call_impl is not None and entries.get(get_ident()):
            return self._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]
        return original(self, *args, **kwargs)

    return __call__
