"""The conformance suite itself: the backends pass it, and it finds what is wrong with one that is not right."""

import random
import sys
import threading
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from lens.capture import backends, conformance
from lens.capture.backend import CAPABILITIES
from lens.capture.conformance import expected_texts
from lens.capture.torch_dispatch import TorchDispatchBackend
from lens.capture.torch_function import TorchFunctionBackend
from lens.cli import main
from lens.functions import describe
from lens.registry import BUILT_IN, Plugin, find, plugins

PYTHON_LEVEL = ["torch_function", "decoration"]


@pytest.mark.parametrize("backend", PYTHON_LEVEL)
@pytest.mark.parametrize("trial", [t for t in conformance.cases() if t.granularity != "aten"], ids=str)
def test_conformance(trial, backend):
    outcome = trial.run(backend)
    unclaimed = ("python_data-conduct", "scripted-conduct")
    assert outcome.status == ("skipped" if str(trial) in unclaimed else "passed"), outcome.detail


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


def case(name, granularities=("leaf", "conduct")):
    return next(t for t in conformance.cases() if t.case.name == name and t.granularity in granularities)


def with_mode(handle):
    """The default backend with a mode of ours above it."""

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return handle(func, args, kwargs or {})

    class Backend(TorchFunctionBackend):
        name = "wrong"

        def record(self, emit):
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
        assert "not what it was before the trace: torch.left_behind" in case("chain").run(Leaves()).detail
    finally:
        del torch.left_behind


def recording(change=None, **parts):
    """The default backend; ``change`` is given the recorder first, and may give what to undo at the end."""

    @contextmanager
    def record(self, emit):
        emit.takes_ended = False
        with TorchFunctionBackend().record(emit), ExitStack() as stack:
            if change is not None:
                change(emit, stack)
            yield

    return type("Faulty", (TorchFunctionBackend,), {"name": "faulty", "record": record, **parts})()


def telling(name, change, **parts):
    """The default backend, which calls a function of the recorder's method, and its arguments, in place of the method."""
    return recording(lambda emit, stack: setattr(emit, name, partial(change, getattr(emit, name))), **parts)


class Calling(TorchFunctionMode):
    """Calls as a function says."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return self.call(func, *args, **(kwargs or {}))


def calling(call):
    """The default backend, under a mode that calls as a function says."""
    return recording(lambda emit, stack: stack.enter_context(Calling(call)))


def another_message(func, *args, **kwargs):
    try:
        return func(*args, **kwargs)
    except RuntimeError:
        raise RuntimeError("another") from None


def no_interrupt(func, *args, **kwargs):
    with suppress(BaseException):
        return func(*args, **kwargs)


def draws(func, *args, **kwargs):
    random.random()
    np.random.rand()
    return func(*args, **kwargs)


FFT = torch.fft.fft


class Unseen(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


KEPT = []


def keeps(func, *args, **kwargs):
    KEPT.append(func(*args, **kwargs))
    return KEPT[-1]


def no_stop(finish, *args):
    with suppress(BaseException):
        finish(*args)


def hook_on_model(enter, module, *args):
    module.register_forward_hook(lambda *_: None)
    return enter(module, *args)


def in_threads_of_all(emit, stack):
    start = threading.Thread.start

    def watched(self):
        run = self.run

        def run_watched():
            with Calling(partial(told, emit)):
                run()

        self.run = run_watched
        start(self)

    threading.Thread.start = watched
    stack.callback(setattr, threading.Thread, "start", start)


def told(emit, func, *args, **kwargs):
    call = emit.start(describe(func), args, kwargs, sys._getframe(1))
    result = func(*args, **kwargs)
    emit.finish(call, result, 0.0)
    return result


class OneForAll(TorchFunctionBackend):
    """Tells all that it sees to the recorder that came last."""

    name = "one_for_all"
    capabilities = frozenset({"functions"})
    emit = None

    @contextmanager
    def record(self, emit):
        self.emit = emit
        with Calling(lambda func, *args, **kwargs: told(self.emit, func, *args, **kwargs)):
            yield


def unless(wrong):
    """In place of a method: nothing if its arguments are such."""
    return lambda method, *args: None if wrong(*args) else method(*args)


ALL = TorchFunctionBackend.capabilities
NO_SITE = telling(
    "start", lambda start, function, args, kwargs, frame, *rest: start(function, args, kwargs, None, *rest)
)
OWN_SITE = telling("start", lambda start, *args: start(*args[:3], sys._getframe(0), *args[4:]))
NO_EXIT = telling("exit", unless(lambda entered, output: output is None))


@pytest.mark.parametrize(
    ("trial", "backend", "what"),
    [
        ("chain", calling(lambda func, *args, **kwargs: 1 / 0), "ZeroDivisionError"),
        ("sites", NO_SITE, "is said to be at None"),
        ("sites", OWN_SITE, "test_conformance.py"),
        ("chain", telling("finish", lambda finish, call, result, took: finish(call, result, float("nan"))), "took nan"),
        ("chain", telling("finish", lambda finish, call, result, took: finish(call, result, -1.0)), "took -1.0"),
        (
            "python_data",
            telling("read", unless(lambda *_: True), capabilities=ALL | {"python_data"}),
            "does not see: data",
        ),
        ("scripted", recording(capabilities=ALL | {"scripted"}), "inside a scripted function: mul, relu"),
        ("catches_from_module", NO_EXIT, "@@"),
        ("chain", telling("enter", hook_on_model), "the modules: "),
        (
            "raises",
            calling(another_message),
            "the exception: RuntimeError: another; in a plain forward: RuntimeError: The",
        ),
        ("chain", calling(draws), r"generators that have moved: ['random', 'numpy.random']"),
        ("lets_go", calling(keeps), "1 of 2 tensors are alive"),
        ("interrupts", calling(no_interrupt), "does not come out"),
        ("stop_at", telling("finish", no_stop), "does not end the forward"),
        ("compared", telling("read", unless(lambda kind, *_: kind == "equal")), "-    read equal"),
        ("other_threads", recording(in_threads_of_all), "while another thread computes, has ['exp', 'ones', 'sinh'"),
        ("nested_traces", OneForAll(), "'one_for_all' broke its contract"),
        ("two_threads", OneForAll(), ""),
    ],
)
def test_a_fault_is_found(trial, backend, what):
    try:
        outcome = case(trial, ("api", "conduct")).run(backend)
    finally:
        KEPT.clear()
    assert outcome.status == "failed"
    assert what in outcome.detail


@pytest.mark.parametrize(
    ("leave", "undo", "what"),
    [
        (lambda: setattr(torch.fft, "fft", partial(FFT)), lambda: setattr(torch.fft, "fft", FFT), "fft.fft"),
        (
            lambda: Unseen().__enter__(),
            lambda: _get_current_dispatch_mode().__exit__(None, None, None),
            "the dispatch mode",
        ),
        (lambda: sys.setprofile(lambda *_: None), lambda: sys.setprofile(None), "the profile function"),
        (
            lambda: nn.modules.module.register_module_forward_hook(lambda *_: None),
            nn.modules.module._global_forward_hooks.clear,
            "the hooks of all modules",
        ),
    ],
)
def test_what_is_left_behind_is_named(leave, undo, what):
    try:
        outcome = case("function_attribute").run(recording(lambda emit, stack: stack.callback(leave)))
    finally:
        undo()
    assert f"not what it was before the trace: {what}" in outcome.detail


def test_a_backend_that_claims_nothing_has_not_passed():
    report = conformance.run(recording(capabilities=frozenset()))
    assert {outcome.status for outcome in report.outcomes} == {"skipped"}
    assert not report.passed


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
