"""Value semantics of memory: each test is a small case of something that was once recorded wrongly."""

import copy
import ctypes
import warnings

import pytest
import torch
from attrs import evolve
from models import Body, InPlaceThroughView, TwoBranches
from torch import nn

import lens
from lens.capture.footprint import EVERYWHERE, Footprint, FootprintIndex
from lens.capture.tensor_table import TensorTable, storage_of
from lens.errors import RenderError, ReplayError, StaleValueError
from lens.ir.payloads import PayloadStore
from lens.ir.templates import Map
from lens.ir.verifier import find_problems
from lens.replay import Interpreter
from lens.validate.check import check


def replayed(history):
    interpreter = Interpreter(history.graph, history.payloads)
    return interpreter.run(interpreter.sources())


def traced(function, *args, **options):
    """A history whose whole replay gives every value that was saved."""
    history = lens.trace(Body(function), args or (torch.arange(1.0, 7.0).view(2, 3),), **options)
    graph, payloads = history.graph, history.payloads
    assert find_problems(graph) == []
    made = replayed(history)
    for value in made.keys() & set(payloads):
        assert torch.equal(made[value], payloads.read(value)), value
    return history


def function_names(history):
    return [op.function.name for op in history.graph.ops]


def only(history, name):
    (op,) = (op for op in history.graph.ops if op.function.name == name)
    return op


def test_set_gives_a_tensor_other_memory():
    def forward(x):
        a, b = x + 1, x * 2
        a.set_(b)
        a.add_(1)
        return b.sum()

    history = traced(forward)
    op = only(history, "set_")
    assert history.graph.values[op.results[0]].alias_of == op.operands[1]
    assert op.effects == ()
    assert torch.equal(history.payloads.read(op.operands[0]), torch.arange(2.0, 8.0).view(2, 3))
    assert history["sum_1"].parent_layers == [history["add_2"].layer_label]


def test_assigning_data_writes_to_nobody():
    def forward(x):
        a, b = x + 1, x * 2
        a.data = b
        b.add_(1)
        return a + b

    history = traced(forward)
    op = only(history, "data.__set__")
    assert history.graph.values[op.results[0]].alias_of == op.operands[1]
    assert op.effects == ()
    assert len(only(history, "add_").effects) == 1


@pytest.mark.parametrize("name", ["t_", "squeeze_", "unsqueeze_"])
def test_changing_the_shape_of_a_view_in_place_writes_no_memory(name):
    def forward(x):
        y = x * 2
        getattr(y[:1], name)(*([0] if name == "unsqueeze_" else []))
        return y + 1

    history = traced(forward)
    assert not any(op.effects for op in history.graph.ops)
    assert history["add_1"].parent_layers == ["mul_1_1"]


def test_overlapping_tensors_of_a_foreach_are_written_once():
    def forward(x):
        y = x * 2
        t = y.t()
        torch._foreach_mul_([t, t[:1]], 2.0)
        return y + 1

    op = only(traced(forward), "_foreach_mul_")
    assert len(op.results) == 2
    assert len(op.effects) == 1


def test_as_strided_depends_on_whoever_shows_that_memory():
    def forward(x):
        y = x * 2
        tail = y.view(-1)[4:]
        y[0] = 0.0
        return tail.as_strided((2,), (1,), 0)

    history = traced(forward)
    op = only(history, "as_strided")
    assert only(history, "__setitem__").results[0] in op.reads
    assert torch.equal(history["output_1"].tensor_contents, torch.zeros(2))


def test_who_shows_memory_is_a_child_of_who_showed_it_before():
    def forward(x):
        first, last = (x * 2).split(1)
        first.mul_(3)
        return last.as_strided((6,), (1,), 0)

    def copies(x):
        y = x * 2
        return copy.deepcopy([y, y[:1]])[1] + 1

    assert "mul_2_4" in traced(forward)["asstrided_1"].parent_layers
    history = traced(copies)
    assert history["deepcopy_2"].parent_layers == ["getitem_1_2", "deepcopy_1_3"]
    assert history.to_networkx().has_edge("deepcopy_1_3", "deepcopy_2_4")


