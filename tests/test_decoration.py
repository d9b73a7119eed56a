"""The decoration backend: equal graphs, and torch as it was afterwards."""

import collections
import ctypes
import functools
import importlib
import operator
import re
import subprocess
import sys
import threading
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from counting import calls
from models import (
    Body,
    Conditional,
    Containers,
    InPlaceReLU,
    InPlaceThroughView,
    LSTMLoop,
    Raises,
    SetItem,
    TwoBranches,
)
from real_models import REAL_MODELS
from region_models import MODELS as REGIONS
from torch import nn
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function_unary

import lens
from lens.capture import swapping
from lens.capture.backend import backends
from lens.ir.printer import print_graph
from lens.validate.check import check

SMALL_MODELS = {
    "two_branches": lambda: (TwoBranches(), (torch.ones(2, 4),), {}),
    "conditional": lambda: (Conditional(), (torch.zeros(2),), {}),
    "in_place_through_view": lambda: (InPlaceThroughView(), (torch.ones(2, 4),), {}),
    "set_item": lambda: (SetItem(), (torch.zeros(2, 2),), {}),
    "in_place_relu": lambda: (InPlaceReLU(), (torch.randn(1, 3, 8, 8),), {}),
    "containers": lambda: (Containers(), ({"image": torch.ones(2, 2)},), {"scale": 2.0}),
    "lstm_loop": lambda: (LSTMLoop(), (torch.randn(3, 2, 4),), {}),
    "attention": lambda: (nn.MultiheadAttention(8, 2), tuple(torch.randn(3, 2, 5, 8)), {}),
}
ALL_MODELS = {**SMALL_MODELS, **REAL_MODELS}


def text(make, backend, train, **options):
    torch.manual_seed(0)
    model, args, kwargs = make()
    with torch.set_grad_enabled(train):
        history = lens.trace(model.train(train), args, kwargs, backend=backend, save="none", seed=1, **options)
    return print_graph(history.graph, times=False, meta=False)


def state_of_torch():
    owners = (torch, F, torch.Tensor, torch._C, torch._C._nn, torch._VF, torch.overrides, torch._ops.OpOverload)
    return {
        (owner.__name__, name): value
        for owner in owners
        for name, value in vars(owner).items()
        if name != "__warningregistry__"
    }


def assert_untouched(before):
    after = state_of_torch()
    assert [key for key in before.keys() | after.keys() if before.get(key) is not after.get(key)] == []


def trace(function, *args, backend="decoration", **options):
    return lens.trace(Body(function), args, backend=backend, **options)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", ALL_MODELS)
def test_graphs_equal_those_of_torch_function(name, train):
    make = ALL_MODELS[name]
    assert text(make, "decoration", train) == text(make, "torch_function", train)


@pytest.mark.parametrize("name", ["attention", "masked_encoder", "bert"])
def test_graphs_are_equal_at_api_level_and_with_fast_paths_off(name):
    for options in ({"passes": "granularity{level=api},labels"}, {"fast_paths": "open"}):
        one, other = (text(ALL_MODELS[name], b, False, **options) for b in ("decoration", "torch_function"))
        assert one == other


@pytest.mark.parametrize("error", [None, ValueError("inside"), KeyboardInterrupt()])
def test_torch_is_left_as_it_was(error):
    before = state_of_torch()
    relu, add = torch.relu, torch.Tensor.__add__
    model = TwoBranches() if error is None else Raises(error)
    attributes = dict(vars(model))
    try:
        lens.trace(model, torch.ones(2, 4), backend="decoration")
    except (ValueError, KeyboardInterrupt):
        assert error.lens_history.layer_list == ["input_1", "linear_1_1", "relu_1_2"]
    assert_untouched(before)
    assert torch.relu is relu
    assert torch.Tensor.__add__ is add
    assert vars(model) == attributes
    assert (torch.ones(2) + torch.ones(2))[0].item() == 2.0


