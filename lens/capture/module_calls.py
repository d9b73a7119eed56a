"""The live module stack: every module call is announced to the recorder, and every return, exceptions included."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from threading import get_ident
from typing import Any

from torch import nn

from lens.capture.patches import Entries, patched
from lens.capture.recorder import Recorder

#: Torch's own name for it is private, but assigning to the dunder costs 0.2 ms in a process with many module classes.
MODULE_CALL = "_call_impl" if hasattr(nn.Module, "_call_impl") else "__call__"


def watch_modules(recorder: Recorder) -> AbstractContextManager[Entries]:
    """Announce the module calls of this thread to a recorder, while the block lasts.

    The method that runs a module's hooks and forward is replaced, rather than global hooks registered: so the
    user's own forward hooks run inside the scope of their module, and the scope ends however the call ends
    (docs/adr/003-module-calls.md).
    """
    return patched(nn.Module, MODULE_CALL, wrap_module_call, recorder)


def wrap_module_call(original: Callable[..., Any], recorders: Entries) -> Callable[..., Any]:
    """The method that announces calls to the recorders of its thread."""

    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        stack = recorders.get(get_ident())
        if not stack or stack[-1].keeper.asking:
            return original(self, *args, **kwargs)
        recorder: Recorder = stack[-1]
        entered = recorder.enter(self, args, kwargs, sys._getframe(1))
        output = None
        try:
            output = original(self, *args, **kwargs)
            return output
        finally:
            recorder.exit(entered, output)

    return __call__


#: Where a search for the user's line meets a module call.
MODULE_CALL_FILE = wrap_module_call.__code__.co_filename
