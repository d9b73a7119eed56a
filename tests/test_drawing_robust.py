"""Drawings of odd and of large models: everything draws, and no picture is too large to lay out."""

import dataclasses
import enum
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ET
from collections import namedtuple
from pathlib import Path

import attrs
import pytest
import torch
from counting import calls_per_op
from models import Body, LSTMLoop
from torch import nn

import lens
from lens.cli import main
from lens.errors import RenderError
from lens.render.crowding import crowd
from lens.render.graphviz_text import to_dot


def svg_of(history, tmp_path, **options):
    """The picture, parsed; XML that is not well formed raises."""
    return ET.fromstring(Path(history.draw(tmp_path / "a.svg", **options)).read_text(encoding="utf-8"))


def texts(svg):
    return [text.strip("\xa0") for node in svg.iter() if node.tag.endswith("}text") for text in node.itertext()]


NAMES = ['a:b<c>&"d"', "\\l", "line\nend", "Ünïcode漢字", " ", "\x07", "%s{}|", "<b>", "--", "'"]


@pytest.mark.parametrize("view", ["unrolled", "rolled"])
def test_strange_names_draw(view, tmp_path):
    blocks = nn.ModuleDict({name: nn.Sequential(nn.ReLU(), nn.Tanh()) for name in NAMES})
    model = Body(lambda x: [x := block(x) for block in blocks.values()][-1])
    model.blocks = blocks
    history = lens.trace(model, torch.ones(2))
    shown = "\n".join(texts(svg_of(history, tmp_path, view=view)))
    everywhere = ('@blocks.a:b<c>&"d"', "@blocks.\\l")
    for name in everywhere if view == "rolled" else (*everywhere, "@blocks.Ünïcode漢字", "@blocks.<b>"):
        assert name in shown
    for depth in (1, 2):
        svg_of(history, tmp_path, view=view, depth=depth)


@pytest.mark.parametrize("name", [*NAMES, ""])
def test_strange_names_of_outputs_draw(name, tmp_path):
    history = lens.trace(Body(lambda x: {name: torch.relu(x), "other": x}), torch.ones(2))
    svg_of(history, tmp_path, legend=True)
    assert len(history.drawing().nodes) == 4


class Head(enum.Enum):
    BOX = 1


@attrs.frozen
class Key:
    name: str


@dataclasses.dataclass(frozen=True)
class TwoParts:
    part: str
    number: int


Point = namedtuple("Point", "x y")


def test_outputs_under_keys_of_any_kind_are_named_as_python_shows_them():
    keys = ["p", 3, ("p", 3), Head.BOX, torch.float16, Point(1, Head.BOX), Key("a"), dataclasses.make_dataclass, None]
    more = [TwoParts("a", 2), frozenset()]
    history = lens.trace(Body(lambda x: {key: [x + i] for i, key in enumerate([*keys, *more])}), torch.ones(2))
    names = [node.module.removesuffix("[0]") for node in history.drawing().nodes if node.role == "output"]
    assert names[:5] == ["p", "3", "('p', 3)", "Head.BOX", "torch.float16"]
    assert names[5:9] == ["Point(1, Head.BOX)", "<Key>", "make_dataclass", "None"]
    assert names[9:] == ["TwoParts(part='a', number=2)", "<frozenset>"]
    nested = lens.trace(Body(lambda x: [{Head.BOX: x + 1, "a": x}]), torch.ones(2)).drawing()
    assert [node.module for node in nested.nodes if node.role == "output"] == ["[0][Head.BOX]", "[0]['a']"]


def test_graphviz_finds_no_escapes_in_names_and_tooltips(tmp_path):
    blocks = nn.ModuleDict({name: nn.Sequential(nn.ReLU(), nn.Tanh()) for name in ("\\G", "a&lt;b")})
    code = compile(r"def forward(x): return {r'p\Nq': x.sin()}", r"C:\Nets\Graph.py", "exec")
    exec(code, space := {})
    model = Body(lambda x: space["forward"](blocks["a&lt;b"](blocks["\\G"](x))))
    model.blocks = blocks
    svg = svg_of(lens.trace(model, torch.ones(2)), tmp_path)
    assert {r"p\Nq", r"@blocks.\G", "@blocks.a&lt;b"} <= set(texts(svg))
    tips = "\n".join(value for part in svg.iter() for name, value in part.attrib.items() if name.endswith("}title"))
    for tip in (r"C:\Nets\Graph.py:1", r"@blocks.\G (Sequential)", "@blocks.a&lt;b (Sequential)"):
        assert tip in tips


