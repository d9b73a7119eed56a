"""What to save, how, until when, and of what: the options of ``lens.trace``, and ``lens.tracing``."""

import dataclasses
import functools
import gc
import inspect
import re
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from attrs import evolve
from models import Body
from torch import nn

import lens
from lens.ir.elements import FnRef
from lens.ir.rewrite import keep_ops
from lens.passes.labels import LabelsPass
from lens.passes.protocol import PassResult


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2))
        self.cell = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)
        self.ran_to_the_end = 0

    def encode(self, x):
        x = self.stem(x).mean((2, 3))
        for _ in range(3):
            x = torch.tanh(self.cell(x))
        return x

    def forward(self, x):
        x = self.head(self.encode(x))
        self.ran_to_the_end += 1
        return x


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def _sine_of_cosine(x: torch.Tensor):
    return x.cos().sin()


def line_of(function, text):
    lines, first = inspect.getsourcelines(function)
    return first + next(number for number, line in enumerate(lines) if text in line)


def saved(history):
    return [entry.layer_label_w_pass for entry in history if entry.is_saved]


@pytest.mark.parametrize(
    ("save", "expected"),
    [
        (["stem.*"], ["conv2d_1_1:1", "relu_1_2:1", "maxpool2d_1_3:1"]),
        ("linear_*", ["linear_1_5:1", "linear_1_5:2", "linear_1_5:3", "linear_2_7:1", "output_1:1"]),
        ("*:2", ["linear_1_5:2", "tanh_1_6:2"]),
        (["relu_?", "head", -1], ["relu_1_2:1", "linear_2_7:1", "output_1:1"]),
        ("input_*", ["input_1:1"]),
        (["cell:3"], ["linear_1_5:3"]),
        ("relu", ["relu_1_2:1"]),
        (["tanh", "input"], ["input_1:1", "tanh_1_6:1", "tanh_1_6:2", "tanh_1_6:3"]),
        (["x", "output"], ["input_1:1", "linear_2_7:1", "output_1:1"]),
        ([lambda op: op.type == "relu", lambda op: op.type == "mean"], ["relu_1_2:1", "mean_1_4:1"]),
        (
            ["maxpool2d", "conv2d_1", "head", "cell:2", "tanh_*:1", -1, lambda op: op.shape == (2, 4, 6, 6), "mean"],
            [
                "conv2d_1_1:1",
                "relu_1_2:1",
                "maxpool2d_1_3:1",
                "mean_1_4:1",
                "tanh_1_6:1",
                "linear_1_5:2",
                "linear_2_7:1",
                "output_1:1",
            ],
        ),
        ([lambda op: op.address == "cell" and op.shape == (2, 4)], ["linear_1_5:1", "linear_1_5:2", "linear_1_5:3"]),
    ],
)
def test_patterns_and_keys(save, expected):
    assert saved(lens.trace(Net(), X, save=save)) == expected


@pytest.mark.parametrize("save", ["constant", "constant_1", "constant_1_2:1"])
def test_a_function_that_is_called_as_a_kind_of_leaf_is(save):
    model = nn.Module()
    model.forward = lambda x: nn.init.constant_(x.clone(), 1.0) * 1
    assert saved(lens.trace(model, torch.ones(2), save=save)) == ["constant_1_2:1"]


@pytest.mark.parametrize("backend", ["torch_function", "decoration", "torch_dispatch"])
def test_a_mixed_list_holds_nothing_else_in_memory(backend):
    asked = []

    def picks(op):
        asked.append(op)
        return op.address == "stem.1"

    history = lens.trace(Net(), X, save=["head", picks], backend=backend)
    assert [entry.layer_type for entry in history if entry.is_saved and not entry.is_output_layer] == [
        "relu",
        "linear" if backend != "torch_dispatch" else "addmm",
    ]
    assert len(asked) >= len(history.graph.ops)
    assert len({id(history.payloads.values[v]) for v in history.payloads}) == 2


