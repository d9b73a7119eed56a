"""Ways between tensors and Python data that no operator of ATen shows, for the ``torch_dispatch`` backend.

``t.tolist()`` and ``t.numpy()`` copy or show memory; ``torch.tensor([t])`` and ``copy.deepcopy(t)`` read it. That is
done by C functions that the dispatcher hears nothing of.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import lru_cache
from threading import get_ident
from types import FrameType
from typing import Any, Protocol

import torch

from lens.capture.patches import Entries, fill_tables, patched
from lens.functions import Function, describe, tensors_in

#: What makes tensors of Python data. Everything else that does (``torch.FloatTensor``, a constructor bound to another
#: name) gives a leaf of unknown origin, as there may be tensors among the data.
_CONSTRUCTORS = (
    *("tensor", "as_tensor", "asarray", "sparse_coo_tensor", "sparse_compressed_tensor"),
    *("sparse_csr_tensor", "sparse_csc_tensor", "sparse_bsr_tensor", "sparse_bsc_tensor"),
)
_METHODS = ("new_tensor", "new", "__deepcopy__")
_READS = ("tolist", "numpy", "__dlpack__", "data_ptr")
#: Instructions whose numbers are an index, or the value of an item: torch takes lists of tensors there apart itself.
_SUBSCRIPTS = frozenset({"BINARY_SUBSCR", "STORE_SUBSCR", "DELETE_SUBSCR"})


class Watcher(Protocol):
    """What a backend does about these."""

    def construct(self, function: Function, args: Any, kwargs: Any, frame: FrameType, *, derived: bool) -> Any:
        """Make a tensor of Python data; ``derived`` says that there are tensors among the data."""

    def read_out(self, function: Function, args: Any, kwargs: Any, frame: FrameType) -> Any:
        """Run what takes values out of the tensor world."""


def watch_python_data(watcher: Watcher, stack: ExitStack) -> None:
    """Tell a watcher of the data that goes in and out in this thread, until the stack unwinds."""
    fill_tables()
    for owner, names, wrap in (
        (torch, _CONSTRUCTORS, _wrap_constructor),
        (torch.Tensor, _METHODS, _wrap_constructor),
        (torch.Tensor, _READS, _wrap_read),
    ):
        for name in names:
            if hasattr(owner, name):
                stack.enter_context(patched(owner, name, wrap, watcher))


def is_subscript(frame: FrameType) -> bool:
    """Whether the instruction that a frame is at takes or sets an item."""
    return frame.f_lasti in _subscripts(frame.f_code)


@lru_cache(maxsize=1024)
def _subscripts(code: Any) -> frozenset[int]:
    return frozenset(step.offset for step in dis.get_instructions(code) if step.opname in _SUBSCRIPTS)


def _wrap_constructor(original: Callable[..., Any], entries: Entries) -> Callable[..., Any]:
    function = describe(original)

    def construct(*args: Any, **kwargs: Any) -> Any:
        stack = entries.get(get_ident())
        if not stack:
            return original(*args, **kwargs)
        data = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, (list, tuple))]
        derived = function.copies or next(tensors_in(data), None) is not None
        return stack[-1].construct(function, args, kwargs, sys._getframe(1), derived=derived)

    return construct


def _wrap_read(original: Callable[..., Any], entries: Entries) -> Callable[..., Any]:
    function = describe(original)

    def read(*args: Any, **kwargs: Any) -> Any:
        stack = entries.get(get_ident())
        if not stack:
            return original(*args, **kwargs)
        return stack[-1].read_out(function, args, kwargs, sys._getframe(1))

    return read
