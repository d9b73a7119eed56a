"""The visual code of the paper's Figures 2 and 3, on golden drawings and down to the text that is laid out.

``python tests/test_drawing.py`` writes the golden texts anew; look at the pictures before committing them.
"""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from drawn_models import DRAWN, Buffers, Nested
from models import Body, Conditional, TwoBranches
from torch import nn

import lens
from lens.errors import RenderError
from lens.render import drafting
from lens.render.colouring import _step
from lens.render.drafting import make_drawing
from lens.render.drawing import Drawing, Edge, Node, pass_ranges
from lens.render.drawing_text import print_drawing
from lens.render.graphviz_text import Lowering, html, quoted, to_dot, tooltip
from lens.render.images import lay_out
from lens.render.rolling import roll
from lens.render.themes import DARK, LIGHT, PRINT, THEMES
from lens.render.titles import Rim, placed_text

GOLDEN = Path(__file__).parent / "drawings"


def drawn(name):
    make, *shapes = DRAWN[name]
    torch.manual_seed(0)
    try:
        return lens.trace(make(), tuple(torch.ones(shape) for shape in shapes))
    except ValueError as error:
        return error.lens_history


def text_of(name):
    history = drawn(name)
    return "\n".join(print_drawing(history.drawing(view=view)) for view in ("unrolled", "rolled"))


def lowered(history, **options):
    """The attributes of every node, edge and cluster, by name."""
    drawing = history.drawing(**options)
    lowering = Lowering(drawing, LIGHT, "up")
    names = {node.id: node.name for node in drawing.nodes}
    nodes = {node.name: lowering.node(node) for node in drawing.nodes}
    edges = {(names[e.source], names[e.target]): lowering.edge(e) for e in drawing.edges}
    return nodes, edges, {c.address: lowering.cluster(c) for c in drawing.clusters}, lowering.defaults()


@pytest.mark.parametrize("name", DRAWN)
def test_golden_drawings(name):
    assert text_of(name) == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


def test_figure_2a_colours_shapes_dashes_and_title():
    nodes, _, _, defaults = lowered(drawn("2a"))
    assert nodes["input_1"]["fillcolor"] == '"#98fb98"'
    assert nodes["output_1"]["fillcolor"] == '"#ff9999"'
    assert nodes["relu_1_2"]["shape"] == "box"
    assert defaults["node"]["shape"] == "ellipse"
    assert "shape" not in nodes["sin_1_1"]
    assert nodes["rand_1_3"]["style"] == '"filled,dashed"'
    assert "style" not in nodes["sin_1_1"]
    title = defaults["graph"]["label"]
    assert title.index("<b>Functions</b>") < title.index("5 tensors total") < title.index("0 parameters (0 B)")
    assert (defaults["graph"]["labelloc"], defaults["graph"]["labeljust"]) == ("t", "l")


def test_the_title_counts_a_parameter_that_the_model_returns():
    model = nn.Linear(4, 4)
    both = nn.Module()
    both.model, both.forward = model, lambda x: (model(x), model.weight)
    history = lens.trace(both, torch.ones(2, 4))
    assert (history.num_tensors_total, history.drawing().title[1]) == (3, "3 tensors total (128 B)")


def test_figure_2b_the_text_of_a_layer():
    nodes, *_ = lowered(drawn("2b"))
    linear = nodes["linear_1_1"]
    assert linear["label"] == (
        '<<table border="0" cellborder="0" cellspacing="0" cellpadding="0"><tr><td><b>linear_1_1</b></td></tr>'
        "<tr><td>2x4 (32 B)<br/>params: 4x4, 4<br/>@fc</td></tr></table>>"
    )
    assert linear["fillcolor"] == '"#d0d0d0"'


def test_figure_2c_boxes_of_modules():
    *_, boxes, _ = lowered(drawn("2c"))
    assert "<b>@outer.0</b>" in boxes["outer.0"]["label"]
    assert "(Sequential)" in boxes["outer.0"]["label"]
    dot = to_dot(drawn("2c").drawing())
    outer, inner = dot.index("@outer<"), dot.index("@outer.0<")
    assert outer < inner < dot.index("op0 [") < dot.index("}", inner)


