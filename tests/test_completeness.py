"""The completeness audit finds nothing on sound captures, and every planted hole."""

import models
import pytest
import torch
from models import Body
from real_models import REAL_MODELS
from torch import nn
from torch.overrides import handle_torch_function, has_torch_function_unary

import lens
from lens.capture.torch_function import TorchFunctionBackend
from lens.errors import BackendError, InputError
from lens.validate.completeness import audit

SMALL = {
    "branches": (models.TwoBranches, torch.randn(2, 4)),
    "conditional": (models.Conditional, torch.randn(2)),
    "in_place": (models.InPlaceThroughView, torch.randn(2, 4)),
    "setitem": (models.SetItem, torch.randn(2, 2)),
    "relu": (models.InPlaceReLU, torch.randn(1, 3, 8, 8)),
    "containers": (models.Containers, {"image": torch.randn(2, 2)}),
    "loop": (models.LSTMLoop, torch.randn(3, 2, 4)),
}
BACKENDS = ["torch_function", "decoration", "torch_dispatch"]


def found(function, x=None, **options):
    return audit(Body(function), torch.randn(2, 4) if x is None else x, **options)


def names(result):
    return {hole.name: hole.count for hole in result.holes}


@pytest.mark.parametrize("backend", ["torch_function", "decoration"])
@pytest.mark.parametrize("train", [True, False], ids=["train_grad", "eval_no_grad"])
@pytest.mark.parametrize("name", REAL_MODELS)
def test_nothing_is_missing_in_real_models(name, train, backend):
    torch.manual_seed(0)
    model, args, kwargs = REAL_MODELS[name]()
    with torch.set_grad_enabled(train):
        result = audit(model.train(train), args, kwargs, backend=backend)
    assert result.ok, str(result)
    assert result.owned > 5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SMALL)
def test_nothing_is_missing_in_small_models(name, backend):
    make, x = SMALL[name]
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            result = audit(make(), x, backend=backend)
        assert result.ok, str(result)
        assert result.owned > 0


def test_a_call_out_of_sight_is_a_hole_with_its_place_and_count():
    def forward(x):
        for _ in range(3):
            with torch._C.DisableTorchFunction():
                x = torch.relu(x)
        return x + 1

    with torch.no_grad():
        result = found(forward)
    (hole,) = result.holes
    assert (hole.name, hole.count) == ("aten.relu.default", 3)
    assert (hole.location.file, hole.location.function.rpartition(".")[2]) == (__file__, "forward")
    assert not result.ok
    assert f"3  HOLE: aten.relu.default at {hole.location}" in str(result)
    assert "1 calls owned by operations, 3 in holes" in str(result)
    assert found(forward, backend="torch_dispatch").ok


def test_a_read_out_of_sight_is_a_hole_and_a_recorded_one_is_not():
    def hidden(x):
        with torch._C.DisableTorchFunction():
            number = x.sum().item()
        return x + number

    assert names(found(hidden)) == {"aten.sum.default": 1, "aten._local_scalar_dense.default": 1}
    result = found(lambda x: x + x.sum().item() if (x == x).all() else x)
    assert result.ok
    assert {reason for reason, _ in result.excused} == {"a read, recorded as bool", "a read, recorded as item"}


def asks_sparse(x):
    y = x.to_sparse()
    return (y if y.is_coalesced() else y.coalesce()).to_dense() * y.sparse_dim()


ASKING = {
    "sparse": asks_sparse,
    "sizes": lambda x: x + 1 if x.is_same_size(x) else x,
    "derivative": lambda x: torch.func.jvp(torch.sin, (x,), (x,))[1],
    "jagged": lambda x: torch.nested.nested_tensor([x[:1], x], layout=torch.jagged).to_padded_tensor(0.0) + 1,
}


@pytest.mark.parametrize("backend", ["torch_function", "torch_dispatch"])
@pytest.mark.parametrize("name", ASKING)
def test_asking_a_tensor_how_it_is_made_is_no_hole(name, backend):
    result = found(ASKING[name], torch.ones(2, 3), backend=backend)
    assert result.ok, str(result)


def composite(x):
    if has_torch_function_unary(x):
        return handle_torch_function(composite, (x,), x)
    flag = x.sum() > -100
    with torch._C.DisableTorchFunction():
        x = torch.relu(x)
    if flag:  # a read right after the hole does not cover it
        x = x + 1
    return x


