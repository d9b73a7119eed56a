"""FLOPs, summaries and how entries and tables print."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser

import pytest
import torch
import torch.nn.functional as F
from models import Body, LSTMLoop, TwoBranches
from table_cases import Nested, Recurrent
from torch import nn
from torch.utils import flop_counter

import lens
from lens.model_specs import import_torchvision


@pytest.fixture(scope="module")
def resnet():
    model = import_torchvision().models.resnet18().eval()
    return lens.trace(model, torch.randn(2, 3, 32, 32), save="none")


def flops(function, *args):
    history = lens.trace(Body(function), args)
    return [entry.flops for entry in history if entry.operation_num]


X, Q = torch.randn(3, 4, 5), torch.randn(2, 3, 6, 8)
IMAGE = torch.randn(2, 3, 9, 9)
#: A function of some tensors, and its FLOPs by hand.
BY_HAND = {
    "linear": (lambda x: F.linear(x, torch.ones(7, 5)), (X,), 2 * 3 * 4 * 5 * 7),
    "matmul": (lambda x: x @ x.transpose(1, 2), (X,), 2 * 3 * 4 * 5 * 4),
    "einsum": (lambda x: torch.einsum("bij,bkj->bik", x, x), (X,), 2 * 3 * 4 * 5 * 4),
    "bmm_out": (lambda x: torch.bmm(x, x.mT, out=torch.empty(3, 4, 4)), (X,), 2 * 3 * 4 * 5 * 4),
    "conv2d": (lambda x: F.conv2d(x, torch.ones(4, 3, 3, 3), stride=2), (IMAGE,), 2 * 2 * 4 * 16 * 27),
    "grouped": (lambda x: F.conv2d(x, torch.ones(6, 1, 3, 3), groups=3), (IMAGE,), 2 * 2 * 6 * 49 * 9),
    "conv_transpose2d": (lambda x: F.conv_transpose2d(x, torch.ones(3, 4, 3, 3)), (IMAGE,), 2 * 2 * 81 * 3 * 4 * 9),
    "attention": (lambda q: F.scaled_dot_product_attention(q, q, q), (Q,), 2 * (2 * 2 * 3 * 6 * 6 * 8)),
    "relu": (torch.relu, (X,), 0),
    "masked": (lambda x: x[x > 0], (X,), 0),
}


@pytest.mark.parametrize("name", list(BY_HAND))
def test_flops_by_hand(name):
    function, args, expected = BY_HAND[name]
    assert sum(filter(None, flops(function, *args))) == expected


def test_flops_of_an_lstm():
    model = nn.LSTM(4, 8)
    history = lens.trace(model, torch.randn(5, 2, 4))
    lstm = history["lstm_1"]
    assert lstm.flops == 5 * 2 * 2 * (4 + 8) * 4 * 8
    assert lstm.macs == lstm.flops // 2
    assert history.total_flops == lstm.flops  # once, though it has three results


def test_flops_of_a_packed_lstm_follow_from_its_lengths():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(4, 8)

        def forward(self, x):
            packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 1]))
            return self.lstm(packed)[0].data

    model, x = Packed(), torch.randn(3, 2, 4)
    history = lens.trace(model, x)
    assert history["lstm_1"].flops == history.total_flops == 4 * 2 * (4 + 8) * 4 * 8
    assert lens.trace(model, x, save="none")["lstm_1"].flops is None


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "swin_t", "densenet121"])
def test_flops_of_models_are_those_of_torch(name):
    model = getattr(import_torchvision().models, name)().eval()
    x = torch.randn(1, 3, 64, 64)
    with flop_counter.FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    history = lens.trace(model, x, save="none")
    assert history.total_flops == counter.get_total_flops() > 1e6
    by_module = {row["module"].strip(): row["flops"] for row in history.summary("module")}
    counted = counter.get_flop_counts()
    for address, kinds in counted.items():
        own = address.partition(".")[2]
        if own:
            assert (by_module[own] or 0) == sum(kinds.values()), address


def test_flops_are_the_same_under_autocast():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    with torch.autocast("cpu"):
        history = lens.trace(model, torch.ones(2, 3, 3, 3))
    assert history.total_flops == 2 * 2 * 27 * 4 + 2 * 2 * 4 * 2


def test_a_model_that_calls_itself_counts_its_operations_once():
    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x, deeper=True):
            return self(self.fc(x), False) if deeper else self.fc(x)

    history = lens.trace(Again(), torch.ones(2, 4))
    rows = {row["module"].strip(): row for row in history.summary("module")}
    assert rows["(model)"]["flops"] == rows["fc"]["flops"] == history.total_flops
    assert rows["(model)"]["ops"] == 2


def test_a_formula_of_the_users_counts():
    library = torch.library.Library("lens_profile_test", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x * 2, "CPU")
    library.impl("twice", torch.empty_like, "Meta")
    operator = torch.ops.lens_profile_test.twice
    flop_counter.register_flop_formula(operator)(lambda shape, **_: shape[0] * 11)
    try:
        assert flops(operator, X) == [33]
    finally:
        del flop_counter.flop_registry[operator]


def test_counting_leaves_the_world_as_it_was():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 4), nn.BatchNorm1d(4))
    history = lens.trace(model, torch.randn(3, 4))
    weights = [t.clone() for t in (*model.parameters(), *model.buffers())]
    values = [e.tensor_contents.clone() for e in history]
    state = torch.get_rng_state()
    assert history.total_flops == 2 * 3 * 4 * 4
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(weights, (*model.parameters(), *model.buffers()), strict=True))
    assert all(torch.equal(a, e.tensor_contents) for a, e in zip(values, history, strict=True))


def test_unknown_flops_are_none():
    assert flops(lambda x: torch.nested.nested_tensor([x[0]]) * 2, X)[-1] is None


def test_pictures_by_flops_use_them():
    history = lens.trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), torch.randn(1, 4))
    nodes = {node.label: node.cost.flops for node in history.drawing(color_by="flops").nodes}
    assert nodes["linear_1_1"] == history["linear_1"].flops == 64


def test_summary_by_layer_time_memory_and_parameters(resnet):
    table = resnet.summary("time")
    rows = list(table)
    assert [row["time"] for row in rows] == sorted((row["time"] for row in rows), reverse=True)
    layers = {row["layer"]: row for row in rows}
    assert set(layers) == {e.layer_label for e in resnet if e.operation_num}
    for label, row in layers.items():
        entry = resnet[label]
        assert row["time"] == entry.func_time_elapsed
        assert row["memory"] == entry.tensor_fsize
        assert (row["params"] or 0) == entry.num_params_total
        assert (row["flops"] or 0) == entry.flops
    assert sum(row["time"] for row in rows) == pytest.approx(resnet.elapsed_time_function_calls)
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    largest = max((e for e in resnet if e.operation_num), key=lambda e: e.tensor_fsize)
    assert next(iter(resnet.summary("memory")))["memory"] == largest.tensor_fsize
    assert next(iter(resnet.summary("parameters")))["params"] == 512 * 512 * 9
    assert next(iter(resnet.summary("flops")))["flops"] == max(e.flops or 0 for e in resnet)


def test_summary_by_type(resnet):
    rows = {row["type"]: row for row in resnet.summary("type")}
    convs = resnet.layers("conv2d")
    assert rows["conv2d"]["calls"] == len(convs) == 20
    assert rows["conv2d"]["time"] == pytest.approx(sum(e.func_time_elapsed for e in convs))
    assert rows["conv2d"]["flops"] == sum(e.flops for e in convs)
    assert rows["conv2d"]["memory"] == sum(e.tensor_fsize for e in convs)
    assert sum(row["params"] or 0 for row in rows.values()) == resnet.total_params


def test_summary_by_module(resnet):
    model = import_torchvision().models.resnet18()
    rows = {row["module"].strip(): row for row in resnet.summary("module")}
    assert list(rows) == ["(model)", *(name for name, _ in model.named_modules() if name)]
    for name, module in model.named_modules():
        row = rows[name or "(model)"]
        assert row["class"] == type(module).__name__
        assert (row["params"] or 0) == sum(p.numel() for p in module.parameters())
        inside = resnet.layers(module=name) if name else [e for e in resnet if e.operation_num]
        inside = [e for e in inside if e.operation_num]
        assert row["ops"] == len(inside)
        assert row["time"] == pytest.approx(sum(e.func_time_elapsed for e in inside))
    top = [row["module"] for row in resnet.summary("module", depth=1)]
    assert top == ["(model)", *(f"  {name}" for name, _ in model.named_children())]
    called_twice = {row["module"].strip(): row for row in lens.trace(Recurrent(), torch.ones(1, 4)).summary("module")}
    assert (called_twice["fc"]["calls"], called_twice["fc"]["ops"], called_twice["fc"]["params"]) == (3, 3, 20)


def test_a_shared_parameter_counts_once_per_layer_and_module():
    model = nn.Module()
    model.a, model.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    model.b.weight = model.a.weight
    model.forward = lambda x: model.b(model.a(x))
    history = lens.trace(model, torch.ones(1, 4))
    rows = {row["module"].strip(): row["params"] for row in history.summary("module")}
    assert rows == {"(model)": 16, "a": 16, "b": 16}
    assert [row["params"] for row in history.summary("parameters")] == [16]


def test_tables_print(resnet):
    text = str(resnet.summary("time", limit=5))
    assert len(text.splitlines()) == 1 + 1 + 1 + 5 + 1
    assert text.endswith("more ...")
    assert "ResNet: by time" in text
    middle = str(resnet.summary(limit=6))
    assert "more ..." in middle.splitlines()[-4]
    assert str(resnet) == str(resnet.summary())
    assert max(map(len, text.splitlines())) < 120

    class Cells(HTMLParser):
        tags: list[str] = []

        def handle_starttag(self, tag, attrs):
            self.tags.append(tag)

    parser = Cells()
    parser.feed(resnet.summary("type", limit=3)._repr_html_())
    assert parser.tags.count("th") == 7
    assert parser.tags.count("td") == 3 * 7 + 1
    assert len(resnet.summary("module", depth=1)._repr_html_()) < 6000
    html = lens.trace(TwoBranches(), torch.ones(2, 4))._repr_html_()
    assert html.startswith("<pre>TwoBranches: 5 operations")
    assert "<svg" in html


def test_tables_print_with_rich(resnet):
    rich = pytest.importorskip("rich.console", reason="rich is optional: it is only asked how it prints a table")
    console = rich.Console(width=120)
    with console.capture() as captured:
        console.print(resnet.summary("type"))
    assert "conv2d" in captured.get()
    assert "┃" in captured.get()


def test_names_are_shown_as_they_are_and_order_a_terminal_nothing():
    rich = pytest.importorskip("rich.console", reason="rich is optional: it is only asked how it prints a table")
    model = nn.Sequential()
    for name in ("enc[bold]", "enc[/bold]", "a\nb", "\x1b[2J"):
        model.add_module(name, nn.Linear(2, 2))
    history = lens.trace(model, torch.ones(1, 2))
    console = rich.Console(width=200)
    with console.capture() as captured:
        console.print(history.summary("module"))
    for text in (captured.get(), str(history), history.summary()._repr_html_()):
        assert "\x1b[2J" not in text
        for name in ("enc[bold]", "enc[/bold]", "a\\nb", "\\x1b[2J"):
            assert name in text
    assert "\x1b" not in str(history["linear_4"])


def test_an_entry_prints():
    history = lens.trace(Nested(), torch.randn(1, 2, 5, 5))
    text = str(history["b.act"])
    for word in ("relu_2_4", "1x2x5x5 float32", "200 B, saved", "in place", "b > b.act", "conv2d_2_3", "add_1_5"):
        assert word in text
    assert "table_cases.py" not in str(history["input_1"])
    assert "0 from the input" in str(history["input_1"])
    assert "not saved" in str(lens.trace(Nested(), torch.randn(1, 2, 5, 5), save="none")["relu_1"])
    weights = str(history["conv2d_1"])
    assert "a.conv.weight 2x2x3x3, a.conv.bias 2" in weights
    assert "FLOPs" in weights
    loop = lens.trace(LSTMLoop(), torch.randn(30, 2, 4))
    assert "history['" in str(loop["cell"])
    assert "10 more" in str(loop["cell"])
    assert "pass 2 of 30" in str(loop["cell:2"])
    noise = lens.trace(TwoBranches(), torch.ones(2, 4))
    assert "scale" in str(noise["buffer_1"])


def test_a_saved_trace_prints_without_torch(tmp_path):
    path = lens.trace(TwoBranches(), torch.ones(2, 4)).save(tmp_path / "t.lens")
    script = f"""
import sys
sys.modules["torch"] = None
import lens
history = lens.load({path!r})
print(history, history.summary("type"), history.summary("module"), history["linear_1"], history.layers("relu"))
assert history["linear_1"].flops is None and history.total_flops == 0
assert history.diff(lens.load({path!r})).added == ()
try:
    history.drawing(color_by="flops")
except lens.LensError as error:
    assert "torch" in str(error)
else:
    raise AssertionError
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "linear_1_1" in done.stdout