def test_drawings_that_arrows_crowd_are_collapsed(tmp_path):
    def forward(x):
        with_all = [x]
        for block in blocks:
            with_all.append(block(torch.stack(with_all).sum(0)))
        return with_all[-1]

    blocks = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(60))
    inner = Body(forward)
    inner.blocks = blocks
    history = lens.trace(nn.Sequential(inner, nn.Tanh()), torch.ones(2))
    with pytest.warns(UserWarning, match="arrows would crowd it"):
        history.draw(tmp_path / "a.svg")
    assert [node.name for node in history.drawing().nodes] == ["input_1", "@0", "tanh_1_241", "output_1"]
    assert len(history.drawing(max_nodes=None).nodes) == 243
    assert len(history.drawing(depth=2).nodes) > 60


def test_an_arrow_passes_by_the_ranks_between_its_ends():
    assert crowd("abcd", ["ab", "bc", "cd"]) == (0, 4)
    assert crowd("abcd", ["ab", "bc", "cd", "ad", "ad", "bd", "da"]) == (5, 4)
    assert crowd("", []).mean == 0


def test_loops_whose_steps_share_an_input_are_laid_out_in_seconds():
    """Curves around all nodes would take 14 s for 100 steps, and 450 s for 250."""
    short, long = [lens.trace(LSTMLoop(), torch.ones(n, 2, 4), save="none") for n in (40, 100)]
    drawing = long.drawing()
    (note,) = drawing.notes
    assert note.startswith("Collapsed: many results of one call, the middle (303 layers in 61 nodes); arrows would")
    assert [node.name for node in drawing.nodes[:3]] == ["input_1", "zeros_1_1", "unbind_1_2 ... unbind_100_101"]
    assert not short.drawing().notes
    curved, straight = [to_dot(history.drawing(max_nodes=None)) for history in (short, long)]
    assert "splines" not in curved
    assert "splines=line" in straight


def test_odd_tensors_draw(tmp_path):
    def forward(x):
        return x.sum(), x[:0], x.new_zeros(0, 3), (x > 0).any()

    history = lens.trace(Body(forward), torch.ones(2, 3))
    assert {"scalar (4 B)", "0x3 (0 B)"} <= set(texts(svg_of(history, tmp_path)))


@pytest.mark.parametrize("view", ["unrolled", "rolled"])
def test_models_without_modules_inputs_or_outputs_draw(view, tmp_path):
    class Nothing(nn.Module):
        def forward(self):
            return None

    class NoInputs(nn.Module):
        def forward(self):
            return torch.ones(2) + 1

    class NoOutputs(nn.Module):
        def forward(self, x):
            self.kept = torch.relu(x)

    for model, args in (
        (Nothing(), ()),
        (NoInputs(), ()),
        (NoOutputs(), torch.ones(2)),
        (Body(torch.relu), torch.ones(1)),
    ):
        history = lens.trace(model, args)
        assert type(model).__name__ in texts(svg_of(history, tmp_path, view=view, color_by="memory", legend=True))


def test_fan_out_of_1000(tmp_path):
    history = lens.trace(Body(lambda x: torch.stack([x + i for i in range(1000)])), torch.ones(2))
    with pytest.warns(UserWarning, match="the middle"):
        svg = svg_of(history, tmp_path)
    assert "943 more layers" in texts(svg)
    everything = history.drawing(max_nodes=None)
    assert (len(everything.nodes), len(everything.edges)) == (1003, 2001)
    assert any("add_1000_1000" in text for text in texts(svg_of(history, tmp_path, max_nodes=None)))