@pytest.mark.parametrize("backend", ["torch_function", "decoration", "torch_dispatch"])
def test_deep_copies_share_memory_as_what_they_copy_does(backend):
    """What stands in the memo are addresses of this run: none is an argument of the recorded call."""

    def forward(x):
        y = x * 2
        memo = {}
        first, last = y[:1], y[1:]
        before = copy.deepcopy(first, memo)
        y.add_(1)
        late = copy.deepcopy(last, memo)  # the memory of ``first`` has been copied: the copy of before the write
        pair = copy.deepcopy([y, last])
        pair[0].mul_(3)
        return before.sum(), late, pair[1] + 1

    history = traced(forward, backend=backend)
    copies = [op for op in history.graph.ops if op.function.name == "__deepcopy__"]
    assert [op.args[1] for op in copies] == [Map("dict", ())] * 4
    x = torch.rand(2, 3)
    program = history.to_fx()
    for given, wanted in zip(program(x), Body(forward)(x), strict=True):
        assert torch.equal(given, wanted)


def test_a_deep_copy_in_memory_of_another_dtype_is_replayed_and_no_program():
    def forward(x):
        y = x * 2
        return copy.deepcopy([y, y.view(torch.int32)])[1] + 1

    history = traced(forward)
    assert check(history).ok
    with pytest.raises(RenderError, match="memory that was copied before"):
        history.to_fx()


def test_the_base_of_a_view_is_not_computed_from_the_view():
    def forward(x):
        y = x * 2
        row = y[0]
        y[1] = 0.0
        return row._base + 1

    history = traced(forward)
    assert history["add_1"].parent_layers == [history["setitem_1"].layer_label]


def test_memory_that_no_tensor_shows_any_more_is_external():
    def forward(x):
        return (x * 2).view(-1)[4:].as_strided((2,), (1,), 0) + 1

    with torch.inference_mode():
        history = lens.trace(Body(forward), torch.ones(2, 3), save="none")
    assert [leaf.kind for leaf in history.graph.leaves] == ["input", "external"]
    gap, inference = history.gaps
    assert "inference mode" in str(inference)
    assert gap.location.file == __file__


def test_shrinking_and_growing_again_in_place():
    def forward(x):
        y = x * 2
        y.resize_(2)
        return y.resize_(5) + 1

    with torch.no_grad():
        history = traced(forward)
    assert torch.equal(history["output_1"].tensor_contents, torch.arange(1.0, 6.0) * 2 + 1)


def test_a_result_that_grows_over_its_base():
    def forward(x):
        y = x * 2
        torch.add(x, 100, out=y.view(-1)[:0])
        return y + 1

    with torch.no_grad():
        history = traced(forward)
    assert torch.equal(history["mul_1"].tensor_contents, torch.arange(1.0, 7.0).view(2, 3) * 2)
    assert torch.equal(history["output_1"].tensor_contents, torch.arange(1.0, 7.0).view(2, 3) + 101)


class Cache(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("cache", torch.zeros(3, 2))
        self.row = self.cache[1]

    def forward(self, x):
        self.row.add_(x)
        return self.cache * 2


def test_a_buffer_written_through_a_view_that_the_model_keeps():
    history = lens.trace(Cache(), torch.ones(2))
    assert history["mul_1"].parent_layers == ["add_1_1"]
    assert torch.equal(history["cache"].tensor_contents, torch.zeros(3, 2))
    assert check(history).ok


def test_an_input_and_a_parameter_that_the_model_writes_to():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x):
            x[0] += 5
            with torch.no_grad():
                self.weight.mul_(2)
            return x * self.weight

    x = torch.zeros(2, 3)
    history = lens.trace(Model(), x)
    assert torch.equal(history["input_1"].tensor_contents, torch.zeros(2, 3))
    made = replayed(history)
    assert torch.equal(made[history.graph.outputs.values[0]], torch.tensor([[10.0] * 3, [0.0] * 3]))
    assert check(history).ok


def test_a_write_out_of_sight_is_stale_and_a_gap():
    def forward(x):
        y = x * 2
        with torch._C.DisableTorchFunction():
            y.add_(1)
        return y + 1

    history = lens.trace(Body(forward), torch.ones(2))
    with pytest.raises(StaleValueError):
        history.payloads.read(only(history, "mul").results[0])
    (leaf,) = (leaf for leaf in history.graph.leaves if leaf.kind == "external")
    assert torch.equal(history.payloads.read(leaf.value), torch.full((2,), 3.0))
    assert history["add_1"].parent_layers == ["external_1"]
    (gap,) = history.gaps
    assert gap.location.line == forward.__code__.co_firstlineno + 4


