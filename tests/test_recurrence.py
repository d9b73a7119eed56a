"""Recurrence: the paper's figures, models that are and are not recurrent, and the slow reference."""

from types import SimpleNamespace

import pytest
import torch
from attrs import evolve
from hypothesis import example, given, settings
from hypothesis import strategies as st
from models import Body
from recurrence_reference import folded, graph_of, reference_layers
from test_passes import run
from torch import nn

import lens
from lens.ir.facets import Labels, Recurrence
from lens.model_specs import import_torchvision
from lens.passes.labels import LabelsPass
from lens.passes.manager import PassManager
from lens.passes.recurrence import RecurrencePass
from lens.validate.grouping import grouping_violations


class Fig3A(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        x = self.fc(torch.cos(x)) + 1
        x = torch.sin(x)
        return self.fc(torch.cos(x)) + 1


class Fig3B(nn.Module):
    def forward(self, x):
        for _ in range(2):
            x = torch.relu(torch.cos(x)) * 2
        x = torch.tan(x)
        return torch.relu(torch.cos(x)) * 2


def names(model, *args):
    history = lens.trace(model, args, save="none")
    return [row.label_with_pass for row in history.index.rows]


def test_figure_3a():
    history = lens.trace(Fig3A(), torch.ones(2, 4))
    assert [row.label_with_pass for row in history.index.rows] == [
        "input_1:1", "cos_1_1:1", "linear_1_2:1", "add_1_3:1", "sin_1_4:1",
        "cos_1_1:2", "linear_1_2:2", "add_1_3:2", "output_1:1",
    ]  # fmt: skip
    assert history["cos_1_1:1"].parent_layers == ["input_1"]
    assert history["cos_1_1:2"].parent_layers == ["sin_1_4"]
    assert history["linear_1_2:1"].same_layer_operations == ["linear_1_2:2"]
    assert history.model_is_recurrent
    assert history.model_max_recurrent_loops == 2
    assert len(history["linear_1"]) == 2


def test_figure_3b():
    assert names(Fig3B(), torch.ones(2)) == [
        "input_1:1", "cos_1_1:1", "relu_1_2:1", "mul_1_3:1", "cos_1_1:2", "relu_1_2:2", "mul_1_3:2",
        "tan_1_4:1", "cos_2_5:1", "relu_2_6:1", "mul_2_7:1", "output_1:1",
    ]  # fmt: skip


class Cell(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        state = None
        for step in x:
            state = self.cell(step, state)
        return state[0] if isinstance(state, tuple) else state


class HandwrittenLSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.gates = nn.Linear(8, 16)

    def forward(self, x):
        h = c = torch.zeros(x.shape[1], 4)
        for step in x:
            i, f, g, o = self.gates(torch.cat([step, h], 1)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return h


class WhileLoop(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        rounds = 0
        while x.abs().sum() > 0.01 and rounds < 5:
            x = torch.relu(self.fc(x)) * 0.5 + 0.01
            rounds += 1
        return x


class Growing(nn.Module):
    """A loop whose shapes change."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        for _ in range(3):
            x = torch.cat([x, torch.relu(self.fc(x))])
        return x


class TwoAddresses(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = self.a

    def forward(self, x):
        return torch.relu(self.b(torch.relu(self.a(x))))


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2), nn.Tanh())

    def forward(self, x, y):
        return (self.tower(x) - self.tower(y)).norm()


class SharedHead(nn.Module):
    """A detection head over the levels of a pyramid."""

    def __init__(self):
        super().__init__()
        self.levels = nn.ModuleList(nn.Conv2d(3, 4, 3, stride=s, padding=1) for s in (1, 2, 4))
        self.head = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))

    def forward(self, x):
        return torch.cat([self.head(level(x)).flatten(2) for level in self.levels], dim=2)


class Feedback(nn.Module):
    """CORnet-like: an area runs several times, its output fed back."""

    def __init__(self):
        super().__init__()
        self.conv_in = nn.Conv2d(3, 4, 3, padding=1)
        self.area = nn.Conv2d(4, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))

    def forward(self, x):
        x = self.conv_in(x)
        skip = x
        for norm in self.norms:
            x = torch.relu(norm(self.area(x)) + skip)
        return x


def passes(model, *args):
    """Layer type and number of passes, of every layer with several."""
    history = lens.trace(model.eval(), args, save="none")
    return {(e.layer_type, e.layer_passes_total) for e in history if e.layer_passes_total > 1}


def test_recurrent_where_it_should_be():
    x = torch.randn(5, 2, 4)
    assert passes(Cell(nn.LSTMCell(4, 8)), x) == {("lstmcell", 5)}
    assert passes(Cell(nn.GRUCell(4, 8)), x) == {("grucell", 5)}
    lstm = passes(HandwrittenLSTM(), x)
    assert lstm == {(kind, 5) for kind in ("cat", "linear", "chunk", "sigmoid", "tanh", "mul", "add")}
    loop = passes(WhileLoop(), torch.ones(1, 4))
    assert {("linear", 5), ("relu", 5), ("mul", 5), ("add", 5)} <= loop
    assert {kind for kind, _ in loop} >= {"abs", "sum", "gt"}
    assert passes(Growing(), torch.ones(1, 4)) == {("linear", 3), ("relu", 3), ("cat", 3)}
    assert passes(TwoAddresses(), torch.ones(1, 4)) == {("linear", 2), ("relu", 2)}
    assert passes(Siamese(), torch.ones(1, 4), torch.ones(1, 4)) == {("linear", 2), ("relu", 2), ("tanh", 2)}
    assert passes(SharedHead(), torch.ones(1, 3, 8, 8)) == {("conv2d", 3), ("relu", 3), ("flatten", 3)}
    feedback = passes(Feedback(), torch.ones(1, 3, 8, 8))
    assert feedback == {("conv2d", 3), ("relu", 2), ("add", 2)}  # the last relu is beside no repeated layer


def test_constants_are_equal_if_their_type_and_value_are(tmp_path):
    def with_nan(x):
        for _ in range(3):
            x = torch.nan_to_num(x.masked_fill(x > 0, float("nan")), nan=float("nan"))
        return x

    history = lens.trace(with_nan, torch.ones(2, 2))
    assert [entry.layer_passes_total for entry in history][1:-1] == [3] * 9
    assert list(grouping_violations(history)) == []
    loaded = lens.load(history.save(tmp_path / "t.lens"))
    assert RecurrencePass().run(loaded.graph, None).facets == (history.graph[Recurrence],)

    def alike_for_python(x):
        return ((x * 1) * 1.0 * True + 0.0 + -0.0)[[0, 1]][[False, True]]

    history = lens.trace(alike_for_python, torch.ones(2, 2))
    assert not history.model_is_recurrent
    assert list(grouping_violations(history)) == []


def test_the_first_step_of_a_handwritten_lstm_is_a_pass_too():
    history = lens.trace(HandwrittenLSTM(), torch.randn(3, 2, 4))
    assert [e.pass_num for e in history if e.layer_type == "cat"] == [1, 2, 3]
    assert history["mul_1"].passes[0].layer_label == history["mul_1:3"].layer_label


def test_conditions_of_a_while_loop_without_parameters():
    class Halving(nn.Module):
        def forward(self, x):
            while x.sum() > 5:
                x = x * 0.5
            return x

    assert names(Halving(), torch.full((4,), 4.0)) == [
        "input_1:1", "sum_1_1:1", "gt_1_2:1", "mul_1_3:1", "sum_1_1:2", "gt_1_2:2", "mul_1_3:2",
        "sum_1_1:3", "gt_1_2:3", "output_1:1",
    ]  # fmt: skip


def test_albert_is_recurrent_and_its_blocks_have_one_pass_per_layer():
    from transformers import AlbertConfig, AlbertModel

    config = AlbertConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, embedding_size=16
    )
    history = lens.trace(AlbertModel(config).eval(), torch.randint(0, 9, (1, 6)), save="none")
    assert history.model_max_recurrent_loops == 4
    assert sum(e.layer_passes_total == 4 and e.layer_type == "linear" for e in history) == 4 * 6


FEEDFORWARD = {
    "resnet18": lambda tv: (tv.resnet18(), torch.randn(1, 3, 32, 32)),
    "densenet121": lambda tv: (tv.densenet121(), torch.randn(1, 3, 32, 32)),
    "vit_b_16": lambda tv: (tv.vit_b_16(image_size=32), torch.randn(1, 3, 32, 32)),
    "swin_t": lambda tv: (tv.swin_t(), torch.randn(1, 3, 32, 32)),
    "convnext": lambda tv: (tv.convnext_tiny(), torch.randn(1, 3, 32, 32)),
}


@pytest.mark.parametrize("name", FEEDFORWARD)
def test_vision_models_are_feedforward(name):
    model, x = FEEDFORWARD[name](import_torchvision().models)
    history = lens.trace(model.eval(), x, save="none")
    assert not history.model_is_recurrent
    assert "feedforward" in str(history)


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5_encoder", "mixer"])
def test_language_models_and_mixer_are_feedforward(name):
    import timm
    from transformers import AutoConfig, AutoModel, T5Config, T5EncoderModel

    ids = torch.randint(0, 9, (1, 6))
    models = {
        "gpt2": lambda: (AutoModel.from_config(AutoConfig.for_model("gpt2", n_layer=3, n_embd=32, n_head=2)), ids),
        "bert": lambda: (
            AutoModel.from_config(
                AutoConfig.for_model(
                    "bert", num_hidden_layers=3, hidden_size=32, num_attention_heads=2, intermediate_size=64
                )
            ),
            ids,
        ),
        "t5_encoder": lambda: (
            T5EncoderModel(T5Config(num_layers=3, d_model=32, num_heads=2, d_kv=16, d_ff=64)),
            ids,
        ),
        "mixer": lambda: (timm.create_model("mixer_s32_224"), torch.randn(1, 3, 224, 224)),
    }
    model, x = models[name]()
    history = lens.trace(model.eval(), x, save="none")
    recurrent = {(e.layer_label, e.layer_passes_total) for e in history if e.layer_passes_total > 1}
    assert recurrent == set()


# Against the reference


@st.composite
def programs(draw):
    """Straight code, loops (nested, with several parameters, with conditions and early exits), shared heads."""
    program = []

    def newest():
        return len(program)

    def emit(shape, source, side):
        """One round of a body: ops given as (function, which operands, parameter)."""
        start = newest()
        for function, reads, parameter in shape:
            operands = []
            for kind, distance in reads:
                if kind == "chain":
                    operands.append(newest() if newest() > start else source)
                elif kind == "side":
                    operands.append(side)
                elif kind == "source":
                    operands.append(source)
                else:
                    operands.append(max(start, newest() - distance) if newest() > start else source)
            program.append((function, tuple(operands), parameter))

    def body():
        reads = st.lists(
            st.tuples(st.sampled_from(["chain", "chain", "chain", "side", "source", "back"]), st.integers(0, 2)),
            min_size=1,
            max_size=2,
        )
        parameter = st.sampled_from([None, None, None, None, 0, 1, 2])
        return draw(st.lists(st.tuples(st.sampled_from("abc"), reads, parameter), min_size=1, max_size=4))

    shared = body()
    for _ in range(draw(st.integers(1, 3))):
        shape = draw(st.sampled_from([shared, body()]))
        rounds = draw(st.integers(1, 3))
        side = draw(st.integers(0, newest()))
        inner = draw(st.integers(1, 2))
        for _ in range(rounds):
            for _ in range(inner):
                emit(shape, newest(), side)
            if draw(st.booleans()) and inner == 2:
                program.append((draw(st.sampled_from("ad")), (newest(),), None))
        if draw(st.booleans()):  # an early exit: a part of one more round
            emit(shape[: draw(st.integers(0, len(shape)))], newest(), side)
    return program[:26]


@given(programs())
@settings(max_examples=400, deadline=None)
def test_the_pass_agrees_with_the_reference(program):
    graph = graph_of(program)
    assert folded(graph) == reference_layers(graph)


def complaints(graph, facet):
    """What the validator says of a recurrence."""
    graph = graph.with_facets(facet)
    return list(grouping_violations(SimpleNamespace(graph=graph.with_facets(*LabelsPass().run(graph, None).facets))))


@given(programs())
@example([(name, (place,), None) for place, name in enumerate("aaaadaad")])  # "aad" twice wins, two "a" are left
@example([(name, (place,), None) for place, name in enumerate("baaabaaabaccb")])  # broken off before "cc"
@settings(max_examples=100, deadline=None)
def test_the_validator_knows_right_folding_from_wrong(program):
    """It has no complaint; and none of the passes that rules one and two made can be taken out of its layer unseen."""
    graph = graph_of(program)
    facet = RecurrencePass().run(graph, None).facets[0]
    assert complaints(graph, facet) == []
    for ops in facet.passes():
        if len(ops) > 1 and facet.rule[ops[0]] != "loop":
            apart, rule = list(facet.layer), list(facet.rule)
            apart[ops[-1]], rule[ops[-1]] = len(apart), ""
            if len(ops) == 2:
                rule[ops[0]] = ""
            order = {}
            layer = tuple(order.setdefault(number, len(order)) for number in apart)
            assert complaints(graph, evolve(facet, layer=layer, rule=tuple(rule)))


def test_two_writes_of_which_others_see_one_are_two_layers_to_the_validator_too():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.look = nn.Identity()

        def forward(self, x):
            y = x * 2
            part = y[:2]
            for step in range(2):
                y[0] = 3.0
                if step == 0:
                    self.look(part)
            return y

    history = lens.trace(Writes(), torch.rand(4))
    assert [op.function.name for op in history.graph.ops][-2:] == ["__setitem__", "__setitem__"]
    assert list(grouping_violations(history)) == []


@pytest.mark.parametrize(
    ("text", "layer"),
    [
        ("aaaa", (0, 1, 2, 2)),  # the first rounds left out
        ("aaaaaa", (0, 1, 2, 3, 2, 3)),  # folded two by two, which is shorter
    ],
)
def test_the_validator_sees_a_loop_that_lost_its_first_rounds(text, layer):
    graph = graph_of([(name, (place,), None) for place, name in enumerate(text)])
    rule = tuple(["loop" if layer.count(number) > 1 else "" for number in layer])
    assert "does again what op 0 did" in complaints(graph, Recurrence(layer, rule))[0]


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("aaaa", [0, 0, 0, 0]),
        ("abab", [0, 1, 0, 1]),
        ("abcdabc", [0, 1, 2, 3, 4, 5, 6]),
        ("abbaabba", [0, 1, 2, 3, 0, 1, 2, 3]),
        ("aabaab", [0, 1, 2, 0, 1, 2]),
        ("ababa", [0, 1, 0, 1, 0]),
    ],
)
def test_chains(text, layers):
    graph = graph_of([(letter, (i,), None) for i, letter in enumerate(text)])
    assert folded(graph) == layers == reference_layers(graph)


def test_branches_side_by_side_are_no_loop():
    program = [(letter, (0,) if letter == "a" else (i,), None) for i, letter in enumerate("abababab")]
    graph = graph_of(program)
    assert folded(graph) == list(range(8)) == reference_layers(graph)


def test_wide_fans_are_folded_in_linear_time():
    """20,000 equal branches would take minutes if every period were tried on all of them."""
    pairs = graph_of([("ab"[i % 2], (0,) if i % 2 == 0 else (i,), None) for i in range(20_000)])
    assert folded(pairs) == list(range(20_000))
    alike = graph_of([("a", (0,), None) for _ in range(20_000)])
    assert folded(alike) == list(range(20_000))


def test_what_reads_all_passes_of_a_layer_is_looked_at_once():
    """For 40,000 passes, of which each looked for its place in the stack of them, it took 15 s."""
    steps = [("cell", (i,), 1) for i in range(40_000)]
    assert folded(graph_of([*steps, ("stack", range(1, 40_001), None)])) == [0] * 40_000 + [40_000]
    few = [("cell", (i,), 1) for i in range(12)]
    stacks = [("stack", (*range(start, 13), *range(1, 13)), None) for start in (1, 3, 3, 2)]
    graph = graph_of([*few, *stacks, ("relu", (13,), None), ("relu", (14,), None)])
    assert folded(graph) == reference_layers(graph)


def test_sums_of_different_things_are_no_loop():
    graph = graph_of([("a", (0,), 0), ("b", (0,), 1), ("b", (0,), 2), ("add", (1, 2), None), ("add", (4, 3), None)])
    assert folded(graph) == [0, 1, 2, 3, 4]


def test_labels_share_the_number_of_the_first_pass():
    graph = graph_of([("a", (0,), None), ("b", (1,), None), ("a", (2,), None), ("b", (3,), None), ("c", (4,), None)])
    facet = PassManager((RecurrencePass(), LabelsPass())).run(graph).graph[Labels]
    assert [label[0] for label in facet.results] == ["a_1_1", "b_1_2", "a_1_1", "b_1_2", "c_1_3"]
    assert facet.pass_num == (1, 1, 2, 2, 1)
    assert facet.pass_total == (2, 2, 2, 2, 1)


def test_a_wrongly_numbered_facet_is_found():
    graph = graph_of([("a", (0,), None), ("b", (1,), None)])
    facet = RecurrencePass().run(graph, None).facets[0]
    assert list(evolve(facet, layer=(1, 0)).verify(graph))
    assert isinstance(facet, Recurrence)


def test_rounds_that_read_one_result_side_by_side_are_no_loop():
    graph = run(
        """\
graph {
  leaf %0: f32[2] = input "x"
  inputs @x
  %1: f32[2] = torch.a(@x)
  %2: f32[2] = torch.b(%1)
  %3: f32[2] = torch.b(%1)
  %4: f32[2] = torch.c(%2, %3)
  outputs %4
}
""",
        RecurrencePass(),
    )
    assert graph[Recurrence].layer == (0, 1, 2, 3)


def test_rounds_that_read_one_leaf_are_a_loop():
    def function(x):
        y = x
        for _ in range(3):
            y = y + x
        return y.sin()

    assert lens.trace(Body(function), torch.ones(2))["add_1"].layer_passes_total == 3