def test_a_module_called_100_times(tmp_path):
    block = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model = nn.Sequential(*[block] * 100)
    history = lens.trace(model, torch.ones(2))
    assert len(history.drawing().clusters) == 100
    rolled = history.drawing(view="rolled")
    assert [cluster.lines for cluster in rolled.clusters] == [("@0 (x100)", "(Sequential)")]
    assert "(x100)" in "".join(texts(svg_of(history, tmp_path, view="rolled")))
    svg_of(history, tmp_path)


def test_depth_and_named_modules():
    block = lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    history = lens.trace(nn.Sequential(nn.Sequential(block(), block()), block()), torch.ones(2))
    names = lambda **options: [node.name for node in history.drawing(**options).nodes]
    assert names(depth=1) == ["input_1", "@0", "@1", "output_1"]
    assert names(depth=2) == ["input_1", "@0.0", "@0.1", "linear_3_5", "relu_3_6", "output_1"]
    assert names(collapse=["0.1", "1"]) == ["input_1", "linear_1_1", "relu_1_2", "@0.1", "@1", "output_1"]
    assert names(collapse="0.*") == names(depth=2)
    whole = next(node for node in history.drawing(depth=1).nodes if node.name == "@0")
    assert whole.lines == ("@0", "(Sequential)", "2 (8 B)", "params: 12", "4 layers")
    assert [(e.source, e.target) for e in history.drawing(depth=1).edges] == [
        ("leaf0", "module_1"),
        ("module_1", "module_8"),
        ("module_8", "output0"),
    ]
    with pytest.raises(RenderError, match=r"0\.7"):
        names(collapse="0.7")


def test_a_collapsed_module_that_is_called_again_rolls():
    block = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    history = lens.trace(nn.Sequential(block, block, nn.Tanh()), torch.ones(2))
    drawing = history.drawing(depth=1, view="rolled")
    assert [node.name for node in drawing.nodes] == ["input_1", "@0 (x2)", "tanh_1_3", "output_1"]
    assert [edge.lines for edge in drawing.edges] == [("In 1",), ("In 2", "Out 1"), ("Out 2",), ()]


def test_of_a_rolled_layer_of_which_passes_are_elsewhere_the_count_says_so():
    inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    wrap = nn.Sequential(inner, nn.Tanh(), inner)
    model = Body(lambda x: wrap(inner(x)) * inner(x))
    model.inner, model.wrap = inner, wrap
    history = lens.trace(model, torch.ones(1, 2))
    names = lambda **options: [part.name for part in history.drawing(view="rolled", **options).nodes]
    assert names(depth=1)[1:3] == ["@inner (2 of 4)", "@wrap"]
    drawing = history.drawing(view="rolled", collapse="inner:2")
    assert [node.name for node in drawing.nodes][1:4] == ["linear_1_1 (3 of 4)", "relu_1_2 (3 of 4)", "@inner:2"]
    assert [cluster.lines[0] for cluster in drawing.clusters] == ["@inner (3 of 4)", "@wrap"]


@pytest.mark.parametrize("weight", [1.0, nn.Parameter(torch.ones(2))])
def test_rolled_all_calls_of_a_module_share_a_box_around_which_all_callers_are(weight):
    norm = Body(lambda x: (x - x.mean()) * weight)
    norm.weight = weight
    whole = nn.Sequential(nn.Sequential(nn.Sequential(nn.Tanh(), norm), nn.Sequential(nn.Sigmoid(), norm)), nn.ReLU())
    drawing = lens.trace(whole, torch.ones(2)).drawing(view="rolled")
    boxes = {cluster.address: cluster for cluster in drawing.clusters}
    assert {address: box.lines[0] for address, box in boxes.items() if "x" in box.suffix} == {"0.0.1": "@0.0.1 (x2)"}
    assert boxes["0.0.1"].parent == boxes["0"].id
    homes = {node.type: node.cluster for node in drawing.nodes}
    assert homes["mean"] == homes["sub"] == homes["mul"] == boxes["0.0.1"].id
    assert (homes["tanh"], homes["sigmoid"]) == (boxes["0.0"].id, boxes["0.1"].id)