def test_a_write_out_of_sight_to_memory_with_two_counts():
    def forward(x):
        y = x * 2
        data = y.data  # torch counts its writes apart
        with torch._C.DisableTorchFunction():
            data.add_(1)
        return data + 1, y + 1

    history = lens.trace(Body(forward), torch.ones(2))
    assert history["add_2"].parent_layers == ["external_2"]
    with pytest.raises(StaleValueError):
        history.payloads.read(only(history, "mul").results[0])


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode])
def test_what_numpy_writes_is_external_and_what_was_saved_stays_right(mode):
    pytest.importorskip("numpy")

    def forward(x):
        y = x * 2
        z = x * 3
        y.detach().numpy()[0] = 7
        z.detach().numpy()
        return y + 1, z + 1

    with mode():
        history = traced(forward, torch.ones(2))
    assert torch.equal(history["mul_1"].tensor_contents, torch.full((2,), 2.0))
    assert history["add_1"].parent_layers == ["external_1"]
    assert history["add_2"].parent_layers == ["mul_2_2"]


@pytest.mark.parametrize("backend", ["torch_function", "decoration", "torch_dispatch"])
def test_what_numpy_wrote_is_seen_before_a_write_that_grows_its_tensor_reaches_it(backend):
    pytest.importorskip("numpy")

    def forward(x):
        y = x * 2
        first, rest = y[:1], y[2:]
        y.detach().numpy()[5] = 7  # in the rest, which the next write overwrites in part
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch would rather have an empty tensor
            torch.add(x[:4], 1, out=first)
        return rest + 1

    with torch.no_grad():
        history = lens.trace(Body(forward), torch.ones(6), backend=backend)
    assert torch.equal(history["output_1"].tensor_contents, torch.tensor([3.0, 3, 3, 8]))
    assert check(history).failed == ()


def test_tracing_does_not_wake_what_torch_refuses():
    def forward(x):
        window = x.unfold(0, 2, 1)
        x[:] = nn.Parameter(torch.ones(3))
        return window.zero_()

    with pytest.raises(RuntimeError) as plain:
        forward(torch.zeros(3))
    with pytest.raises(RuntimeError) as traced_error:
        lens.trace(Body(forward), torch.zeros(3))
    assert str(plain.value) == str(traced_error.value)


def test_spectral_norm_and_batch_norm_replay():
    model = nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 3)), nn.BatchNorm1d(3))
    with torch.no_grad():
        history = lens.trace(model, torch.randn(5, 4))
    made = replayed(history)
    saved = made.keys() & set(history.payloads)
    assert all(torch.equal(made[v], history.payloads.read(v)) for v in saved)
    assert check(history).ok


def test_autocast_replays():
    model = nn.Sequential(nn.Linear(4, 3), nn.Softmax(-1))
    with torch.autocast("cpu"):
        history = lens.trace(model, torch.randn(5, 4))
    made = replayed(history)
    assert all(torch.equal(made[v], history.payloads.read(v)) for v in made)
    assert check(history).ok


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
def test_an_lstm_replays_with_the_kernel_of_the_run(mode):
    with mode():
        history = lens.trace(nn.LSTM(4, 8, 2), torch.randn(5, 2, 4))
    made = replayed(history)
    assert all(torch.equal(made[v], history.payloads.read(v)) for v in made)


# Replay


def test_a_range_with_other_values_in_it():
    history = lens.trace(InPlaceThroughView(), torch.ones(2, 4))
    graph, payloads = history.graph, history.payloads
    mul, view, write, total = graph.ops
    view_value = torch.full((2, 2), 10.0)
    given = {mul.results[0]: payloads.read(mul.results[0]), view.results[0]: view_value}
    made = Interpreter(graph, payloads).run(given, start=1, want=[total.results[0], write.results[0]])
    assert made[total.results[0]] == 2 * (30 + 30 + 2 + 2)
    assert made.keys() == {total.results[0], write.results[0]}
    assert torch.equal(view_value, torch.full((2, 2), 10.0))


