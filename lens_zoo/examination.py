"""What is checked of one model: that its trace is right in every way that can be checked without knowing the model."""

from __future__ import annotations

import copy
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from attrs import define, field

import lens
from lens.history import ModelHistory
from lens.ir.elements import Op, ValueId
from lens.ir.facets import Labels, Recurrence
from lens.ir.graph import Graph
from lens.ir.parser import parse
from lens.ir.printer import print_graph
from lens.ir.verifier import find_problems
from lens.model_specs import ModelCall
from lens.run_state import RunState, tensors_of
from lens.validate.check import check
from lens.validate.completeness import audit

_SEED = 1
#: Stages in which only the model itself runs.
OWN_STAGES = ("start", "build", "copy", "plain")
_SHOWN = 4
_LENGTH = 240
#: Bytes of values above which only the graph makes the round trip.
_LARGE = 1 << 26


@define
class Findings:
    """One line of the ledger.

    Args:
        recipe, backend: What ran, and how it was recorded.
        status: ``proved``; ``failed``: something is wrong with the trace; ``not run``: the model itself could not be
            built or run here; ``limit``: it was stopped while it was examined.
        reasons: Why it is not proved: cause and detail.
        ops: How many operations were recorded.
        verdicts: How many of them the validator proved, exempted, failed.
        exemptions: Reasons of exemptions, with how many operations have them.
        gaps: Kinds of gaps, with how many there are.
        recurrent: Recurrent layers with the rule that made them so.
        parameters_shared: Whether two operations read one parameter, which makes recurrence plausible.
        seconds: What each stage took.
    """

    recipe: str
    backend: str
    status: str = "proved"
    reasons: list[str] = field(factory=list)
    ops: int = 0
    verdicts: dict[str, int] = field(factory=dict)
    exemptions: dict[str, int] = field(factory=dict)
    gaps: dict[str, int] = field(factory=dict)
    recurrent: list[str] = field(factory=list)
    parameters_shared: bool = False
    seconds: dict[str, float] = field(factory=dict)

    def fail(self, cause: str, detail: object = "", status: str = "failed") -> None:
        """Note something that is wrong."""
        text = " ".join(str(detail).split())[:_LENGTH]
        self.status = status
        self.reasons.append(f"{cause}: {text}" if text else cause)


def examine(
    recipe: str,
    build: Callable[[], ModelCall],
    backend: str,
    feedforward: bool = False,
    stage: Callable[[str], None] = lambda name: None,
) -> Findings:
    """Build a model, run it plain and recorded, and check everything.

    Args:
        recipe: Its name.
        build: Makes it with its arguments.
        backend: How to record it.
        feedforward: Whether it is known that no layer of it recurs.
        stage: Is told what is done next.
    """
    findings = Findings(recipe, backend)

    def timed(name: str, work: Callable[[], Any]) -> Any:
        stage(name)
        begin = time.perf_counter()
        try:
            return work()
        except Exception as error:  # whatever a model or lens raises belongs into the ledger
            status = "not run" if name in OWN_STAGES else "failed"
            findings.fail(f"{name} raises {type(error).__name__}", error, status)
            raise _StopError from error
        finally:
            findings.seconds[name] = round(time.perf_counter() - begin, 3)

    try:
        call = timed("build", lambda: _seeded(build, 0))
        twin = timed("copy", lambda: _twin(call, build))
        plain = timed("plain", lambda: _run_plain(twin))
        start = RunState.of(call.model, (call.args, call.kwargs))
        history, state = timed("trace", lambda: _run_traced(call, backend))
        start.after(history)
        timed("compare", lambda: _compare(findings, (_outputs(history), state), plain, build))
        report = timed("check", lambda: check(history))
        _note_verdicts(findings, report)
        timed("metadata", lambda: _check_metadata(findings, history))
        timed("round trip", lambda: _check_round_trips(findings, history))
        timed("recurrence", lambda: note_recurrence(findings, history.graph, feedforward))
        timed("audit", lambda: _audit(findings, call, start))
    except _StopError:
        pass
    return findings


class _StopError(Exception):
    """A stage has failed, and those after it need what it would have given."""


def _seeded(work: Callable[[], ModelCall], seed: int) -> ModelCall:
    torch.manual_seed(seed)
    return work()


def _twin(call: ModelCall, build: Callable[[], ModelCall]) -> ModelCall:
    """The same again, to be run first: a model may keep something from a run."""
    try:
        return copy.deepcopy(call)
    except (RuntimeError, TypeError, NotImplementedError):  # not all tensors and modules can be copied
        return _seeded(build, 0)


#: The tensors that a run returned, and the state in which it left the random generator.
_Ran: TypeAlias = tuple[list[torch.Tensor], torch.Tensor]


def _run_plain(call: ModelCall) -> _Ran:
    torch.manual_seed(_SEED)
    with torch.no_grad():
        output = call.model(*call.args, **call.kwargs)
    return tensors_of(output), torch.get_rng_state()


def _run_traced(call: ModelCall, backend: str) -> tuple[ModelHistory, torch.Tensor]:
    torch.manual_seed(_SEED)
    with torch.no_grad():
        history = lens.trace(call.model, call.args, call.kwargs, backend=backend)
    return history, torch.get_rng_state()


def _outputs(history: ModelHistory) -> list[torch.Tensor]:
    return [history.payloads.read(value) for value in history.graph.outputs.values]