def test_every_function_in_a_list_is_asked_about_every_operation():
    counts = [0, 0]

    def counter(number):
        def count(op):
            counts[number] += 1
            return True

        return count

    history = lens.trace(Net(), X, save=[counter(0), counter(1)], passes="granularity{level=api},orphans,labels")
    assert counts[0] == counts[1] >= len(history.graph.ops)


def test_values_that_threads_make_are_picked_too():
    class Pooled(nn.Module):
        def forward(self, x):
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(torch.relu, x).result() + 1

    assert saved(lens.trace(Pooled(), X, save=["input_1", lambda op: op.type == "relu"])) == ["input_1:1", "relu_1_1:1"]


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (Net(), "takes no module(.|\n)*address"),
        (nn.ReLU, "takes no class(.|\n)*module_type == 'ReLU'"),
        (["head", nn.Linear], "takes no class"),
        (True, "cannot be True"),
        (b"relu", "cannot be b'relu'"),
        (None, "cannot be None"),
        (["head", None], "cannot hold None"),
        (torch.ones(2), "a Tensor"),
        ([], "is empty"),
        (["rely"], "there is no layer 'rely'(.|\n)*relu"),
        (lambda op: op.layer_type == "relu", "save= raised AttributeError(.|\n)*conv2d_1(.|\n)*has type, function"),
    ],
)
def test_what_cannot_be_saved(save, message):
    with pytest.raises(lens.LensError, match=message):
        lens.trace(Net(), X, save=save)


def test_a_module_that_is_shared_is_saved_by_either_address():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(2, 2)
            self.other = self.one

        def forward(self, x):
            return self.other(x)

    assert saved(lens.trace(Twice(), torch.ones(1, 2), save=["other"])) == ["linear_1_1:1", "output_1:1"]


@pytest.mark.parametrize(
    ("save", "expected"),
    [
        ("*.running_mean", ["buffer_1:1"]),
        ("norm.*[!r]", ["buffer_1:1"]),
        ("norm*", ["buffer_1:1", "buffer_2:1", "batchnorm_1_3:1", "output_1:1"]),
        ("given.?", ["input_1:1", "input_2:1"]),
        ("args[1].a", ["input_3:1"]),
    ],
)
def test_patterns_fit_the_addresses_of_buffers_and_inputs(save, expected):
    class Given(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, given, *args):
            return self.norm(given.a + given.b + args[0].a)

    given = dataclasses.make_dataclass("Pair", ("a", "b"))(X, X.clone())
    extra = dataclasses.make_dataclass("One", ("a",))(X.clone())
    assert saved(lens.trace(Given().eval(), (given, extra), save=[save])) == expected


def test_keys_without_labels_are_refused_before_the_run():
    model = Net()
    with pytest.raises(lens.LensError, match=r"save= names layers, which this pipeline does not name\n.*orphans"):
        lens.trace(model, X, save="0", passes="orphans")
    assert model.ran_to_the_end == 0


def test_a_history_without_labels_can_be_shown():
    history = lens.trace(nn.ReLU(), X, passes="granularity{level=leaf}")
    assert repr(history) == str(history) == "<ModelHistory of ReLU: 1 operations without labels>"
    assert history


@dataclasses.dataclass(frozen=True)
class Renames:
    """Calls all ReLUs otherwise."""

    name = "renames"
    requires = provides = preserves = ()

    def run(self, graph, context):
        ops = [evolve(op, function=FnRef("my", "act")) if op.function.name == "relu" else op for op in graph.ops]
        return PassResult((), keep_ops(graph, ops))


@pytest.mark.parametrize("key", ["act_1_1", "act"])
def test_a_layer_that_a_pass_has_named_cannot_be_saved_by_it(key):
    with pytest.warns(UserWarning, match=f"save= names '{key}', of which nothing is kept"):
        lens.trace(nn.ReLU(), X, save=key, passes=(Renames(), LabelsPass()))


