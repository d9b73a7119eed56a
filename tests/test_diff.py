"""The comparison of two histories: planted differences are found and named, and nothing else is."""

from __future__ import annotations

import copy
import json
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Body, LSTMLoop, TwoBranches
from torch import nn

import lens
from lens import history_diff
from lens.cli import main
from lens.history_diff import _namesakes


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5))


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def difference(change, x=X, **options):
    model = net()
    other = copy.deepcopy(model)
    change(other)
    return lens.trace(model, X).diff(lens.trace(other, x), **options)


def kinds(found):
    return {(change.layer, change.what) for change in found.changes}


def test_equal_runs_have_no_difference():
    for model, x in ((net(), X), (LSTMLoop(), torch.randn(4, 2, 4)), (TwoBranches(), torch.ones(2, 4))):
        history = lens.trace(model, x, seed=1)
        found = history.diff(lens.trace(model, x, seed=1))
        assert found.same
        assert (found.added, found.removed, found.changes) == ((), (), ())
        assert found.matched == found.compared == len(history)
        assert "no difference" in str(found)


def test_a_layer_added_and_one_removed():
    found = difference(lambda m: m.insert(2, nn.Tanh()))
    assert (found.added, found.removed) == (("tanh_1_3",), ())
    assert ("maxpool2d_1_3", "inputs") in kinds(found)
    assert {layer for layer, what in kinds(found) if what == "values"} == {
        "maxpool2d_1_3", "flatten_1_4", "linear_1_5", "output_1",
    }  # fmt: skip
    found = difference(lambda m: m.__setitem__(1, nn.Identity()))
    assert (found.added, found.removed) == ((), ("relu_1_2",))
    assert not found.same


def test_a_shape_an_argument_a_dtype():
    found = difference(lambda m: m.__setitem__(2, nn.AdaptiveMaxPool2d(3)))
    assert (found.removed, found.added) == (("maxpool2d_1_3",), ("adaptivemaxpool2d_1_3",)) or found.added
    found = difference(lambda m: m[2].__setattr__("stride", 1) or m.__setitem__(4, nn.Linear(100, 5)))
    assert ("maxpool2d_1_3", "shape") in kinds(found)
    assert ("maxpool2d_1_3", "arguments") in kinds(found)
    shape = next(c for c in found.changes if c.what == "shape")
    assert (shape.before, shape.after) == ("2x4x3x3", "2x4x5x5")
    assert ("relu_1_2", "values") not in kinds(found)
    found = difference(nn.Module.double, X.double())
    assert {what for _, what in kinds(found)} == {"dtype"}
    assert found.compared == 0


def test_values_and_their_tolerance():
    def nudge(model):
        with torch.no_grad():
            model[4].bias += 1e-4

    found = difference(nudge)
    assert kinds(found) == {("linear_1_5", "values"), ("output_1", "values")}
    assert "up to 0.0001 apart, 10 of 10 elements" in str(found)
    assert difference(nudge, atol=1e-3).same
    assert not difference(nudge, atol=1e-6).same


def test_nan_equals_nan_and_other_kinds_of_tensors():
    def run(value):
        model = nn.Module()
        model.forward = lambda x: (x > 0, (x * 1j).conj(), x.to(torch.int64), x.to(torch.float8_e4m3fn), x.to_sparse())
        return lens.trace(model, torch.tensor([float("nan"), 1.0, value]))

    assert run(2.0).diff(run(2.0)).same
    assert {layer for layer, _ in kinds(run(2.0).diff(run(-3.0)))} >= {
        "input_1",
        "gt_1_1",
        "mul_1_2",
        "conj_1_3",
        "to_1_4",
    }


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([1.0, 2.0], [NAN, 2.0], "1 of 2 elements (1 with NaN)"),
        ([NAN, 2.0, 3.0], [NAN, 2.0, 3.5], "up to 0.5 apart, 1 of 3 elements"),
        (
            [1.0, INF, NAN, 1.0],
            [INF, -INF, INF, 3.0],
            "up to 2 apart, 4 of 4 elements (1 with NaN, 2 with an infinity)",
        ),
        ([1.0, 2.0], [1.05, 3.0], "up to 1 apart, 1 of 2 elements"),
        ([3, 2**53], [3, 2**53 + 2], "up to 2 apart, 1 of 2 elements"),
        ([2**24], [2**24 + 1], "up to 1 apart, 1 of 1 elements"),
        ([-(2**63), 1], [2**63 - 1, 1], f"up to {2**64 - 1} apart, 1 of 2 elements"),
        (
            torch.tensor([2**63 + 4], dtype=torch.uint64),
            torch.ones(1, dtype=torch.uint64),
            f"up to {2**63 + 3} apart, 1 of 1 elements",
        ),
        ([True, False], [True, True], "up to 1 apart, 1 of 2 elements"),
        ([1j], [complex(NAN, 1)], "1 of 1 elements (1 with NaN)"),
    ],
)
def test_how_far_values_are_apart(before, after, expected):
    old, new = (lens.trace(nn.Identity(), torch.as_tensor(x)) for x in (before, after))
    assert {change.after for change in old.diff(new, atol=0.1).changes} == {expected}
    assert old.diff(old).same


def test_what_has_no_elements_and_what_torch_cannot_compare():
    with torch.device("meta"):
        history = lens.trace(nn.Linear(4, 4), torch.randn(3, 4))
    assert history.diff(history).same
    assert history.diff(history).compared == 0

    def halves(factor):
        return lens.trace(lambda x: (x * factor).to(torch.complex32), torch.ones(3))

    assert halves(1).diff(halves(1)).compared == 4
    assert ("to_1_2", "values") in kinds(halves(1).diff(halves(2)))