def test_a_missing_value_is_named():
    history = lens.trace(InPlaceThroughView(), torch.ones(2, 4))
    with pytest.raises(ReplayError, match="needed and not there") as caught:
        Interpreter(history.graph).run({}, start=2)
    assert "mul_" in caught.value.where
    with pytest.raises(ReplayError, match="nothing in the range"):
        Interpreter(history.graph).run({}, stop=0, want=[history.graph.ops[0].results[0]])
    with pytest.raises(ReplayError, match="is not saved"):
        Interpreter(history.graph, PayloadStore()).sources()


def test_a_loaded_trace_replays_with_the_parameters_of_the_model(tmp_path):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = TwoBranches()

        def forward(self, x):
            y = self.inner(x)
            y.detach()[:, 1:].mul_(2)
            return y.t().contiguous()

    model = Model()
    with torch.no_grad():
        history = lens.trace(model, torch.ones(2, 4))
    history.save(tmp_path / "trace.lens")
    loaded = lens.load(tmp_path / "trace.lens")
    start = Interpreter(loaded.graph, loaded.payloads, model).sources()
    (output,) = loaded.graph.outputs.values
    made = Interpreter(loaded.graph, loaded.payloads).run(start, want=[output])
    assert torch.equal(made[output], history["output_1"].tensor_contents)


def test_a_raw_graph_replays_and_a_closed_composite_writes_to_a_copy():
    x = torch.randn(3)
    history = lens.trace(Body(lambda t: torch.nn.functional.relu(t, inplace=True) + 1), x.clone(), passes="")
    made = replayed(history)
    assert torch.equal(made[history.graph.outputs.values[0]], x.relu() + 1)
    api = lens.trace(
        Body(lambda t: torch.nn.functional.relu(t, inplace=True) + 1),
        x.clone(),
        passes="granularity{level=api},labels",
    )
    start = Interpreter(api.graph, api.payloads).sources()
    Interpreter(api.graph, api.payloads).run(start)
    assert torch.equal(start[api.graph.inputs.values[0]], x)


def test_an_operation_that_fails_is_named():
    history = lens.trace(InPlaceThroughView(), torch.ones(2, 4))
    given = {history.graph.inputs.values[0]: torch.ones(2)}
    with pytest.raises(ReplayError, match="IndexError") as caught:
        Interpreter(history.graph, history.payloads).run(given)
    assert "__getitem__" in caught.value.where


def test_a_layout_that_does_not_fit_is_not_used():
    history = lens.trace(InPlaceThroughView(), torch.ones(2, 4))
    payloads = history.payloads
    payloads.layouts = {v: evolve(layout, strides=()) for v, layout in payloads.layouts.items()}
    made = replayed(history)
    assert torch.equal(made[history.graph.ops[2].results[0]], torch.full((2, 2), 6.0))


def written_by_address(tensor):
    ctypes.memset(tensor.data_ptr(), 0, 4)


def written_by_storage(tensor):
    tensor.untyped_storage().fill_(0)


def written_by_dlpack(tensor):
    torch.from_dlpack(tensor).fill_(4)


@pytest.mark.parametrize("backend", ["torch_function", "decoration", "torch_dispatch"])
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("write", [written_by_address, written_by_storage, written_by_dlpack])
def test_writes_that_torch_does_not_count_are_found(write, context, backend):
    def forward(x):
        y = x * 2
        write(y)
        return y + 1

    with context():
        history = lens.trace(Body(forward), torch.ones(2), backend=backend)
    assert "external" in [leaf.kind for leaf in history.graph.leaves]
    assert [gap for gap in history.gaps if gap.kind == "external"]
    assert history["mul_1"].tensor_contents.tolist() == [2.0, 2.0]
    assert history["output_1"].tensor_contents.tolist() == (history["add_1"].tensor_contents).tolist()


@pytest.mark.parametrize("backend", ["torch_function", "decoration", "torch_dispatch"])
def test_a_run_in_inference_mode_says_that_nobody_counts_writes(backend):
    def forward(x):
        with torch.inference_mode():
            y = x * 2
        return y + 1 if torch.is_inference_mode_enabled() else y

    history = lens.trace(Body(forward), torch.ones(2), backend=backend)
    assert [gap.kind for gap in history.gaps if "inference mode" in gap.what] == ["unseen"]
    history = lens.trace(Body(lambda x: x * 2), torch.ones(2), backend=backend)
    assert not [gap for gap in history.gaps if "inference mode" in gap.what]


