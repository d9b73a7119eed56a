"""The interpreter: a graph is a pure dataflow program, run from any place with the values that are there.

An op reads the values that its row names and no other memory: every write happens in a memory of its own, laid out
as in the run (``lens.replay.operation``). So no value changes once it is made, views may share the memory of what
they view, a range may start anywhere, and a value may be replaced by another: what is computed from it follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import NoReturn, TypeAlias

import torch
from attrs import field, frozen
from torch import nn

from lens.errors import ReplayError
from lens.foreign import Raised, attempt
from lens.ir.elements import Leaf, Op, ValueId
from lens.ir.graph import Graph
from lens.ir.payloads import PayloadStore
from lens.ir.templates import Opaque, opaques
from lens.replay.operation import run_operation, written_operands

_FORWARD_MODE = frozenset({"_make_dual", "_unpack_dual"})
Tensors: TypeAlias = Mapping[ValueId, torch.Tensor]


@frozen
class Interpreter:
    """Runs one op of a graph, a range, or everything.

    ``Interpreter(history.graph, history.payloads)``; to run the whole graph:
    ``interpreter.run(interpreter.sources(), want=history.graph.outputs.values)``.

    Args:
        graph: The graph.
        payloads: Gives the opaque objects, the generator states and the memory layouts; ``sources`` and nothing else
            takes values from it.
        model: Where ``sources`` finds parameters and buffers that the payloads lack: a loaded trace has no parameters.
    """

    graph: Graph
    payloads: PayloadStore = field(factory=PayloadStore)
    model: nn.Module | None = None

    def run_op(self, op: Op, values: Tensors) -> dict[ValueId, torch.Tensor]:
        """What one op makes: its results, and the new values of its effects.

        Args:
            op: An op of the graph, or a variant of one; a composite runs as the function that it is.
            values: At least everything that the op reads. None of them is changed.

        Raises:
            ReplayError: the function or an argument is not there, or the function raises.
        """
        return attempt(lambda: run_operation(self.graph, self.payloads, op, values), _refuse)

    def written(self, op: Op, values: Tensors) -> set[ValueId]:
        """The operands that an op writes to."""
        return written_operands(self.graph, self.payloads, op, values)

    def run(
        self, values: Tensors, *, start: int = 0, stop: int | None = None, want: Iterable[ValueId] | None = None
    ) -> dict[ValueId, torch.Tensor]:
        """Run the ops ``start`` to ``stop - 1``, or those of them that the wanted values need.

        Args:
            values: What is there. It is used in place of what an op of the range would make: a value put here
                replaces the recorded one for all that is computed from it. None of them is changed.
            start, stop: The range; all of the graph by default.
            want: The values to give; others are dropped after their last use. By default all that the range makes.

        Returns:
            The wanted values, in the order asked for. They may share memory with each other and with what was given:
            copy before you write.

        Raises:
            ReplayError: a value is missing, or an op cannot be run here; it names the op and its line.
        """
        stretch = self.graph.ops[start:stop]
        wanted = dict.fromkeys((v for op in stretch for v in op.writes) if want is None else want)
        ops = _needed(stretch, values, wanted)
        last = {v: op.id for op in ops for v in _sources_of(op) if v not in wanted}
        made: dict[ValueId, torch.Tensor] = {}
        for op in ops:
            there = {v: made[v] if v in made else values[v] for v in _sources_of(op) if v in made or v in values}
            for value, tensor in self._run_named(op, there).items():
                if value not in values and (value in wanted or value in last):
                    made[value] = tensor
            for value in there:
                if last.get(value) == op.id:
                    made.pop(value, None)
        missing = [v for v in wanted if v not in made and v not in values]
        if missing:
            raise ReplayError(
                f"the value %{missing[0]} is wanted, and nothing in the range makes it",
                where=str(self.graph),
                hint="give it in values, or choose a range with the op that makes it",
            )
        return {v: made[v] if v in made else values[v] for v in wanted}

    def _run_named(self, op: Op, there: Tensors) -> dict[ValueId, torch.Tensor]:
        """Run an op; errors name it."""
        where = f"op {op.id}, {op.function}" + (f" at {op.location}" if op.location else "")
        for value in _sources_of(op):
            if value not in there:
                hint = "give it in values, or start earlier"
                raise ReplayError(f"the value %{value} is needed and not there", where=where, hint=hint)
        if op.hands_on:
            return {new: there[old] for new, old in zip(op.results, op.yields, strict=True) if old is not None}
        try:
            return self.run_op(op, there)
        except ReplayError as error:
            error.where = error.where or where
            raise

    def sources(self) -> dict[ValueId, torch.Tensor]:
        """The values that a run of the whole graph starts from.

        They are the leaves, and what only the run can tell: uninitialised memory, results of walks over the autograd
        graph, and in a loaded trace what objects made that no file can hold. Parameters and buffers that are not
        saved are taken from the model, by address, as they are now.

        Raises:
            ReplayError: a leaf is neither saved nor in the model.
        """
        found = self.of_model()
        found.update({leaf.value: self._leaf(leaf) for leaf in self.graph.leaves if leaf.value not in found})
        for op in self.graph.ops:
            if op.makes_garbage or why_not_run(op, self.payloads):
                found.update({v: self.payloads.read(v) for v in op.results if v in self.payloads})
        return found

    def of_model(self) -> dict[ValueId, torch.Tensor]:
        """The parameters and buffers that the payloads lack, found in the model by address, as they are now."""
        if self.model is None:
            return {}
        tensors = {**dict(self.model.named_buffers()), **dict(self.model.named_parameters())}
        lacking = [leaf for leaf in self.graph.leaves if leaf.value not in self.payloads]
        return {leaf.value: tensors[name] for leaf in lacking for name in leaf.addresses if name in tensors}

    def _leaf(self, leaf: Leaf) -> torch.Tensor:
        if leaf.value in self.payloads:
            return self.payloads.read(leaf.value)  # type: ignore[no-any-return]
        name = leaf.addresses[0] if leaf.addresses else f"%{leaf.value}"
        raise ReplayError(
            f"the {leaf.kind} {name} is not saved in this trace",
            where=str(leaf.location or ""),
            hint="give the model to take parameters and buffers from, or trace with save='all'",
        )


def _refuse(error: Exception) -> NoReturn:
    if isinstance(error, ReplayError):
        raise error
    raise ReplayError(f"run again it raises {Raised.of(error)}", hint="do the values given fit the graph?") from error


def _sources_of(op: Op) -> tuple[ValueId, ...]:
    if op.hands_on:
        return tuple(dict.fromkeys(v for v in op.yields if v is not None))
    return tuple(dict.fromkeys(op.reads))


def _needed(ops: Sequence[Op], given: Tensors, wanted: Iterable[ValueId]) -> list[Op]:
    """The ops that make a wanted value, or what one of these reads."""
    missing = {v for v in wanted if v not in given}
    needed = []
    for op in reversed(ops):
        if not missing.isdisjoint(op.writes):
            needed.append(op)
            missing.update(v for v in _sources_of(op) if v not in given)
    return needed[::-1]


def why_not_run(op: Op, payloads: PayloadStore | None = None) -> str:
    """Why an operation cannot be run on its own, if it cannot."""
    if op.function.namespace == "torch.autograd":
        return "walks the autograd graph of the run, which is gone"
    if op.function.name == "grad.__get__":
        return "reads a gradient, which stands beside its tensor and is not computed from it"
    if op.function.name in _FORWARD_MODE:
        return "belongs to a level of forward-mode differentiation that is gone"
    if op.function.opaque and not isinstance(op.args[0], Opaque):
        return "says where a tensor came from; nothing was called"
    if payloads is not None:
        arguments = (*op.args, *(arg for _, arg in op.kwargs))
        for lacking in chain.from_iterable(map(opaques, arguments)):
            if lacking.index not in payloads.objects:
                return f"is given a {lacking.type}, which this trace does not hold"
    if op.function.opaque and op.function.mutates:
        return "opaque, and would write to the model again"
    return ""
