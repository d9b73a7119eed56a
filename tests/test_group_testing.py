"""Validation of operations with many operands: as strict as one operand at a time, in far fewer runs."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from models import Body
from torch import nn

import lens
from lens.replay import Interpreter
from lens.validate.group_testing import are_deaf, reacting
from lens.validate.nonsense import Nonsense
from lens.validate.special_cases import reacts

MANY = 150


def runs_of_the_widest(monkeypatch, function, x):
    """The report, and how often validation ran the operation of the most operands."""
    runs = Counter()
    run = Interpreter.run_op
    monkeypatch.setattr(Interpreter, "run_op", lambda self, op, values: (runs.update([op]), run(self, op, values))[1])
    report = lens.validation_report(Body(function), (x,))
    return report, runs[max(runs, key=lambda op: len(op.operands))]


def of_each_and_of_one(x):
    return torch.stack(torch._foreach_mul([*x.split(1)], x.sum()))


def overwriting(x):
    old = [part * 2 for part in x.split(1)]
    torch._foreach_copy_(old, [part * 3 for part in x.split(1)])
    return torch.cat(old)


def hiding(x):
    return torch.cat(torch._foreach_mul([*(x * 2).split(1)], [*(x * 0).split(1)]))


@pytest.mark.parametrize(
    ("function", "x", "most"),
    [
        (lambda x: torch.stack([part * 2 for part in x]), torch.randn(MANY, 3), 25),
        (lambda x: torch.stack([part + 1 for part in x]), torch.arange(MANY), 25),  # one element has nothing to roll
        (lambda x: torch.cat([part > 0 for part in x.split(1)]), torch.randn(MANY), 25),
        (lambda x: torch.block_diag(*[part * 2 for part in x]), torch.randn(60, 2), 25),
        (of_each_and_of_one, torch.randn(MANY), 120),  # one operand matters everywhere
        (lambda x: torch.cat([x[: i % 2].sin() for i in range(MANY)]), torch.randn(2), 130),  # half of them are empty
        (
            lambda x: torch.linalg.multi_dot([part * 2 for part in x]),
            torch.randn(40, 2, 2),
            100,
        ),  # all matter everywhere
        (overwriting, torch.randn(MANY), 160),  # what was there before does not matter
        (hiding, torch.arange(1, 41), 420),  # nor what is multiplied by zero
    ],
    ids=["stack", "integers", "booleans", "block_diag", "foreach", "empty", "multi_dot", "overwritten", "hidden"],
)
def test_many_operands_are_proved_in_few_runs(monkeypatch, function, x, most):
    report, runs = runs_of_the_widest(monkeypatch, function, x)
    assert report.ok, str(report)
    assert {verdict.status for verdict in report.verdicts} == {"proved"}
    assert runs <= most


@torch.library.custom_op("lens_test::all_but_one", mutates_args=())
def all_but_one(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([part for number, part in enumerate(parts) if number != 77])


def test_one_deaf_operand_among_many_is_found():
    report = lens.validation_report(Body(lambda x: all_but_one([part * 2 for part in x])), (torch.randn(MANY, 2),))
    (failed,) = [verdict for verdict in report.verdicts if verdict.status == "failed"]
    assert failed.detail == "other contents of operand 77 make no difference, and no rule says why"


class Weighted(nn.Module):
    """A sum of which some addends count, some cancel out, and one is looked at by a part of the result only."""

    def forward(self, parts):
        pairs = [a - b for a, b in zip(parts[:40:2], parts[1:40:2], strict=True)]
        return torch.stack([*pairs, parts[40], torch.stack(parts[41:60]).sum()])


def test_what_is_told_is_right_and_what_depends_on_several_is_not_told():
    operands = {number: torch.randn(()) for number in range(70)}

    def run(values):
        return {0: Weighted()(list(values.values()))}

    assert reacting(run, operands, run(operands), Nonsense()) == {40}


def test_an_operation_that_refuses_nonsense_tells_nothing():
    operands = {number: torch.randn(2) for number in range(70)}
    run = picky(operands)
    assert reacting(run, operands, run(operands), Nonsense()) == set()


def test_deaf_is_what_makes_no_difference_in_any_round():
    operands = {number: torch.arange(3) for number in range(20)}

    def tell(suspects, run):
        return are_deaf(run, operands, suspects, run(operands), Nonsense())

    assert tell(range(4, 20), lambda values: {0: torch.stack([values[number] for number in range(4)])})
    assert not tell(range(20), lambda values: {0: values[7]})
    assert not tell(range(20), lambda values: {0: values[18] - values[19]}), "equal contents undo each other"
    assert not tell(range(5), lambda values: {0: values[19]}), "few are tried one by one"
    assert not tell(range(20), picky(operands)), "refusing is a difference"


def picky(operands):
    """An operation that takes nothing but these."""

    def run(values):
        if any(not torch.equal(values[number], operands[number]) for number in operands):
            raise lens.errors.ReplayError("cannot")
        return {0: torch.stack(list(values.values()))}

    return run


def test_a_result_that_is_not_there_with_other_contents_is_a_difference():
    operands, saved = {i: torch.randn(2) for i in range(20)}, {20: torch.zeros(2)}
    giving_none = SimpleNamespace(run_op=lambda op, values: {})
    assert reacts(giving_none, Nonsense(), None, operands, 0, saved, shared=True)
    assert not are_deaf(lambda values: {}, operands, list(operands), saved, Nonsense())
    many = {i: torch.randn(2) for i in range(100)}
    assert reacting(lambda values: {}, many, saved, Nonsense()) == set()