class UsesOfAParameter(nn.Module):
    """What can happen to a parameter besides being read."""

    def __init__(self, what):
        super().__init__()
        self.what = what
        self.weight = nn.Parameter(torch.arange(1.0, 7.0).reshape(2, 3))
        self.register_buffer("rows", self.weight.detach()[0] if what == "tied" else torch.ones(3))

    def forward(self, x):
        y = x @ self.weight.t() if self.what == "view" else x * self.weight
        with torch.no_grad():
            if self.what == "written":
                self.weight.mul_(2)
            elif self.what == "written through a view":
                self.weight.detach()[0].add_(1)
            elif self.what == "out of sight":
                self.weight.data_ptr()
                ctypes.memset(self.weight.data_ptr(), 0, 12)
            elif self.what == "moved":
                self.weight.data = torch.ones(4, 3)
                return y.sum() + self.weight.sum()
            elif self.what == "frozen":
                self.weight.requires_grad_(False)
            elif self.what == "tied":
                self.rows.add_(1)
            elif self.what == "returned":
                return self.weight.contiguous()
        return y.sum() + (self.weight * self.rows).sum()


@pytest.mark.parametrize("save", ["all", "none"])
@pytest.mark.parametrize(
    "what",
    ["read", "view", "written", "written through a view", "out of sight", "moved", "frozen", "tied", "returned"],
)
def test_a_parameter_has_the_value_and_the_type_that_it_began_with(what, save):
    x = torch.ones(2, 3)
    expected = UsesOfAParameter(what)(x)
    history = lens.trace(UsesOfAParameter(what), x, save=save)
    assert not find_problems(history.graph)
    (leaf,) = [leaf for leaf in history.graph.leaves if "weight" in leaf.addresses]
    assert leaf.trainable
    assert history.graph.values[leaf.value].type.shape == (2, 3)
    written = [op for op in history.graph.ops if op.effects or op.function.mutates]
    assert bool(written) == (what in ("written", "written through a view", "moved", "tied"))
    if save == "all":
        assert torch.equal(history.payloads.read(history.graph.outputs.values[0]), expected)
        if what != "out of sight":  # lost, and says so
            assert torch.equal(history.payloads.read(leaf.value), torch.arange(1.0, 7.0).reshape(2, 3))
            assert check(history).ok, what


def test_views_of_one_memory_are_not_gone_through_for_each_new_one(monkeypatch):
    seen, records_on = [], TensorTable.records_on
    monkeypatch.setattr(
        TensorTable, "records_on", lambda table, storage: (seen.extend(found := records_on(table, storage)), found)[1]
    )
    x = torch.randn(1000, 2)
    history = traced(lambda x: torch.stack([part * 2 for part in x.unbind(0)]), x)
    first = history.graph.inputs.values[0]
    assert sum(value.alias_of == first for value in history.graph.values) == 1000
    assert len(seen) < 5 * len(x)


class FusedSteps(nn.Module):
    """Two steps of an optimizer, whose state is a result."""

    def __init__(self, kind, **options):
        super().__init__()
        self.fc = nn.Linear(2, 1, bias=False)
        self.optimizer = getattr(torch.optim, kind)(self.fc.parameters(), lr=0.1, fused=True, **options)

    def forward(self, x):
        for step in (1.0, 2.0):
            self.fc.weight.grad = x.view(1, 2) * step
            self.optimizer.step()
        (state,) = self.optimizer.state.values()
        return [value * 1 for value in state.values() if isinstance(value, torch.Tensor)], self.fc(x)


