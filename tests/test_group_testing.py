"""Validation of operations with many operands: as strict as one operand at a time, in far fewer runs."""

from collections import Counter

import pytest
import torch
from models import Body
from torch import nn

import lens
from lens.replay import Interpreter
from lens.validate.group_testing import reacting
from lens.validate.nonsense import Nonsense

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
    ],
    ids=["stack", "integers", "booleans", "block_diag", "foreach", "empty", "multi_dot"],
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
    def picky(values):
        if any(not torch.equal(values[number], operands[number]) for number in operands):
            raise lens.errors.ReplayError("cannot")
        return {0: torch.stack(list(values.values()))}

    operands = {number: torch.randn(2) for number in range(70)}
    assert reacting(picky, operands, picky(operands), Nonsense()) == set()
