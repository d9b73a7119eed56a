"""The fast lane of the default backend: what may look like a usual call there, and is none.

That it records usual calls as the general way does is tested where backends are compared (``test_decoration.py``) and
against torch's databases (``test_operator_database.py``).
"""

import gc
import weakref
from itertools import pairwise

import pytest
import torch
from models import Body
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import lens
from lens.capture.recorder import Recorder
from lens.capture.tensor_table import TensorTable
from lens.functions import describe
from lens.validate.check import check


def traced(forward, x, save="all"):
    history = lens.trace(Body(forward), x, save=save)
    assert save == "none" or not check(history).failed
    return history


def functions(history):
    return [op.function.name for op in history.graph.ops]


def alias_of(history, op):
    return history.graph.values[history.graph.ops[op].results[0]].alias_of


SAVES = ["none", "all"]


@pytest.mark.parametrize("save", SAVES)
def test_a_view_shares_memory_with_the_fresh_tensor_that_it_shows(save):
    history = traced(lambda x: torch.relu(x).view(-1), torch.randn(2, 3), save=save)
    assert functions(history) == ["relu", "view"]
    assert alias_of(history, 1) == history.graph.ops[0].results[0]


@pytest.mark.parametrize("save", SAVES)
def test_a_write_through_a_view_reaches_the_fresh_tensor(save):
    def forward(x):
        fresh = torch.relu(x)
        fresh[0].mul_(2)
        return fresh + 1

    history = traced(forward, torch.randn(2, 3), save=save)
    add = history.graph.ops[-1]
    made = history.graph.values[add.operands[0]]
    assert history.graph.ops[made.producer].function.name == "mul_"


@pytest.mark.parametrize("save", SAVES)
def test_writes_to_a_fresh_tensor_are_new_values_of_it(save):
    def forward(x):
        fresh = x * 2
        fresh.add_(1).relu_()
        fresh += 1
        fresh.add_(fresh)
        return fresh

    history = traced(forward, torch.tensor([[-2.0, 0.5, 1.0], [3.0, -1.0, 2.0]]), save=save)
    ops = history.graph.ops
    assert functions(history) == ["mul", "add_", "relu_", "add_", "add_"]
    for before, after in pairwise(ops):
        assert after.operands[0] == before.results[0]
        assert history.graph.values[after.results[0]].alias_of == before.results[0]
    assert ops[-1].operands == (ops[-2].results[0],) * 2
    assert history.graph.outputs.values == ops[-1].results
    if save == "all":  # each as it was, none lost to a write
        assert not any(
            torch.equal(history.payloads.read(a.results[0]), history.payloads.read(b.results[0]))
            for a, b in pairwise(ops)
        )


def test_a_write_that_returns_nothing_is_a_new_value_of_a_fresh_tensor():
    def forward(x):
        fresh = x * 2
        fresh[0] = 1.0
        return fresh + 1

    history = traced(forward, torch.randn(2, 3))
    assert functions(history) == ["mul", "__setitem__", "add"]
    assert history.graph.ops[2].operands == history.graph.ops[1].results


@pytest.mark.parametrize("save", SAVES)
def test_a_write_out_of_sight_to_a_fresh_tensor_is_found(save):
    def forward(x):
        fresh = torch.relu(x)
        with torch._C.DisableTorchFunction():
            fresh.mul_(3)
        return fresh + 1

    history = lens.trace(Body(forward), torch.randn(2, 3), save=save)
    origin = history.graph.values[history.graph.ops[-1].operands[0]]
    assert history.graph.leaves[origin.leaf].kind == "external"


def test_memory_given_to_another_tensor_is_that_of_the_fresh_one():
    def forward(x):
        fresh = torch.relu(x)
        other = torch.empty(0)
        other.set_(fresh)
        other.mul_(2)
        return fresh + 1

    history = traced(forward, torch.randn(2, 3))
    made = history.graph.values[history.graph.ops[-1].operands[0]]
    assert history.graph.ops[made.producer].function.name == "mul_"


def test_a_fresh_tensor_that_numpy_writes_to_is_looked_at_again():
    def forward(x):
        fresh = torch.relu(x)
        fresh.numpy()[:] = 7
        return fresh + 1

    with torch.no_grad():
        history = lens.trace(Body(forward), torch.randn(2, 3))
    origin = history.graph.values[history.graph.ops[-1].operands[0]]
    assert history.graph.leaves[origin.leaf].kind == "external"
    assert history[-1].tensor_contents.eq(8).all()


