"""Look-up by every kind of key, and the attributes of Supplementary Table 1, on models worked out by hand."""

import pickle

import pytest
import torch
from models import Body, LSTMLoop, TwoBranches
from torch import nn

import lens
from lens.errors import AbsentValueError, AmbiguousKeyError, GuardError, StaleValueError, UnknownKeyError
from lens.history import ModelHistory
from lens.ir.parser import parse
from lens.ir.payloads import PayloadStore
from lens.model_specs import import_torchvision
from lens.passes.conditionals import ConditionalsPass
from lens.passes.labels import LabelsPass
from lens.passes.manager import PassManager
from lens.registry import providers


@pytest.fixture(scope="module")
def alexnet():
    model = import_torchvision().models.alexnet().eval()
    return lens.trace(model, torch.randn(1, 3, 224, 224))


@pytest.fixture(scope="module")
def branches():
    return lens.trace(TwoBranches(), torch.ones(2, 4), seed=1)


def test_the_papers_alexnet(alexnet):
    assert alexnet["conv2d_2_4"] == alexnet["conv2d_2"] == alexnet["features.3"]
    assert alexnet["conv2d_2"].layer_label == "conv2d_2_4"
    assert alexnet["features.12"] == alexnet["features"] == alexnet["maxpool2d_3"]
    assert alexnet["classifier"] == alexnet["classifier.6"] == alexnet["linear_3"]
    assert not alexnet["classifier"].is_output_layer
    assert alexnet[2].layer_label == "relu_1_2"
    assert alexnet[-5] == list(alexnet)[-5]
    assert alexnet[-1].layer_label == "output_1"
    assert alexnet["conv2d_2:1"] == alexnet["conv2d_2_4:1"] == alexnet["features.3:1"]
    assert len(alexnet) == 24


def test_resnet_fc_is_the_last_linear():
    model = import_torchvision().models.resnet18().eval()
    history = lens.trace(model, torch.randn(1, 3, 32, 32))
    assert history["fc"] == history["linear_1"]
    assert history["fc"].child_layers == ["output_1"]


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("conv3", "'conv2d_3'"), ("conv2d_9", "'conv2d_"), ("feature.3", "'features.3'"), (99, "-24 to 23")],
)
def test_an_unknown_key_names_the_nearest(alexnet, key, nearest):
    with pytest.raises(UnknownKeyError, match=nearest) as caught:
        alexnet[key]
    assert isinstance(caught.value, KeyError)
    assert key not in alexnet


def test_a_name_of_the_model_that_is_no_layer_says_why():
    class Position(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.ones(2))

        def forward(self):
            return self.table

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.position, self.silent, self.unused = Position(), nn.Module(), nn.Linear(2, 2)
            self.silent.forward = lambda x: None

        def forward(self, x):
            self.silent(x)
            return x + self.position()

    history = lens.trace(Odd(), torch.ones(2))
    for key, reason in {
        "position": "the module 'position' has returned @position.table, which is no layer",
        "position:2": "of the module 'position' there are position:1",
        "position.table": "is a parameter and no layer",
        "silent": "has returned no tensor",
        "unused": "was not called in this run",
        "unused.weight": "is a parameter and no layer",
    }.items():
        with pytest.raises(UnknownKeyError, match=reason):
            history[key]
        with pytest.raises(UnknownKeyError, match=reason):
            lens.trace(Odd(), torch.ones(2), save=[key])


@torch.library.custom_op("lens_tests::input", mutates_args=())
def named_input(x: torch.Tensor) -> torch.Tensor:
    return x * 3


def test_an_operator_called_input_does_not_take_the_key_of_the_input():
    history = lens.trace(lambda x: torch.ops.lens_tests.input(x) + 1, torch.ones(2))
    assert history["input_1"].is_input_layer
    assert torch.equal(history["input_1_1"].tensor_contents, torch.full((2,), 3.0))


def test_a_key_of_another_type_is_refused(alexnet):
    with pytest.raises(UnknownKeyError, match="tuple"):
        alexnet[1, 2]


def test_every_lookup_key_leads_back(alexnet):
    for entry in alexnet:
        for key in entry.lookup_keys:
            assert alexnet[key] == entry


