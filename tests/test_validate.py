"""The validator finds planted faults and raises no false alarm on small models."""

import pytest
import torch
from attrs import evolve
from models import Body, Conditional, Containers, InPlaceReLU, LSTMLoop, SetItem, TwoBranches

import lens
from lens.ir.payloads import Held
from lens.validate.check import check, compared
from lens.validate.comparing import difference, same

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


def test_running_statistics_are_those_of_one_forward():
    """Torch counts no write to them."""
    model, once, x = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3), torch.randn(4, 3)
    once(x)
    assert lens.validate_saved_activations(model, x)
    assert torch.equal(model.running_mean, once.running_mean)
    assert torch.equal(model.running_var, once.running_var)


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


NAN = float("nan")
SPARSE = torch.tensor([1.0, 0.0, 2.0])
#: What is saved, and another tensor that equals it to `==`, but for NaN.
ALIKE = {
    "the sign of zero": (torch.tensor([0.0, 2.0]), torch.tensor([-0.0, 2.0])),
    "the imaginary part beside NaN": (torch.tensor([complex(NAN, 1)]), torch.tensor([complex(NAN, 7)])),
    "a zero that a sparse tensor stores": (
        SPARSE.to_sparse(),
        torch.sparse_coo_tensor([[0, 1, 2]], [1.0, 0.0, 2.0], (3,)).coalesce(),
    ),
    "an element that a sparse tensor stores in parts": (
        SPARSE.to_sparse(),
        torch.sparse_coo_tensor([[0, 2, 0]], [0.5, 2.0, 0.5], (3,)),
    ),
}


@pytest.mark.parametrize("name", ALIKE)
def test_what_is_not_the_same_bit_for_bit(name):
    one, other = ALIKE[name]
    assert same(one, one.clone())
    assert not same(one, other)
    assert difference(one, other)


def test_any_nan_equals_any_nan():
    nans = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert same(nans, nans.flip(0))
    assert same(torch.tensor([complex(NAN, 1)]), torch.tensor([complex(-NAN, 1)]))


def test_a_write_to_no_place_at_all_hides_what_is_written():
    nowhere = torch.zeros(0, dtype=torch.long)

    class Writing(torch.nn.Module):
        def forward(self, x, v):
            y = x.clone()
            y[torch.nonzero(x > 9).flatten()] = v
            return y.index_put((nowhere,), v).index_fill(0, nowhere, v)

    report = lens.validation_report(Writing(), (torch.ones(3), torch.tensor(2.0)))
    assert report.ok, str(report)


@pytest.mark.parametrize("kind", [torch.int32, torch.bool])
def test_indices_into_what_is_the_same_everywhere_are_hidden(kind):
    def gather(scores):
        beams = torch.full((2, 6, 4), 1).to(kind)
        return torch.take_along_dim(beams, scores.topk(3).indices[:, :, None], dim=1)

    report = lens.validation_report(Body(gather), torch.randn(2, 6))
    assert report.ok, str(report)


def test_complex_numbers_among_the_arguments_may_hide_an_operand():
    report = lens.validation_report(Body(lambda x: (x * 0j, x + complex(0, NAN))), torch.tensor([1 + 1j, 2]))
    assert report.ok, str(report)


@pytest.mark.filterwarnings("ignore:.*quantize")
def test_an_output_that_cannot_be_copied_is_exempt():
    def four_bits(x):
        return torch.quantize_per_channel(x, torch.ones(2), torch.zeros(2), 0, torch.quint4x2)

    report = lens.validation_report(Body(four_bits), torch.ones(2, 2))
    assert report.ok, str(report)
    assert (report.checks[0].layer, report.checks[0].status) == ("plain run", "exempt")


@pytest.mark.parametrize("place", ["all", "output"])
def test_tensors_without_data_are_exempt(place):
    if place == "all":
        with torch.device("meta"):
            model, x = torch.nn.Linear(3, 2), torch.randn(1, 3)
    else:
        model, x = Body(lambda x: (x * 2, x.to("meta"))), torch.randn(3)
    report = lens.validation_report(model, x)
    assert report.ok, str(report)
    assert (report.checks[0].status, report.verdicts[-1].detail) == ("exempt", "a tensor without data")
    outputs = [torch.ones(2, device="meta")]
    assert compared(outputs, [torch.ones(3, device="meta")]).status == "failed"
    assert compared(outputs, [torch.ones(2)]).status == "failed"


def test_tensors_of_a_class_that_cannot_compare_them_are_exempt():
    x = torch.randn(3, 4)
    masked = torch.masked.masked_tensor(x, x > 0)
    for model in (Body(lambda m: (m * 2).get_data()), Body(lambda m: m * 2)):
        report = lens.validation_report(model, masked)
        assert report.ok, str(report)
        assert report.exempt


def gate(x, number=False):
    y = x * 2
    z = y + 1 if y.sum() > 0 else y
    return z.sum().item() if number else z.sum()


def test_a_condition_is_known_where_a_run_has_no_output():
    x = torch.ones(4)
    assert lens.validate_saved_activations(Body(lambda x: gate(x, number=True)), x)
    assert check(lens.trace(Body(gate), x, stop_at="add")).ok


@pytest.mark.parametrize("part", [lambda h: h[:, :2], lambda h: h[:, :1].expand(6, 7)], ids=["slice", "expanded"])
def test_a_part_that_is_overwritten_later_is_added_up_in_the_order_of_the_run(part):
    def forward(x):
        h = x * 1
        total = part(h).sum()
        h.add_(1)
        return h * total

    torch.manual_seed(0)
    assert all(lens.validate_saved_activations(Body(forward), torch.randn(6, 4)) for _ in range(20))


def test_a_statistic_that_is_updated_in_inference_mode_can_be_used_outside():
    weight, mean = torch.ones(4, requires_grad=True), torch.ones(4)

    def forward(x):
        y = weight * mean
        with torch.inference_mode():
            mean.mul_(0.9)
        return x @ y

    assert lens.validate_saved_activations(Body(forward), torch.ones(4))


def fill_the_rest(x):
    out = torch.zeros(2, 4)
    out[: len(x)] = x
    out[len(x) :] = x[-1]
    return out


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
@pytest.mark.parametrize(
    "forward",
    [
        fill_the_rest,
        lambda x: torch.cat([torch.nn.functional.pad(x, (-4, 1)), x], 1),
        lambda x: x.sum() + torch.nan_to_num(x[0, :1].std()),
    ],
    ids=["no place to fill", "all cut away", "spread of one number"],
)
def test_operands_of_which_nothing_is_left_are_no_failure(forward):
    assert lens.validate_saved_activations(Body(forward), torch.randn(2, 4))


@pytest.mark.parametrize("wrap", [torch.jit.script, lambda linear: torch.func.vmap(lambda row: linear(row))])
def test_opaque_operations_whose_parameters_a_step_of_the_run_changed_are_exempt(wrap):
    linear = torch.nn.Linear(4, 1)
    call, step = wrap(linear), torch.optim.SGD(linear.parameters(), 0.1).step
    with lens.tracing(linear) as history:
        call(torch.randn(3, 4)).sum().backward()
        step()
    report = lens.validate.check(history)
    assert report.ok
    assert any("overwrote what it has closed over" in verdict.detail for verdict in report.verdicts)
