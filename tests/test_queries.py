"""Questions to a history: the paper's workflow, queries against networkx, and what wrong questions are told."""

from __future__ import annotations

import copy
import pickle
from contextlib import suppress

import networkx as nx
import pytest
import torch
from counting import calls_per_op
from models import Conditional, LSTMLoop, TwoBranches
from table_cases import Branching, Nested, Recurrent
from torch import nn

import lens
from lens.entry import LayerEntry, OpEntry
from lens.errors import (
    AbsentValueError,
    AmbiguousKeyError,
    InputError,
    LensError,
    StaleValueError,
    UnknownAttributeError,
    UnknownKeyError,
)
from lens.model_specs import import_torchvision
from lens.validate.invariants import violations


class Area(nn.Module):
    """A recurrent loop, then a pooling layer behind a relu."""

    def __init__(self, steps):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(2)
        self.steps = steps

    def forward(self, x):
        drive = x
        for _ in range(self.steps):
            x = torch.relu(self.norm(self.conv(x)) + drive)
        return self.pool(x)


class Ventral(nn.Module):
    """High-level modules with feedback loops inside, as in the paper's example workflow."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.v1 = Area(3)
        self.v2 = Area(2)
        self.head = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 5))

    def forward(self, x):
        return self.head(self.v2(self.v1(self.stem(x))))


def graph_of(history):
    """The layers as networkx's graph, straight from operands and results."""
    graph = nx.DiGraph()
    made = {}
    for entry in history:
        graph.add_node(entry._row.number)
        reads = [entry._row.value] if entry.is_output_layer else entry._op.operands if entry._op else ()
        graph.add_edges_from((made[v], entry._row.number) for v in reads if v in made)
        if not entry.is_output_layer:
            made[entry._row.value] = entry._row.number
    return graph


@pytest.fixture(scope="module")
def resnet():
    model = import_torchvision().models.resnet18().eval()
    return lens.trace(model, torch.randn(1, 3, 32, 32), save="none")


@pytest.fixture(scope="module")
def loop():
    return lens.trace(Recurrent(), torch.randn(2, 4))


def test_the_papers_example_workflow(tmp_path):
    torch.manual_seed(0)
    model, x = Ventral().eval(), torch.randn(2, 3, 16, 16)
    # (1) Look at the graph.
    assert (tmp_path / "model.svg").samefile(lens.show_model_graph(model, x, tmp_path / "model.svg"))
    # (2) Find representations of interest from the structure alone.
    structure = lens.get_model_structure(model, x)
    by_hand = []
    for layer in structure:
        parents = [structure[label] for label in layer.parent_layers]
        if "pool" in layer.layer_type and any(parent.layer_type == "relu" for parent in parents):
            by_hand.append(layer)
    pools = structure.layers(type="*pool*", parent_type="relu")
    assert pools == by_hand
    assert [p.layer_label for p in pools] == ["maxpool2d_1_6", "maxpool2d_2_11"]
    areas = structure.module_outputs(depth=1, nested=True)
    assert [a.modules_exited[0] for a in areas] == ["v1", "v2", "head"]
    ends = structure.loop_ends()
    assert [e.layer_label_w_pass for e in ends] == [f"relu_1_5:{n}" for n in (1, 2, 3)] + ["relu_2_10:1", "relu_2_10:2"]
    wanted = [entry.layer_label_w_pass for entry in (*areas, *ends, *pools)]
    # (3) Extract them.
    history = lens.get_model_activations(model, x, which_layers=wanted)
    assert {e.layer_label_w_pass for e in history if e.is_saved} - {"output_1:1"} == set(wanted)
    with torch.no_grad():
        y = model.stem(x)
        for name in ("v1", "v2"):
            area = model.get_submodule(name)
            drive = y
            for step in range(area.steps):
                y = torch.relu(area.norm(area.conv(y)) + drive)
                end = [e for e in ends if name in e._scopes[0].address][step]
                assert torch.allclose(history[end.layer_label_w_pass].tensor_contents, y, atol=1e-6)
            y = area.pool(y)
            assert torch.allclose(history[name].tensor_contents, y, atol=1e-6)
    assert lens.validate_saved_activations(model, x)