def test_what_is_saved_of_a_fresh_tensor_is_copied_before_a_write():
    def forward(x):
        fresh = torch.relu(x)
        shown = fresh.view(-1)
        shown.add_(1)
        return shown

    x = torch.randn(2, 3)
    history = traced(forward, x)
    assert torch.equal(history["relu_1"].tensor_contents, torch.relu(x))


@pytest.mark.parametrize("save", SAVES)
def test_a_write_reaches_all_views_of_a_fresh_tensor_and_it_by_them(save):
    def forward(x):
        fresh = torch.relu(x)
        top, bottom = fresh.unbind(0)
        turned = fresh.t().view(3, 2)
        bottom.add_(1)
        return fresh * 1, turned * 1, top * 1

    history = traced(forward, torch.randn(2, 3), save=save)
    (write,) = (op for op in history.graph.ops if op.function.name == "add_")
    fresh, turned, top = (op.operands[0] for op in history.graph.ops[-3:])
    assert {fresh, turned} == {new for _, new in write.effects}
    assert top in next(op.results for op in history.graph.ops if op.function.name == "unbind")


def test_views_of_views_share_memory_with_what_they_were_made_from():
    history = traced(lambda x: torch.relu(x).view(-1)[1:].unsqueeze(0), torch.randn(2, 3))
    for before, after in pairwise(range(4)):
        assert alias_of(history, after) == history.graph.ops[before].results[0]


@pytest.mark.parametrize("save", SAVES)
def test_a_result_that_is_the_argument_keeps_what_was_held_of_both(save):
    def forward(x):
        fresh = torch.relu(x)
        same = torch.dropout(fresh, 0.5, False).contiguous()
        assert same is fresh
        same.add_(1)
        return same * 2

    x = torch.randn(2, 3)
    history = traced(forward, x, save=save)
    if save == "all":
        held = [history.payloads.read(op.results[0]) for op in history.graph.ops[:4]]
        assert all(torch.equal(value, torch.relu(x) + (i == 3)) for i, value in enumerate(held))
    assert functions(history) == ["relu", "dropout", "contiguous", "add_", "mul"]
    assert [alias_of(history, i) for i in range(1, 4)] == [history.graph.ops[i].results[0] for i in range(3)]


def test_dropout_that_draws_keeps_the_state_of_the_generator():
    torch.manual_seed(0)
    history = traced(lambda x: torch.dropout(torch.relu(x), 0.5, True), torch.randn(20, 3))
    assert functions(history) == ["relu", "dropout"]
    assert alias_of(history, 1) is None


@pytest.mark.parametrize("inference", [False, True])
def test_tuples_of_results_are_noted_one_by_one(inference):
    cell = nn.LSTMCell(3, 3)
    with torch.inference_mode(inference):
        history = lens.trace(cell, (torch.randn(4, 3), (torch.zeros(4, 3), torch.ones(4, 3))))
    (op,) = history.graph.ops
    assert len(op.results) == 2
    assert len(op.operands) == 7
    assert not check(history).failed


@pytest.mark.parametrize("save", SAVES)
def test_a_view_of_what_an_operator_made_on_its_way_shares_memory_with_no_operand(save):
    history = traced(lambda x: torch.tensordot(torch.relu(x), x, 2), torch.randn(2, 3), save=save)
    assert functions(history) == ["relu", "tensordot"]
    assert alias_of(history, 1) is None


class WithBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.ones(2, 3))
        self.weight = nn.Parameter(torch.ones(2, 3))

    def forward(self, x):
        return self.table.contiguous() * x

    def twice(self, x):
        before = self.weight * x
        with torch._C.DisableTorchFunction(), torch.no_grad():
            self.weight.add_(1)
        return before + self.weight * x


@pytest.mark.parametrize("save", SAVES)
def test_a_buffer_that_is_returned_as_it_is_stays_one(save):
    history = lens.trace(WithBuffer(), torch.randn(2, 3), save=save)
    assert functions(history) == ["contiguous", "mul"]
    assert alias_of(history, 0) == history.graph.ops[0].operands[0]


