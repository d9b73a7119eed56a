"""Backward passes: autograd runs them out of sight, and what they put into ``grad`` is not computed in the graph."""

from __future__ import annotations

import sys
from collections.abc import Callable
from threading import get_ident
from typing import Any

import torch

from lens.capture.patches import Entries
from lens.capture.regions import Sight
from lens.ir.gaps import BACKWARD

_METHOD = torch.Tensor.backward.__code__


def watch_backward(sight: Sight) -> None:
    """Disclose the backward passes of this thread. ``torch.autograd.grad`` is an operation and none of these."""
    sight.patch(torch.autograd, "backward", _wrap)


def _wrap(original: Callable[..., Any], entries: Entries) -> Callable[..., Any]:
    def backward(*args: Any, **kwargs: Any) -> Any:
        frame = sys._getframe(1)
        for sight in entries.get(get_ident()) or ():
            if sight.open or frame.f_code is _METHOD:  # the method itself may run out of sight
                sight.recorder.tape.unseen.append((BACKWARD, sight.recorder.site(frame)))
        return original(*args, **kwargs)

    return backward