def test_figure_2d_argument_positions():
    _, edges, _, _ = lowered(drawn("2d"))
    label = lambda source, target: "".join(re.findall("&#160;(.*?)&#160;", edges[source, target].get("label", "")))
    assert label("input_1", "div_1_1") == "arg 0"
    assert label("input_2", "div_1_1") == "other"
    assert label("div_1_1", "cat_1_2") == "arg 0[0]"
    assert label("sin_1_3", "add_1_4") == "arg 1"
    assert label("cat_1_2", "add_2_5") == ""
    drawing = lens.trace(Body(lambda x: torch.cat([x, x, x, x.sin(), x, x])), torch.ones(2)).drawing()
    assert [edge.argument for edge in drawing.edges] == ["", "arg 0[0], arg 0[1], and 3 more", "arg 0[3]", ""]


def test_figure_2e_buffers_and_running_statistics():
    history = drawn("2e")
    nodes, *_ = lowered(history)
    assert nodes["buffer_3"]["fillcolor"] == '"#eeeeee"'
    assert [n for n in nodes if n.startswith("buffer")] == ["buffer_3"]
    assert len([n for n in lowered(history, statistics=True)[0] if n.startswith("buffer")]) == 3
    assert not [n for n in lowered(history, buffers=False, statistics=True)[0] if n.startswith("buffer")]
    aten = lens.trace(Buffers(), torch.ones(2, 3), backend="torch_dispatch")
    assert [node.module for node in aten.drawing().nodes if node.role == "buffer"] == ["@scale"]


def test_figure_2f_the_condition_and_where_its_branch_begins():
    nodes, edges, _, _ = lowered(drawn("2f"))
    assert nodes["gt_1_3"]["fillcolor"] == '"#fff27a"'
    assert "<b>IF</b>" in edges["input_1", "sub_1_1"]["label"]
    assert [key for key, edge in edges.items() if "IF" in edge.get("label", "")] == [("input_1", "sub_1_1")]
    assert "if: False" in nodes["gt_1_3"]["label"]
    assert "if: True" in lowered(lens.trace(Conditional(), torch.full((2, 3), 20.0)))[0]["gt_1_3"]["label"]


def test_a_branch_that_begins_with_a_new_tensor_says_if_itself():
    class Coin(nn.Module):
        def forward(self, x):
            if torch.rand(()) > 2:
                return x * 2
            return x + 1

    drawing = lens.trace(Coin(), torch.ones(2)).drawing()
    assert {node.label: node.head for node in drawing.nodes if node.head} == {"rand_1_1": "IF"}
    assert "<b>IF</b>" in Lowering(drawing, LIGHT, "up").node(drawing.nodes[1])["label"]


def test_figure_3a_passes():
    nodes, edges, _, _ = lowered(drawn("3a"), view="rolled")
    assert "<b>linear_1_2 (x2)</b>" in nodes["linear_1_2 (x2)"]["label"]
    assert "In 1" in edges["input_1", "cos_1_1 (x2)"]["label"]
    assert "In 2" in edges["sin_1_4", "cos_1_1 (x2)"]["label"]
    assert "Out 1" in edges["add_1_3 (x2)", "sin_1_4"]["label"]
    assert "label" not in edges["cos_1_1 (x2)", "linear_1_2 (x2)"]
    assert "<b>linear_1_2:2</b>" in lowered(drawn("3a"))[0]["linear_1_2:2"]["label"]


def test_what_failed_and_gaps_are_marked():
    nodes, edges, _, defaults = lowered(drawn("fault"))
    assert "ValueError: inside" in nodes["ValueError raised"]["label"]
    assert nodes["ValueError raised"]["color"] == quoted(LIGHT.marks["fault"])
    assert edges["relu_1_2", "ValueError raised"]["style"] == "dotted"
    assert "Partial" in defaults["graph"]["label"]
    gaps = lowered(drawn("escapes"))[0]
    assert gaps["mean_1_1"]["color"] == quoted(LIGHT.marks["gap"])
    assert "read by item()" in gaps["mean_1_1"]["label"]
    assert gaps["external_1"]["style"] == '"filled,dashed"'