def test_functions_bound_early_are_seen_in_modules_and_on_modules():
    module = sys.modules["bound_early"] = ModuleType("bound_early")
    exec("from torch import relu, tanh as squash\ndef forward(x):\n    return squash(relu(x))", vars(module))
    model = Body(module.forward)
    model.register_module("inner", Body(torch.sigmoid))
    model.forward = lambda x: model.inner(model.function(x))
    try:
        history = lens.trace(model, torch.ones(2), backend="decoration")
    finally:
        del sys.modules["bound_early"]
    assert history.layer_list == ["input_1", "relu_1_1", "tanh_1_2", "sigmoid_1_3", "output_1"]
    assert model.inner.function is torch.sigmoid
    assert module.relu is torch.relu


class Slotted:
    __slots__ = ("act",)


def out_of_reach(x):
    """Forwards with a function bound where no replacement is put, and what it is recorded as."""
    plain, slotted = SimpleNamespace(act=torch.add, item=x.item), Slotted()
    slotted.act = functools.partial(torch.add, other=1)
    queue, pairs, branch = (
        collections.deque([torch.add]),
        map(torch.add, [x] * 2, [1] * 2),
        SimpleNamespace(act=torch.sin),
    )
    asking = SimpleNamespace(act=F.relu, composite=mine)
    yield "an attribute", lambda x: plain.act(x, 1) * 2, "add mul"
    yield "a slot", lambda x: slotted.act(x) * 2, "add mul"
    yield "a queue", lambda x: queue[0](x, 1) * 2, "add mul"
    yield "an iterator of C", lambda x: next(pairs) * 2, "add mul"
    yield "bound to a tensor", x.add, "add"
    yield "an operator bound to a tensor", x.__add__, "add"
    yield "one that writes", torch.ones(1).add_, "add_"
    yield "one that reads", lambda x: x * plain.item(), "item mul"
    yield "a list from a tensor", lambda x, out=x.tolist: x * out()[0], "tolist mul"
    yield "a property", lambda x, get=torch.Tensor.real.__get__: get(x) * 2, "real.__get__ mul"
    yield "a Python-level function", lambda x: asking.act(x) * 2, "relu mul"
    yield "a composite of the program", lambda x: asking.composite(x, plain.act), "add relu"
    yield "in a branch", lambda x: torch.cond(x.sum() > 0, branch.act, torch.cos, (x,)), "sum gt sin"
    yield "in a mode of the model", in_a_mode(plain.act), "add"
    yield "below a transform", lambda x: torch.func.vmap(plain.act, in_dims=(0, None))(x, 1) * 2, "vmap mul"


def mine(x, act):
    if has_torch_function_unary(x):
        return handle_torch_function(mine, (x,), x, act)
    return torch.relu(act(x, 1))


def in_a_mode(act):
    def forward(x):
        with torch.device("cpu"):
            return act(x, 1)

    return forward


@pytest.mark.parametrize("name", [name for name, *_ in out_of_reach(torch.ones(1))])
def test_functions_bound_where_no_replacement_is_put_are_seen(name):
    x = torch.ones(1)
    ((function, expected),) = ((f, e) for n, f, e in out_of_reach(x) if n == name)
    texts = []
    for backend in ("decoration", "torch_function"):
        history = trace(function, x, backend=backend)
        reads = [read.kind for read in history.graph.reads if read.kind != "bool"]
        assert [*reads, *(op.function.name for op in history.graph.ops)] == expected.split()
        assert [gap.kind for gap in history.gaps if gap.kind not in ("opaque", "external")] == ["read"] * len(reads)
        texts.append(print_graph(history.graph, times=False, meta=False))
    assert texts[0] == texts[1]


PART = functools.partial(torch.add, other=1)
APPLYING = functools.partial(lambda f, x, g: g(f(x)), torch.cosh, g=torch.sinh)
TABLE = {"relu": torch.relu, "more": [torch.tanh, (torch.sin, {"gelu": F.gelu})]}


def with_defaults(x, act=torch.sigmoid, *, after=torch.cos):
    return after(act(x))