def _compare(findings: Findings, traced: _Ran, plain: _Ran, build: Callable[[], ModelCall]) -> None:
    """The recorded run is the plain one, bit for bit."""
    if not equal(traced[0], plain[0]):
        again, _ = _run_plain(_seeded(build, 0))
        own = "" if equal(again, plain[0]) else "; two plain runs differ too"
        findings.fail("traced output is not the plain one", f"{len(traced[0])} and {len(plain[0])} tensors{own}")
    if not torch.equal(traced[1], plain[1]):
        findings.fail("the generator is left in another state")


def equal(found: list[Any], expected: list[torch.Tensor]) -> bool:
    """Whether two lists of tensors are the same bit for bit; NaNs of one place count as the same."""
    return len(found) == len(expected) and all(map(_same, found, expected))


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    if (a.shape, a.dtype, a.layout) != (b.shape, b.dtype, b.layout):
        return False
    if a.is_nested:
        return all(map(_same, a.unbind(), b.unbind()))
    if a.layout is not torch.strided:
        a, b = a.to_dense(), b.to_dense()
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


def _note_verdicts(findings: Findings, report: Any) -> None:
    findings.ops = len(report.verdicts)
    findings.verdicts = dict(Counter(v.status for v in report.verdicts))
    findings.exemptions = dict(Counter(v.detail for v in report.verdicts if v.status == "exempt").most_common(8))
    for verdict in report.failed[:_SHOWN]:
        findings.fail("not validated", f"{verdict.layer}: {verdict.detail}")


def _check_metadata(findings: Findings, history: ModelHistory) -> None:
    graph = history.graph
    for problem in find_problems(graph)[:_SHOWN]:
        findings.fail("structure", f"[{problem.rule}] {problem.what}")
    for text in list(_label_problems(history))[:_SHOWN]:
        findings.fail("labels", text)
    findings.gaps = dict(Counter(gap.kind for gap in history.gaps))


def _label_problems(history: ModelHistory) -> Iterator[str]:
    """Entries have names of their own, passes count up to the total, numbers up by one."""
    rows = history.index.rows
    repeated = [name for name, count in Counter(row.label_with_pass for row in rows).items() if count > 1]
    if repeated:
        yield f"{len(repeated)} names stand for several entries: {repeated[:3]}"
    passes: dict[str, list[int]] = {}
    for row in rows:
        passes.setdefault(row.label, []).append(row.pass_num)
        if row.pass_num > row.pass_total:
            yield f"{row.label} has pass {row.pass_num} of {row.pass_total}"
    for label, numbers in passes.items():  # a result may be missing in some passes: unbind gives as many as there are
        if numbers != sorted(set(numbers)):
            yield f"{label} has the passes {numbers[:8]}"
    names = dict.fromkeys(name for op in history.graph[Labels].results for name in op)
    numbers = [int(name.rsplit("_", 1)[1]) for name in names]
    if numbers != list(range(1, len(numbers) + 1)):
        yield "layers are not numbered in order of first execution"


def _check_round_trips(findings: Findings, history: ModelHistory) -> None:
    graph = history.graph
    if parse(print_graph(graph)) != graph:
        findings.fail("the text form reads back as another graph")
    with_payloads = sum(value.type.nbytes for value in graph.values) < _LARGE
    with tempfile.TemporaryDirectory() as folder:
        loaded = lens.load(history.save(Path(folder) / "model.lens", payloads=with_payloads))
    if loaded.graph != graph:
        findings.fail("the file reads back as another graph")
    if with_payloads and not equal(_outputs(loaded), _outputs(history)):
        findings.fail("the file reads back with other values")


def _audit(findings: Findings, call: ModelCall, start: RunState) -> None:
    """Nothing happens below autograd that no operation accounts for."""
    if start.lazy:
        return  # the first run of a lazy module cannot be repeated
    start.restore()
    with torch.no_grad():
        found = audit(call.model, call.args, call.kwargs, backend=findings.backend)
    for hole in found.holes[:_SHOWN]:
        findings.fail("an operation is missing", f"{hole.name} at {hole.location} ({hole.count}x)")


def note_recurrence(findings: Findings, graph: Graph, feedforward: bool) -> None:
    """In a model that is known to be feedforward nothing recurs, but what uses a parameter twice, and equal operations
    without parameters that follow each other: the paper calls them a loop (rule 3), two dropouts in a row as well."""
    parameters = {leaf.value for leaf in graph.leaves if leaf.kind == "parameter"}
    uses = Counter(v for op in graph.ops for v in set(op.operands) if v in parameters)
    findings.parameters_shared = any(count > 1 for count in uses.values())
    facet, labels = graph[Recurrence], graph[Labels]
    wrong = []
    for ops in facet.passes():
        if len(ops) > 1 and labels.results[ops[0]]:
            findings.recurrent.append(f"{labels.results[ops[0]][0]} x{len(ops)} ({facet.rule[ops[0]]})")
            if not _is_loop([graph.ops[op] for op in range(ops[0], ops[-1] + 1)], ops, parameters):
                wrong.append(findings.recurrent[-1])
    if feedforward and wrong and not findings.parameters_shared:
        findings.fail("recurrent though feedforward", ", ".join(wrong[:_SHOWN]))


def _is_loop(stretch: Sequence[Op], passes: Sequence[int], parameters: Container[ValueId]) -> bool:
    """Whether passes are the same function with the same arguments, each fed by the one before, and no operation on
    the way has a parameter."""
    first, *others = (op for op in stretch if op.id in passes)
    fed = set(first.writes)
    for op in stretch[1:]:
        reached = not fed.isdisjoint(op.reads)
        if op in others:
            if not reached or (op.function, op.args, op.kwargs) != (first.function, first.args, first.kwargs):
                return False
            fed.clear()
        if reached:
            fed.update(op.writes)
    return not any(value in parameters for op in stretch for value in op.operands)