def test_a_failing_operation_stands_in_its_module():
    class Inner(nn.Module):
        def forward(self, x):
            return torch.cat([torch.relu(x) + 1, x.t()])

    model = nn.Sequential(nn.ReLU(), Inner())
    with pytest.raises(RuntimeError) as caught:
        lens.trace(model, torch.ones(2, 3))
    drawing = caught.value.lens_history.drawing()
    failed = drawing.nodes[-1]
    assert failed.label == "cat failed"
    assert drawing.chains[failed.cluster][-1].address == "1"


def test_svg_ids_and_tooltips():
    history = lens.trace(TwoBranches(), torch.ones(2, 4))
    svg = history._repr_svg_()
    for op in history.graph.ops:
        assert f'<g id="op{op.id}" class="node">' in svg
    assert "torch.nn.functional.linear" in svg
    assert "f32[2,4]" in svg
    line = history["relu_1"].location
    assert f"{line.file}:{line.line}" in svg


def test_metrics_colour_by_share_with_a_legend():
    model = nn.Sequential(nn.Linear(4, 400), nn.ReLU(), nn.Linear(400, 4))
    history = lens.trace(model, torch.ones(2, 4))
    for metric, value in (("parameters", "2.0 k"), ("flops", "6.4 k"), ("memory", "3.1 KB"), ("time", "")):
        drawing = history.drawing(color_by=metric)
        assert len(drawing.legend.entries) == len(LIGHT.scale)
        assert value in drawing.legend.entries[-1][1]
        assert LIGHT.scale[-1] in {node.fill for node in drawing.nodes}
    drawing = history.drawing(color_by="parameters", theme="dark")
    assert [node.fill for node in drawing.nodes][1:4] == [DARK.scale[-1], "", DARK.scale[4]]
    assert DARK.scale[-1] in to_dot(drawing, DARK)
    assert next(cell for cell, _ in history.drawing(legend=True).legend.entries) == LIGHT.fills["input"]


@pytest.mark.parametrize("sizes", [(3,), (1, 2, 3, 4), (20, 40, 160, 189, 200), (1, 2, 7)])
def test_the_legend_of_a_metric_says_the_colour_of_every_amount(sizes):
    weights = nn.ParameterList(torch.ones(size) for size in sizes)
    model = Body(lambda x: [x := x + weight.sum() for weight in weights][-1])
    model.weights = weights
    drawing = lens.trace(model, torch.ones(2)).drawing(color_by="parameters")
    texts = [text for _, text in drawing.legend.entries]
    assert texts == list(dict.fromkeys(texts))
    bounds = {colour: int(text.removeprefix("up to ")) for colour, text in drawing.legend.entries}
    shown = {sum(weight.numel for weight in node.weights): bounds[node.fill] for node in drawing.nodes if node.weights}
    assert shown == {size: min(bound for bound in bounds.values() if bound >= size) for size in sizes}


def test_themes_are_data(tmp_path):
    history = lens.trace(TwoBranches(), torch.ones(2, 4))
    for theme in THEMES.values():
        text = Path(history.draw(tmp_path / "a.dot", theme=theme.name)).read_text()
        assert all(colour in text for colour in (theme.background, theme.text, theme.line, theme.fills["input"]))
        assert theme.fills.keys() == LIGHT.fills.keys()
    assert len({theme.background + theme.fills["input"] for theme in (LIGHT, DARK, PRINT)}) == 3


def test_the_users_style():
    history = lens.trace(TwoBranches(), torch.ones(2, 4))
    style = lambda node: {"fillcolor": "gold", "xlabel": 'a"b'} if node.type == "relu" else None
    styled = {node.label: dict(node.style) for node in history.drawing(style=style).nodes if node.style}
    assert styled == {"relu_1_2": {"fillcolor": "gold", "xlabel": 'a"b'}}
    assert 'fillcolor="gold"' in to_dot(history.drawing(style=style))


@pytest.mark.parametrize(("direction", "rankdir"), [("up", "BT"), ("down", "TB"), ("right", "LR"), ("left", "RL")])
def test_directions(direction, rankdir, tmp_path):
    history = lens.trace(Nested(), torch.ones(2, 3))
    assert f"rankdir={rankdir}" in to_dot(history.drawing(), LIGHT, direction)
    assert "<svg" in Path(history.draw(tmp_path / "a.svg", direction=direction)).read_text()


