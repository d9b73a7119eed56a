"""Wrapper subclasses: tensors that keep other tensors in their attributes and compute with those, out of sight.

When such a wrapper, or a tensor taken out of one, is met for the first time, an operation is written down that says
only this: it came from that other tensor.
"""

from __future__ import annotations

import torch

from lens.capture.parts import UNWRAP, WRAP, derive, parts_of
from lens.capture.recorder import Recorder
from lens.capture.regions import knows


def value_by_wrapping(recorder: Recorder, tensor: torch.Tensor) -> int | None:
    """The value of an unknown tensor that holds a known one, or is held by one; None if it is neither.

    Linear in the number of live tensors if the trace has met a subclass, else constant.
    """
    inner = [part for part in parts_of(tensor) if knows(recorder, part)]
    if inner:
        return derive(recorder, WRAP, inner, tensor)
    if not recorder.encoder.has_met_subclass:
        return None
    for record in recorder.tensors.records():
        outer = record()
        if outer is not None and any(part is tensor for part in parts_of(outer)):
            return derive(recorder, UNWRAP, [outer], tensor)
    return None
