"""The validation of saved activations (paper, "Validating the accuracy of saved activations")."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NoReturn

import torch
from attrs import define, evolve, field, frozen
from torch import nn

from lens.errors import LensError, PayloadError, StaleValueError
from lens.foreign import Raised, attempt
from lens.functions import PLAIN_TYPES
from lens.ir.elements import Op, ValueId
from lens.ir.facets import Labels
from lens.ir.graph import Graph
from lens.ir.payloads import PayloadStore, has_elements
from lens.ir.templates import slots
from lens.replay.interpreter import Interpreter, why_not_run
from lens.stages import stage
from lens.validate.comparing import difference, kind_of
from lens.validate.group_testing import are_deaf, reacting
from lens.validate.invariants import violations
from lens.validate.nonsense import Nonsense, with_others
from lens.validate.report import Report, Status, Verdict
from lens.validate.special_cases import Deaf, explain, reacts

if TYPE_CHECKING:
    from lens.history import ModelHistory

#: Problems of one kind that a report shows.
_SHOWN = 3
#: Results that are scratch memory for a derivative, by position: their padding is not initialised.
_SCRATCH = {"mkldnn_rnn_layer.default": (3,)}


def check(history: ModelHistory, *, model: nn.Module | None = None) -> Report:
    """Prove the saved values of a history, one operation after the other, and check its metadata.

    Every operation runs again from its saved operands and must give its saved results, bit for bit; then each operand
    is replaced by nonsense and must make a difference, or a rule says why not (``lens.validate.special_cases``). From
    the outputs back, what depends on what in an unbroken chain is ``anchored``. The metadata is worked out in another
    way than the passes do (``lens.validate.invariants``).

    Args:
        history: One that saved everything, before its tensors are changed. Large tensors in memory of torch's own
            are changed for the time of an operation, and put back: nothing else should use the model meanwhile.
        model: Where to find, by address, the parameters that the history lacks: those of one that was loaded.

    Raises:
        PayloadError: the values were changed before they were saved.

    Takes about four times the forward pass: one run per operation and one per operand; fewer for an operation of many
    operands (``lens.validate.group_testing``). Random number generators are left as they are. Source: paper,
    "Validating the accuracy of saved activations".
    """
    if history.graph.meta.transformed:
        raise PayloadError(
            "what was saved is not what the operations gave: transform= changed it",
            where="lens.validate.check",
            hint="trace again without transform=",
        )
    with torch.random.fork_rng():
        found = _Check(Interpreter(history.graph, history.payloads, model)).verdicts()
    checks = [metadata_verdict(name, problems) for name, problems in violations(history).items()]
    return Report(_anchored(history.graph, found), tuple(checks))


def metadata_verdict(name: str, problems: Sequence[str]) -> Verdict:
    """What was found of a group of metadata: its problems, if there are any."""
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    status: Status = "failed" if problems else "proved"
    return Verdict(name, status, "; ".join(problems[:_SHOWN]) + more, "metadata" if problems else "")


def compared(outputs: Sequence[torch.Tensor], plain: Sequence[torch.Tensor]) -> Verdict:
    """Whether the outputs of a traced run are those of a plain run."""
    if len(plain) != len(outputs):
        return Verdict(
            "plain run", "failed", f"it returns {len(plain)} tensors, the traced one {len(outputs)}", "plain"
        )
    unknown = []
    for place, (output, expected) in enumerate(zip(outputs, plain, strict=True)):
        differs = attempt(partial(_how_differs, output.detach(), expected.detach()))
        if isinstance(differs, Raised):
            unknown.append(f"output {place} cannot be compared: {differs}")
        elif differs:
            return Verdict("plain run", "failed", f"output {place}: {differs}", "plain")
        elif not has_elements(output):
            unknown.append(f"output {place} has no data")
    if unknown:
        return Verdict("plain run", "exempt", "; ".join(unknown[:_SHOWN]))
    return Verdict("plain run", "proved")


def _how_differs(output: torch.Tensor, expected: torch.Tensor) -> str:
    if has_elements(output) and has_elements(expected):
        return difference(output, expected)
    found, wanted = (f"{kind_of(t)} on {t.device}" for t in (output, expected))
    return "" if found == wanted else f"{found} instead of {wanted}"


@frozen
class _Found:
    """A verdict, and the operands that the op depends on."""

    verdict: Verdict
    depends: tuple[ValueId, ...] = ()


def _anchored(graph: Graph, found: Sequence[_Found]) -> tuple[Verdict, ...]:
    """The verdicts, with those marked that an unbroken chain links to an output or a read (paper: backwards)."""
    known = {read.value for read in graph.reads} | set(graph.outputs.values)
    verdicts = []
    for op, one in zip(reversed(graph.ops), reversed(found), strict=True):
        holds = one.verdict.status == "proved" and not known.isdisjoint(op.writes)
        if holds:
            known.update(one.depends)
        verdicts.append(evolve(one.verdict, anchored=holds))
    return tuple(reversed(verdicts))


class _StopError(Exception):
    """Nothing more is to be found out about an operation."""

    def __init__(self, status: Status, detail: str, cause: str = "") -> None:
        super().__init__(detail)
        self.status, self.detail, self.cause = status, detail, cause


def _refuse_comparison(error: Exception) -> NoReturn:
    """Give up an operation on tensors of a class that refuses to be compared."""
    if isinstance(error, _StopError):
        raise error
    found = Raised.of(error)
    raise _StopError("exempt", f"a tensor of another class than torch's cannot be compared: {found}") from error


@define
class _Check:
    interpreter: Interpreter
    nonsense: Nonsense = field(factory=Nonsense)
    #: What was not saved, until its last use: parameters, and made here the values between writes to shared memory.
    unsaved: dict[ValueId, torch.Tensor] = field(factory=dict)

    @property
    def graph(self) -> Graph:
        return self.interpreter.graph

    @property
    def payloads(self) -> PayloadStore:
        return self.interpreter.payloads

    def verdicts(self) -> list[_Found]:
        """Per op what was found, in order of execution."""
        self.unsaved = self.interpreter.of_model()
        found: list[_Found] = []
        with stage("validating", lambda: len(found), len(self.graph.ops)):
            self._prove(found)
        return found

    def _prove(self, found: list[_Found]) -> None:
        labels = self.graph.get(Labels)
        last = {v: op.id for op in self.graph.ops for v in op.reads if v not in self.payloads}
        for op in self.graph.ops:
            names = labels.results[op.id] if labels is not None else ()
            verdict = Verdict(names[0] if names else f"op {op.id}", "proved", "", "", op.id, op.location)
            try:
                depends, notes = self._proved(op)
            except _StopError as stop:
                found.append(_Found(evolve(verdict, status=stop.status, detail=stop.detail, cause=stop.cause)))
            else:
                cause, detail = next(iter(notes), ""), "; ".join(notes.values())
                found.append(_Found(evolve(verdict, detail=detail, cause=cause), depends))
            for value in op.reads:
                if last.get(value) == op.id:
                    self.unsaved.pop(value, None)

    def _proved(self, op: Op) -> tuple[tuple[ValueId, ...], dict[str, str]]:
        """What ``_perturbed`` finds of an op that gives its results again."""
        operands, saved = self._replayed(op)
        if PLAIN_TYPES.issuperset(map(type, (*operands.values(), *saved.values()))):
            return self._perturbed(op, operands, saved)
        return attempt(partial(self._perturbed, op, operands, saved), _refuse_comparison)  # these may refuse anything

    def _replayed(self, op: Op) -> tuple[dict[ValueId, torch.Tensor], dict[ValueId, torch.Tensor]]:
        """Operands and saved results of an op that gives them again."""
        reason = why_not_run(op, self.payloads)
        if reason:
            raise _StopError("exempt", reason)
        if op.function.opaque and self._has_lost_operands(op):
            raise _StopError("exempt", "opaque, and a later operation overwrote what it has closed over")
        if any(map(self._is_unshaped, op.operands)):
            raise _StopError("exempt", "reads a parameter that a lazy module had yet to shape")
        operands, saved = self._values_of(op)
        replayed = self._run(op, operands)
        self.unsaved.update({v: t for v, t in replayed.items() if v not in self.payloads})
        if not all(has_elements(t) for t in (*operands.values(), *saved.values())):
            raise _StopError("exempt", "a tensor without data")
        if op.makes_garbage:
            raise _StopError("exempt", "makes uninitialised memory")
        if not saved.keys() <= replayed.keys():
            if not op.function.composite:
                raise _StopError("failed", "run again it does not return all of its results", "raises")
            saved = {v: t for v, t in saved.items() if v in replayed}
        for value, expected in saved.items():
            differs = attempt(partial(difference, replayed[value], expected))
            if isinstance(differs, Raised):
                raise _StopError("exempt", f"a {type(expected).__name__} that cannot be compared: {differs}")
            if differs:
                self._judge(op, operands, replayed, value, differs)
        return operands, saved

    def _has_lost_operands(self, op: Op) -> bool:
        """Whether an opaque operation has closed over tensors that now hold something else."""
        closed_over = {op.operands[i] for name, arg in op.kwargs if name == "closed_over" for i in slots(arg)}
        if not closed_over:
            return False
        later = [one for one in self.graph.ops[op.id + 1 :] if one.effects or one.function.mutates]
        replaced = {self.graph.values[v].alias_of for one in later if one.function.mutates for v in one.results}
        return not closed_over.isdisjoint(replaced.union(old for one in later for old, _ in one.effects))

    def _values_of(self, op: Op) -> tuple[dict[ValueId, torch.Tensor], dict[ValueId, torch.Tensor]]:
        """Operands and saved results of an op."""
        try:
            operands, saved = {v: self._read(v) for v in op.reads}, self._saved(op)
        except StaleValueError as error:
            raise _StopError("exempt", error.what) from error
        except PayloadError as error:
            raise _StopError("failed", error.what, "unsaved") from error
        if any(self._is_made_plain(value, tensor) for value, tensor in (*operands.items(), *saved.items())):
            raise _StopError("exempt", "a sparse, nested or quantized tensor, which a saved trace holds as a plain one")
        return operands, saved

    def _run(self, op: Op, operands: dict[ValueId, torch.Tensor]) -> dict[ValueId, torch.Tensor]:
        try:
            return self.interpreter.run_op(op, operands)
        except LensError as error:
            raise _StopError("failed", error.what, "raises") from error

    def _judge(
        self,
        op: Op,
        operands: dict[ValueId, torch.Tensor],
        replayed: dict[ValueId, torch.Tensor],
        value: ValueId,
        differs: str,
    ) -> None:
        """A result was not the saved one: is it ever the same?"""
        before = torch.get_rng_state()
        again = self._run(op, operands)
        if not torch.equal(before, torch.get_rng_state()):
            raise _StopError("failed", f"run again it draws other random numbers: {differs}", "random")
        spread = difference(again[value], replayed[value])
        if not spread or op.function.random:
            raise _StopError("failed", f"run again it gives another tensor: {differs}", "mismatch")
        detail = f"is not the same twice: run again {differs}, and once more {spread}"
        raise _StopError("exempt", detail, "nondeterministic")

    def _read(self, value: ValueId) -> torch.Tensor:
        found = self.unsaved[value] if value in self.unsaved else self.payloads.read(value)
        return found.detach()

    def _saved(self, op: Op) -> dict[ValueId, torch.Tensor]:
        scratch = {v for i, v in enumerate(op.results) if i in _SCRATCH.get(op.function.name, ())}
        kept = [v for v in op.writes if v not in scratch and (v in self.payloads or v in op.results)]
        return {v: self.payloads.read(v).detach() for v in kept}

    def _is_made_plain(self, value: ValueId, tensor: torch.Tensor) -> bool:
        """Whether a plain tensor stands for what was none in the run: the file format has no others."""
        if tensor.is_nested or tensor.is_quantized or tensor.layout is not torch.strided:
            return False
        kind = self.graph.values[value].type
        return kind.layout != "strided" or kind.dtype.startswith(("qint", "quint"))

    def _is_unshaped(self, value: ValueId) -> bool:
        leaf = self.graph.values[value].leaf
        return leaf is not None and self.graph.values[value].type.shape == (0,) and value not in self.payloads

    def _perturbed(
        self, op: Op, operands: dict[ValueId, torch.Tensor], saved: dict[ValueId, torch.Tensor]
    ) -> tuple[tuple[ValueId, ...], dict[str, str]]:
        """The operands that the results depend on; of the others by rule why they do not."""
        depends, notes = [], {}
        memories = Counter(map(_memory, (*operands.values(), *saved.values())))
        asked = {value: operands[value] for value in op.operands}

        def run(changed: Mapping[ValueId, torch.Tensor]) -> dict[ValueId, torch.Tensor]:
            return self.interpreter.run_op(op, with_others(operands, changed))

        def react(value: ValueId) -> bool:
            shared = memories[_memory(operands[value])] > 1
            return reacts(self.interpreter, self.nonsense, op, operands, value, saved, shared=shared)

        known = reacting(run, asked, saved, self.nonsense)
        suspects = [value for value in asked if value not in known]
        deaf = are_deaf(run, asked, suspects, saved, self.nonsense)
        for value in asked:
            if value in known or (not deaf and react(value)):
                depends.append(value)
                continue
            place = op.operands.index(value)
            case = explain(Deaf(self.interpreter, self.nonsense, op, value, operands, saved))
            if case is None and deaf and react(value):
                depends.append(value)  # replaced together, more than two undo each other
            elif case is None:
                what = f"other contents of operand {place} make no difference, and no rule says why"
                raise _StopError("failed", what, "deaf")
            else:
                notes[case.name] = f"operand {place} {case.reason}"
        return tuple(depends), notes


def _memory(tensor: torch.Tensor) -> int:
    if tensor.is_nested or tensor.layout is not torch.strided:
        return -id(tensor)
    return int(tensor.untyped_storage()._cdata)
