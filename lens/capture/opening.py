"""Opening Python-level composites, so that the operations inside them are seen.

A function such as ``F.multi_head_attention_forward`` first asks ``has_torch_function`` whether somebody overrides
it; while a mode is active somebody does, and its body is never run under the mode. Its opened copy has the same
code, but globals in which that question is answered with no.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cache
from types import CellType, CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import torch
from torch import overrides
from torch.utils import _python_dispatch

from lens.capture.patches import Entries
from lens.capture.trace_modes import TraceMode
from lens.functions import dense_kernel, is_openable, unpatched

_GUARDS = {
    name: getattr(overrides, name)
    for name in ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
}

#: Calls a mode for a function that has asked.
_TELL = overrides.handle_torch_function.__code__


def _no(*_: Any) -> bool:
    return False


def asks_by_attribute(function: Any) -> bool:
    """Whether a function reaches its guard through a module, as ``nn.init`` does: then no copy of it can be opened."""
    code = getattr(function, "__code__", None)
    guards = _GUARDS.keys() & code.co_names if code is not None else ()
    return bool(guards) and not any(name in function.__globals__ for name in guards)


def unquestioning_kernel(function: Any) -> Callable[..., Any] | None:
    """The kernel of a higher-order operator, that does not refuse to run under a dispatch mode: that of an audit, or
    one of the user's. None for everything else."""
    kernel = dense_kernel(function)
    asks = getattr(_python_dispatch, "_get_current_dispatch_mode", None)  # private: without it kernels run as they are
    if not isinstance(kernel, FunctionType) or asks not in kernel.__globals__.values():
        return kernel
    known = {name: (lambda: None) if value is asks else value for name, value in kernel.__globals__.items()}
    return FunctionType(kernel.__code__, known, kernel.__name__, kernel.__defaults__, kernel.__closure__)


def asker(func: Any, frame: FrameType) -> Any:
    """The function that has asked whether somebody overrides it, and so is told to a mode.

    It is told by its name, under which a program may have put a wrapper of its own. That is running already, and calls
    the function; called once more, it would do its work twice.

    Args:
        func: What the mode is told.
        frame: Where the mode was called.
    """
    if frame.f_code is not _TELL or frame.f_back is None:
        return func
    code, known = frame.f_back.f_code, frame.f_back.f_globals
    named = (unpatched(names.get(code.co_name)) for names in (known, vars(torch.Tensor)))
    plain = unpatched(func)
    if getattr(plain, "__code__", None) is code or code.co_freevars or all(other is not plain for other in named):
        return func
    module = sys.modules.get(known.get("__name__", ""))
    return func if module is None else _made_of(code, module)


@cache
def _made_of(code: CodeType, module: ModuleType) -> FunctionType:
    return FunctionType(code, vars(module), code.co_name)


class Opener:
    """Makes opened copies of functions. One per trace: the copies see the globals as they are at their making."""

    def __init__(self) -> None:
        self._globals: dict[int, dict[str, Any]] = {}
        self._opened: dict[Callable[..., Any], Callable[..., Any]] = {}

    def open(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The opened copy of a function; the function itself if it has no guard."""
        opened = self._opened.get(function)
        if opened is None:
            self._opened[function] = function  # what a function finds of itself in its own closure
            if is_openable(function):
                self._opened[function] = unquestioning_kernel(function) or self._copy(function)
            opened = self._opened[function]
        return opened

    def _copy(self, function: Any) -> FunctionType:
        cells = tuple(self._cell(cell) for cell in function.__closure__ or ())
        copy = FunctionType(
            function.__code__,
            self._unguarded(function.__globals__),
            function.__name__,
            function.__defaults__,
            cells or None,
        )
        copy.__kwdefaults__ = function.__kwdefaults__
        return copy

    def _cell(self, cell: CellType) -> CellType:
        try:
            content = cell.cell_contents
        except ValueError:  # an empty cell: a name that is bound later
            return cell
        return CellType(self.open(content)) if is_openable(content) else cell

    def _unguarded(self, original: dict[str, Any]) -> dict[str, Any]:
        found = self._globals.get(id(original))
        if found is None:
            found = dict(original)
            for name, guard in _GUARDS.items():
                if unpatched(found.get(name)) is guard:
                    found[name] = _no
            self._globals[id(original)] = found
        return found


def wrap_guard(original: Callable[..., bool], modes: Entries) -> Callable[..., bool]:
    """``has_torch_function`` as code sees it that asks ``torch.overrides`` by attribute, without our mode.

    ``nn.MultiheadAttention`` and ``nn.TransformerEncoder(Layer)`` leave their fused eval paths if they get a yes
    here; so the traced result would not be the plain one.
    """

    def has_torch_function(relevant_args: Sequence[Any]) -> bool:
        mode = overrides._get_current_function_mode()  # type: ignore[no-untyped-call]
        if not isinstance(mode, TraceMode) or sys._getframe(1).f_globals is vars(torch._ops):
            return original(relevant_args)  # torch._ops: a higher-order operator asks whether to show itself
        with overrides._pop_mode_temporarily():
            return original(relevant_args)

    return has_torch_function
