"""Replay of a graph: a pure dataflow program, run from any place with the values that are there.

An op reads the values that its row names and no other memory: the Interpreter runs every write in a memory of its
own, laid out as in the run. So no value changes once it is made, views may share the memory of what they view, a
range may start anywhere, and a value may be replaced by another: whatever descends from it is computed anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from lens.errors import ReplayError
from lens.ir.elements import Leaf, Op, ValueId
from lens.ir.graph import Graph
from lens.ir.payloads import PayloadStore
from lens.ir.templates import Opaque
from lens.replay.interpreter import Interpreter

#: What an operation raises when its arguments do not fit.
OPERATION_ERRORS = (RuntimeError, ValueError, TypeError, IndexError)
_FORWARD_MODE = frozenset({"_make_dual", "_unpack_dual"})
_UNINITIALISED = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "empty_permuted")


def replay(
    graph: Graph,
    values: Mapping[ValueId, torch.Tensor],
    *,
    payloads: PayloadStore | None = None,
    start: int = 0,
    stop: int | None = None,
    want: Iterable[ValueId] | None = None,
) -> dict[ValueId, torch.Tensor]:
    """Run the ops ``start`` to ``stop - 1`` of a graph again.

    Args:
        graph: The graph.
        values: What is there: of the values that no op of the range makes, at least those that it reads. One that
            an op of the range makes stands instead of what that op would make. None of them is changed.
        payloads: Gives the opaque objects, the generator states and the memory layouts. Its values are not used.
        start, stop: The range; all of the graph by default.
        want: The values to give. Others are dropped after their last use. By default all that the range makes.

    Returns:
        The wanted values. They may share memory with each other and with what was given: copy before you write.

    Raises:
        ReplayError: a value is missing, or an op cannot be run here; it names the op and its line.
    """
    ops = graph.ops[start:stop]
    wanted = {v for op in ops for v in op.writes} if want is None else set(want)
    last = {v: op.id for op in ops for v in (*op.reads, *op.yields) if v is not None and v not in wanted}
    there = {**values}
    interpreter = Interpreter(graph, payloads or PayloadStore())
    for op in ops:
        if not all(v in values for v in op.writes):
            made = _run(interpreter, op, there)
            there.update({v: tensor for v, tensor in made.items() if v not in values and (v in wanted or v in last)})
        for value in {*op.reads, *op.yields}:
            if value is not None and last.get(value) == op.id:
                there.pop(value, None)
    missing = [v for v in wanted if v not in there]
    if missing:
        raise ReplayError(f"the value %{missing[0]} is wanted, but nothing in the range makes it", where=str(graph))
    return {v: there[v] for v in wanted}


def _run(interpreter: Interpreter, op: Op, there: Mapping[ValueId, torch.Tensor]) -> dict[ValueId, torch.Tensor]:
    where = f"op {op.id}, {op.function}" + (f" at {op.location}" if op.location else "")
    if op.interior and None not in op.yields:  # a composite of a raw graph: what is in it has run
        return {new: there[old] for new, old in zip(op.results, op.yields, strict=True) if old is not None}
    for value in op.reads:
        if value not in there:
            hint = "give it in values, or start earlier"
            raise ReplayError(f"the value %{value} is needed and not there", where=where, hint=hint)
    try:
        return interpreter.run(op, there)
    except OPERATION_ERRORS as error:
        what = f"run again it raises {type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
        raise ReplayError(what, where=where, hint="do the values given fit the graph?") from error


def sources(graph: Graph, payloads: PayloadStore, model: nn.Module | None = None) -> dict[ValueId, torch.Tensor]:
    """The values that a replay of the whole graph starts from.

    They are the leaves, and what only the run can tell: uninitialised memory, results of walks over the autograd
    graph. Parameters and buffers that the store lacks (a loaded trace has no parameters) are taken from the model,
    by address, as they are now.

    Raises:
        ReplayError: a leaf is neither in the store nor in the model.
    """
    found = {leaf.value: _leaf(leaf, payloads, model) for leaf in graph.leaves}
    for op in graph.ops:
        if makes_garbage(op) or why_not_run(op):
            found.update({v: payloads.read(v) for v in op.results if v in payloads})
    return found


def why_not_run(op: Op) -> str:
    """Why an operation cannot be run on its own, if it cannot."""
    if op.function.namespace == "torch.autograd":
        return "walks the autograd graph of the run, which is gone"
    if op.function.name == "grad.__get__":
        return "a gradient stands beside its tensor; it is not computed from it"
    if op.function.name in _FORWARD_MODE:
        return "belongs to a level of forward-mode differentiation that is gone"
    if op.function.opaque and not isinstance(op.args[0], Opaque):
        return "says where a tensor came from; nothing was called"
    if op.function.opaque and op.function.mutates:
        return "opaque, and would write to the model again"
    return ""


def makes_garbage(op: Op) -> bool:
    """Whether an operation makes uninitialised memory."""
    return op.function.name.partition(".")[0] in _UNINITIALISED


def _leaf(leaf: Leaf, payloads: PayloadStore, model: nn.Module | None) -> torch.Tensor:
    if leaf.value in payloads:
        return payloads.read(leaf.value)  # type: ignore[no-any-return]
    if model is not None:
        tensors = {**dict(model.named_buffers()), **dict(model.named_parameters())}
        for address in leaf.addresses:
            if address in tensors:
                return tensors[address]
    name = leaf.addresses[0] if leaf.addresses else f"%{leaf.value}"
    raise ReplayError(
        f"the {leaf.kind} {name} is not saved in this trace",
        where=str(leaf.location or ""),
        hint="give the model to take parameters and buffers from, or trace with save='all'",
    )
