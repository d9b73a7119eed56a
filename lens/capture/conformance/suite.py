"""Running the cases: texts against expected texts, results against a plain forward, torch against what it was."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeAlias

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lens.capture.backend import CaptureBackend, chosen_backend
from lens.capture.conformance import expected_texts, memory_cases, module_cases, operation_cases, run_cases
from lens.capture.conformance.case import Case
from lens.errors import LensError
from lens.ir.graph import Graph
from lens.session import trace

#: Runs a model on arguments and gives the tensors of its result.
Forward: TypeAlias = Callable[[nn.Module, tuple[Any, ...]], list[Tensor]]

#: All cases.
CASES: tuple[Case, ...] = (*operation_cases.CASES, *memory_cases.CASES, *module_cases.CASES, *run_cases.CASES)


#: What a backend that is wrong may raise.
_FAILURES = (LensError, RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError)


@frozen
class Outcome:
    """What came of one trial: ``passed``, ``failed`` or ``skipped``, with the difference or the reason."""

    case: str
    granularity: str
    status: Literal["passed", "failed", "skipped"]
    detail: str = ""


@frozen
class Trial:
    """One case at one granularity."""

    case: Case
    granularity: str

    def __str__(self) -> str:
        return f"{self.case.name}-{self.granularity}"

    def run(self, backend: str | CaptureBackend) -> Outcome:
        """Run it with a backend, given by name or as itself."""
        chosen = chosen_backend(backend)
        expected = expected_texts.read(self.granularity).get(self.case.name)
        missing = sorted(set(self._needs(expected)) - chosen.capabilities)
        if missing:
            return self._outcome("skipped", f"the backend does not claim: {', '.join(missing)}")
        if expected is None:
            return self._outcome("failed", "there is no expected text; `lens conform NAME --update` writes it")
        try:
            problems = "\n".join(self._problems(chosen, expected))
        except _FAILURES as error:
            problems = f"{type(error).__name__}: {error}"
        return self._outcome("failed" if problems else "passed", problems)

    def _outcome(self, status: Literal["passed", "failed", "skipped"], detail: str) -> Outcome:
        return Outcome(self.case.name, self.granularity, status, detail)

    def _needs(self, expected: str | None) -> Iterator[str]:
        yield from expected_texts.GRANULARITIES[self.granularity]
        yield from self.case.needs
        if expected and "\n  scope " in expected:
            yield "scopes"
        if expected and ('scope "<' in expected or " autocast=" in expected):
            yield "regions"
        if self.granularity == "aten":  # which reads are operators depends on nothing but torch
            return
        if expected and any(line.lstrip().startswith("read ") for line in expected.splitlines()):
            yield "reads"

    def _problems(self, backend: CaptureBackend, expected: str) -> Iterator[str]:
        plain = _observe(self.case, _plainly(self.case))
        before = _state_of_torch()
        graph, traced = record(self.case, backend, self.granularity)
        if _state_of_torch() != before:
            yield "torch is not what it was before the trace"
        if not _same(traced, plain):
            yield "the result, the model or the random numbers differ from those of a plain forward"
        if self.granularity == "aten" and "python_data" not in backend.capabilities:
            expected = expected_texts.without_python_data(expected)
        actual = expected_texts.normal_text(graph)
        if actual != expected:
            lines = difflib.unified_diff(expected.splitlines(), actual.splitlines(), "expected", "recorded", "", "", 2)
            yield "\n".join(line.rstrip("\n") for line in lines)


@frozen
class Report:
    """The outcomes of all trials with one backend; prints as a table."""

    backend: str
    outcomes: tuple[Outcome, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(outcome.status != "failed" for outcome in self.outcomes)

    def __str__(self) -> str:
        columns = list(expected_texts.GRANULARITIES)
        rows: dict[str, dict[str, str]] = {}
        for outcome in self.outcomes:
            rows.setdefault(outcome.case, {})[outcome.granularity] = outcome.status
        width = max(map(len, rows))
        lines = [f"{'':{width}}  " + "  ".join(f"{column:7}" for column in columns)]
        lines += [f"{case:{width}}  " + "  ".join(f"{row[c]:7}" for c in columns) for case, row in rows.items()]
        for outcome in self.outcomes:
            if outcome.status == "failed":
                lines += ["", f"{outcome.case} at {outcome.granularity} level:", outcome.detail]
        skipped = Counter(outcome.detail for outcome in self.outcomes if outcome.status == "skipped")
        lines += ["", *(f"{count} skipped: {reason}" for reason, count in skipped.items())]
        counts = Counter(outcome.status for outcome in self.outcomes)
        return "\n".join([*lines, f"{self.backend}: {counts['passed']} passed, {counts['failed']} failed"])


def cases() -> tuple[Trial, ...]:
    """All trials, to be handed to ``pytest.mark.parametrize``."""
    return tuple(Trial(case, granularity) for case in CASES for granularity in expected_texts.GRANULARITIES)


def run(backend: str | CaptureBackend) -> Report:
    """Run a backend, given by name or as itself, through the suite.

    Raises:
        BackendError: the backend is unknown or unavailable here.
    """
    chosen = chosen_backend(backend)
    return Report(chosen.name, tuple(trial.run(chosen) for trial in cases()))


def update(backend: str | CaptureBackend) -> tuple[Path, ...]:
    """Rewrite the expected texts of the granularities that a backend claims from what it records, and give their paths.

    Whoever calls this must read the difference before committing it: the texts are what other backends are held to.
    """
    chosen = chosen_backend(backend)
    claimed = [g for g, needs in expected_texts.GRANULARITIES.items() if chosen.capabilities.issuperset(needs)]
    paths = []
    for granularity in claimed:
        able = [case for case in CASES if chosen.capabilities.issuperset(case.needs)]
        texts = {case.name: expected_texts.normal_text(record(case, chosen, granularity)[0]) for case in able}
        paths.append(expected_texts.write(granularity, texts))
    return tuple(paths)


def record(case: Case, backend: CaptureBackend, granularity: str) -> tuple[Graph, list[Tensor]]:
    """The graph of a case, and everything that is to equal a plain run."""
    level = "api" if granularity == "api" else "leaf"
    graphs: list[Graph] = []

    def forward(model: nn.Module, args: tuple[Any, ...]) -> list[Tensor]:
        try:
            history = trace(model, args, dict(case.kwargs), backend=backend, passes=f"granularity{{level={level}}}")
        except case.errors as error:
            graphs.append(error.lens_history.graph)  # type: ignore[attr-defined]
            raise
        graphs.append(history.graph)
        return [history.payloads.read(value) for value in history.graph.outputs.values]

    observed = _observe(case, forward)
    return graphs[0], observed


def _plainly(case: Case) -> Forward:
    return lambda model, args: [leaf for leaf in tree_leaves(model(*args, **case.kwargs)) if isinstance(leaf, Tensor)]


def _observe(case: Case, forward: Forward) -> list[Tensor]:
    """The results of a forward, then all that it may have written to: inputs, parameters, buffers, generator."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    try:
        model, args = case.model(), case.args()
        results = []
        with suppress(*case.errors):
            results = forward(model, args)
        left = [leaf for leaf in tree_leaves((args, model.state_dict())) if isinstance(leaf, Tensor)]
        return [tensor.detach().clone() for tensor in (*results, *left, torch.get_rng_state())]
    finally:
        torch.set_rng_state(state)


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one, other, strict=True)
    )


def _state_of_torch() -> list[object]:
    """What a trace could leave behind on torch; compared by identity. A submodule that was loaded meanwhile is none."""
    owners = (torch, torch.nn.functional, Tensor, nn.Module, torch.overrides)
    modes = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    named = [(name, value) for owner in owners for name, value in sorted(vars(owner).items())]
    changing = ("__warningregistry__", "manual_seed")  # torch replaces manual_seed when it loads its compiler
    kept = [id(value) for name, value in named if name not in changing and not isinstance(value, ModuleType)]
    return [torch.is_grad_enabled(), modes, *kept]
