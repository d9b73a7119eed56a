"""The making of a tensor subclass from a tensor, which no function mode sees."""

from __future__ import annotations

import sys
from collections.abc import Callable
from threading import get_ident
from time import perf_counter
from typing import Any

import torch

from lens.capture.patches import Entries
from lens.capture.regions import Sight
from lens.functions import describe


def watch_subclasses(sight: Sight) -> None:
    """Record the making of subclass instances (parameters among them) from tensors."""
    # private: without _make_subclass a parameter made in the forward is an external leaf, and disclosed
    for name in ("as_subclass", "_make_subclass"):
        sight.patch(torch.Tensor, name, _wrapper)


def _wrapper(original: Callable[..., Any], entries: Entries) -> Callable[..., Any]:
    function = describe(original)

    def make(*args: Any, **kwargs: Any) -> Any:
        stack = entries.get(get_ident())
        if not stack or not stack[-1].open or _dispatches(args[0]):
            return original(*args, **kwargs)
        recorder = stack[-1].recorder
        call = recorder.start(function, args, kwargs, sys._getframe(1))
        begin = perf_counter()
        result = original(*args, **kwargs)
        recorder.finish(call, result, perf_counter() - begin)
        return result

    return make


def _dispatches(kind: Any) -> bool:
    """Whether a class has a dispatch of its own: its instances must not be looked at before they are complete."""
    return isinstance(kind, type) and kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__  # type: ignore[attr-defined]