class Attributes:
    exp = torch.exp
    absolute = staticmethod(torch.abs)

    def of(self, x, last=F.relu):
        return last(self.exp(self.absolute(x)))


def everywhere(x):
    y = TABLE["more"][1][1]["gelu"](TABLE["more"][1][0](TABLE["more"][0](TABLE["relu"](PART(x)))))
    return Attributes().of(with_defaults(APPLYING(y)))


def bindings():
    nested = TABLE["more"][1]
    yield from (PART.func, *APPLYING.args, *APPLYING.keywords.values(), TABLE["relu"], TABLE["more"][0], nested)
    yield from (*nested[1].values(), with_defaults.__defaults__, *with_defaults.__kwdefaults__.values())
    yield from (Attributes.exp, Attributes.absolute, *Attributes.of.__defaults__)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt()])
def test_functions_bound_in_containers_defaults_and_classes_are_seen_and_put_back(error):
    before = list(bindings())
    expected = text(lambda: (Body(everywhere), (torch.ones(2),), {}), "torch_function", True)
    assert text(lambda: (Body(everywhere), (torch.ones(2),), {}), "decoration", True) == expected
    assert expected.count(" = ") >= 12

    def failing(x):
        raise everywhere(x) is None or error

    if error is not None:
        with pytest.raises(KeyboardInterrupt):
            trace(failing, torch.ones(2))
    assert all(map(operator.is_, bindings(), before))


LATE = """
import functools, torch
from torch import relu
from torch.nn.functional import gelu
TABLE = {"tanh": torch.tanh}
PART = functools.partial(torch.add, other=1)
def forward(x, act=torch.sigmoid):
    return act(gelu(relu(TABLE["tanh"](PART(x)))))
"""


def test_a_module_loaded_in_the_forward_is_seen_and_keeps_no_replacement(tmp_path, monkeypatch):
    (tmp_path / "loaded_late.py").write_text(LATE)
    monkeypatch.syspath_prepend(tmp_path)

    def forward(x):
        return importlib.import_module("loaded_late").forward(x)

    try:
        history = trace(forward, torch.ones(2))
        late = sys.modules["loaded_late"]
    finally:
        sys.modules.pop("loaded_late", None)
    assert [op.function.name for op in history.graph.ops] == ["add", "tanh", "relu", "gelu", "sigmoid"]
    assert history.gaps == ()
    assert (late.relu, late.gelu, late.TABLE["tanh"]) == (torch.relu, F.gelu, torch.tanh)
    found = (late.relu, late.gelu, late.TABLE["tanh"], late.PART.func, *late.forward.__defaults__)
    assert not [f for f in found if hasattr(f, "lens_original")]


def test_a_module_loaded_while_another_trace_runs_is_seen_and_keeps_no_replacement(tmp_path, monkeypatch):
    (tmp_path / "loaded_meanwhile.py").write_text(LATE)
    monkeypatch.syspath_prepend(tmp_path)
    loaded, go_on = threading.Event(), threading.Event()

    def waiting(x):
        importlib.import_module("loaded_meanwhile")
        loaded.set()
        go_on.wait(10)
        return x + 1

    other = threading.Thread(target=trace, args=(waiting, torch.ones(2)))
    other.start()
    assert loaded.wait(10)
    late = sys.modules["loaded_meanwhile"]
    try:
        history = trace(late.forward, torch.ones(2))
    finally:
        go_on.set()
        other.join()
        del sys.modules["loaded_meanwhile"]
    assert [op.function.name for op in history.graph.ops] == ["add", "tanh", "relu", "gelu", "sigmoid"]
    found = (late.relu, late.gelu, late.TABLE["tanh"], late.PART.func, *late.forward.__defaults__)
    assert not [f for f in found if hasattr(f, "lens_original")]


