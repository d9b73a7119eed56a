"""The backend below autograd: what it records is what ran, and the run is the plain one."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import Body, Conditional, Raises, TwoBranches
from real_models import REAL_MODELS
from test_memory_programs import Program
from test_real_models import tensors
from torch import nn

import lens
from lens.errors import StaleValueError
from lens.ir.parser import parse
from lens.ir.printer import print_graph
from lens.ir.verifier import find_problems
from lens.validate.check import check


def record(model, *args, **options):
    return lens.trace(model if isinstance(model, nn.Module) else Body(model), args, backend="torch_dispatch", **options)


def names(history):
    return [op.function.name for op in history.graph.ops]


def kinds(history):
    return [leaf.kind for leaf in history.graph.leaves]


def same(first, second):
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def proved(history):
    assert find_problems(history.graph) == []
    assert parse(print_graph(history.graph)) == history.graph
    report = check(history)
    assert report.ok, str(report)
    return history


@pytest.mark.parametrize("train", [True, False], ids=["train_grad", "eval_no_grad"])
@pytest.mark.parametrize("name", REAL_MODELS)
def test_real_models(name, train):
    torch.manual_seed(0)
    model, args, kwargs = REAL_MODELS[name]()
    twin = copy.deepcopy(model.train(train))
    with torch.set_grad_enabled(train):
        torch.manual_seed(1)
        plain = tensors(twin(*args, **kwargs))
        state = torch.get_rng_state()
        torch.manual_seed(1)
        history = lens.trace(model, args, kwargs, backend="torch_dispatch")
    assert torch.equal(torch.get_rng_state(), state)
    traced = [history.payloads.read(value) for value in history.graph.outputs.values]
    assert same(traced, plain)
    assert same(list(model.state_dict().values()), list(twin.state_dict().values()))
    assert "external" not in kinds(history)
    assert all(leaf.addresses for leaf in history.graph.leaves if leaf.kind == "parameter")
    proved(history)
    if train:
        for found in (traced, plain):
            sum(t.float().sum() for t in found if t.requires_grad).backward()
        gradients = [[p.grad for p in m.parameters() if p.grad is not None] for m in (model, twin)]
        assert same(*gradients)
        assert len(gradients[0]) > 0


@pytest.mark.parametrize("mode", ["grad", "no_grad", "inference"])
def test_random_programs_of_views_and_writes(mode):
    context = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}[mode]
    for seed in range(40):
        model = Program(seed)
        with context():
            history = record(model, torch.randn(4))
            saved = [history.payloads.read(value) for value in history.graph.outputs.values]
            assert same(saved, model(history["input_1"].tensor_contents)), seed
        proved(history)


@pytest.mark.parametrize("grad", [True, False])
def test_the_graph_does_not_depend_on_what_is_saved(grad):
    """Autograd wraps a result that somebody holds in another object, and calls ``detach`` for it."""
    for make in (TwoBranches, lambda: nn.LSTM(4, 8, 2, dropout=0.2), lambda: Body(lambda x: torch.zeros(4) + x)):
        model = make()
        with torch.set_grad_enabled(grad):
            full, empty = (record(model, torch.randn(2, 4), save=save) for save in ("all", "none"))
        rows = [[(op.function, op.operands) for op in history.graph.ops] for history in (full, empty)]
        assert rows[0] == rows[1]


@pytest.mark.parametrize("save", ["all", "none"])
def test_a_value_is_known_again_as_another_object(save):
    def forward(x):
        scale = torch.ones(4) * 2
        parameter = nn.Parameter(scale)  # another object on the memory of what `mul` made
        (gradient,) = torch.autograd.grad((x * parameter).exp().sum(), parameter)  # hands saved tensors back
        return gradient + parameter

    history = record(forward, torch.randn(2, 4), save=save)
    assert kinds(history) == ["input"]
    assert find_problems(history.graph) == []
    last = history.graph.ops[-1]
    made = [history.graph.values[value].producer for value in last.operands]
    assert [history.graph.ops[op].function.name for op in made] == ["view.default", "mul.Tensor"]


@pytest.mark.parametrize("dead", [True, False], ids=["dead when it is written to", "dead after it"])
def test_a_dead_tensor_is_known_again_with_the_writes_since_it_was_looked_at(dead):
    def forward(x):
        base = x * 2
        view = base[0]
        alias = nn.Parameter(view, requires_grad=False)
        if dead:
            del view
        base.add_(1)
        if not dead:
            del view
        return alias * 3

    for save in ("all", "none"):
        history = record(forward, torch.randn(2, 4), save=save)
        (operand,) = history.graph.ops[-1].operands
        assert history.graph.ops[history.graph.values[operand].producer].function.name == "add_.Tensor"
        assert "external" not in kinds(history)


def test_other_memory_given_unseen_is_followed_and_the_lost_value_is_an_error():
    def forward(x):
        first, second = x * 2, x + 1
        second.data = first[:, :2]
        return second

    history = record(forward, torch.randn(2, 4))
    (output,) = history.graph.outputs.values
    assert history.graph.ops[history.graph.values[output].producer].function.name == "slice.Tensor"
    with pytest.raises(lens.errors.StaleValueError):
        _ = history["add_1"].tensor_contents


def test_writes_come_from_the_schemas():
    def forward(x):
        out, value, index = torch.empty(2, 4), torch.empty(2), torch.empty(2, dtype=torch.long)
        torch.add(x, 1, out=out)
        torch.max(x, 1, out=(value, index))
        parts = [out * 1, out * 2]
        torch._foreach_add_(parts, 1)
        parts[0][0, 0] = 7.0
        return parts[0] + parts[1], value, index

    history = proved(record(forward, torch.randn(2, 4)))
    mutating = [op.function.name for op in history.graph.ops if op.function.mutates]
    assert mutating == ["add.out", "max.dim_max", "_foreach_add_.Scalar", "copy_.default"]
    assert kinds(history) == ["input", "constant"]


def test_statistics_are_written_in_training_only():
    model = nn.BatchNorm1d(4)
    history = proved(record(model, torch.randn(3, 4)))
    (norm,) = (op for op in history.graph.ops if op.function.name == "native_batch_norm.default")
    assert [history.graph.leaves[history.graph.values[old].leaf].addresses for old, _ in norm.effects] == [
        ("running_mean",),
        ("running_var",),
    ]
    twice = proved(record(lambda x, m=model: m(m(x)), torch.randn(3, 4)))
    first, second = (op for op in twice.graph.ops if op.function.name == "native_batch_norm.default")
    assert {new for _, new in first.effects} <= set(second.operands)
    assert not any(op.effects for op in record(model.eval(), torch.randn(3, 4)).graph.ops)


def test_random_operators_keep_their_generator():
    def forward(x):
        generator = torch.Generator().manual_seed(3)
        return x + torch.rand(2, 4, generator=generator) + F.dropout(x) + torch.empty(2, 4).uniform_()

    history = proved(record(forward, torch.randn(2, 4)))
    assert {op.function.name for op in history.graph.ops if op.function.random} >= {
        "rand.generator",
        "uniform_.default",
    }


def test_reads_and_the_conditions_they_steer():
    history = record(Conditional(), torch.randn(2))
    assert [(read.kind, read.result) for read in history.graph.reads] == [("bool", False)]
    assert [c.construct for c in history.graph[lens.ir.facets.Conditionals].conditions] == ["if"]
    history = record(lambda x: x * x.sum().item() if torch.equal(x, x) else x, torch.ones(2))
    assert [(read.kind, read.result) for read in history.graph.reads] == [("equal", True)] * 2 + [("item", 2.0)]
    assert any(gap.kind == "reads" for gap in history.gaps)


HIDDEN_TENSORS = {
    "tensor": lambda x: torch.tensor([x.sum(), 1.0]) * 2,
    "nested": lambda x: torch.tensor([[x[0], 1.0], [2.0, x[1]]]) * 2,
    "as_tensor": lambda x: torch.as_tensor([x.sum(), x[0]]) * 2,
    "asarray": lambda x: torch.asarray([x.sum()]) * 2,
    "new_tensor": lambda x: x.new_tensor([x.sum()]) * 2,
    "sparse": lambda x: torch.sparse_coo_tensor([[0]], [x.sum()], (2,)).to_dense() * 2,
}


@pytest.mark.parametrize("name", HIDDEN_TENSORS)
@pytest.mark.parametrize("save", ["all", "none"])
def test_a_tensor_made_of_tensors_depends_on_them(name, save):
    history = record(HIDDEN_TENSORS[name], torch.tensor([1.0, 2.0]), save=save)
    assert history["output_1"].has_input_ancestor
    assert kinds(history) == ["input"]
    if save == "all":
        proved(history)


PLAIN_NUMBERS = {
    "tensor": lambda x: x + torch.tensor([1.0, 2.0]),
    "index": lambda x: x[[0, 1]] + 1,
    "item": lambda x: x.clone().index_put_((torch.tensor([0]),), torch.tensor(5.0)) * 2,
    "new_tensor": lambda x: x + x.new_tensor([1.0, 2.0]),
}


@pytest.mark.parametrize("name", PLAIN_NUMBERS)
def test_a_tensor_made_of_numbers_is_a_constant(name):
    history = record(PLAIN_NUMBERS[name], torch.ones(2))
    assert set(kinds(history)) == {"input", "constant"}
    assert {gap.kind for gap in history.gaps} == {"reads"}


TENSOR = torch.tensor
WAYS_OUT = {
    "early_bound": (lambda x: TENSOR([x.sum()]) * 2, "external"),
    "legacy": (lambda x: torch.FloatTensor([x.sum()]) * 2, "external"),
    "tolist": (lambda x: torch.tensor(x.tolist()) * 2, "read"),
    "tolist_as_number": (lambda x: x * x.tolist()[0], "read"),
    "numpy_scalar": (lambda x: torch.tensor(x.detach().numpy().sum()) * 2, "read"),
    "asarray": (lambda x: torch.as_tensor(np.asarray(x.detach()).sum()) * 2, "read"),
    "dlpack": (lambda x: torch.from_dlpack(x.detach()) * 2, "external"),
    "float": (lambda x: x * float(x.sum()), "read"),
    "int": (lambda x: x * int(x.sum()), "read"),
    "item": (lambda x: x * x.sum().item(), "read"),
    "full": (lambda x: torch.full((2,), x.sum()) * 2, "read"),
    "pickle": (lambda x: pickle.loads(pickle.dumps(x)) * 2, "external"),
}


@pytest.mark.parametrize("name", WAYS_OUT)
def test_every_way_out_of_the_tensor_world_is_disclosed_with_its_line(name):
    function, kind = WAYS_OUT[name]
    history = record(function, torch.tensor([1.0, 2.0]))
    assert (kind, function.__code__.co_firstlineno) in {
        (gap.kind, gap.location.line) for gap in history.gaps if gap.location and gap.location.file == __file__
    }


def test_a_write_through_an_array_is_found():
    def forward(x):
        y = x * 2
        y.numpy()[0] = 7.0
        return y + 1

    history = record(forward, torch.ones(2))
    assert history["output_1"].tensor_contents.tolist() == [8.0, 3.0]
    assert kinds(history) == ["input", "external"]
    assert history["mul_1"].tensor_contents.tolist() == [2.0, 2.0]
    proved(history)


def test_tensors_from_outside_are_disclosed():
    history = record(lambda x: torch.from_numpy(np.tanh(x.detach().numpy())) * 2, torch.randn(2))
    (leaf,) = (leaf for leaf in history.graph.leaves if leaf.kind == "external")
    assert leaf.location.file == __file__
    assert any(gap.kind == "external" for gap in history.gaps)
    assert kinds(record(lambda x: x + torch.tensor([1.0, 2.0]), torch.randn(2))) == ["input", "constant"]


def test_scripted_interiors_are_seen():
    @torch.jit.script
    def body(x):
        y = x * 2
        return torch.relu(y[:, :2]) + y[:, 2:]

    history = proved(record(lambda x: body(x) + 1, torch.randn(2, 4)))
    assert [n for n in names(history) if "slice" not in n] == ["mul.Scalar", "relu.default", "add.Tensor", "add.Tensor"]
    assert kinds(history) == ["input"]


def test_scopes_sites_and_grad_fn():
    history = record(TwoBranches(), torch.randn(2, 4, requires_grad=True))
    addmm = next(op for op in history.graph.ops if op.function.name == "addmm.default")
    assert history.graph.scopes[addmm.scope].address == "fc"
    assert (
        addmm.location.line == next(op for op in history.graph.ops if op.function.name == "relu.default").location.line
    )
    assert history.graph.values[addmm.results[0]].grad_fn == "AddmmBackward0"
    assert {a for leaf in history.graph.leaves for a in leaf.addresses} == {"x", "fc.weight", "fc.bias", "scale"}


def test_fast_paths():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    with torch.no_grad():
        kept, opened = (record(layer, torch.randn(1, 3, 8), fast_paths=how) for how in ("keep", "open"))
    assert names(kept) == ["_transformer_encoder_layer_fwd.default"]
    assert len(names(opened)) > 10
    assert torch.backends.mha.get_fastpath_enabled()


def test_nothing_is_left_behind_by_an_exception():
    untouched = nn.Module._call_impl
    with pytest.raises(ValueError, match="mine") as caught:
        record(Raises(ValueError("mine")), torch.randn(2, 4))
    assert names(caught.value.lens_history) == ["t.default", "addmm.default", "relu.default"]
    assert untouched is nn.Module._call_impl
    assert torch._C._len_torch_dispatch_stack() == 0


def test_a_trace_without_payloads_keeps_no_tensor_alive():
    references = []

    def forward(x):
        y = x * 2
        references.append(weakref.ref(y))
        return y[0] + 1

    gc.disable()
    try:
        history = record(forward, torch.randn(2, 4), save="none")
        assert references[0]() is None
    finally:
        gc.enable()
    assert len(history.payloads) == 0


def test_function_overrides_run_as_often_as_without_the_trace():
    """An operator called from Python would start again with ``__torch_function__``."""
    seen = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    class Tagged(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append(func)
            return super().__torch_function__(func, types, args, kwargs)

    @torch.jit.script
    def scripted(x):
        return torch.relu(x) * 2

    def forward(x):
        with Mode():
            y = scripted(x) + 1
        return y + (y.as_subclass(Tagged) * 2).sum().item()

    def calls(run):
        seen.clear()
        run()
        return list(seen)

    model, x = Body(forward), torch.randn(2, 4)
    plain = calls(lambda: model(x))
    assert len(plain) > 1
    assert calls(lambda: record(model, x, save="none")) == plain


def test_what_a_tensor_moved_away_from_is_not_saved_as_it_is_now():
    def forward(x):
        y = x + 1
        v = y.detach()
        y.data = x * 3
        v.add_(1)
        return y + v

    history = lens.trace(forward, torch.ones(2), backend="torch_dispatch")
    with pytest.raises(StaleValueError):
        history["add_1"].tensor_contents  # noqa: B018


def test_a_view_of_a_parameter_that_was_written_to():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(4, 4))

        def forward(self, x):
            with torch.no_grad():
                self.w.mul_(0.5)
                self.w[0].add_(1)
                self.w.view(-1).clamp_(-0.5, 0.75)
            return x @ self.w

    model = Model()
    history = lens.trace(model, torch.ones(1, 4), backend="torch_dispatch")
    assert torch.equal(history["output_1"].tensor_contents, torch.full((1, 4), 2.25))
