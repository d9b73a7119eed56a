"""The conformance suite itself: the backends pass it, and it finds what is wrong with one that is not right."""

import pytest
import torch
from torch.overrides import TorchFunctionMode

from lens.capture import backends, conformance
from lens.capture.backend import CAPABILITIES
from lens.capture.conformance import expected_texts
from lens.capture.torch_dispatch import TorchDispatchBackend
from lens.capture.torch_function import TorchFunctionBackend
from lens.cli import main
from lens.registry import BUILT_IN, Plugin, find, plugins

PYTHON_LEVEL = ["torch_function", "decoration"]


@pytest.mark.parametrize("backend", PYTHON_LEVEL)
@pytest.mark.parametrize("trial", [t for t in conformance.cases() if t.granularity != "aten"], ids=str)
def test_conformance(trial, backend):
    outcome = trial.run(backend)
    assert outcome.status == "passed", outcome.detail


def test_conformance_below_autograd():
    report = conformance.run("torch_dispatch")
    assert report.passed, str(report)
    outcomes = {o.case: o.status for o in report.outcomes if o.granularity == "aten"}
    assert sum(status == "passed" for status in outcomes.values()) >= 70
    assert [case for case, status in outcomes.items() if status == "skipped"] == ["numbers_in_lists", "copies", "lstm"]


def test_there_are_enough_cases_and_each_has_its_texts():
    names = [case.name for case in conformance.CASES]
    assert len(names) == len(set(names)) >= 45
    assert list(expected_texts.read("leaf")) == list(expected_texts.read("api")) == names


def case(name):
    return next(t for t in conformance.cases() if t.case.name == name and t.granularity == "leaf")


def with_mode(handle):
    """The default backend with a mode of ours above it."""

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return handle(func, args, kwargs or {})

    class Backend(TorchFunctionBackend):
        name = "wrong"

        def record(self, emit):
            from contextlib import ExitStack

            stack = ExitStack()
            stack.enter_context(super().record(emit))
            stack.enter_context(Mode())
            return stack

    return Backend()


def test_a_missing_operation_is_found():
    def handle(func, args, kwargs):
        with torch._C.DisableTorchFunction():
            return func(*args, **kwargs)

    outcome = case("chain").run(with_mode(handle))
    assert outcome.status == "failed"
    assert "-    %3: f32[2,2] = torch.Tensor.relu(%2)" in outcome.detail


def test_a_changed_result_is_found():
    outcome = case("generator").run(with_mode(lambda func, args, kwargs: func(*args, **kwargs).add_(0.5)))
    assert "differ from those of a plain forward" in outcome.detail


def test_something_left_on_torch_is_found():
    class Leaves(TorchFunctionBackend):
        def record(self, emit):
            torch.left_behind = object()
            return super().record(emit)

    try:
        assert "torch is not what it was" in case("chain").run(Leaves()).detail
    finally:
        del torch.left_behind


def test_a_case_is_skipped_only_for_a_capability_that_is_not_claimed():
    class Modest(TorchFunctionBackend):
        name = "modest"
        capabilities = frozenset({"functions", "scopes"})

    report = conformance.run(Modest())
    skipped = {(o.case, o.granularity): o.detail for o in report.outcomes if o.status == "skipped"}
    assert skipped["chain", "leaf"] == "the backend does not claim: composites"
    assert skipped["while_loop", "api"] == "the backend does not claim: reads"
    assert ("chain", "api") not in skipped
    assert report.passed


@pytest.mark.parametrize("claims", [True, False])
def test_reads_that_are_no_operators_count_if_the_backend_claims_to_see_them(claims, monkeypatch):
    class Below(TorchDispatchBackend):
        capabilities = TorchDispatchBackend.capabilities - (set() if claims else {"python_data"})

    trial = next(t for t in conformance.cases() if str(t) == "numbers-aten")
    assert trial.run(Below()).status == "passed"
    monkeypatch.setattr("lens.capture.torch_dispatch.watch_python_data", lambda *_: None)
    outcome = trial.run(Below())
    assert outcome.status == ("failed" if claims else "passed")
    assert ("-    read tolist" in outcome.detail) is claims


def test_the_command_line(capsys):
    assert main(["conform", "decoration"]) == 0
    assert "decoration: " in capsys.readouterr().out
    assert main(["conform", "no_such_backend"]) == 2
    assert "known backends" in capsys.readouterr().err
    assert main(["backends"]) == 0
    assert "composites" in capsys.readouterr().out


def test_a_failure_exits_with_1(monkeypatch, capsys):
    texts = expected_texts.read("leaf") | {"chain": "graph {\n}\n"}
    monkeypatch.setattr(expected_texts, "read", lambda granularity: texts)
    assert main(["conform", "torch_function"]) == 1
    assert "chain at leaf level:" in capsys.readouterr().out


def test_a_backend_that_cannot_be_imported_is_listed_with_the_reason(monkeypatch):
    broken = Plugin("broken", backends={"broken": "no_such_package:Backend"})
    monkeypatch.setattr("lens.registry.plugins", lambda: (BUILT_IN, broken))
    known = {info.name: info for info in backends()}
    assert "no_such_package" in known["broken"].reason
    assert known["broken"].capabilities == frozenset()
    assert known["torch_function"].reason is None
    assert all(info.capabilities <= CAPABILITIES for info in known.values())


def test_trace_takes_a_backend_by_name_on_the_command_line(tmp_path, capsys):
    model = tmp_path / "m.py"
    model.write_text("import torch\ndef make():\n    return torch.nn.ReLU()\n")
    saved = tmp_path / "t.lens"
    assert main(["trace", f"{model}:make", "--input", "2", "--backend", "decoration", "--save-to", str(saved)]) == 0
    assert main(["trace", f"{model}:make", "--input", "2", "--backend", "nothing"]) == 2
    import lens

    assert lens.load(saved).graph.meta.backend == "decoration"


def test_the_registry_lists_what_it_finds():
    assert plugins()[0] is BUILT_IN
    assert find("backends", "decoration").name == "decoration"