def test_layers_by_type_neighbour_module_and_rule(resnet):
    def labels(**question):
        return [entry.layer_label for entry in resnet.layers(**question)]

    everything = list(resnet)
    assert labels() == [e.layer_label for e in everything]
    convs = [e.layer_label for e in everything if e.layer_type == "conv2d"]
    assert len(convs) == 20
    assert labels(type="conv2d") == labels(type="Conv2d") == labels(type=["conv*", "nothing"]) == convs
    assert labels(type="max_pool2d") == ["maxpool2d_1_4"]
    assert labels(type="maxpool2d", parent_type="relu") == ["maxpool2d_1_4"]
    assert labels(type="maxpool2d", parent_type="conv2d") == []
    after = [e.layer_label for e in everything if any(resnet[c].layer_type == "add" for c in e.child_layers)]
    assert labels(child_type="add") == after
    inside = [
        e.layer_label for e in everything if any(m.startswith("layer2") for m in e.containing_module_origin_nested)
    ]
    assert labels(module="layer2") == labels(module="layer2*") == inside
    assert set(labels(module="layer?.0")) < set(labels(module=["layer1", "layer2", "layer3", "layer4"]))
    wide = [e.layer_label for e in everything if e.tensor_shape[1:2] == (512,)]
    assert labels(where=lambda e: e.tensor_shape[1:2] == (512,)) == wide
    both = labels(type="relu", module="layer3", where=lambda e: e.is_submodule_output)
    assert both == [e.layer_label for e in resnet.layers("relu") if "layer3" in e.containing_module_origin_nested]


def test_layers_by_the_call_of_a_module(loop):
    assert loop.layers(module="fc:2") == [loop["linear_1:2"]]
    assert loop.layers(module="fc") == list(loop["linear_1"].passes)


@pytest.mark.parametrize("model", [TwoBranches(), Conditional(), LSTMLoop(), Recurrent(), Nested()])
def test_between_and_paths_are_those_of_networkx(model):
    shapes = {LSTMLoop: (3, 2, 4), Nested: (1, 2, 5, 5)}
    history = lens.trace(model, torch.randn(shapes.get(type(model), (2, 4))))
    graph = graph_of(history)
    for first in history:
        for last in history:
            a, b = first._row.number, last._row.number
            inside = nx.descendants(graph, a) & nx.ancestors(graph, b)
            assert history.between(first, last) == [history.entry(n) for n in sorted(inside)]
            found = list(history.paths(first, last))
            wanted = [[history.entry(n)._row.name for n in p] for p in nx.all_simple_paths(graph, a, b)]
            assert sorted(found) == sorted(wanted if a != b else [[first._row.name]])


class Drawing(nn.Module):
    """A long loop with noise, of which each step is an output."""

    def __init__(self, steps):
        super().__init__()
        self.fc, self.steps = nn.Linear(4, 4), steps

    def forward(self, x):
        x, states = x + torch.zeros(4), []
        for step in range(self.steps):
            x = self.fc(x) + torch.rand(4)
            states.append(x.relu() if step % 2 else x)
        return states


@pytest.mark.parametrize("steps", [3, 70])
def test_far_relatives_are_those_of_networkx(steps):
    history = lens.trace(Drawing(steps), torch.randn(2, 4), save="none")
    graph = graph_of(history)
    for entry in (*list(history)[:9], *list(history)[-9:]):
        ancestors = [history.entry(n) for n in sorted(nx.ancestors(graph, entry._row.number))]
        origins = [e for e in ancestors if not e.parent_layers]
        assert entry.orig_ancestors == [e._row.name for e in origins]
        assert entry.internally_initialized_ancestors == [e._row.name for e in origins if e.layer_type != "input"]
        below = [history.entry(n) for n in sorted(nx.descendants(graph, entry._row.number))]
        assert entry.output_descendents == [e.layer_label for e in below if e.is_output_layer]


@pytest.mark.parametrize(
    "name", ["output_descendents", "orig_ancestors", "internally_initialized_ancestors", "same_layer_operations"]
)
def test_attributes_of_a_long_loop_take_linear_time(name):
    def looped(steps):
        def forward(x):
            state = torch.zeros(4)
            for _ in range(steps):
                state = torch.tanh(model.fc(x + state))
            return state

        model = nn.Module()
        model.fc, model.forward = nn.Linear(4, 4), forward
        return lens.trace(model, torch.randn(2, 4), save="none")

    def ask(history):
        with suppress(AmbiguousKeyError):
            getattr(lens.ModelHistory(history.graph, history.payloads)["linear_1"], name)

    short, long = calls_per_op(ask, looped(50), looped(400))
    assert long < 2 * short


