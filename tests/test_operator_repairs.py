"""Faults of lens that PyTorch's operator database has found, each as small as it can be."""

import pytest
import torch
import torch.nn.functional as F
from models import Body
from torch import nn

import lens
from lens.functions import describe, resolve
from lens.session import DEFAULT_PIPELINE
from lens.validate.check import check

API = "granularity{level=api},labels"


def statistics(index):
    """Two batch norms that share their statistics; the second one must depend on the first."""

    def forward(x):
        mean, var = torch.zeros(3), torch.ones(3)
        given = (None, None, mean, var, True, 0.1, 1e-5)
        first = NORMS[index](x, *given)
        return first, mean + var

    return forward


NORMS = [
    torch.native_batch_norm,
    torch._native_batch_norm_legit,
    lambda x, w, b, m, v, t, *rest: F.batch_norm(x, m, v, w, b, training=t),
]


@pytest.mark.parametrize("index", range(len(NORMS)))
@pytest.mark.parametrize("pipeline", [API, DEFAULT_PIPELINE])
def test_statistics_are_written(index, pipeline):
    history = lens.trace(Body(statistics(index)), torch.randn(4, 3), passes=pipeline)
    (add,) = (op for op in history.graph.ops if op.function.name.strip("_") == "add")
    producers = [history.graph.producer(value) for value in add.operands]
    assert ["norm" in op.function.name for op in producers] == [True, True]
    assert [len(op.effects) for op in producers] == [2, 2]
    assert check(history).ok


def test_statistics_are_not_written_in_eval():
    mean, var = torch.zeros(3), torch.ones(3)
    function = describe(torch.native_batch_norm)
    assert function.written((torch.randn(2, 3), None, None, mean, var), {"training": False}) == []
    written = function.written((torch.randn(2, 3), None, None, mean, var), {"training": True})
    assert [id(t) for t in written] == [id(mean), id(var)]


@pytest.mark.parametrize("name", ["fused_moving_avg_obs_fake_quant", "_cummax_helper", "_fused_adam_"])
def test_writes_that_the_schema_declares(name):
    function = describe(getattr(torch, name))
    declared = [a.alias_info is not None for a in getattr(torch.ops.aten, name).default._schema.arguments]
    places = [place for place in function.writes if isinstance(place, int)]
    assert places == [place for place, written in enumerate(declared) if written]
    assert function.ref.mutates


def test_validation_does_not_overwrite_the_saved_out():
    def forward(x):
        out = torch.zeros(3)
        return torch.exp(x, out=out) + 1

    history = lens.trace(Body(forward), torch.randn(3))
    assert check(history).ok
    assert torch.equal(history["zeros_1"].tensor_contents, torch.zeros(3))


def test_a_closed_composite_that_writes():
    def forward(x):
        y = x * 2
        F.dropout(y, 0.5, training=True, inplace=True)
        return y + 1

    history = lens.trace(Body(forward), torch.randn(8), passes=API)
    dropout = history.graph.ops[1]
    assert (dropout.function.name, history.graph.ops[2].operands[0]) == ("dropout", dropout.writes[-1])
    saved = history["mul_1"].tensor_contents.clone()
    assert check(history).ok
    assert torch.equal(history["mul_1"].tensor_contents, saved)


@pytest.mark.parametrize("forward", [lambda x: F.dropout2d(x, 0.5, training=True), lambda x: F.gumbel_softmax(x)])
def test_a_closed_composite_draws_the_same_numbers_again(forward):
    history = lens.trace(Body(forward), torch.randn(2, 3, 4, 4, 4), passes=API)
    assert check(history).ok


def test_a_closed_composite_that_hands_an_argument_through():
    history = lens.trace(Body(lambda x: F.l1_loss(x, torch.ones(3)) + x), torch.randn(3), passes=API)
    assert check(history).ok


@pytest.mark.parametrize("name", ["__pow__", "__ipow__", "__rsub__"])
def test_operators_are_found_by_their_name(name):
    function = getattr(torch.Tensor, name)
    ref = describe(function).ref
    assert resolve(ref) is function
    assert ref.name == name


@pytest.mark.parametrize("dtype", [torch.complex32, torch.float8_e4m3fn])
def test_dtypes_of_a_few_bits_are_validated(dtype):
    assert check(lens.trace(Body(lambda x: x.to(dtype).clone()), torch.randn(3))).ok


def test_a_lazy_module_is_validated_in_its_first_run():
    history = lens.trace(nn.LazyConv1d(3, 2), torch.randn(2, 4, 5))
    report = check(history)
    assert report.ok, str(report)
    given = [op for op in history.graph.ops if op.function.name == "data.__set__"]
    assert [history.graph.values[op.results[0]].type.shape for op in given] == [(3, 4, 2), (3,)]


def test_memory_handed_over_by_data_is_watched():
    history = lens.trace(nn.LazyLinear(3), torch.randn(2, 4), passes=())
    empty = next(op for op in history.graph.ops if op.function.name == "empty")
    conv = next(op for op in history.graph.ops if op.function.name == "linear")
    before, after = (history.payloads.read(v) for v in (empty.results[0], conv.operands[1]))
    assert before.data_ptr() != after.data_ptr()