def test_a_tensor_that_is_given_twice_is_found_by_both_names():
    class Attention(nn.Module):
        def forward(self, query, key, more):
            return query @ key.T + more["bias"]

    x, bias = torch.randn(4, 4), torch.randn(4)
    history = lens.trace(Attention(), (x, x, {"bias": bias, "last": [x]}), save=["key"])
    assert history["query"] == history["key"] == history["more['last'][0]"] == history["input_1"]
    assert history["input_1"].is_saved
    assert history["more['bias']"] == history["input_2"]
    assert history.input_layers == ["input_1", "input_2"]
    program = history.to_fx()
    assert torch.equal(program(x, x, {"bias": bias, "last": [x]}), Attention()(x, x, {"bias": bias}))
    with pytest.raises(GuardError, match="one tensor"):
        program(x, x + 1, {"bias": bias, "last": [x]})


def test_a_label_that_is_also_an_address_is_ambiguous():
    model = nn.Module()
    model.relu_2 = nn.ReLU()
    model.forward = lambda x: torch.relu(model.relu_2(x) + 1)
    history = lens.trace(model, torch.ones(2))
    with pytest.raises(AmbiguousKeyError, match="relu_1_1"):
        history["relu_2"]
    assert history["relu_2_3"].parent_layers == ["add_1_2"]


def test_model_attributes(branches):
    h = branches
    assert h.model_name == "TwoBranches"
    assert h.random_seed_used == 1
    assert (h.model_is_recurrent, h.model_max_recurrent_loops, h.model_is_branching) == (False, 1, False)
    assert h.layer_list == [
        "input_1", "linear_1_1", "relu_1_2", "rand_1_3", "add_1_4", "buffer_1", "div_1_5", "output_1",
    ]  # fmt: skip
    assert h.input_layers == ["input_1"]
    assert h.output_layers == ["output_1"]
    assert h.buffer_layers == ["buffer_1"]
    assert h.internally_initialized_layers == ["rand_1_3"]
    assert h.internally_terminated_bool_layers == []
    assert h.layers_computed_with_params == ["linear_1_1"]
    assert h.num_tensors_total == 7
    assert h.tensor_fsize_total == 6 * 32 + 16
    assert (h.num_tensors_saved, h.tensor_fsize_saved) == (7, 6 * 32 + 16)
    assert (h.total_param_tensors, h.total_param_layers, h.total_params, h.total_params_fsize) == (
        2,
        1,
        20,
        80,
    )
    assert h.module_addresses == ["fc"]
    assert h.module_types == {"fc": "Linear"}
    assert h.module_num_passes == {"fc": 1}
    assert h.top_level_module_passes == ["fc:1"]
    assert h.module_pass_children == {"fc:1": []}
    assert h.pass_end_time > h.pass_start_time > 1.6e9
    assert h.elapsed_time_total == h.elapsed_time_function_calls + h.elapsed_time_lens_logging


def test_entry_attributes(branches):
    e = branches["add_1"]
    assert (e.layer_label, e.layer_label_w_pass, e.layer_type) == ("add_1_4", "add_1_4:1", "add")
    assert (e.operation_num, e.layer_type_num, e.layer_total_num) == (4, 1, 4)
    assert (e.pass_num, e.layer_passes_total, e.same_layer_operations) == (1, 1, [])
    assert (e.tensor_shape, e.tensor_dtype, e.tensor_fsize) == ((2, 4), "float32", 32)
    assert e.func_applied is torch.Tensor.add
    assert e.func_applied_name == "add"
    assert torch.equal(e.creation_args[1], branches["rand_1"].tensor_contents)
    assert e.creation_kwargs == {}
    assert e.gradfunc_name == "AddBackward0"
    assert e.parent_layers == ["relu_1_2", "rand_1_3"]
    assert e.child_layers == ["div_1_5"]
    assert e.spouse_layers == ["buffer_1"]
    assert branches["relu_1"].sibling_layers == []
    assert e.orig_ancestors == ["input_1", "rand_1_3"]
    assert e.internally_initialized_parents == e.internally_initialized_ancestors == ["rand_1_3"]
    assert e.output_descendents == ["output_1"]
    assert (e.min_distance_from_input, e.max_distance_from_input) == (3, 3)
    assert (e.min_distance_from_output, e.max_distance_from_output) == (2, 2)
    assert e.has_input_ancestor
    assert e.is_output_ancestor
    assert not e.is_computed_inside_submodule
    assert e.containing_module_origin is None
    rand = branches["rand_1"]
    assert rand.func_position_args_non_tensor == [2, 4]
    assert rand.initialized_inside_model
    assert not rand.has_input_ancestor
    assert rand.min_distance_from_input is None
    assert "cpu" in rand.func_rng_states