def test_what_the_forward_makes_of_a_function_is_not_taken_for_it():
    made = []

    def forward(x):
        @functools.wraps(torch.sin)
        def twice(x):
            return torch.sin(torch.sin(x))

        made.append(twice)
        return torch.func.vmap(twice)(x)

    history = trace(forward, torch.ones(2))
    assert not hasattr(made[0], "lens_original")
    assert check(history).failed == ()


def test_what_the_forward_binds_holds_no_replacement_afterwards():
    model = Body(None)

    def forward(x):
        model.act, model.table = torch.tanh, {"relu": F.relu}
        return model.table["relu"](model.act(x))

    model.forward = forward
    lens.trace(model, torch.ones(2), backend="decoration")
    assert model.act is torch.tanh
    assert model.table["relu"] is F.relu


def test_names_that_the_program_rebinds_stay_rebound():
    module = sys.modules["rebinding"] = ModuleType("rebinding")
    module.act = torch.relu

    def forward(x):
        y = module.act(x)
        module.act = torch.tanh
        return y

    try:
        trace(forward, torch.ones(2))
        rebound = module.act
        module.act = torch.sin
        assert trace(forward, torch.ones(2)).layer_list[1] == "sin_1_1"
    finally:
        del sys.modules["rebinding"]
    assert rebound is torch.tanh


def test_two_threads_at_once_and_a_third_that_traces_nothing():
    before = state_of_torch()
    found, problems = {}, []
    stop = threading.Event()

    def tracing(name, layers, backend):
        model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(layers)])
        for _ in range(5):
            found[name] = len(lens.trace(model, torch.ones(1, 4), backend=backend).graph.ops)

    def plain():
        while not stop.is_set():
            with torch.device("meta"):
                if torch.zeros(2).device.type != "meta":
                    problems.append("a factory function was not the one that the device mode knows")

    bystander = threading.Thread(target=plain)
    tracers = [
        threading.Thread(target=tracing, args=(i, 3 + i, b))
        for i, b in enumerate(["decoration"] * 2 + ["torch_function"])
    ]
    for thread in (bystander, *tracers):
        thread.start()
    for thread in tracers:
        thread.join()
    stop.set()
    bystander.join()
    assert problems == []
    assert found == {0: 3, 1: 4, 2: 5}
    assert_untouched(before)


@pytest.mark.parametrize("outer", ["decoration", "torch_function"])
@pytest.mark.parametrize("inner", ["decoration", "torch_function"])
def test_a_trace_inside_a_traced_forward(outer, inner):
    before = state_of_torch()
    inside = []

    def forward(x):
        y = F.relu(x)
        inside.append(lens.trace(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), y, backend=inner))
        return y + 1

    history = trace(forward, torch.ones(1, 4), backend=outer)
    assert inside[0].layer_list == ["input_1", "linear_1_1", "relu_1_2", "output_1"]
    assert history["add_1"].parent_layers == ["relu_1_1"]
    assert_untouched(before)


class Tagged(torch.Tensor):
    """Knows a function by identity, as dispatch tables do."""

    seen = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


def test_tensor_subclasses_meet_the_functions_that_they_know():
    x = torch.ones(2).as_subclass(Tagged)

    def forward(x):
        return F.relu(torch.cat([x.add(1), x * 2]))

    Tagged.seen.clear()
    forward(x)
    plain = list(Tagged.seen)
    Tagged.seen.clear()
    history = trace(forward, x, save="none")
    assert {torch.Tensor.add, torch.Tensor.mul, torch.cat, F.relu} <= set(Tagged.seen)
    assert [f for f in Tagged.seen if f in plain] == plain
    other = trace(forward, x, backend="torch_function", save="none")
    assert history.layer_list == other.layer_list


def test_a_mode_that_the_model_enters_sees_each_call_first():
    class Doubling(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {})) * 2 if func is torch.relu else func(*args, **(kwargs or {}))

    def forward(x):
        with Doubling(), torch.device("cpu"):
            return torch.relu(x) + torch.zeros(2)

    one, other = (trace(forward, torch.ones(2), backend=b) for b in ("decoration", "torch_function"))
    assert torch.equal(one["output_1"].tensor_contents, torch.full((2,), 2.0))
    plain = {"times": False, "meta": False}
    assert print_graph(one.graph, **plain) == print_graph(other.graph, **plain)