def test_pydot_says_the_same():
    pydot = pytest.importorskip("pydot", reason="pydot is optional")
    history = lens.trace(Nested(), torch.ones(2, 3))
    drawing = history.drawing()
    graph = history.to_pydot()
    (again,) = pydot.graph_from_dot_data(graph.to_string())
    for made in (graph, again):
        assert len(made.get_edges()) == len(drawing.edges)
        (outer,) = made.get_subgraphs()
        (inner,) = outer.get_subgraphs()
        assert [node.get_name() for node in inner.get_nodes() if node.get_name() != "graph"] == ["op0", "op1"]
        assert Lowering(drawing, LIGHT, "up").node(drawing.nodes[1])["label"] == inner.get_node("op0")[0].get_label()


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        inner = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
        self.tower = nn.Sequential(inner, nn.Linear(3, 3))

    def forward(self, left, right):
        left, right = self.tower(left), self.tower(right)
        return left - right, left * right


def crossed_titles(dot, placed=True):
    """The texts in titles of boxes through which an arrow runs, as graphviz draws them."""
    layout = json.loads(lay_out(dot, "json", placed=placed))
    curves = []
    for edge in layout["edges"]:
        for part in (p for p in edge["_draw_"] if p["op"] in "bB"):
            for at in range(0, len(part["points"]) - 3, 3):
                p = torch.tensor(part["points"][at : at + 4])
                t = torch.linspace(0, 1, 400)[:, None]
                curves.append(
                    (1 - t) ** 3 * p[0] + 3 * t * (1 - t) ** 2 * p[1] + 3 * t**2 * (1 - t) * p[2] + t**3 * p[3]
                )
    points = torch.cat(curves)
    found = []
    for box in (b for b in layout["objects"] if b["name"].startswith("cluster")):
        for word in (part for part in box["_ldraw_"] if part["op"] == "T"):
            (x, y), width = word["pt"], word["width"]
            x -= {"l": 0, "c": width / 2, "r": width}[word["align"]]
            hit = (points[:, 0] > x) & (points[:, 0] < x + width) & (points[:, 1] > y - 2) & (points[:, 1] < y + 8)
            found += [word["text"]] if hit.any() else []
    return found


@pytest.mark.parametrize("direction", ["up", "down", "left"])
@pytest.mark.parametrize("view", ["unrolled", "rolled"])
def test_titles_of_modules_stand_where_no_arrow_crosses_them(view, direction):
    drawing = lens.trace(Siamese(), (torch.ones(2, 3), torch.ones(2, 3))).drawing(view=view)
    assert direction == "left" or crossed_titles(to_dot(drawing, LIGHT, direction), placed=False)
    assert not crossed_titles(placed_text(drawing, LIGHT, direction))


def test_a_title_goes_to_the_left_to_the_right_or_between_two_arrows():
    assert not Rim(100, 30, ((50, 51),)).crossed
    rims = [((50, 51),), ((20, 21),), ((10, 11), (60, 61)), ((10, 11), (40, 41), (90, 91)), ((10, 90),)]
    assert [Rim(100, 30, rim).free_place() for rim in rims] == [0, 70, 20.5, 50.5, None]


def boxes_of(layout):
    """Of a layout (graphviz's json): the boxes of nodes and of the texts on arrows."""
    for node in layout["objects"]:
        if "pos" in node:
            (x, y), w, h = map(float, node["pos"].split(",")), float(node["width"]) * 36, float(node["height"]) * 36
            yield x - w, y - h, x + w, y + h
    for edge in layout["edges"]:
        words = [part for part in edge.get("_ldraw_", ()) if part["op"] == "T" and part["text"].strip()]
        for x, y, w, align in ((*word["pt"], word["width"], word["align"]) for word in words):
            x -= {"l": 0, "c": w / 2, "r": w}[align]
            yield x, y, x + w, y + 6


