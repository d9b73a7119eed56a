"""The barest recorder that could make a graph: how much of the cost of recording any recorder in Python has to pay."""

import sys
from time import perf_counter
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from benchmarks.models import Case


class BarestRecorder(TorchFunctionMode):
    """A row per operation with all that a graph tells of it, by the shortest way, and nothing made safe.

    It numbers tensors by an attribute that it leaves on them; it knows no module calls, no writes, neither parameters
    nor results in lists, keeps a storage's address but not who else has it, and takes the nearest line, be it of the
    user or of torch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[Any, ...]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        begin = perf_counter()
        result = func(*args, **(kwargs or {}))
        duration = perf_counter() - begin
        if isinstance(result, torch.Tensor):
            operands = [getattr(arg, "number", None) for arg in args if isinstance(arg, torch.Tensor)]
            result.number = number = len(self.rows)
            frame = sys._getframe(1)
            self.rows.append((
                func, operands, kwargs, number, result.shape, result.dtype, result.device, result._version,
                result.untyped_storage()._cdata, frame.f_code, frame.f_lasti, duration,
            ))  # fmt: skip
        return result


def record_barely(case: Case) -> list[tuple[Any, ...]]:
    """The rows of one forward pass."""
    recorder = BarestRecorder()
    with recorder:
        case.model(*case.args)
    return recorder.rows
