"""Wrapper subclasses: tensors that keep other tensors in their attributes and compute with those, out of sight.

When such a wrapper, or a tensor taken out of one, is met for the first time, an operation is written down that says
only this: it came from that other tensor.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from lens.capture.keeping import UNSEEN
from lens.capture.recorder import Recorder
from lens.capture.regions import knows
from lens.functions import Function, Kind, call_opaque
from lens.ir.elements import FnRef

_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})
_WRAP = Function(call_opaque, FnRef("lens", "wrap", opaque=True), Kind.OP)
_UNWRAP = Function(call_opaque, FnRef("lens", "unwrap", opaque=True), Kind.OP)


def value_by_wrapping(recorder: Recorder, tensor: torch.Tensor) -> int | None:
    """The value of an unknown tensor that holds a known one, or is held by one; None if it is neither.

    Linear in the number of live tensors if the trace has met a subclass, else constant.
    """
    inner = [part for part in _parts(tensor) if knows(recorder, part)]
    if inner:
        return _derive(recorder, _WRAP, inner, tensor)
    if not recorder.encoder.has_met_subclass:
        return None
    for record in recorder.tensors.records():
        outer = record()
        if outer is not None and any(part is tensor for part in _parts(outer)):
            return _derive(recorder, _UNWRAP, [outer], tensor)
    return None


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    if type(tensor) in _PLAIN:
        return []
    return [part for part in getattr(tensor, "__dict__", {}).values() if isinstance(part, torch.Tensor)]


def _derive(recorder: Recorder, function: Function, sources: Sequence[torch.Tensor], tensor: torch.Tensor) -> int:
    with UNSEEN():
        call = recorder.start(function, (None, *sources), None, sys._getframe(2))
        recorder.finish(call, tensor, 0.0)
    record = recorder.tensors.find(tensor)
    assert record is not None
    return record.value
