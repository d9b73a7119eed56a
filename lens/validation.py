"""The validation of a model on an input: recorded, run plainly, audited, and every operation proved."""

from __future__ import annotations

from typing import Any

import torch
from attrs import evolve
from torch import nn

from lens.capture.inputs import check_call, check_seed, named, positional
from lens.errors import LensError
from lens.history import ModelHistory
from lens.run_state import RunState, tensors_of
from lens.session import trace
from lens.stages import stage
from lens.validate.check import check, compared
from lens.validate.completeness import audit
from lens.validate.report import Report, Verdict


def validation_report(
    model: nn.Module,
    inputs: Any,
    kwargs: dict[str, Any] | None = None,
    *,
    seed: int | None = None,
    backend: str = "torch_function",
    completeness: bool = True,
) -> Report:
    """Record a model once and prove what was saved (``lens.validate.check``), compare it with a plain run from the same
    state and random numbers, and audit under the same state whether an operation is missing.

    Args:
        model: Any module. Its buffers and attributes, the inputs and the generators end as after one forward pass.
        inputs: A tuple is the positional arguments; anything else is one argument.
        kwargs: Keyword arguments.
        seed: Set before the run; by default the generators are left as they are.
        backend: The capture backend.
        completeness: Whether to audit, which runs the model once more.

    Raises:
        InputError, BackendError: as ``lens.trace`` does.

    What the model itself raises, and that it does not do the same twice, stands in the report.
    """
    positional_args, named_args = positional(inputs), named(kwargs)
    check_call(model, positional_args, named_args)
    check_seed(seed)
    if seed is not None:
        torch.manual_seed(seed)
    trial = _Trial(model, positional_args, named_args, backend)
    try:
        return trial.report(completeness)
    finally:
        trial.end.restore()


class _Trial:
    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], backend: str) -> None:
        self.model, self.args, self.kwargs, self.backend = model, args, kwargs, backend
        self.start = RunState(model, (args, kwargs))
        self.history: ModelHistory | None = None
        self.error: Exception | None = None
        try:
            self.history = trace(model, args, kwargs, backend=backend)
        except LensError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a model raises is told in the report
            self.error, self.history = error, getattr(error, "lens_history", None)
        self.end = RunState(model, (args, kwargs))
        if self.history is not None:
            self.start.recover(self.history, self.end)

    def report(self, completeness: bool) -> Report:
        """Everything that is to be found out."""
        if self.history is None:
            return Report((), (self._plain(None),))
        report = check(self.history)  # first: what is held by reference does not survive another run
        outputs = None
        if self.error is None:
            outputs = [self.history.payloads.read(v).detach().clone() for v in self.history.graph.outputs.values]
        self.history = None  # its memory is needed for the other runs
        checks = [self._plain(outputs), *report.checks]
        if completeness and self.error is None and not self.start.lazy:
            checks.append(self._audited())
        verdicts = report.verdicts
        if checks[0].status == "failed":
            verdicts = tuple(evolve(verdict, anchored=False) for verdict in verdicts)
        return Report(verdicts, tuple(checks))

    def _plain(self, outputs: list[torch.Tensor] | None) -> Verdict:
        """How the traced run compares with a plain one."""
        if self.start.lazy:
            return Verdict("plain run", "exempt", "the first run of a lazy module cannot be repeated")
        plain, error = self.again()
        if outputs is None or plain is None:
            return self._raised(error)
        found = compared(outputs, plain)
        if found.status == "failed":
            second, _ = self.again()
            if second is None or compared(plain, second).status == "failed":
                detail = f"two plain runs differ as well; {found.detail}"
                return Verdict("plain run", "exempt", detail, "nondeterministic")
        return found

    def again(self) -> tuple[list[torch.Tensor] | None, Exception | None]:
        """What the model returns, or raises, in a plain run from the same start."""
        self.start.restore()
        try:
            with stage("running the model as it is"):
                return tensors_of(self.model(*self.args, **self.kwargs)), None
        except Exception as error:  # noqa: BLE001 - whatever a model raises is told in the report
            return None, error

    def _raised(self, plain: Exception | None) -> Verdict:
        if self.error is None:
            return Verdict("plain run", "failed", f"it raises {_told(plain)}, the traced one does not", "plain")
        if plain is None:
            return Verdict("plain run", "failed", f"the traced run raises {_told(self.error)}, it does not", "lens")
        return Verdict("plain run", "failed", f"the model raises {_told(plain)}", "model")

    def _audited(self) -> Verdict:
        self.start.restore()
        try:
            found = audit(self.model, self.args, self.kwargs, backend=self.backend)
        except Exception as error:  # noqa: BLE001 - the model ran before, so it is not the same at every call
            return Verdict("completeness", "exempt", f"the third run raises {_told(error)}", "nondeterministic")
        if found.ok:
            return Verdict("completeness", "proved")
        holes = "; ".join(f"{hole.name} at {hole.location} ({hole.count}x)" for hole in found.holes[:3])
        return Verdict("completeness", "failed", holes, "hole")


def _told(error: Exception | None) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