def test_counting_between(resnet, loop):
    graph = graph_of(resnet)
    first, last = resnet["conv1"], resnet["fc"]
    inside = nx.descendants(graph, first._row.number) & nx.ancestors(graph, last._row.number)
    convs = [n for n in inside if resnet.entry(n).layer_type == "conv2d"]
    assert resnet.count_between("conv1", "fc", "conv2d") == len(convs) == 19
    assert resnet.count_between("fc", "conv1", "conv2d") == 0
    assert len(list(resnet.paths("conv1", "fc"))) == len(list(nx.all_simple_paths(graph, 1, last._row.number)))
    assert loop.count_between("input_1", "output_1", "linear") == 1  # one layer of three passes
    assert len(loop.between("input_1", "output_1", "linear")) == 3


def test_module_outputs():
    history = lens.trace(Nested(), torch.randn(1, 2, 5, 5))
    assert [e.layer_label for e in history.module_outputs()] == ["conv2d_1_1", "relu_1_2", "conv2d_2_3", "relu_2_4"]
    assert [e.layer_label for e in history.module_outputs(depth=1)] == ["relu_1_2", "relu_2_4"]
    assert history.module_outputs(nested=True) == history.module_outputs(depth=1)
    assert [e.layer_label for e in history.module_outputs("b.*")] == ["conv2d_2_3", "relu_2_4"]