@pytest.mark.parametrize("passes", ["granularity{level=leaf},labels", "granularity{level=api},labels"])
def test_what_is_in_place_by_an_argument_is(passes):
    def run(x):
        y = x.clone()
        torch.add(x, 1, out=y)
        nn.functional.relu(y, inplace=True)
        return nn.functional.relu(y, inplace=False)

    model = nn.Module()
    model.forward = run
    history = lens.trace(model, torch.ones(2), passes=passes)
    in_place = [(e.layer_type, e.function_is_inplace) for e in history if e.layer_type in ("clone", "add", "relu")]
    assert in_place[:2] == [("clone", False), ("add", True)]
    assert [in_place[2], in_place[-1]] == [("relu", True), ("relu", False)]


def test_entry_attributes_of_modules_and_parameters(branches):
    e = branches["fc"]
    assert (e.computed_with_params, e.num_param_tensors, e.num_params_total) == (True, 2, 20)
    assert e.parent_param_shapes == [(4, 4), (4,)]
    assert e.parent_params_fsize == 80
    assert (e.containing_module_origin, e.containing_module_origin_nested) == ("fc", ["fc"])
    assert (e.modules_exited, e.is_submodule_output) == (["fc"], True)
    assert e.is_bottom_level_submodule_output
    assert branches["input_1"].modules_entered == ["fc"]
    buffer = branches["scale"]
    assert (buffer.layer_label, buffer.buffer_address, buffer.is_buffer_layer) == ("buffer_1", "scale", True)
    assert buffer.operation_num is None
    assert buffer.layer_total_num is None
    output = branches["output_1"]
    assert (output.min_distance_from_output, output.min_distance_from_input) == (0, 4)
    assert output.parent_layers == ["div_1_5"]


def test_what_the_pipeline_left_out_is_told_all_the_same(branches):
    short = lens.trace(TwoBranches(), torch.ones(2, 4), passes="granularity,orphans,labels")
    assert short.layer_list == branches.layer_list
    for one, other in zip(short, branches, strict=True):
        assert "distance " in str(one)
        assert (one.max_distance_from_input, one.min_distance_from_output) == (
            other.max_distance_from_input,
            other.min_distance_from_output,
        )


def test_passes_of_a_module_are_shared_and_differing_attributes():
    history = lens.trace(LSTMLoop(), torch.randn(3, 2, 4))
    cell = history["cell"]
    assert len(cell) == 3
    assert cell.tensor_shape == (2, 8)
    with pytest.raises(AmbiguousKeyError, match="passes"):
        _ = cell.tensor_contents
    assert cell.passes[1] == history["cell:2"]
    with pytest.raises(AttributeError):
        _ = cell.nothing


def test_saving_a_part():
    model, x = TwoBranches(), torch.ones(2, 4)
    cases = {
        "none": [],
        "relu_1": ["relu_1_2"],
        ("relu_1", "fc"): ["linear_1_1", "relu_1_2"],
        "fc": ["linear_1_1"],
        ("input_1", "scale", "output_1"): ["input_1", "buffer_1", "div_1_5", "output_1"],
        (0, -2): ["input_1", "div_1_5", "output_1"],
    }
    for save, expected in cases.items():
        history = lens.trace(model, x, save=save if isinstance(save, str) else list(save))
        assert [e.layer_label for e in history if e.is_saved] == expected, save
    history = lens.trace(model, x, save=lambda op: op.type == "relu" or op.address == "fc")
    assert [e.layer_label for e in history if e.is_saved] == ["linear_1_1", "relu_1_2"]
    assert history[0].layer_label == "linear_1_1"
    assert history[-1].layer_label == "relu_1_2"


def test_a_part_saved_before_an_in_place_write_is_right():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
    history = lens.trace(model, torch.randn(8, 4), save=["0"])
    assert (history["0"].tensor_contents < 0).any()
    history = lens.trace(model, torch.randn(8, 4))
    assert not history["0"].tensor_contents.requires_grad  # as docs/limits.md says
    assert history["1"].tensor_contents.requires_grad


def test_absent_and_stale_values_raise():
    model, x = nn.ReLU(), torch.randn(3)
    with pytest.raises(AbsentValueError, match=r'save="all"'):
        _ = lens.trace(model, x, save="none")["relu_1"].tensor_contents
    history = lens.trace(model, x)
    x.add_(1)
    with pytest.raises(StaleValueError):
        _ = history["input_1"].tensor_contents
    assert history["relu_1"].tensor_contents is not None


def test_unknown_layer_to_save_is_named():
    with pytest.raises(UnknownKeyError, match="relu_7"):
        lens.trace(nn.ReLU(), torch.ones(2), save=["relu_7"])


