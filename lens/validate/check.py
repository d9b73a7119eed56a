"""The validation of saved activations (paper, "Validating the accuracy of saved activations")."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from attrs import field, frozen

from lens.errors import LensError
from lens.ir.elements import Op, ValueId
from lens.ir.facets import Labels
from lens.ir.graph import Graph
from lens.ir.payloads import PayloadStore
from lens.replay.interpreter import Interpreter
from lens.replay.program import OPERATION_ERRORS, makes_garbage, why_not_run
from lens.validate.report import Report, Status, Verdict

if TYPE_CHECKING:
    from lens.history import ModelHistory

#: A replayed result may differ by this much where a kernel does not sum in the same order twice.
_RELATIVE, _ABSOLUTE = 1e-5, 1e-6
_ATTEMPTS = 2


#: Results that are scratch memory for a derivative, by position: their padding is not initialised.
_SCRATCH = {"mkldnn_rnn_layer.default": (3,)}


def check(history: ModelHistory) -> Report:
    """Run every operation again from its saved operands, and once more from nonsense.

    The result must be the saved one in the first case, and another in the second, or the verdict says why not.
    Needs a history that saved everything. Time: about twice the forward pass and a copy of every operand.
    """
    return _Check(history.graph, history.payloads).report()


@frozen
class _Check:
    graph: Graph
    payloads: PayloadStore
    #: What was not saved and is made here: values between two writes to shared memory.
    between: dict[ValueId, torch.Tensor] = field(factory=dict)

    def report(self) -> Report:
        interpreter = Interpreter(self.graph, self.payloads)
        labels = self.graph[Labels].results
        verdicts = []
        for op in self.graph.ops:
            name = labels[op.id][0] if labels[op.id] else str(op.function)
            status, detail = self._verdict(interpreter, op)
            verdicts.append(Verdict(name, status, detail))
        return Report(tuple(verdicts))

    def _verdict(self, interpreter: Interpreter, op: Op) -> tuple[Status, str]:
        reason = why_not_run(op)
        if reason:
            return "exempt", reason
        if any(map(self._unshaped, op.operands)):
            return "exempt", "reads a parameter that a lazy module had yet to shape"
        try:
            operands = {v: self.between[v] if v in self.between else self.payloads.read(v) for v in op.reads}
            scratch = {v for i, v in enumerate(op.results) if i in _SCRATCH.get(op.function.name, ())}
            saved = {
                v: self.payloads.read(v)
                for v in op.writes
                if v not in scratch and (v in self.payloads or v in op.results)
            }
            replayed = interpreter.run(op, operands)
            self.between.update({v: tensor for v, tensor in replayed.items() if v not in self.payloads})
        except LensError as error:
            return "failed", error.what
        except OPERATION_ERRORS as error:
            return "failed", f"run again it raises {type(error).__name__}: {str(error).splitlines()[0][:200]}"
        if any(_without_data(tensor) for tensor in (*operands.values(), *saved.values())):
            return "exempt", "a tensor without data"
        if makes_garbage(op):
            return "exempt", "makes uninitialised memory"
        if not saved.keys() <= replayed.keys():
            if not op.function.composite:
                return "failed", "run again it does not return all of its results"
            saved = {value: tensor for value, tensor in saved.items() if value in replayed}
        for value, expected in saved.items():
            difference = _difference(replayed[value], expected)
            if difference:
                return "failed", f"run again it gives another tensor: {difference}"
        return self._perturbed(interpreter, op, operands, saved)

    def _unshaped(self, value: ValueId) -> bool:
        leaf = self.graph.values[value].leaf
        return leaf is not None and self.graph.values[value].type.shape == (0,) and value not in self.payloads

    def _perturbed(
        self,
        interpreter: Interpreter,
        op: Op,
        operands: dict[ValueId, torch.Tensor],
        saved: dict[ValueId, torch.Tensor],
    ) -> tuple[Status, str]:
        """Put nonsense in place of each floating-point operand: the result should change."""
        deaf = []
        for place, value in enumerate(op.operands):
            operand = operands[value]
            if (
                operand.is_nested
                or operand.layout is not torch.strided
                or not operand.is_floating_point()
                or operand.numel() == 0
            ):
                continue
            if not any(self._reacts(interpreter, op, operands, value, saved) for _ in range(_ATTEMPTS)):
                deaf.append(str(place))
        if deaf:
            return "exempt", f"does not depend on the values of operand {', '.join(deaf)}"
        return "proved", ""

    def _reacts(
        self,
        interpreter: Interpreter,
        op: Op,
        operands: dict[ValueId, torch.Tensor],
        value: ValueId,
        saved: dict[ValueId, torch.Tensor],
    ) -> bool:
        original = operands[value]
        scale = float(original.detach().double().abs().max()) + 1.0
        noise = (torch.randn(original.shape, device=original.device) * scale).to(original.dtype)
        try:
            changed = interpreter.run(op, {**operands, value: noise})
        except OPERATION_ERRORS:
            return True  # it refuses the nonsense, so it looks at it
        return any(not _same(changed[value], tensor) for value, tensor in saved.items())


def _difference(found: torch.Tensor, expected: torch.Tensor) -> str:
    """How two tensors differ; empty if they are the same."""
    if found.is_nested and expected.is_nested:
        parts = zip(found.unbind(), expected.unbind(), strict=True)
        return next(filter(None, (_difference(a, b) for a, b in parts)), "")
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return f"{found.dtype} {list(found.shape)} instead of {expected.dtype} {list(expected.shape)}"
    if _same(found, expected):
        return ""
    if found.dtype.is_floating_point or found.dtype.is_complex:
        if torch.allclose(found, expected, rtol=_RELATIVE, atol=_ABSOLUTE, equal_nan=True):
            return ""
        return f"up to {float((found - expected).abs().max()):.3g} apart"
    return "other values"


def _without_data(tensor: torch.Tensor) -> bool:
    """Whether it is a meta tensor or a fake one."""
    return tensor.is_meta or hasattr(tensor, "fake_mode")


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit for bit, except that any NaN equals any NaN."""
    if a.is_nested and b.is_nested:
        return all(_same(x, y) for x, y in zip(a.unbind(), b.unbind(), strict=True))
    if a.shape != b.shape or a.layout != b.layout:
        return False
    if a.layout is not torch.strided:
        return _same(a.to_dense(), b.to_dense())
    a, b = _comparable(a), _comparable(b)
    if torch.equal(a, b):
        return True
    if not (a.dtype.is_floating_point or a.dtype.is_complex):
        return False
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _comparable(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in a dtype that torch compares: it has no comparison for those of a few bits."""
    if tensor.dtype is torch.complex32:
        return tensor.to(torch.complex64)
    few_bits = tensor.dtype.is_floating_point and tensor.element_size() == 1
    return tensor.float() if few_bits else tensor