def test_a_pattern_that_fits_nothing_names_what_there_is():
    with pytest.raises(lens.LensError, match=r"fits 'layre\*'(.|\n)*among others: 'input_1'"):
        lens.trace(Net(), X, save="layre*")


class TestStopAt:
    def test_a_module_is_the_last_thing_that_runs(self):
        model = Net()
        history = lens.trace(model, X, stop_at="stem")
        assert model.ran_to_the_end == 0
        assert history.layer_list == ["input_1", "conv2d_1_1", "relu_1_2", "maxpool2d_1_3"]
        assert history.graph.meta.stopped == "stem"
        assert "STOPPED" in str(history)
        assert history.output_layers == []
        model(X)
        assert model.ran_to_the_end == 1

    def test_a_call_of_a_module(self):
        history = lens.trace(Net(), X, stop_at="cell:2")
        assert len(history["cell"].passes) == 2

    def test_several_modules(self):
        history = lens.trace(Net(), X, stop_at=["cell:3", "stem"])
        assert list(history)[-1].layer_label_w_pass == "linear_1_5:3"

    def test_a_function_of_the_operation(self):
        history = lens.trace(Net(), X, stop_at=lambda op: op.type == "mean" and op.shape == (2, 4))
        assert history.layer_list[-1] == "mean_1_4"

    def test_all_that_is_saved(self):
        for stop_at in ("saved", ["saved"]):
            history = lens.trace(Net(), X, save=["stem", "cell:2"], stop_at=stop_at)
            assert saved(history) == ["maxpool2d_1_3:1", "linear_1_5:2"]
            assert history.graph.meta.stopped == "cell"
        with pytest.raises(lens.LensError, match='"saved" alone'):
            lens.trace(Net(), X, save=["stem"], stop_at=["saved", "stem"])
        with pytest.raises(lens.LensError, match="only module addresses"):
            lens.trace(Net(), X, save=["linear_1"], stop_at="saved")

    @pytest.mark.parametrize(
        ("stop_at", "last", "reached"),
        [
            ("mean", "mean_1_4", "mean"),
            (["stem", "mean"], "mean_1_4", "mean"),
            ("stem.*", "maxpool2d_1_3", "stem.2"),
            (["stem.?", lambda op: op.type == "conv2d", "cell:2"], "tanh_1_6", "cell"),
            ([lambda op: op.type == "relu", lambda op: op.type == "conv2d"], "relu_1_2", "relu in stem.1"),
            (lambda op: op.type == "lstm", "lstm_3_6", "lstm in 0"),
        ],
    )
    def test_addresses_patterns_types_and_functions(self, stop_at, last, reached):
        lstm = reached.startswith("lstm")
        model, x = (nn.Sequential(nn.LSTM(3, 2)), torch.ones(4, 3)) if lstm else (Net(), X)
        history = lens.trace(model, x, stop_at=stop_at)
        assert history.graph.meta.stopped == reached
        assert history.layer_list[-1] == last

    def test_what_a_function_raises_ends_the_run(self):
        model = Net()
        with pytest.raises(lens.LensError, match=r"stop_at= raised ZeroDivisionError(.|\n)*conv2d_1"):
            lens.trace(model, X, stop_at=["head", lambda op: 1 / 0])
        assert model.ran_to_the_end == 0

    def test_what_is_to_be_saved_and_comes_after_the_end_is_said(self):
        with pytest.warns(UserWarning, match="'head', which has no layer up to the end at stem: .*not called") as noted:
            history = lens.trace(Net(), X, save=["stem", "head"], stop_at="stem")
        with pytest.warns(UserWarning, match=r"'linear_\*', which .* stem: it did not run"):
            lens.trace(Net(), X, save=["stem", "linear_*"], stop_at="stem")
        assert noted[0].filename == __file__
        assert saved(history) == ["maxpool2d_1_3:1"]

    def test_what_ran_and_is_no_layer_is_said(self):
        class Position(nn.Linear):
            def forward(self):
                return self.weight

        model = nn.Module()
        model.position, model.act = Position(2, 2), nn.ReLU()
        model.forward = lambda x: model.act(x + model.position())
        with pytest.warns(UserWarning, match="'position' has returned no tensor, or one that nothing uses"):
            lens.trace(model, torch.ones(2), save=["position"], stop_at="saved")
        with pytest.warns(UserWarning, match="'position' has returned @position.weight, which is no layer"):
            lens.trace(model, torch.ones(2), save=["position", "act"], stop_at="saved")

    def test_a_model_that_catches_exceptions_is_stopped(self):
        class Stubborn(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(2, 2)

            def forward(self, x):
                try:
                    return self.fc(x)
                except Exception:  # noqa: BLE001
                    return x

        assert lens.trace(Stubborn(), torch.ones(1, 2), stop_at="fc").graph.meta.stopped == "fc"

    def test_what_is_never_reached_is_said(self):
        with pytest.warns(UserWarning, match="never reached"):
            history = lens.trace(Net(), X, stop_at="cell:9")
        assert history.output_layers == ["output_1"]

    @pytest.mark.parametrize("backend", ["torch_function", "torch_dispatch"])
    def test_every_layer_type_that_a_trace_gives(self, backend):
        class Square(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x * x

        def run(x):
            x = nn.functional.interpolate(torch.linalg.inv(Square.apply(x)), scale_factor=2)
            return torch.fft.fft(nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")).abs().norm()

        model = nn.Module()
        model.forward = run
        x = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        types = {e.layer_type for e in lens.get_model_structure(model, x, backend=backend) if e.func_applied_name}
        for kind in types:
            assert lens.trace(model, x, stop_at=kind, backend=backend)[-1].layer_type == kind

    def test_a_type_that_never_runs_is_told_the_nearest(self):
        with pytest.warns(UserWarning, match=r"tahn was never reached; nearest: \['tanh'\]"):
            lens.trace(Net(), X, stop_at="tahn")

    def test_an_unknown_module(self):
        for stop_at in ("heads", ["stem", "heads"], "steam.*", "body.fc", "relu_2_5"):
            with pytest.raises(lens.LensError, match=r"no module '.*' to stop at(.|\n)*layer type"):
                lens.trace(Net(), X, stop_at=stop_at)
        for stop_at in (3, [], True, ["stem", 2], nn.ReLU):
            with pytest.raises(lens.LensError, match=r"stop_at|stop at"):
                lens.trace(Net(), X, stop_at=stop_at)

    @pytest.mark.parametrize("backend", ["decoration", "torch_dispatch"])
    def test_with_other_backends(self, backend):
        history = lens.trace(Net(), X, stop_at="stem", backend=backend)
        assert history["stem"].tensor_contents.shape == (2, 4, 3, 3)
        assert history.graph.meta.stopped == "stem"

    @pytest.mark.parametrize("stop_at", ["1", "add"])
    @pytest.mark.parametrize("backend", ["torch_function", "decoration", "torch_dispatch"])
    def test_what_the_last_operation_wrote_in_place_is_saved(self, stop_at, backend):
        class Adding(nn.Module):
            def forward(self, x):
                return (x * 2).add_(1)

        model = nn.Sequential(nn.Flatten(), Adding(), nn.Flatten())
        history = lens.trace(model, torch.ones(2, 2), save=["add"], stop_at=stop_at, backend=backend)
        assert torch.equal(history["add_1"].tensor_contents, torch.full((2, 2), 3.0))

    def test_in_scripted_code(self):
        scripted = torch.jit.script(_sine_of_cosine)

        def caught(x):
            try:
                return scripted(x)
            except RuntimeError:
                return x

        traced = functools.partial(lens.trace, args=torch.ones(2), backend="torch_dispatch")
        model = nn.Module()
        model.forward = lambda x: scripted(x) + 1
        assert traced(model, stop_at="cos").layer_list == ["input_1", "cos_1_1"]
        with pytest.raises(lens.LensError, match=r"save= raised ZeroDivisionError(.|\n)*cos_1"):
            traced(model, save=lambda op: 1 / 0)
        with (
            pytest.raises(lens.LensError, match=r"save= raised ZeroDivisionError(.|\n)*cos_1"),
            lens.tracing(model, save=lambda op: 1 / 0, backend="torch_dispatch"),
        ):
            model(X)
        model.forward = caught
        with pytest.warns(UserWarning, match="went to its end: the model caught what was to end it at cos"):
            traced(model, stop_at="cos")

    def test_nothing_is_left_behind(self):
        before = vars(nn.Module).copy(), torch.relu, nn.functional.has_torch_function_unary
        lens.trace(Net(), X, stop_at="stem")
        assert (vars(nn.Module).copy(), torch.relu, nn.functional.has_torch_function_unary) == before


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, t):
        return t * 2


def in_a_thread(tensor):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(nn.ReLU(), tensor).result()


USING_MODULES = (nn.Flatten(), lambda t: nn.ReLU()(t).mean(), torch.jit.script(nn.ReLU()), Twice.apply, in_a_thread)


class TestTransform:
    def test_a_function(self):
        history = lens.trace(Net(), X, transform=lambda t: t.flatten(1).mean(1))
        whole = lens.trace(Net(), X)["conv2d_1"].tensor_shape
        assert history["conv2d_1"].tensor_contents.shape == (2,)
        assert history["conv2d_1"].tensor_shape == whole == (2, 4, 6, 6)
        assert len(history) == len(lens.trace(Net(), X))  # what the function does is not recorded

    @pytest.mark.parametrize("backend", ["torch_function", "decoration", "torch_dispatch"])
    def test_it_is_not_recorded(self, backend):
        plain = lens.trace(Net(), X, backend=backend).layer_list
        assert lens.trace(Net(), X, backend=backend, save=["stem"], transform=torch.sin).layer_list == plain

    @pytest.mark.parametrize("backend", ["torch_function", "decoration", "torch_dispatch"])
    @pytest.mark.parametrize("function", USING_MODULES)
    def test_what_functions_of_the_user_call_is_not_recorded(self, function, backend):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())

        def shown(history):
            return history.layer_list, [scope.address for scope in history.graph.scopes], history.gaps

        plain = lens.trace(net, X, backend=backend)
        asking = {"save": lambda op: function(torch.ones(2, 4)) is not None}
        transforming = ({"save": save, "transform": function} for save in ("all", "0", plain.layer_list[1]))
        for options in (asking, *transforming):
            assert shown(lens.trace(net, X, backend=backend, **options)) == shown(plain)

    def test_a_dtype_and_a_device(self):
        history = lens.trace(Net(), X, transform=torch.float16)
        assert history["relu_1"].tensor_contents.dtype == torch.float16
        assert lens.trace(Net(), X, transform="meta")["relu_1"].tensor_contents.is_meta

    def test_what_is_written_later_does_not_reach_it(self):
        class Writes(nn.Module):
            def forward(self, x):
                y = x + 1
                y.mul_(0)
                return y

        history = lens.trace(Writes(), torch.ones(3), transform=lambda t: t.view(-1))
        assert history["add_1"].tensor_contents.tolist() == [2, 2, 2]

    @pytest.mark.parametrize("backend", ["torch_function", "decoration", "torch_dispatch"])
    def test_an_exception_says_where(self, backend):
        model = Net()
        with pytest.raises(lens.LensError) as caught:
            lens.trace(
                model, X, backend=backend, transform=lambda t: t if t.dtype == torch.int64 else t.float().mean((2, 3))
            )
        error = caught.value
        assert re.fullmatch(r"transform= raised IndexError: Dimension out of range.*", error.what)
        assert re.fullmatch(
            rf"mean_1_[45] \S*\bmean\S* at {re.escape(__file__)}:{line_of(Net.encode, 'mean((2, 3))')}; "
            r"a tensor of shape \(2, 4\) of float32",
            error.where,
        )
        assert isinstance(error.__cause__, IndexError)
        assert error.__cause__.__traceback__ is not None
        assert model.ran_to_the_end == 0

    def test_an_exception_at_the_output_of_a_module_and_at_an_input(self):
        with pytest.raises(
            lens.LensError, match=r"where: maxpool2d_1_3 .*test_trace_options.py:\d+; a tensor of shape"
        ):
            lens.trace(Net(), X, save=["stem"], transform=lambda t: t.nothing)
        with pytest.raises(lens.LensError, match=r"where: input_1 input x; a tensor of shape \(2, 3, 8, 8\)"):
            lens.trace(Net(), X, save=["input_1"], transform=lambda t: t.nothing)

    def test_an_exception_is_told_though_the_model_catches_all(self):
        class Stubborn(nn.Module):
            def forward(self, x):
                for _ in range(2):
                    try:
                        x = torch.sin(x)
                    except:  # noqa: E722
                        x = x + 1
                return x

        with pytest.raises(lens.LensError, match=r"transform= raised ZeroDivisionError(.|\n)*sin_1"):
            lens.trace(Stubborn(), X, save=["sin"], transform=lambda t: 1 / 0)

    def test_an_exception_in_a_block_and_in_a_thread(self):
        with (
            pytest.raises(lens.LensError, match=r"transform= raised(.|\n)*sin_1"),
            lens.tracing(save=["sin"], transform=lambda t: 1 / 0),
        ):
            torch.cos(torch.sin(X))

        class Pooled(nn.Module):
            def forward(self, x):
                with ThreadPoolExecutor(1) as pool:
                    return pool.submit(torch.relu, x).result() + 1

        with pytest.raises(lens.LensError, match=r"transform= raised(.|\n)*relu_1"):
            lens.trace(Pooled(), X, save=["relu"], transform=lambda t: 1 / 0)

    def test_what_the_model_raises_comes_first(self):
        class Raises(nn.Module):
            def forward(self, x):
                raise KeyError("model")

        with pytest.raises(KeyError, match="model"):
            lens.trace(Raises(), X, transform=lambda t: 1 / 0)

    def test_one_that_writes_to_the_model_s_own_tensor_is_an_error(self):
        with torch.no_grad(), pytest.raises(lens.LensError, match=r"it wrote to the tensor(.|\n)*conv2d_1"):
            lens.trace(Net(), X, save=["conv2d"], transform=lambda t: t.sub_(t.mean()), detach=True)

    @pytest.mark.parametrize(
        ("backend", "mode"),
        [("torch_function", torch.inference_mode), ("torch_dispatch", torch.no_grad), ("torch_dispatch", nullcontext)],
    )
    def test_where_torch_counts_no_writes_it_is_given_a_copy(self, backend, mode):
        with mode():
            model, x = Net(), X.clone()
            plain = model(x)
            with lens.tracing(model, save=["head"], transform=lambda t: t.detach().zero_(), backend=backend) as history:
                found = model(x)
        assert not history["head"].tensor_contents.any()
        assert torch.equal(found, plain)
        assert torch.equal(x, X)

    @pytest.mark.parametrize("transform", [lambda t: 3, "no device", 7])
    def test_what_cannot_be_used(self, transform):
        with pytest.raises(lens.LensError, match="transform"):
            lens.trace(Net(), X, transform=transform)


class TestAutograd:
    def test_gradients_with_respect_to_a_saved_activation(self):
        history = lens.trace(Net(), X, save=["stem", "head"])
        stem, head = history["stem"].tensor_contents, history["head"].tensor_contents
        (gradient,) = torch.autograd.grad(head[:, 0].sum(), stem)
        model = Net()
        model.load_state_dict(Net().state_dict())
        assert gradient.shape == stem.shape
        assert gradient.abs().sum() > 0

    def test_detached(self):
        history = lens.trace(Net(), X, save=["stem"], detach=True)
        assert not history["stem"].tensor_contents.requires_grad
        assert history["stem"].gradfunc_name == "MaxPool2DWithIndicesBackward0"

    @pytest.mark.parametrize("backend", ["torch_function", "decoration", "torch_dispatch"])
    def test_detached_it_keeps_no_graph_of_a_custom_function(self, backend):
        class Exp(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x.exp()

        saved = []

        def forward(x):
            squared = x.square()
            saved.append(weakref.ref(squared))
            return Exp.apply(squared)

        history = lens.trace(forward, torch.ones(2, requires_grad=True), save=["exp"], detach=True, backend=backend)
        gc.collect()
        assert history.payloads.objects == {}
        assert saved[0]() is None


class TestFunctions:
    def test_a_function_finds_its_modules(self):
        net, other = Net(), nn.Linear(2, 2)

        def both(x, scale=2.0):
            return other(net(x)) * scale

        history = lens.trace(both, X, {"scale": 3.0})
        assert history.model_name == "both"
        assert not history.gaps
        assert history["other"].layer_label == "linear_3_8"
        assert history["net.stem.0"].parameter_addresses == ["net.stem.0.weight", "net.stem.0.bias"]
        assert torch.equal(history["output_1"].tensor_contents, both(X, scale=3.0))

    def test_a_method_of_a_module(self):
        model = Net()
        history = lens.trace(model.encode, X)
        assert history.model_name == "Net"
        assert history["cell:3"].layer_label == "linear_1_5"
        assert torch.equal(history["output_1"].tensor_contents, model.encode(X))

    def test_a_partial_and_a_callable_object(self):
        fc = nn.Linear(2, 2)

        class Caller:
            def __init__(self):
                self.fc = fc

            def __call__(self, x):
                return self.fc(x)

        for target in (functools.partial(lambda layer, x: layer(x), fc), Caller()):
            history = lens.trace(target, torch.ones(1, 2))
            assert "linear_1_1" in history.layer_list
            assert not history.gaps

    def test_what_is_no_function(self):
        with pytest.raises(lens.LensError, match="give an instance"):
            lens.trace(Net, X)
        with pytest.raises(lens.LensError, match="or a function"):
            lens.trace(3, X)
        with pytest.raises(lens.LensError, match="do not fit"):
            lens.trace(lambda a, b: a, X)


class TestTracing:
    def test_several_calls_into_one_model(self):
        model, optimised = Net(), torch.zeros(2)
        with lens.tracing(model, save=["head"]) as history:
            first = model(X)
            second = model(X * 2)
            loss = (first - second).pow(2).sum() + optimised.sum()
        assert [tuple(e.tensor_contents.shape) for e in history["head"].passes] == [(2, 2), (2, 2)]
        assert history.output_layers == ["output_1"]
        assert "input_1" in history.layer_list
        assert loss.requires_grad

    def test_several_models(self):
        encoder, decoder = nn.Linear(4, 2), nn.Linear(2, 4)
        with lens.tracing({"encoder": encoder, "decoder": decoder}) as history:
            decoder(encoder(torch.ones(1, 4)))
        assert history["encoder"].child_layers == ["linear_2_3"]
        assert history["decoder"].parameter_addresses == ["decoder.weight", "decoder.bias"]

    def test_modules_called_in_the_block_are_what_operations_belong_to(self):
        enc, dec, x = nn.Sequential(nn.Linear(4, 2), nn.ReLU()), nn.Linear(2, 4), torch.ones(1, 4)
        with lens.tracing({"enc": enc, "dec": dec}) as history:
            dec(enc(x)).sum()
        homes = {"linear_1_1": "enc.0", "relu_1_2": "enc.1", "linear_2_3": "dec", "sum_1_4": ""}
        assert {label: history[label].containing_module_origin or "" for label in homes} == homes
        assert [entry.layer_label for entry in history.layers(module="enc")] == ["linear_1_1", "relu_1_2"]
        assert [entry.layer_label for entry in history.module_outputs(depth=1)] == ["relu_1_2", "linear_2_3"]
        assert history.top_level_module_passes == ["enc:1", "dec:1"]
        rows = {row["module"].strip(): row["ops"] for row in history.summary("module")}
        assert rows == {"(model)": 4, "enc": 2, "enc.0": 1, "enc.1": 1, "dec": 1}
        drawing = history.drawing(collapse=["enc"])
        assert [node.label for node in drawing.nodes] == ["input_1", "@enc", "linear_2_3", "sum_1_4", "output_1"]
        nodes = [node for node in history.to_fx().graph.nodes if node.name in homes]
        assert {node.name: node.meta["custom"]["lens_module"] for node in nodes} == homes
        assert [*history.to_pandas("operations")["module"].fillna("")] == [*homes.values()]
        assert {label: history.to_networkx().nodes[label].get("module", "") for label in homes} == homes

    def test_no_model(self):
        a = torch.ones(3)
        with lens.tracing() as history:
            b = (a * 2).sin()
        assert history.layer_list == ["input_1", "mul_1_1", "sin_1_2", "output_1"]
        assert torch.equal(history["sin_1"].tensor_contents, b)

    def test_inside_the_block_it_is_not_there_yet(self):
        with lens.tracing() as history:
            assert "not ended" in repr(history)
            with pytest.raises(lens.LensError, match="when the block has ended"):
                history["sin_1"]

    def test_an_exception_carries_the_history(self):
        opened = []

        def block():
            with lens.tracing() as history:
                opened.append(history)
                torch.ones(2).sin()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError) as caught:
            block()
        assert caught.value.lens_history.graph.meta.fault.type == "ZeroDivisionError"
        assert "exception" in repr(opened[0])
        with pytest.raises(lens.LensError, match=r"ended by an exception(.|\n)*error\.lens_history"):
            len(opened[0])

    def test_it_is_saved_and_checked_like_any_other(self, tmp_path):
        model = Net()
        with lens.tracing(model) as history:
            model(X)
        assert lens.load(history.save(tmp_path / "block.lens")).layer_list == history.layer_list
        assert lens.validate.check(history).ok


def test_transformed_values_are_not_validated():
    history = lens.trace(Net(), X, transform=torch.float16)
    with pytest.raises(lens.LensError, match="transform"):
        lens.validate.check(history)


def test_what_is_not_asked_for_is_not_held():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = lens.trace(Net(), X, save=["head"])
    assert len(history.payloads) == 1


@pytest.mark.parametrize(
    ("save", "stop_at"),
    [
        ("all", "saved"),
        (lambda op: op.type == "relu", "saved"),
        (["stem", 3], "saved"),
        (["stem"], ["saved", lambda op: op.type == "relu"]),
    ],
)
def test_the_end_of_what_is_saved_must_be_known(save, stop_at):
    with pytest.raises(lens.LensError, match=r"only module addresses|'saved' to stop at"):
        lens.trace(Net(), X, save=save, stop_at=stop_at)


def test_of_what_is_not_to_be_saved_nothing_is_held():
    gone = []

    def function(x):
        y = x.sin()
        seen, y = weakref.ref(y), y.cos()
        gone.append(seen() is None)
        return y.relu()

    for save in ("relu", "relu_*", ["relu_1"]):
        lens.trace(Body(function), torch.ones(2), save=save)
    assert gone == [True] * 3


def test_the_model_itself_has_no_address_to_give():
    model = Net()
    with pytest.raises(lens.LensError, match=r"takes no module(.|\n)*such as 'layer1'"):
        lens.trace(model, X, save=model)
