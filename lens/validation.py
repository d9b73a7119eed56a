"""The validation of a model on an input: recorded, run plainly, audited, and every operation proved."""

from __future__ import annotations

from typing import Any

import torch
from attrs import evolve
from torch import nn

from lens.capture.backend import CaptureBackend, chosen_backend
from lens.capture.compiled import never_compiled
from lens.capture.inputs import check_call, check_seed, named, positional
from lens.errors import BackendError, InputError
from lens.foreign import Raised, attempt
from lens.history import ModelHistory
from lens.reachable import MOST
from lens.run_state import RunState, tensors_of
from lens.session import trace
from lens.stages import stage
from lens.validate.check import check, compared, metadata_verdict
from lens.validate.completeness import audit
from lens.validate.invariants import addresses_of, misnamed
from lens.validate.report import Report, Verdict

#: Of what cannot be put back a report names so many.
_SHOWN = 3


@never_compiled
def validation_report(
    model: nn.Module,
    inputs: Any,
    kwargs: dict[str, Any] | None = None,
    *,
    seed: int | None = None,
    backend: str | CaptureBackend = "torch_function",
    completeness: bool = True,
) -> Report:
    """Record a model once and prove what was saved (``lens.validate.check``), compare it with a plain run from the same
    state and random numbers, and audit under the same state whether an operation is missing.

    Args:
        model: Any module. What a forward pass changes of it, of the inputs and of the generators ends as after one.
        inputs: A tuple is the positional arguments; anything else is one argument.
        kwargs: Keyword arguments.
        seed: Set before the run; by default the generators are left as they are.
        backend: The capture backend, by name or as itself.
        completeness: Whether to audit, which runs the model once more.

    Raises:
        InputError, BackendError: as ``lens.trace`` does.

    What the model itself raises, that it does not do the same twice, and what of its state is known not to be as after
    one forward pass (``lens.run_state``), stands in the report.
    """
    positional_args, named_args = positional(inputs), named(kwargs)
    check_call(model, positional_args, named_args)
    check_seed(seed)
    chosen = chosen_backend(backend)
    if seed is not None:
        torch.manual_seed(seed)
    trial = _Trial(model, positional_args, named_args, chosen)
    try:
        report = trial.report(completeness)
    finally:
        trial.end.restore()
    return evolve(report, checks=(*report.checks, *trial.not_put_back()))


class _Trial:
    def __init__(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], backend: CaptureBackend
    ) -> None:
        self.model, self.args, self.kwargs, self.backend = model, args, kwargs, backend
        self.start = RunState.of(model, (args, kwargs))
        self.names = addresses_of(model)
        self.history: ModelHistory | None = None
        found = attempt(lambda: trace(model, args, kwargs, backend=backend), self._take_history)
        self.raised = found if isinstance(found, Raised) else None
        if not isinstance(found, Raised):
            self.history = found
        self.end = self.start.after(self.history)

    def _take_history(self, error: Exception) -> None:
        if isinstance(error, (InputError, BackendError)):
            raise error
        self.history = getattr(error, "lens_history", None)

    def report(self, completeness: bool) -> Report:
        """Everything that is to be found out."""
        if self.history is None:
            return Report((), (self._plain(None),))
        report = check(self.history, model=self.model)  # first: what is held by reference does not survive another run
        names = metadata_verdict("addresses", list(misnamed(self.history, self.names)))
        outputs = None if self.raised is not None else attempt(self._outputs)
        self.history = None  # its memory is needed for the other runs
        checks = [self._plain(outputs), *report.checks, names]
        if completeness and self.raised is None and not self._why_not_again():
            checks.append(self._audited())
        verdicts = report.verdicts
        if checks[0].status == "failed":
            verdicts = tuple(evolve(verdict, anchored=False) for verdict in verdicts)
        return Report(verdicts, tuple(checks))

    def _outputs(self) -> list[torch.Tensor]:
        """Copies of what the traced run returned."""
        assert self.history is not None
        return [self.history.payloads.read(v).detach().clone() for v in self.history.graph.outputs.values]

    def _plain(self, outputs: list[torch.Tensor] | Raised | None) -> Verdict:
        """How the traced run compares with a plain one."""
        if isinstance(outputs, Raised):
            return Verdict("plain run", "exempt", f"what the traced run returned cannot be compared: {outputs}")
        why_not = self._why_not_again()
        if why_not:
            return Verdict("plain run", "exempt", why_not)
        plain = self._again()
        if outputs is None:
            return self._both_raised(plain)
        if isinstance(plain, Raised):
            return Verdict("plain run", "failed", f"it raises {plain}, the traced one does not", "plain")
        found = compared(outputs, plain)
        if found.status == "failed":
            second = self._again()
            if isinstance(second, Raised) or compared(plain, second).status == "failed":
                detail = f"two plain runs differ as well; {found.detail}"
                return Verdict("plain run", "exempt", detail, "nondeterministic")
        return found

    def _why_not_again(self) -> str:
        """Why the run cannot be repeated; empty if it can."""
        if self.start.lazy:
            return "the first run of a lazy module cannot be repeated"
        return (
            f"cannot be repeated: what it changed is not known: {_shortly(self.start.lost)}" if self.start.lost else ""
        )

    def not_put_back(self) -> list[Verdict]:
        """What is known not to be as after one forward pass."""
        lost = list(dict.fromkeys([*self.end.lost, *self.end.unknown]))
        if not self.start.is_whole:
            lost.append(f"what lies beyond the {MOST:,} objects nearest to the model and the inputs, if it changed")
        return [Verdict("state", "exempt", f"not put back: {_shortly(lost)}")] if lost else []

    def _again(self) -> list[torch.Tensor] | Raised:
        """What the model returns, or raises, in a plain run from the same start."""
        self.start.restore()
        with stage("running the model as it is"):
            return attempt(lambda: tensors_of(self.model(*self.args, **self.kwargs)))

    def _both_raised(self, plain: list[torch.Tensor] | Raised) -> Verdict:
        if isinstance(plain, Raised):
            return Verdict("plain run", "failed", f"the model raises {plain}", "model")
        return Verdict("plain run", "failed", f"the traced run raises {self.raised}, it does not", "lens")

    def _audited(self) -> Verdict:
        self.start.restore()

        def let_through(error: Exception) -> None:
            if isinstance(error, BackendError):
                raise error

        found = attempt(lambda: audit(self.model, self.args, self.kwargs, backend=self.backend), let_through)
        if isinstance(found, Raised):  # the model ran before, so it is not the same at every call
            return Verdict("completeness", "exempt", f"the third run raises {found}", "nondeterministic")
        if found.ok:
            return Verdict("completeness", "proved")
        holes = "; ".join(f"{hole.name} at {hole.location} ({hole.count}x)" for hole in found.holes[:3])
        return Verdict("completeness", "failed", holes, "hole")


def _shortly(items: list[str]) -> str:
    """A few of many."""
    more = f"; and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return "; ".join(items[:_SHOWN]) + more
