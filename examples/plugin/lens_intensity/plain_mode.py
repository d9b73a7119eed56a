"""A backend that writes down the functions that the model calls, and does not look inside them."""

import sys
from contextlib import contextmanager
from time import perf_counter

from torch.overrides import TorchFunctionMode

from lens.capture.module_calls import watch_modules
from lens.functions import Kind, describe


class PlainModeBackend:
    """Records with one mode and nothing else."""

    name = "plain_mode"
    capabilities = frozenset({"functions", "reads", "scopes", "sites"})

    def unavailable(self):
        return None

    @contextmanager
    def record(self, emit):
        with watch_modules(emit), _Mode(emit):
            yield


class _Mode(TorchFunctionMode):
    def __init__(self, recorder):
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        frame = sys._getframe(1)
        function = describe(func)
        if function.kind is Kind.METADATA:
            return func(*args, **kwargs)
        if function.kind is Kind.READ:
            result = func(*args, **kwargs)
            self.recorder.read(function.read, (*args, *kwargs.values()), result, frame)
            return result
        call = self.recorder.start(function, args, kwargs, frame)
        begin = perf_counter()
        result = func(*args, **kwargs)
        self.recorder.finish(call, result, perf_counter() - begin)
        return result