@pytest.mark.parametrize("name", DRAWN)
def test_nothing_overlaps_and_nothing_is_cut(name):
    for view in ("unrolled", "rolled"):
        drawing = drawn(name).drawing(view=view)
        layout = json.loads(lay_out(placed_text(drawing, LIGHT, "up"), "json", placed=True))
        width, height = (float(n) for n in layout["bb"].split(",")[2:])
        boxes = list(boxes_of(layout))
        assert len(boxes) >= len(drawing.nodes) + len([edge for edge in drawing.edges if edge.lines])
        for i, (x0, y0, x1, y1) in enumerate(boxes):
            assert -1 <= x0 < x1 <= width + 1
            assert -1 <= y0 < y1 <= height + 1
            assert not [b for b in boxes[i + 1 :] if b[0] < x1 and x0 < b[2] and b[1] < y1 and y0 < b[3]]


def test_pass_ranges():
    assert [pass_ranges(p) for p in [(1,), (3, 1, 2), (1, 3, 4, 9)]] == ["1", "1-3", "1, 3-4, 9"]
    assert pass_ranges(tuple(range(1, 99, 2))) == "1, 3, 5, ..., 95, 97"


def test_outputs_are_named_in_linear_time(monkeypatch):
    """Each by the path to it, which is looked up and not sought among all for each."""

    class Outputs(nn.Module):
        def __init__(self, count):
            super().__init__()
            self.count = count

        def forward(self, x):
            return {"parts": [x + i for i in range(self.count)]}

    calls = 0
    paths = drafting._paths

    def counted(template, prefix):
        nonlocal calls
        calls += 1
        return paths(template, prefix)

    histories = [lens.trace(Outputs(count), (torch.ones(2),)) for count in (20, 80)]
    assert [node.module for node in make_drawing(histories[0].graph).nodes if node.role == "output"][-1] == "parts[19]"
    monkeypatch.setattr(drafting, "_paths", counted)
    steps = []
    for history in histories:
        calls = 0
        make_drawing(history.graph)
        steps.append(calls)
    assert steps[1] <= 4 * steps[0]


def test_rolling_keeps_a_drawing_without_passes():
    drawing = lens.trace(TwoBranches(), torch.ones(2, 4)).drawing()
    assert print_drawing(roll(drawing)) == print_drawing(drawing)


def test_text_of_labels_is_escaped():
    assert html('a<b>&"c"\nd') == "a&lt;b&gt;&amp;&quot;c&quot;<br/>d"
    assert html("") == html("  ") == "&#160;"
    assert html("\x00") == "\ufffd"
    assert html("a\\Nb") == "a\\\\Nb"
    assert tooltip("a\\&lt;") == '"a\\\\\\\\&amp;lt;"'
    assert quoted('a"b\\l\n') == '"a\\"b\\\\l\\n"'
    assert "n [" in to_dot(Drawing(nodes=(Node("n", ""),), edges=(Edge("n", "n"),)))


def test_the_statistics_switch_has_no_effect_on_labels():
    history = lens.trace(Buffers(), torch.ones(2, 3))
    names = {node.name for node in history.drawing().nodes}
    assert names < {node.name for node in history.drawing(statistics=True).nodes}


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name in sys.argv[1:] or DRAWN:
        (GOLDEN / f"{name}.txt").write_text(text_of(name), encoding="utf-8")


@pytest.mark.parametrize(
    "options", [{"style": 5}, {"style": lambda node: 5}, {"collapse": 5}, {"collapse": [0]}, {"collapse": None}]
)
def test_options_of_the_wrong_type_are_named(options):
    (name,) = options
    with pytest.raises(RenderError, match=name):
        lens.trace(nn.ReLU(), torch.ones(2)).drawing(**options)


def test_a_style_may_give_numbers():
    (node, *_) = lens.trace(nn.ReLU(), torch.ones(2)).drawing(style=lambda node: {"penwidth": 3}).nodes
    assert dict(node.style) == {"penwidth": "3"}


def test_every_amount_has_a_step_however_it_is_rounded():
    for most in range(1, 3000):
        assert _step(most * 1e-9, most * 1e-9, 5) == 4
        assert [_step(amount, 5, 5) for amount in range(1, 6)] == [0, 1, 2, 3, 4]


def test_what_a_style_raises_is_told_as_that():
    history = lens.trace(torch.nn.ReLU(), torch.ones(2))
    for draw in (history.to_pydot, history.to_mermaid, history.drawing):
        with pytest.raises(RenderError, match=r"style raised KeyError(.|\n)*mend the function"):
            draw(style=lambda node: {}["missing"])