@pytest.mark.parametrize("backend", ["torch_function", "decoration", "torch_dispatch"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [("Adam", {}), ("AdamW", {"amsgrad": True}), ("SGD", {"momentum": 0.9}), ("Adagrad", {})],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_a_fused_optimizer_writes_to_all_that_its_schema_says(kind, options, backend):
    history = lens.trace(model := FusedSteps(kind, **options), torch.ones(2), backend=backend)
    states = [e for e in history if e.is_output_layer and tuple(e.tensor_shape) == (1, 2)]
    made = [history[history[e.parent_layers[0]].parent_layers[0]] for e in states]
    assert {e.layer_type for e in made} == {f"fused{kind.lower()}"}
    saved = [e.tensor_contents.clone() for e in made]
    model(torch.ones(2))  # torch counts none of its writes
    assert all(map(torch.equal, [e.tensor_contents for e in made], saved))
    assert lens.validation_report(FusedSteps(kind, **options), torch.ones(2), backend=backend).ok


def test_what_is_written_to_may_be_given_by_name():
    def forward(x):
        scale, growth = x[:1] * 4, torch.zeros((), dtype=torch.int32)
        torch._amp_update_scale_(
            scale,
            growth_tracker=growth,
            found_inf=x[:1] * 0,
            scale_growth_factor=2.0,
            scale_backoff_factor=0.5,
            growth_interval=3,
        )
        return scale + growth

    history = traced(forward, torch.ones(2))
    assert not history["zeros_1"].tensor_contents.any()
    assert history["add_1"].parent_layers == ["ampupdatescale_1_6"]


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("backend", ["torch_function", "decoration", "torch_dispatch"])
def test_a_write_to_a_part_of_a_quantized_tensor_replays(backend):
    def forward(x):
        quantized = torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)
        quantized[0] = quantized[1]
        return quantized.dequantize()

    history = lens.trace(Body(forward), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), backend=backend)
    report = check(history)
    assert report.failed == (), str(report)
    assert [verdict.status for verdict in report.verdicts] == ["proved"] * len(report.verdicts)


@pytest.mark.parametrize("backend", ["torch_function", "decoration", "torch_dispatch"])
def test_what_is_written_to_may_be_given_by_name_behind_others(backend):
    def forward(x):
        y = x * 2
        torch.dropout_(p=0.5, train=True, input=y)
        return y + 1

    history = lens.trace(Body(forward), torch.ones(64), backend=backend)
    assert torch.equal(history["mul_1"].tensor_contents, torch.full((64,), 2.0))


def test_a_sparse_tensor_can_touch_everything():
    assert Footprint.of(torch.eye(2).to_sparse()) == EVERYWHERE


def test_columns_that_overlap_have_no_period():
    where = Footprint.strided(0, 1, (2, 2), (4, 6))
    assert all(where.meets(Footprint(byte, byte + 1)) for byte in (0, 4, 6, 10))


def test_what_is_not_taken_out_of_an_index_stays():
    index = FootprintIndex()
    for start in (0, 2, 4):
        index.add(Footprint(start, start + 2), start)
    assert index.take(Footprint(2, 3)) == [2]
    assert sorted(index.take(EVERYWHERE)) == [0, 4]


def test_a_reserved_parameter_is_found_on_its_memory():
    weight, table = nn.Parameter(torch.ones(2)), TensorTable()
    assert table.reserve({id(weight): (weight, "parameter", ("weight",))}, 0) == []
    assert [record() is weight for record in table.records_on(storage_of(weight))] == [True]


def test_a_tensor_of_the_model_in_memory_that_is_written_to_is_met_before():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("table", torch.ones(4))
            self.first = self.table[:2]

        def forward(self, x):
            self.table.add_(x)
            return self.first * 2

    history = lens.trace(Table(), torch.ones(()))
    assert history["mul_1"].parent_layers == ["add_1_1"]


def test_a_lazy_parameter_that_has_been_shaped_is_found_on_its_memory():
    lazy, table = nn.UninitializedParameter(), TensorTable()
    record = table.add(lazy, 0)
    lazy.materialize((2,))
    view = lazy.detach()
    table.add(view, 1)
    assert table.aliases(record, lazy).standing_for(1, record)() is view


def test_a_tensor_written_to_out_of_sight_enters_a_module_as_what_it_is_now():
    relu = nn.ReLU()

    def forward(x):
        y = x * 2
        y.numpy()[0] = 5
        return relu(y)

    model = nn.Sequential(relu)
    model.forward = forward
    history = lens.trace(model, torch.ones(2))
    assert history["external_1"].modules_entered == ["0"]
