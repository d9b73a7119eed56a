"""``torch.autograd.Function``: each call of a custom function is a scope with the function's name."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from threading import get_ident
from typing import Any

from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from lens.capture.keeping import UNSEEN
from lens.capture.patches import Entries
from lens.capture.recorder import Recorder
from lens.capture.regions import Sight


def watch_autograd_functions(sight: Sight) -> None:
    """Give every custom autograd function that is applied a scope of its own.

    ``apply`` asks the class for its ``forward`` each time, so the class's own attribute lookup is the one place
    that ``apply`` cannot pass by, however early it was bound.
    """
    sight.patch(type(Function), "__getattribute__", _wrap_lookup)


def _wrap_lookup(original: Callable[[type, str], Any], entries: Entries) -> Callable[[type, str], Any]:
    stand_ins: dict[type, Any] = {}

    def __getattribute__(cls: type, name: str) -> Any:
        found = original(cls, name)
        if name != "forward":
            return found
        stack = entries.get(get_ident())
        # torch calls forward from its own code, directly below apply
        if not stack or not stack[-1].open or sys._getframe(1).f_code.co_name != "apply":
            return found
        stand_in = stand_ins.get(cls)
        if stand_in is None:
            stand_in = stand_ins[cls] = type(cls.__name__, (), {"training": False})()
        return functools.partial(_run, stack[-1].recorder, stand_in, found)

    return __getattribute__


def _run(recorder: Recorder, stand_in: Any, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    context = args[0] if args and isinstance(args[0], FunctionCtx) else None
    given = args if context is None else args[1:]  # the context is a node of the autograd graph, and would keep it
    entered = recorder.enter(stand_in, given, kwargs, sys._getframe(1))
    output = None
    try:
        output = forward(*args, **kwargs)
        for tensor in getattr(context, "dirty_tensors", None) or ():
            with UNSEEN():
                recorder.protect((tensor,))  # torch counts up its version once more when it returns
                recorder.memory.stop_counting(tensor)
        return output
    finally:
        recorder.exit(entered, output)