@pytest.mark.parametrize("save", SAVES)
def test_a_parameter_that_is_written_to_out_of_sight_is_another_value(save):
    history = lens.trace(WithBuffer().twice, torch.randn(2, 3), save=save)
    before, after = (history.graph.values[op.operands[0]] for op in history.graph.ops if op.function.name == "mul")
    assert history.graph.leaves[before.leaf].kind == "parameter"
    assert history.graph.leaves[after.leaf].kind == "external"


def test_fresh_tensors_get_their_records_by_age():
    table = TensorTable()
    base = torch.zeros(2)
    first, second = base[:1], base[1:]
    for value, tensor in ((2, second), (0, base), (1, first)):  # as where an id is used again
        table.fresh[id(tensor)] = weakref.ref(tensor), (value,), tensor._version, True
    record = table.find(base)
    assert [member.value for member, _ in table.members(record)] == [1, 2]


class Remembers(TorchFunctionMode):
    """A mode of the user's, for which a view is the same object every time, and a cell gives back what it was given."""

    def __init__(self):
        super().__init__()
        self.view = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.view:
            self.view = func(*args) if self.view is None else self.view
            return self.view
        return args[1] if func is torch.lstm_cell else func(*args, **(kwargs or {}))


@pytest.mark.parametrize("save", SAVES)
def test_views_and_tuples_that_were_there_before_are_values_of_what_they_are(save):
    def forward(x):
        fresh = torch.relu(x)
        first, second = fresh.view(-1), fresh.view(-1)
        assert first is second
        state = torch.tanh(x), torch.exp(x)
        return *torch.lstm_cell(x, state, x.new_ones(12, 3), x.new_ones(12, 3)), second

    with Remembers():
        history = lens.trace(Body(forward), torch.randn(2, 3), save=save)
    _, first, second, tanh, exp, *_, cell = history.graph.ops
    assert alias_of(history, second.id) == first.results[0]
    assert [history.graph.values[v].alias_of for v in cell.results] == [*tanh.results, *exp.results]