class Halves(nn.Module):
    """Writes through a view of what it returns, as heads of detectors do."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        y = self.fc(x)
        y[:, 2:].sigmoid_()
        return y


@pytest.mark.parametrize("backend", ["torch_function", "decoration", "torch_dispatch"])
def test_a_module_that_writes_through_a_view_has_returned_all_of_the_tensor(backend):
    model, x = nn.Sequential(Halves(), nn.Linear(4, 2)), torch.randn(3, 4)
    expected = model[0](x)
    histories = [lens.trace(model, x, backend=backend, **saved) for saved in ({}, {"save": ["0"]})]
    histories.append(lens.trace(model, x, backend=backend, save=["0"], stop_at="saved"))
    for history in histories:
        entry = history["0"]
        assert entry.layer_type == "sigmoid"
        assert torch.equal(entry.tensor_contents, expected)
        assert entry.tensor_shape == (3, 4)
        assert torch.equal(history.module_outputs("0")[0].tensor_contents, expected)
    assert histories[0]["sigmoid_1"].tensor_shape == (3, 2)


@pytest.mark.parametrize("last", [(), (nn.Linear(4, 2),)])
def test_what_a_module_has_written_through_a_view_is_counted_numbered_and_compared(last):
    model, x = nn.Sequential(Halves(), *last), torch.randn(3, 4)
    history = lens.trace(model, x, save=["0"])
    entry = history["0"]
    assert (history.num_tensors_saved, history.tensor_fsize_saved) == (1, 48)
    saved = {e.layer_label: e.tensor_contents for e in history if e.is_saved and not e.is_output_layer}
    assert torch.equal(saved[entry.layer_label], entry.tensor_contents)
    assert entry == history[0]
    assert torch.equal(history[0].tensor_contents, entry.tensor_contents)
    assert violations(history)["counts"] == []
    full = lens.trace(model, x)
    for entry in (history["0"], full["0"]):
        own = entry._history["sigmoid_1"]
        assert entry == own
        assert hash(entry) == hash(own)
        assert entry in list(entry._history)
        assert entry.same_layer_operations == []
        assert entry.lookup_keys == own.lookup_keys
        assert isinstance(own.lookup_keys[-1], int)
    assert not history["sigmoid_1"].is_saved
    assert full["sigmoid_1"].tensor_shape == (3, 2)
    assert not full.diff(history).changes


def test_a_module_is_found_by_all_its_addresses():
    model = nn.Module()
    model.a = model.b = nn.Linear(4, 4)
    model.forward = lambda x: model.b(x)
    history = lens.trace(model, torch.ones(1, 4))
    for address in ("a", "b", "b:1", "[b]"):
        assert history.layers(module=address) == history.module_outputs(address) == [history["linear_1"]]


def test_loop_ends_are_what_the_next_pass_reads():
    history = lens.trace(LSTMLoop(), torch.randn(3, 2, 4))
    ends = history.loop_ends()
    assert set(history["cell"].passes) <= set(ends)
    assert {e.pass_num for e in ends} == {1, 2, 3}
    assert lens.trace(Branching(), (torch.randn(2, 4), torch.randn(2, 1))).loop_ends() == []


def test_an_entry_of_several_passes(loop):
    layer = loop["linear_1"]
    assert isinstance(layer, LayerEntry)
    assert list(layer) == list(layer.passes) == list(layer.passes[0].passes)
    assert (layer.layer_label, layer.tensor_shape, layer.num_params_total) == ("linear_1_1", (2, 4), 20)
    assert {"tensor_contents", "passes", "flops"} <= set(dir(layer))
    assert layer == loop["linear_1"] == loop["fc"] != loop["relu_1"]
    assert hash(layer) == hash(loop["fc"])
    for name in ("tensor_contents", "creation_args", "parent_layers", "func_time_elapsed", "pass_num"):
        with pytest.raises(AmbiguousKeyError) as caught:
            getattr(layer, name)
        hint = caught.value.hint
        assert f"history['linear_1_1:1'].{name}" in hint
        first, everything = hint.removeprefix("choose one, ").split(", or all: ")
        assert repr(eval(first, {"history": loop})) == repr(eval(everything, {"history": loop})[0])
    with pytest.raises(UnknownAttributeError, match="tensor_contents"):
        _ = layer.tensor_content
    assert not hasattr(layer, "nothing_like_it")
    assert isinstance(copy.copy(layer), LayerEntry)


def test_entries_and_histories_pickle(loop):
    assert loop.total_flops == 3 * 2 * 2 * 4 * 4
    again = pickle.loads(pickle.dumps(loop))
    assert again.total_flops == loop.total_flops
    assert repr(pickle.loads(pickle.dumps(loop["linear_1"]))) == repr(loop["linear_1"])


def test_entries_and_histories_are_copied_deeply():
    x = torch.randn(2, 4, requires_grad=True)
    history = lens.trace(lambda x: torch.vmap(torch.sin)((x * 2).tanh()), x)
    again = copy.deepcopy(history)
    assert again.diff(history).same
    assert again["tanh_1"].tensor_contents is not history["tanh_1"].tensor_contents
    assert again.payloads.objects == history.payloads.objects != {}
    assert lens.validate.check(again).ok
    recurrent = lens.trace(Recurrent(), torch.randn(2, 4))
    for entry in (recurrent["linear_1"], recurrent["linear_1:2"]):
        assert repr(copy.deepcopy(entry)) == repr(entry)


def test_deep_copies_keep_strides_parameters_and_shared_memory():
    model = nn.Linear(3, 2)
    with torch.no_grad():
        history = lens.trace(lambda x: (model.weight, y := model(x), y.T, y.expand(500, 2, 2)), torch.ones(2, 3))
    outputs = [history.payloads.read(value) for value in history.graph.outputs.values]
    again = copy.deepcopy(history)
    copies = [again.payloads.read(value) for value in again.graph.outputs.values]
    assert [type(tensor) for tensor in copies] == [type(tensor) for tensor in outputs]
    assert [tensor.stride() for tensor in copies] == [tensor.stride() for tensor in outputs]
    assert len({tensor.untyped_storage().data_ptr() for tensor in copies}) == 2
    assert not {tensor.data_ptr() for tensor in copies} & {tensor.data_ptr() for tensor in outputs}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda history: pickle.loads(pickle.dumps(history))])
def test_what_was_overwritten_since_stays_so_and_all_else_is_copied(copied, tmp_path):
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4)
    history = lens.trace(model, x)
    with torch.no_grad():
        x.add_(1)
        model[0].weight.add_(1)
    again = copied(history)
    assert torch.equal(again["relu_1"].tensor_contents, history["relu_1"].tensor_contents)
    with pytest.raises(StaleValueError, match=r"after the trace(.|\n)*copy what you need"):
        _ = again["input_1"].tensor_contents
    loaded = lens.load(history.save(tmp_path / "t.lens"))
    assert [entry.is_saved for entry in loaded] == [False, True, True, True]


@pytest.mark.parametrize("change", [
    lambda model: model.double(),
    lambda model: setattr(model.weight, "data", model.weight.data * 2),
    lambda model: nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(model.parameters()), model.parameters()),
], ids=["double", "data", "vector_to_parameters"])  # fmt: skip
def test_a_parameter_that_was_given_other_data_since_is_not_what_was_saved(change):
    model = nn.Linear(4, 4)
    history = lens.trace(model, torch.randn(2, 4))
    assert lens.validate.check(history).ok
    change(model)
    with pytest.raises(StaleValueError, match="after the trace"):
        _ = history["linear_1"].creation_args
    assert lens.validate.check(history).ok


def test_arguments_without_tensors_are_told_whatever_became_of_the_tensors():
    model, x = nn.BatchNorm1d(4), torch.randn(8, 4)
    entry = lens.trace(model, x)["batchnorm_1"]
    with torch.no_grad():
        model.weight.add_(1)
    assert entry.func_position_args_non_tensor == [True, 0.1, 1e-05, True]
    with pytest.raises(StaleValueError):
        _ = entry.creation_args


WRONG = [
    (lambda h: h["linear_2"], UnknownKeyError, "'linear_1'"),
    (lambda h: h["linear_1:4"], UnknownKeyError, "'linear_1:3'"),
    (lambda h: h["fcc"], UnknownKeyError, "'fc'"),
    (lambda h: h["ReLU_1"], UnknownKeyError, "'relu_1"),
    (lambda h: h["3"], UnknownKeyError, r"history\[3\]"),
    (lambda h: h[99], UnknownKeyError, "-8 to 7"),
    (lambda h: h[1.5], UnknownKeyError, "ordinal"),
    (lambda h: h[None], UnknownKeyError, "label"),
    (lambda h: h[2:4], UnknownKeyError, r"list\(history\)\[2:5\]"),
    (lambda h: h[True], UnknownKeyError, "bool"),
    (lambda h: h.one("relu_1"), AmbiguousKeyError, "'relu_1_2:1', 'relu_1_2:2'"),
    (lambda h: h.between("relu_1", "output_1"), AmbiguousKeyError, "relu_1_2:1"),
    (lambda h: h.between("relu_1:1", "output"), UnknownKeyError, "output_1"),
    (lambda h: h.between(copy.copy(h)[0], -1), UnknownKeyError, r"history\['input_1:1'\]"),
    (lambda h: h.layers(module="fx"), UnknownKeyError, "'fc'"),
    (lambda h: h.module_outputs("fx"), UnknownKeyError, "'fc'"),
    (lambda h: h.layers(type=3), InputError, "relu"),
    (lambda h: h.layers(where="relu"), InputError, "lambda entry"),
    (lambda h: h.summary("tme"), InputError, "give time"),
    (lambda h: h.summary(limit=0), InputError, "limit"),
    (lambda h: h.summary("module", depth="2"), InputError, "depth"),
    (lambda h: h.diff(3), InputError, "lens.load"),
    (lambda h: h.diff(h, rtol=-1.0), InputError, "rtol"),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_errors_say_what_to_type_instead(loop, number):
    question, kind, hint = WRONG[number]
    with pytest.raises(kind, match=hint) as caught:
        question(loop)
    assert isinstance(caught.value, LensError)
    assert caught.value.hint


def test_where_there_is_nothing_nothing_is_proposed():
    history = lens.trace(nn.Identity(), 3)
    for ask in (lambda: history[0], lambda: history.entry(0), lambda: history["x"]):
        with pytest.raises(UnknownKeyError, match="nothing was recorded"):
            ask()
    with pytest.raises(InputError, match="nothing was recorded"):
        lens.trace(nn.Identity(), 3, save=[0])
    with pytest.raises(UnknownKeyError, match="no submodules"):
        lens.trace(nn.ReLU(), torch.ones(2)).module_outputs("zz")


def test_absent_and_stale_values_say_what_to_do():
    x = torch.randn(2, 4)
    history = lens.trace(Recurrent(), x, save=["relu_1:2"])
    with pytest.raises(AbsentValueError) as caught:
        _ = history["linear_1:2"].tensor_contents
    assert "save=['linear_1_1:2']" in caught.value.hint
    again = lens.trace(Recurrent(), x, save=["linear_1_1:2"])
    assert again["linear_1:2"].is_saved
    history = lens.trace(Recurrent(), x)
    x.zero_()
    with pytest.raises(StaleValueError, match="copy what you need"):
        _ = history["input_1"].tensor_contents


def test_ordinals_of_other_integer_types(loop):
    numpy = pytest.importorskip("numpy")
    assert loop[numpy.int64(2)] == loop[2]
    assert isinstance(loop[2], OpEntry)


def test_a_label_that_is_an_address_too():
    model = nn.Module()
    model.relu_2_3 = nn.ReLU()
    model.forward = lambda x: torch.relu(model.relu_2_3(x) + 1)
    history = lens.trace(model, torch.ones(2))
    entries = list(history)
    assert "relu_2_3" not in entries[1].lookup_keys
    assert entries[3].same_layer_operations == []
    for entry in entries:
        for key in entry.lookup_keys:
            assert history[key] == entry