def test_labels_are_the_same_in_train_and_eval():
    torchvision = import_torchvision()
    model = torchvision.models.resnet18()
    x = torch.randn(2, 3, 32, 32)
    train = lens.trace(model.train(), x, save="none")
    evaluated = lens.trace(model.eval(), x, save="none")
    assert train.layer_list == evaluated.layer_list
    assert len(train.orphans) == 20
    assert {orphan.function for orphan in train.orphans} == {"torch.Tensor.add_"}


def test_the_summary_is_readable(alexnet):
    summary = str(alexnet)
    assert "AlexNet: 22 operations" in summary
    assert "61,100,840" in summary
    assert "features.3" in summary
    assert "conv2d_2_4" in summary
    assert max(map(len, summary.splitlines())) < 100


@pytest.mark.parametrize("save", ["all", "none", [2, 3, 4], ["0"]])
def test_the_numbers_of_the_summary_are_ordinals(save):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Tanh()).eval()
    history = lens.trace(model, torch.randn(3, 4), save=save)
    numbered = {row["layer"]: row[""].strip("*") for row in history.summary()}
    for layer, number in numbered.items():
        entry = history[layer]
        assert entry == history[int(number)] if number else isinstance(entry.lookup_keys[-1], str)
    assert any(numbered.values())


def test_the_table(alexnet):
    pytest.importorskip("pandas")
    table = alexnet.to_pandas()
    assert len(table) == 24
    assert table.set_index("layer_label").loc["conv2d_2_4", "tensor_shape"] == (1, 192, 27, 27)


class Two(nn.Module):
    def forward(self, x):
        return x.sin().cos()


def test_a_module_of_two_operations_is_not_bottom_level():
    history = lens.trace(nn.Sequential(Two(), nn.ReLU()), torch.ones(2))
    told = [entry.is_bottom_level_submodule_output for entry in history]
    assert told == [False, False, False, True, False]


def test_a_number_that_nothing_reads_is_no_terminal_bool():
    history = lens.trace(Body(lambda x: (x.sum(), x.sum() > 0, x.sin())[2]), torch.ones(2), passes="recurrence,labels")
    assert history.internally_terminated_bool_layers == ["gt_1_3"]


def test_a_history_is_pickled_without_what_is_derived():
    history = lens.trace(Two(), torch.ones(2))
    before = pickle.dumps(history)
    assert history["sin_1"].flops == 0
    assert pickle.dumps(history) == before


def test_composites_count_by_what_is_inside():
    model, x = nn.MultiheadAttention(4, 2), torch.randn(3, 1, 4)
    history = lens.trace(model, (x, x, x), passes="recurrence,labels")
    assert any(op.interior for op in history.graph.ops)
    assert history.total_flops == lens.trace(model, (x, x, x)).total_flops
    assert history.elapsed_time_function_calls < sum(op.duration for op in history.graph.ops)


def test_a_pipeline_without_conditionals_tells_of_no_branching():
    assert not lens.trace(Two(), torch.ones(2), passes="labels").model_has_conditional_branching


def test_an_input_of_a_normalisation_is_no_statistic():
    history = lens.trace(nn.BatchNorm1d(3).eval(), torch.ones(2, 3))
    told = {row.label: history.index.is_statistic(row) for row in history.index.rows}
    assert told == {"input_1": False, "buffer_1": True, "buffer_2": True, "batchnorm_1_1": False, "output_1": False}


def test_a_key_of_several_passes_is_told_with_what_to_write():
    relu = nn.ReLU()
    history = lens.trace(nn.Sequential(relu, nn.Linear(2, 2), relu, nn.Linear(2, 2), relu), torch.ones(2))
    with pytest.raises(AmbiguousKeyError, match=r"'0' names 3 passes\n.*\n.*name one: 'relu_1_1:1', 'relu_2_3:1'"):
        history.one("0")


def test_a_condition_found_by_the_heuristic_is_branching():
    graph = parse("""\
graph {
  leaf %0: f32[2] = input "x"
  inputs @x
  %1: bool[] = torch.gt(@x, 3)
  %2: f32[2] = torch.sin(@x)
  outputs %2
}
""")
    made = PassManager((ConditionalsPass(), LabelsPass()), providers()).run(graph).graph
    assert ModelHistory(made, PayloadStore()).model_has_conditional_branching


def test_what_nothing_reads_is_an_end_of_its_loop():
    fc = nn.Linear(2, 2)
    model = nn.Sequential(fc)

    def forward(x):
        for _ in range(3):
            x = fc(x)
            x.sin()
        return x * 2

    model.forward = forward
    history = lens.trace(model, torch.ones(2))
    assert [entry.layer_type for entry in history.loop_ends()] == ["linear", "sin"] * 3
