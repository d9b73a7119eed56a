"""Running cases and probes: texts against expected texts, runs against plain ones, torch against what it was."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import frozen
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lens.capture.backend import CaptureBackend, chosen_backend
from lens.capture.conformance import expected_texts, memory_cases, module_cases, operation_cases, run_cases
from lens.capture.conformance.case import Case
from lens.capture.conformance.observation import Forward, Observation, observe
from lens.capture.conformance.outcomes import CONDUCT, Outcome, Report
from lens.capture.conformance.probes import PROBES, Probe
from lens.capture.conformance.surroundings import Surroundings
from lens.ir.graph import Graph
from lens.session import trace

#: All cases.
CASES: tuple[Case, ...] = (*operation_cases.CASES, *memory_cases.CASES, *module_cases.CASES, *run_cases.CASES)


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
        return Outcome.of(self.case.name, self.granularity, missing, lambda: self._problems(chosen, expected))

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

    def _problems(self, backend: CaptureBackend, expected: str | None) -> Iterator[str]:
        if expected is None:
            yield "there is no expected text; `lens conform NAME --update` writes it"
            return
        plain = observe(self.case, _plainly(self.case))
        before = Surroundings.now()
        graph, traced = record(self.case, backend, self.granularity)
        changes = sorted(Surroundings.now().changes_since(before))
        if changes:
            yield f"not what it was before the trace: {', '.join(changes)}"
        yield from traced.differences(plain)
        if self.granularity == "aten" and "python_data" not in backend.capabilities:
            expected = expected_texts.without_python_data(expected)
        actual = expected_texts.normal_text(graph)
        if actual != expected:
            lines = difflib.unified_diff(expected.splitlines(), actual.splitlines(), "expected", "recorded", "", "", 2)
            yield "\n".join(line.rstrip("\n") for line in lines)


@frozen
class ConductTrial:
    """One question about the conduct of a backend."""

    case: Probe
    granularity: str = CONDUCT

    def __str__(self) -> str:
        return f"{self.case.name}-{self.granularity}"

    def run(self, backend: str | CaptureBackend) -> Outcome:
        """Ask it of a backend, given by name or as itself."""
        chosen = chosen_backend(backend)
        missing = sorted(set(self.case.needs) - chosen.capabilities)
        if chosen.capabilities.isdisjoint(("functions", "aten")):
            missing.append("functions or aten")
        return Outcome.of(self.case.name, self.granularity, missing, lambda: self._problems(chosen))

    def _problems(self, backend: CaptureBackend) -> Iterator[str]:
        before = Surroundings.now()
        yield from self.case.ask(backend)
        changes = sorted(Surroundings.now().changes_since(before))
        if changes:
            yield f"not what it was before the trace: {', '.join(changes)}"


def cases() -> tuple[Trial | ConductTrial, ...]:
    """All trials, to be handed to ``pytest.mark.parametrize``."""
    texts = (Trial(case, granularity) for case in CASES for granularity in expected_texts.GRANULARITIES)
    return (*texts, *map(ConductTrial, PROBES))


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


def record(case: Case, backend: CaptureBackend, granularity: str) -> tuple[Graph, Observation]:
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

    observed = observe(case, forward)
    return graphs[0], observed


def _plainly(case: Case) -> Forward:
    return lambda model, args: [leaf for leaf in tree_leaves(model(*args, **case.kwargs)) if isinstance(leaf, Tensor)]
