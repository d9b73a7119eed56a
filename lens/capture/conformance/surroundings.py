"""What a trace could leave behind in torch and in Python."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import ModuleType

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.utils import _python_dispatch, checkpoint

_BUILTINS = ("_nn", "_linalg", "_special", "_fft", "_sparse", "_nested")
#: Where functions stand that a backend may replace.
_OWNERS: Mapping[str, object] = {
    "torch": torch,
    **{name: getattr(torch, name) for name in ("functional", "linalg", "fft", "special", "sparse", "overrides")},
    **{name: getattr(torch._C, name) for name in _BUILTINS if hasattr(torch._C, name)},
    "nn.functional": nn.functional,
    "Tensor": Tensor,
    "nn.Module": nn.Module,
    "autograd": torch.autograd,
    "autograd.Function": torch.autograd.Function,
    "checkpoint": checkpoint,
    "Thread": threading.Thread,
    "ThreadPoolExecutor": ThreadPoolExecutor,
    "Future": Future,
}
_CHANGING = ("__warningregistry__", "manual_seed")  # torch replaces manual_seed when it loads its compiler


@frozen(eq=False)
class Surroundings:
    """What stands where at one moment.

    Args:
        attributes: Per owner: what it has, by name; compared by identity.
        settings: Modes, switches and hooks, by what they are called; compared by equality.
    """

    attributes: Mapping[str, Mapping[str, object]]
    settings: Mapping[str, object]

    @classmethod
    def now(cls) -> Surroundings:
        """As it is now."""
        return cls({name: dict(vars(owner)) for name, owner in _OWNERS.items()}, _settings())

    def changes_since(self, before: Surroundings) -> Iterator[str]:
        """What is not as it was. A submodule that was loaded meanwhile is no change."""
        for owner, now in self.attributes.items():
            then = before.attributes[owner]
            for name in then.keys() | now.keys():
                kept = then.get(name) is now.get(name) or isinstance(now.get(name), ModuleType)
                if not kept and name not in _CHANGING:
                    yield f"{owner}.{name}"
        yield from (name for name, value in self.settings.items() if value != before.settings[name])


def _settings() -> dict[str, object]:
    dispatch_mode = getattr(_python_dispatch, "_get_current_dispatch_mode", lambda: None)
    hooks = {name: len(value) for name, value in vars(nn.modules.module).items() if isinstance(value, dict)}
    return {
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "the default dtype": torch.get_default_dtype(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "the number of threads": torch.get_num_threads(),
        "the torch function modes": torch.overrides._get_current_function_mode_stack(),  # type: ignore[no-untyped-call]
        "the dispatch mode": dispatch_mode(),
        "the hooks of all modules": hooks,
        "the profile function": (sys.getprofile(), threading.getprofile()),
        "the trace function": (sys.gettrace(), threading.gettrace()),
        "the garbage collector": gc.isenabled(),
    }