def test_rolled_a_module_that_calls_itself_has_one_box():
    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x, more=2):
            x = self.linear(x).relu()
            return self(x, more - 1) + 1 if more else x

    drawing = lens.trace(nn.Sequential(Again()), torch.ones(1, 2)).drawing(view="rolled")
    assert [cluster.lines[0] for cluster in drawing.clusters] == ["@0 (x3)"]
    assert {node.cluster for node in drawing.nodes} == {None, drawing.clusters[0].id}


def test_many_arrows_for_places_in_one_call_are_one(tmp_path):
    history = lens.trace(Body(lambda x: torch.stack([*x.unbind(0)])), torch.ones(1200, 2))
    (_, arrow, _) = history.drawing().edges
    assert arrow.lines == ("arg 0[0] ... arg 0[1199]",)

    def loop(x):
        h, steps = x, []
        for _ in range(5):
            h = torch.tanh(h)
            steps.append(h)
        return torch.stack(steps[1:])

    rolled = lens.trace(Body(loop), torch.ones(2)).drawing(view="rolled")
    (arrow,) = [edge for edge in rolled.edges if edge.argument]
    assert arrow.lines == ("arg 0[0] ... arg 0[3]", "Out 2-5")


def test_arrows_to_what_stands_for_many_name_all_passes():
    shared, each = nn.Linear(2, 2), nn.ModuleList(nn.Linear(2, 2) for _ in range(40))
    model = Body(lambda x: [x := shared(x) + layer(x) for layer in each][-1])
    model.layers = nn.ModuleList([shared, *each])
    drawing = lens.trace(model, torch.ones(1, 2)).drawing(view="rolled", max_nodes=12)
    lines = {(edge.source == "middle", edge.target == "middle"): edge.lines for edge in drawing.edges}
    assert lines[False, True] == ("Out 3-34",)
    assert lines[True, False] == ("In 4-35",)


def test_a_shared_module_is_collapsed_by_each_of_its_addresses():
    block = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    history = lens.trace(nn.Sequential(nn.Sequential(block), block, nn.Tanh()), torch.ones(2))
    names = lambda address: [node.name for node in history.drawing(collapse=address).nodes]
    assert names("1") == names("0.0") == names("0.*") == ["input_1", "@0.0:1", "@0.0:2", "tanh_1_3", "output_1"]
    assert names("1:2") == ["input_1", "linear_1_1:1", "relu_1_2:1", "@0.0:2", "tanh_1_3", "output_1"]


def test_options_are_checked(tmp_path):
    history = lens.trace(Body(torch.relu), torch.ones(2))
    wrong = [
        {"view": "sideways"},
        {"depth": 0},
        {"depth": True},
        {"max_nodes": 2},
        {"theme": "pink"},
        {"theme": {"name": "pink"}},
        {"direction": ["up"]},
        {"direction": "in"},
        {"color_by": "age"},
        {"collapse": ["x"]},
        {"veiw": "rolled"},
        {"legend": "no"},
    ]
    for options in wrong:
        with pytest.raises(RenderError):
            history.draw(tmp_path / "a.dot", **options)
    ran = []
    with pytest.raises(lens.LensError, match="veiw"):
        lens.show_model_graph(Body(ran.append), torch.ones(2), tmp_path / "a.svg", veiw="rolled")
    assert not ran
    path = lens.show_model_graph(Body(torch.relu), torch.ones(2), tmp_path / "a.dot", view="rolled", theme="dark")
    assert "#1b1e24" in Path(path).read_text()


def test_the_command_line_draws(tmp_path, capsys):
    history = lens.trace(Body(lambda x: [x := torch.sin(x) + i for i in range(600)][-1]), torch.ones(2))
    trace = history.save(tmp_path / "t.lens")
    picture = str(tmp_path / "a.dot")
    assert main(["show", trace, "-o", picture, "--view", "rolled", "--theme", "print", "--color-by", "memory"]) == 0
    shown = capsys.readouterr()
    assert picture in shown.out
    assert "note:    Collapsed" in shown.err
    assert main(["show", trace, "-o", picture, "--max-nodes", "0", "--legend", "--no-buffers"]) == 0
    assert Path(picture).read_text().count("  op1199 [") == 1
    assert main(["show", trace, "-o", picture, "--depth", "0"]) == 2


