"""Floating point operations, counted by torch's own formulas (``torch.utils.flop_counter``)."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
from torch.overrides import get_overridable_functions
from torch.utils.flop_counter import FlopCounterMode

from lens.errors import LensError, ReplayError
from lens.functions import FUNCTION_TABLES, resolve
from lens.ir.elements import FnRef, Op, OpId, ValueId
from lens.ir.graph import Graph
from lens.ir.payloads import PayloadStore
from lens.ir.types import RAGGED, TensorType
from lens.replay.arguments import build

#: What a function raises that cannot run on tensors without values, or not on this machine.
_CANNOT_RUN = (RuntimeError, TypeError, ValueError, IndexError, AttributeError, AssertionError, LensError)


class FlopCounter:
    """The floating point operations of the operations of a graph.

    Every operation runs once more on tensors without values (``meta``), under torch's counter; calls that are equal
    but for their values run once. About 0.3 ms per different call. One that cannot run so is given the values of
    integers that were saved: the lengths of packed sequences say how much there is to compute.
    """

    def __init__(self, graph: Graph, payloads: PayloadStore) -> None:
        self._graph = graph
        self._payloads = payloads
        self._known: dict[Any, int | None] = {}

    def __call__(self, number: OpId) -> int | None:
        """What an operation takes, two per multiplication with addition; None if it cannot be counted."""
        op = self._graph.ops[number]
        types = tuple(self._graph.values[v].type for v in op.operands)
        call = op.function, op.args, op.kwargs, types
        if call not in self._known:
            self._known[call] = self._count(op, types)
        valued = set() if self._known[call] is not None else self._lengths(op)
        if not valued:
            return self._known[call]
        if number not in self._known:
            self._known[number] = self._count(op, types, valued)
        return self._known[number]

    def _lengths(self, op: Op) -> set[ValueId]:
        """The operands that may say how much there is to compute: saved integers, beside others."""
        if self._graph.meta.transformed:
            return set()
        integers = {v for v in op.operands if self._graph.values[v].type.dtype == "int64" and v in self._payloads}
        return integers if len(integers) < len(set(op.operands)) else set()

    def _stand_in(self, value: ValueId, kind: TensorType, valued: bool) -> torch.Tensor:
        if valued:
            return self._payloads.read(value).clone()  # type: ignore[no-any-return]  # some functions write to it
        return torch.empty(kind.shape, dtype=getattr(torch, kind.dtype), device="meta")

    def _count(self, op: Op, types: tuple[TensorType, ...], valued: Container[ValueId] = ()) -> int | None:
        if op.function.opaque or any(RAGGED in t.shape or t.layout != "strided" for t in types):
            return None
        if not types or op.function.view:
            return 0  # it makes a tensor from none, or shows one
        try:
            tensors = [self._stand_in(v, t, v in valued) for v, t in zip(op.operands, types, strict=True)]
            args = [build(arg, tensors, self._payloads.objects) for arg in op.args]
            kwargs = {name: build(arg, tensors, self._payloads.objects) for name, arg in op.keywords}
            function = _operator(op.function)
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                function(*args, **kwargs)
        except _CANNOT_RUN:
            return None
        return int(counter.get_total_flops())


def _operator(ref: FnRef) -> Callable[..., Any]:
    """The function of a name if it is one of torch's on tensors: a file may name any other, which must not run.

    Raises ReplayError if it is not.
    """
    function = resolve(ref) if ref.namespace.partition(".")[0] == "torch" else None
    known = (
        isinstance(function, (torch._ops.OpOverload, torch._ops.OpOverloadPacket))
        or (ref.namespace in FUNCTION_TABLES and "." not in ref.name)
        or (ref.namespace in ("torch", "torch.Tensor") and hasattr(_BUILTINS[ref.namespace], ref.name))
        or function in _operators()
    )
    if function is None or not known:
        raise ReplayError(f"{ref} is no function of torch on tensors", where="the count of floating point operations")
    return function


#: Where the functions and methods written in C stand.
_BUILTINS: Mapping[str, Any] = MappingProxyType(
    {"torch": torch._C._VariableFunctions, "torch.Tensor": torch._C.TensorBase}
)


@cache
def _operators() -> frozenset[Any]:
    return frozenset(f for functions in get_overridable_functions().values() for f in functions)