class Exp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = x.exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0]


@pytest.mark.parametrize("backend", ["torch_function", "decoration"])
def test_what_autograd_does_by_itself_is_no_hole(backend):
    """A function's saved output is detached by autograd; a backward pass is disclosed."""

    def step(x):
        leaf = x.detach().requires_grad_()
        Exp.apply(leaf).sum().backward()
        return Exp.apply(x - leaf.grad)

    result = found(step, torch.randn(3, requires_grad=True), backend=backend)
    assert result.ok, str(result)
    assert sum(count for reason, count in result.excused if "backward pass" in reason) > 1


def test_a_hole_in_a_composite_that_is_dissolved():
    result = found(composite)
    assert names(result) == {"aten.relu.default": 1}
    assert ("a read, recorded as bool", 1) in result.excused


def test_a_composite_that_stays_whole_owns_its_interior():
    def whole(x):
        if has_torch_function_unary(x):
            return handle_torch_function(whole, (x,), x)
        y = x + 1
        with torch._C.DisableTorchFunction():
            return torch.relu(y)

    assert found(whole).ok


def test_the_census_does_not_make_the_backend_see_more():
    def forward(x):
        y = (x * 2).requires_grad_()
        (gradient,) = torch.autograd.grad((y * y).sum(), y)  # the backward pass calls no Python function
        return gradient + 1

    result = found(forward)
    assert result.ok, str(result)


def test_a_call_that_raised_owns_nothing_after_it():
    def forward(x):
        for _ in range(2):
            try:
                torch.mm(x, x)
            except RuntimeError:
                with torch._C.DisableTorchFunction():
                    y = torch.relu(x)
        return y

    result = found(forward)
    assert names(result) == {"aten.relu.default": 2}
    assert ("inside a call that raised", 2) in result.excused


def test_scripted_parts_are_disclosed_or_holes():
    @torch.jit.script
    def body(x):
        return torch.relu(x * 2)

    model, x = Body(lambda x: body(x) + 1), torch.randn(2, 4)
    disclosed = [op.function.name for op in lens.trace(model, x).graph.ops] != ["add"]
    result = audit(model, x)
    assert result.ok is disclosed, str(result)
    assert audit(model, x, backend="torch_dispatch").ok


@pytest.mark.parametrize("backend", BACKENDS)
def test_looking_into_a_frozen_script_is_no_hole(backend):
    frozen = torch.jit.freeze(torch.jit.script(nn.Linear(2, 2).eval()))  # its weights are constants of its graph
    result = audit(Body(lambda x: frozen(x)), torch.ones(2, 2), backend=backend)
    assert result.ok, str(result)


def test_the_audit_leaves_the_run_as_it_is():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    torch.manual_seed(0)
    model(torch.ones(2, 4))
    state = torch.get_rng_state()
    torch.manual_seed(0)
    assert audit(model, torch.ones(2, 4)).ok
    assert torch.equal(torch.get_rng_state(), state)
    assert model[1].num_batches_tracked == 2
    with pytest.raises(ZeroDivisionError):
        found(lambda x: 1 / 0)
    assert torch._C._len_torch_dispatch_stack() == 0
    assert torch._C._len_torch_function_stack() == 0


def test_a_backend_is_given_as_itself():
    class Mine(TorchFunctionBackend):
        name = "mine"

    for result in (audit(nn.ReLU(), torch.ones(2), backend=Mine()), audit(nn.ReLU(), torch.ones(2))):
        assert result.ok
        assert result.owned == 1
    assert str(audit(nn.ReLU(), torch.ones(2), backend=Mine())).startswith("audit of mine")


def test_bad_input():
    with pytest.raises(BackendError):
        found(torch.relu, backend="no_such_backend")
    with pytest.raises(InputError):
        audit(torch.relu, torch.ones(2))


def test_the_text_of_an_audit_tells_what_is_excused():
    assert "     1  excused: a read, recorded as bool" in str(found(lambda x: x + 1 if (x == x).all() else x))


class Mine(TorchFunctionBackend):
    """Of a module that is in no package."""


def test_a_backend_of_a_module_without_a_package_is_audited():
    def forward(x):
        with torch._C.DisableTorchFunction():
            return torch.relu(x) + 1

    with torch.no_grad():
        assert names(found(forward, backend=Mine())) == {"aten.relu.default": 1, "aten.add.Tensor": 1}
