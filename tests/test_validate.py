"""The validator finds planted faults and raises no false alarm on small models."""

import pytest
import torch
from attrs import evolve
from models import Conditional, Containers, InPlaceReLU, LSTMLoop, SetItem, TwoBranches

import lens
from lens.ir.payloads import Held
from lens.validate.check import check

CASES = {
    "branches": (TwoBranches(), torch.randn(2, 4)),
    "conditional": (Conditional(), torch.randn(2)),
    "setitem": (SetItem(), torch.randn(2, 2)),
    "in_place": (InPlaceReLU(), torch.randn(1, 3, 8, 8)),
    "containers": (Containers(), {"image": torch.randn(2, 2)}),
    "loop": (LSTMLoop(), torch.randn(3, 2, 4)),
}


@pytest.mark.parametrize("name", CASES)
def test_correct_captures_are_proved(name):
    model, x = CASES[name]
    assert lens.validate_saved_activations(model, x)
    report = check(lens.trace(model, x))
    assert report.ok
    assert "failed" in str(report)


def test_validation_leaves_the_model_as_after_one_forward():
    model = torch.nn.BatchNorm1d(3)
    assert lens.validate_saved_activations(model, torch.randn(4, 3))
    assert model.num_batches_tracked == 1


def test_a_corrupted_element_is_found():
    model, x = CASES["branches"]
    history = lens.trace(model, x)
    value = history["relu_1"]._row.value
    wrong = history["relu_1"].tensor_contents.detach().clone()
    wrong[0, 0] += 0.01
    history.payloads.values[value] = Held(wrong, wrong._version)
    report = check(history)
    assert {verdict.layer for verdict in report.failed} == {"relu_1_2", "add_1_4"}


def test_swapped_operands_are_found():
    history = lens.trace(TwoBranches(), torch.randn(2, 4))
    ops = list(history.graph.ops)
    div = ops[-1]
    ops[-1] = evolve(div, operands=div.operands[::-1])
    history.graph = evolve(history.graph, ops=tuple(ops))
    assert [verdict.layer for verdict in check(history).failed] == ["div_1_5"]


def test_a_wrong_random_state_is_found():
    history = lens.trace(TwoBranches(), torch.randn(2, 4))
    history.payloads.rng_states.clear()
    assert [verdict.layer for verdict in check(history).failed] == ["rand_1_3"]


def test_sparse_and_autograd_operations_get_a_verdict():
    class Model(torch.nn.Module):
        def forward(self, x):
            y = torch.sparse.mm(torch.eye(2).to_sparse(), x)
            with torch.enable_grad():
                z = y.detach().requires_grad_()
                (gradient,) = torch.autograd.grad((z**2).sum(), z)
            return gradient + 1

    report = check(lens.trace(Model(), torch.randn(2, 4)))
    assert report.ok, str(report)
    assert [v.detail for v in report.verdicts if "autograd" in v.detail] == [
        "walks the autograd graph of the run, which is gone"
    ]