def test_uninitialised_memory_says_nothing():
    def forward(x):
        return torch.empty(64, 64), x.new(64, 64), x.new([1.0, 2.0]) + 1

    histories = []
    for number in (7.0, 9.0):
        filled = [torch.full((64, 64), number) for _ in range(20)]
        del filled
        histories.append(lens.trace(Body(forward), torch.ones(4)))
    first, second = histories
    assert not first.diff(second).changes
    assert lens.validate.check(first).ok


@torch.library.custom_op("lens_diff_tests::empty", mutates_args=())
def not_empty(x: torch.Tensor, scale: float) -> torch.Tensor:
    return x * scale


def test_an_operator_of_others_that_is_called_empty_is_compared():
    one, other = (
        lens.trace(Body(lambda x, scale=scale: torch.ops.lens_diff_tests.empty(x, scale)), torch.ones(3))
        for scale in (1.0, 5.0)
    )
    assert ("empty_1_1", "values") in kinds(one.diff(other))


def test_the_same_tensor_is_equal_to_itself_and_parts_have_shapes():
    masked = lens.trace(Body(lambda x: torch.masked.masked_tensor(x, x > 0) + 1), torch.ones(3))
    assert not masked.diff(masked).changes
    of = lambda *lengths: torch.nested.nested_tensor([torch.zeros(n) for n in lengths])
    one, other = (lens.trace(Body(lambda x: x * 1), x) for x in (of(2, 3), of(1, 3)))
    assert {change.after for change in one.diff(other).changes if change.what == "values"} == {"parts of other shapes"}


def test_wiring():
    def run(forward):
        model = nn.Module()
        model.forward = forward
        return lens.trace(model, (torch.ones(2), torch.ones(2)), save="none")

    found = run(lambda a, b: a.exp() - b.sin()).diff(run(lambda a, b: (lambda p, q: q - p)(a.exp(), b.sin())))
    assert kinds(found) == {("sub_1_3", "inputs")}
    assert found.compared == 0


def test_values_that_cannot_be_read_are_named():
    x = torch.randn(2, 3, 8, 8)
    model = net()
    before, after = lens.trace(model, x), lens.trace(model, x)
    x.zero_()
    assert kinds(before.diff(after)) == {("input_1", "values")}
    assert "cannot be compared" in str(before.diff(after))


def test_loops_of_different_length():
    model = LSTMLoop()
    short, long = (lens.trace(model, torch.ones(n, 2, 4), save="none") for n in (3, 5))
    found = short.diff(long)
    assert not found.removed
    per_step = sum(e.pass_num == 2 for e in short)
    assert len(found.added) == 2 * per_step + 2  # and what takes two more steps from the input


def test_times_are_listed_and_no_difference():
    library = torch.library.Library("lens_diff_test", "DEF")
    library.define("nap(Tensor x) -> Tensor")
    library.impl("nap", lambda x: (time.sleep(seconds), x + 1)[1], "CPU")

    def run(asleep):
        nonlocal seconds
        seconds = asleep
        model = nn.Module()
        model.forward = torch.ops.lens_diff_test.nap
        return lens.trace(model, torch.ones(2))

    seconds = 0.0

    found = run(0.001).diff(run(0.03))
    assert [c.what for c in found.times] == ["time"]
    assert not run(0.03).diff(run(0.03), slower=20.0).times


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_two_histories_align_soundly(data):
    kinds = st.lists(st.sampled_from(["relu", "sin", "tanh"]), max_size=12)
    names = data.draw(kinds)
    others = data.draw(st.one_of(kinds, st.just(names), st.permutations(names)))
    few = data.draw(st.sampled_from([0, 250_000]))

    def run(functions):
        model = nn.Module()
        model.forward = lambda x: [x := getattr(torch, name)(x) for name in functions][-1:]
        return lens.trace(model, torch.ones(2), save="none")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history_diff, "_MOST_COMPARISONS", few)
        one, other = run(names), run(others)
        found = one.diff(other)
        pairs = history_diff._pairs(one, other)
    assert list(pairs.values()) == sorted(set(pairs.values()))  # in order, each once
    assert all(one.entry(i).layer_type == other.entry(j).layer_type for i, j in pairs.items())
    assert found.matched == len(one) - len(found.removed) == len(other) - len(found.added)
    assert found.same == (names == others)


def test_diff_on_the_command_line(tmp_path, capsys):
    model = net()
    before = lens.trace(model, X).save(tmp_path / "a.lens")
    with torch.no_grad():
        model[4].bias += 1
    after = lens.trace(model, X).save(tmp_path / "b.lens")
    assert main(["diff", before, before]) == 0
    assert "no difference" in capsys.readouterr().out
    assert main(["diff", before, after]) == 1
    assert "linear_1_5: values up to 1 apart" in capsys.readouterr().out
    assert main(["diff", before, after, "--atol", "2"]) == 0
    capsys.readouterr()
    assert main(["diff", before, after, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["same"]
    assert {change["layer"] for change in report["changes"]} == {"linear_1_5", "output_1"}
    assert main(["diff", before, str(tmp_path / "none.lens")]) == 2
    assert "check the path" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["diff", "--help"])
    assert "examples:" in capsys.readouterr().out


def test_namesakes_are_paired_one_after_the_other():
    assert _namesakes("abac", "acab", only_equally_many=True) == [(0, 0), (1, 3), (2, 2), (3, 1)]
    assert _namesakes("aab", "ab", only_equally_many=True) == [(2, 1)]
    assert _namesakes("aab", "ab", only_equally_many=False) == [(0, 0), (2, 1)]