@pytest.mark.parametrize("passes", ["granularity{level=leaf},labels", "granularity{level=api},labels"])
@pytest.mark.parametrize("backend", ["decoration", "torch_function", "torch_dispatch"])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", ["relu", "layer_norm"])
def test_a_wrapper_in_the_place_of_a_function_runs_once(name, inside, backend, passes, monkeypatch):
    calls = []

    def wrap():
        original = getattr(F, name)

        @functools.wraps(original)
        def wrapper(*args, **kwargs):
            calls.append(name)
            return original(*args, **kwargs) + 100

        monkeypatch.setattr(F, name, wrapper)

    def forward(x):
        if inside:
            wrap()
        return F.layer_norm(x, (4,)) if name == "layer_norm" else F.relu(x)

    if not inside:
        wrap()
    history = lens.trace(forward, torch.ones(2, 4), backend=backend, passes=passes)
    assert calls == [name]
    types = [str(op.function).rpartition(".")[2] for op in history.graph.ops]
    assert len(types) == 2, types
    assert int(history["output_1"].tensor_contents[0, 0]) in (100, 101)


def test_the_first_trace_of_a_process_may_be_where_torch_functions_are_disabled():
    code = """if True:
        import torch, lens
        with torch._C.DisableTorchFunction():
            lens.trace(torch.nn.ReLU(), torch.ones(2), backend="decoration")
        (op,) = lens.trace(torch.add, (torch.ones(2), 1), backend="decoration").graph.ops
        assert str(op.function) == "torch.add", op
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tensors_are_no_sequences_to_c():
    class Own(torch.Tensor):
        pass

    def is_sequence(tensor):
        return ctypes.pythonapi.PySequence_Check(ctypes.py_object(tensor))

    tensors = [torch.ones(2), nn.Parameter(torch.ones(2)), torch.ones(2).as_subclass(Own)]
    inside = []
    history = trace(lambda x: inside.extend(map(is_sequence, tensors)) or torch.tensor([x.sum(), x[0]]), torch.ones(2))
    assert history["output_1"].tensor_contents.tolist() == [2.0, 1.0]
    assert inside == [0, 0, 0]
    assert list(map(is_sequence, tensors)) == [0, 0, 0]


def test_printing_a_tensor_is_no_operation():
    history = trace(lambda x: x + len(str(x)) + len(f"{x.sum()}"), torch.ones(2))
    assert {entry.layer_type for entry in history} <= {"input", "add", "sum", "output"}


def test_the_backend_is_listed():
    info = {info.name: info for info in backends()}["decoration"]
    assert info.reason is None
    assert "composites" in info.capabilities


def test_putting_the_replacements_in_takes_some_fifty_thousand_calls():
    model, x = nn.ReLU(), torch.ones(2)
    lens.trace(model, x, backend="decoration")  # the first time replacements are made
    assert calls(lambda: lens.trace(model, x, backend="decoration")) < 75_000


class HoldsFunctions(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.act, self.after = nn.Linear(2, 2), torch.tanh, F.gelu

    def forward(self, x):
        return F.relu(self.after(self.act(self.fc(x))))


@pytest.mark.parametrize("backend", ["decoration", "torch_function", "torch_dispatch"])
def test_scripting_inside_a_traced_forward(backend):
    before = state_of_torch()

    def double(x: torch.Tensor) -> torch.Tensor:  # a new one each time: what is compiled once is kept
        pooled = F.max_pool2d(x.view(1, 1, 1, 2), 1).sum()
        return F.relu(torch.sum(x, dim=0)) * torch.tensor([2.0]) + pooled

    history = trace(lambda x: torch.jit.script(double)(x) + 1, torch.ones(2), backend=backend)
    assert history["output_1"].tensor_contents.item() == 7.0
    torch.manual_seed(0)
    history = trace(lambda x: torch.jit.script(HoldsFunctions())(x), torch.ones(1, 2), backend=backend)
    torch.manual_seed(0)
    assert torch.equal(history["output_1"].tensor_contents, HoldsFunctions()(torch.ones(1, 2)))
    scripted = [op.function.name for op in history.graph.ops if op.function.opaque]
    assert scripted == ([] if backend == "torch_dispatch" else ["script_method"])
    assert_untouched(before)


def test_scripting_leaves_the_traces_of_other_threads_alone():
    stop = threading.Event()

    def tracing():
        def forward(x):
            while not stop.is_set():
                x = torch.relu(x + 1)
            return x

        found.append(trace(forward, torch.ones(2), save="none"))

    found = []
    other = threading.Thread(target=tracing)
    other.start()
    for _ in range(5):
        torch.jit._state._clear_class_state()
        scripted = trace(lambda x: torch.jit.script(HoldsFunctions())(x), torch.ones(1, 2))
        assert [gap.kind for gap in scripted.gaps] == ["opaque"]
    stop.set()
    other.join()
    assert found[0].gaps == ()


@pytest.mark.parametrize(("owner", "name"), [
    (torch._C, "_is_torch_function_all_disabled"), (torch._C, "_VariableFunctions"), (torch.overrides, "_pop_mode"),
])  # fmt: skip
def test_a_missing_private_name_makes_the_backend_unavailable_with_a_reason(owner, name, monkeypatch):
    monkeypatch.delattr(owner, name)
    assert name in {info.name: info for info in backends()}["decoration"].reason
    with pytest.raises(lens.errors.BackendError, match=name):
        trace(torch.relu, torch.ones(2))


@pytest.mark.parametrize("name", sorted(REGIONS))
def test_regions_equal_those_of_torch_function(name):
    make, _, _, inputs = REGIONS[name]

    def region(backend):
        torch.manual_seed(0)
        history = lens.trace(make(), inputs, backend=backend, seed=1, save="none")
        text = print_graph(history.graph, times=False, meta=False, locations=False)
        # TorchScript names the node of its result by whether it has optimised the code yet.
        return re.sub(r" \^\w+(?= = torch\.jit)", "", text), [gap.what for gap in history.gaps]

    region("torch_function")  # torch keeps things from the first run, such as the sizes of a jagged tensor
    assert region("decoration") == region("torch_function")


LOADS_THE_COMPILER = """
import sys
import torch
import lens