class GivesBack(TorchFunctionMode):
    """A mode of the user's, for which relu is the identity."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return args[0] if func is torch.relu else func(*args, **(kwargs or {}))


class GivesBackBelow(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return args[0] if func is torch.ops.aten.relu.default else func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [GivesBack, GivesBackBelow])
def test_a_result_that_was_there_before_is_a_value_of_what_it_is(mode):
    def forward(x):
        first = x * 2
        second = torch.relu(first)
        assert second is first
        return second + first

    with mode(), torch.no_grad():
        history = lens.trace(Body(forward), torch.randn(2, 3), save="none")
    _, relu, add = history.graph.ops
    assert add.operands == relu.results * 2
    assert alias_of(history, 1) == relu.operands[0]


class Other(torch.Tensor):
    """A subclass that says nothing."""


class GivesSubclass(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return result.as_subclass(Other) if func is torch.relu else result


def test_a_result_of_another_type_is_recorded():
    with GivesSubclass():
        history = lens.trace(Body(lambda x: torch.relu(x)), torch.randn(2, 3))
    assert functions(history)[:1] == ["relu"]
    assert history.graph.ops[0].results


def test_a_mode_that_does_not_return_what_was_written_to_loses_no_write():
    class Copies(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            return result.clone() if func is torch.Tensor.add_ else result

    def forward(x):
        fresh = x * 2
        fresh.add_(1)
        return fresh + 1

    with Copies():
        history = lens.trace(Body(forward), torch.randn(2, 3), save="none")
    add = history.graph.ops[-1]
    assert history.graph.ops[history.graph.values[add.operands[0]].producer].function.name == "add_"
    assert history.graph.values[add.operands[0]].alias_of == history.graph.ops[0].results[0]


@pytest.mark.parametrize("save", SAVES)
def test_results_in_inference_mode_and_nested_and_mapped_ones_are_recorded(save):
    def forward(x):
        with torch.inference_mode():
            y = torch.relu(x * 2)
        nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]).relu()
        return y.clone() + 1, nested, torch.vmap(torch.sin)(x)

    history = lens.trace(Body(forward), torch.randn(2, 3), save=save)
    assert functions(history)[:2] == ["mul", "relu"]
    assert functions(history).count("relu") == 2
    nested = next(v for v in history.graph.values if v.type.layout == "nested" and v.producer is not None)
    assert nested.type.shape == (2, -1)


def test_symbolic_shapes_are_recorded():
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        x = mode.from_tensor(torch.randn(5, 3), static_shapes=False)
        history = lens.trace(Body(lambda x: torch.relu(x) + 1), x, save="none")
    assert functions(history) == ["relu", "add"]


def test_running_statistics_are_written_in_training_only():
    for train in (False, True):
        norm = nn.BatchNorm1d(3).train(train)
        history = lens.trace(norm, torch.randn(4, 3))
        (op,) = history.graph.ops
        assert bool(op.effects) is train
        assert not check(history).failed


def test_keyword_arguments_and_lists_are_encoded():
    def forward(x):
        y = torch.softmax(x, dim=1)
        z = torch.cat([x, y], dim=0)
        return z.sum(dim=(0, 1), dtype=torch.float64), torch.add(x, other=y, alpha=2)

    history = traced(forward, torch.randn(2, 3))
    assert functions(history) == ["softmax", "cat", "sum", "add"]
    assert dict(history.graph.ops[0].kwargs) == {"dim": 1}
    assert len(history.graph.ops[1].operands) == len(history.graph.ops[3].operands) == 2


@pytest.mark.parametrize("caught", [False, True])
def test_a_fault_names_the_function_that_raised_and_no_earlier_one(caught):
    def forward(x):
        try:
            torch.mm(x, torch.ones(7, 7))
        except RuntimeError:
            if not caught:
                raise
        y = torch.relu(x) + 1
        raise ValueError(f"own, after {len(y)}")

    with pytest.raises((RuntimeError, ValueError)) as found:
        lens.trace(Body(forward), torch.randn(2, 3))
    assert found.value.lens_history.graph.meta.fault.function == ("" if caught else "torch.mm")


def test_nothing_of_a_trace_is_left_to_the_garbage_collector():
    recorders = weakref.WeakSet()
    original = Recorder.__init__

    def noted(self, *args, **kwargs):
        original(self, *args, **kwargs)
        recorders.add(self)

    Recorder.__init__ = noted
    gc.collect()
    gc.disable()
    try:
        lens.trace(nn.Linear(2, 2), torch.ones(1, 2))
        assert not recorders
    finally:
        gc.enable()
        Recorder.__init__ = original


def test_what_is_promised_of_functions():
    fresh = [torch.relu, torch.Tensor.__add__, torch.nn.functional.linear, torch.conv2d, torch.cat, torch.Tensor.__eq__]
    assert all(describe(function).fresh for function in fresh)
    shared = [torch.Tensor.view, torch.Tensor.contiguous, torch.einsum, torch.Tensor.to, torch.ops.aten._unsafe_view]
    shared += [torch.split, torch.unsafe_split, torch.Tensor.data.__get__, torch.nn.functional.relu]
    assert not any(describe(function).returns_fresh for function in shared)
    assert not describe(torch.dropout).fresh  # it draws
    assert all(describe(f).quick for f in (torch.dropout, torch.nn.functional.scaled_dot_product_attention))
    assert not any(describe(f).quick for f in (torch.rand_like, torch.dropout_, torch.as_strided))
    copying = [torch.Tensor.contiguous, torch.reshape, torch.Tensor.__getitem__]
    assert all(describe(f).shows_or_copies and not describe(f).fresh for f in copying)
    assert not describe(torch.Tensor.detach).shows_or_copies
    assert describe(torch.batch_norm).fresh_unless == 5
    assert describe(torch.Tensor.add_).rewrites
    assert not any(describe(f).rewrites for f in (torch.Tensor.__setitem__, torch.Tensor.t_, torch.Tensor.normal_))


def relu(x):
    """Of the user's, with a name of torch's."""
    if torch.overrides.has_torch_function_unary(x):
        return torch.overrides.handle_torch_function(relu, (x,), x)
    with torch._C.DisableTorchFunction():
        return x.view(-1)


def test_a_function_of_the_users_with_a_name_of_torchs_promises_nothing():
    assert not describe(relu).returns_fresh
    history = lens.trace(Body(lambda x: relu(x * 2)), torch.randn(2, 3))
    assert alias_of(history, 1) == history.graph.ops[0].results[0]