def chain(blocks):
    model = nn.Module()
    model.blocks = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)) for _ in range(blocks))

    def forward(x):
        for block in model.blocks:
            x = x + block(x)
        return x

    model.forward = forward
    return model


@pytest.mark.parametrize(
    ("options", "nodes"), [({}, 61), ({"view": "rolled"}, 61), ({"max_nodes": None}, 4002)], ids=str
)
def test_the_text_of_4000_operations_costs_few_calls_for_each(options, nodes):
    with torch.no_grad():
        small, large = [lens.trace(chain(n), torch.ones(1, 2), save="none") for n in (250, 1000)]
    assert len(large.graph.ops) == 4000
    assert len(large.drawing(**options).nodes) == nodes
    few, many = calls_per_op(lambda history: to_dot(history.drawing(**options)), small, large)
    assert many < min(300, 1.1 * few)  # a second for 10,000 operations, where a call takes 0.3 us


def test_collapsing_stops_at_the_depth_that_fits():
    history = lens.trace(chain(300), torch.ones(1, 2), save="none")
    drawing = history.drawing()
    assert len(drawing.nodes) == 602
    assert drawing.notes == ("Collapsed: modules at depth 1 (1,202 layers in 602 nodes); max_nodes=None shows all",)
    assert len(history.drawing(max_nodes=100).nodes) == 61
    assert not history.drawing(max_nodes=2000).notes


@pytest.mark.parametrize("view", ["unrolled", "rolled"])
def test_a_long_loop_is_drawn_with_few_calls_per_operation(view, tmp_path):
    with torch.no_grad():
        small, large = [lens.trace(LSTMLoop(), torch.ones(n, 2, 4), save="none") for n in (250, 1000)]
    with pytest.warns(UserWarning, match="Collapsed"):
        few, many = calls_per_op(lambda history: history.draw(tmp_path / "a.svg", view=view), small, large)
    assert many < min(900, 1.1 * few)
    assert len(large.drawing(view=view).nodes) == {"unrolled": 61, "rolled": 6}[view]


def test_notebooks_show_small_pictures_and_summaries_of_large_models():
    small = lens.trace(Body(torch.relu), torch.ones(2))
    assert small._repr_svg_().rstrip().endswith("</svg>")
    large = lens.trace(chain(50), torch.ones(1, 2))
    assert large._repr_svg_() is None
    assert large._repr_html_() == large.summary()._repr_html_()
    assert "<table>" in large._repr_html_()

    class Printer:
        text = str

    class Recording:
        def __init__(self):
            self.said = ""

        def text(self, text):
            self.said += text

    printer = Recording()
    large._repr_pretty_(printer, False)
    assert printer.said == str(large)


def test_no_layout_program_is_needed_at_import_or_in_notebooks(tmp_path, monkeypatch):
    history = lens.trace(Body(torch.relu), torch.ones(2))
    monkeypatch.setattr("lens.render.images.shutil.which", lambda name: None)
    monkeypatch.setattr("lens.render.images.sys.executable", str(tmp_path / "python"))
    assert history._repr_svg_() is None
    for kind in ("svg", "pdf"):
        with pytest.raises(RenderError, match=f"no program here can draw {kind}"):
            history.draw(tmp_path / f"a.{kind}")
    assert Path(history.draw(tmp_path / "a.dot")).exists()


def test_drawing_needs_neither_torch_nor_pydot(tmp_path):
    script = """
import sys
sys.modules["torch"] = sys.modules["pydot"] = None
import lens.render.picture, lens.render.drawing_text
from lens.errors import RenderError
from lens.render.drawing import Drawing
from lens.render.pydot_objects import to_pydot
try:
    to_pydot(Drawing())
except RenderError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pydot is not installed" in done.stdout


def test_no_warning_where_nothing_was_collapsed(tmp_path):
    history = lens.trace(Body(torch.relu), torch.ones(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history.draw(tmp_path / "a.svg", view="rolled")
