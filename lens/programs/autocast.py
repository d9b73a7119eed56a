"""Autocast in programs: where it changes between operations, and what it is after a program that raised."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import fx
from torch.amp.autocast_mode import _enter_autocast, _exit_autocast

from lens.ir.elements import Op

#: The device types under autocast with their dtypes, and the nodes that have entered it.
State: TypeAlias = tuple[tuple[tuple[str, str], ...], list[fx.Node]]


def switch_autocast(graph: fx.Graph, op: Op | None, current: State) -> State:
    """Enter and leave autocast where the state before an op differs from that of the op before."""
    state = () if op is None else op.autocast
    if state == current[0] or (op is not None and not op.operands):
        return current
    for entered in reversed(current[1]):
        graph.call_function(_exit_autocast, (entered,))
    entering = ((device, getattr(torch, dtype), True, False) for device, dtype in state)
    return state, [graph.call_function(_enter_autocast, args) for args in entering]


def autocast_devices(graph: fx.Graph) -> frozenset[str]:
    """The device types for which a program changes autocast."""
    return frozenset(str(node.args[0]) for node in graph.nodes if node.target is _enter_autocast)


@contextmanager
def autocast_put_back(devices: Iterable[str]) -> Iterator[None]:
    """Leave, if the body raises, what it has entered; the code of a program has no ``finally``."""
    before = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in devices]
    cached, depth = torch.is_autocast_cache_enabled(), _depth()
    try:
        yield
    except BaseException:
        for kind, enabled, dtype in before:
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)
        torch.set_autocast_cache_enabled(cached)
        while _depth() > depth:
            torch.autocast_decrement_nesting()
        if depth == 0:
            torch.clear_autocast_cache()
        raise


def _depth() -> int:
    """How many autocast contexts are entered."""
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return int(depth) - 1
