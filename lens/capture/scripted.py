"""TorchScript: scripted and traced functions, modules and methods run out of sight; each call is one operation."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from threading import get_ident
from typing import Any
from weakref import WeakKeyDictionary

import torch

from lens.capture.keeping import MODES_OFF
from lens.capture.patches import Entries
from lens.capture.regions import Sight, run_region
from lens.ir.elements import FnRef

#: Names that stand in the text of a TorchScript graph where it writes to memory it did not just make.
_WRITES = re.compile(r"\w_\(|prim::SetAttr|batch_norm|instance_norm|out=")

#: private: takes branches out of a graph that never run; without it what is given to ``F.relu`` is copied in each call
_DECIDE_BRANCHES: Callable[[Any], object] = getattr(
    torch._C, "_jit_pass_constant_propagation_immutable_types", lambda graph: None
)


def watch_scripts(sight: Sight) -> None:
    """Record calls of scripted code as opaque operations."""
    for kind, wrap in _WRAPS.items():
        # private: without these types scripted results are external leaves, and disclosed
        owner = getattr(torch._C, kind, None)
        if owner is not None:
            sight.patch(owner, "__call__", wrap)


def _wrapper(kind: str) -> Callable[..., Any]:
    ref = FnRef("torch.jit", f"script_{kind}")

    def wrap(original: Any, entries: Entries) -> Callable[..., Any]:
        writes: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()

        def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not any(sight.open for sight in entries.get(get_ident()) or ()):
                return original(self, *args, **kwargs)
            owner = getattr(self, "owner", None)
            tensors = [] if owner is None else list(_tensors(owner))
            may_write = writes.get(self)
            if may_write is None:
                may_write = writes[self] = _may_write(self.inlined_graph)
            frame = sys._getframe(1)
            return run_region(entries, ref, self, args, kwargs, frame, closed_over=tensors, may_write=may_write)

        return __call__

    return wrap


_WRAPS = {"ScriptFunction": _wrapper("function"), "ScriptMethod": _wrapper("method")}


def _may_write(inlined: Any) -> bool:
    """Whether a graph, with all that it calls, may write to a tensor that it is given."""
    graph = inlined.copy()
    with MODES_OFF():  # printing a graph prints its constants, which computes
        _DECIDE_BRANCHES(graph)  # ``if inplace:`` stands in many functions of torch
        return _WRITES.search(str(graph)) is not None


def _tensors(owner: Any) -> Iterator[torch.Tensor]:
    """The parameters and buffers of a scripted module and its children."""
    tables: Any = torch._C
    for table in (tables.ParameterDict, tables.BufferDict):
        for _, tensor in table(owner).items():
            yield tensor
    for _, child in tables.ModuleDict(owner).items():
        yield from _tensors(child)