class Branches(torch.nn.Module):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda x: torch.relu(x) + 1, lambda x: x - 1, (x,))

assert "torch._dynamo" not in sys.modules
finders = list(sys.meta_path)
history = lens.trace(Branches(), torch.ones(3), backend="decoration")
assert "torch._dynamo" in sys.modules and sys.meta_path == finders
assert torch.equal(history["output_1"].tensor_contents, torch.full((3,), 2.0))
assert [entry.layer_type for entry in history if entry.layer_type in ("sum", "relu", "add")] == ["sum", "relu", "add"]
assert torch.equal(torch.compile(lambda x: torch.relu(x) + 1, backend="eager", fullgraph=True)(torch.ones(2)), torch.full((2,), 2.0))
assert torch.equal(Branches()(torch.full((3,), -1.0)), torch.full((3,), -2.0))
"""


def test_the_compiler_is_loaded_whole_while_functions_are_replaced():
    """In a process of its own: it is loaded once. Before, it kept stand-ins, and raised from then on."""
    done = subprocess.run([sys.executable, "-c", LOADS_THE_COMPILER], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_closure_with_a_name_that_is_bound_later_is_no_hindrance(monkeypatch):
    def make():
        def function(x):
            return later(x)

        if function is None:
            later = torch.relu
        return function

    function = make()
    monkeypatch.setattr(swapping, "_functions", lambda: [(function, function)])
    assert swapping.SwapTable(lambda original, reported: functools.partial(original)).places(()) is not None
