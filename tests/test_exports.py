"""Exports: what each writes is read back by the library that it is for."""

import io
import json
import re

import networkx
import pandas
import pyarrow
import pyarrow.parquet
import pydot
import pytest
import torch
from counting import calls_per_op
from drawn_models import DRAWN
from models import Body, Containers, InPlaceThroughView, TwoBranches
from real_models import REAL_MODELS
from torch import nn

import lens
from lens import registry
from lens.cli import main
from lens.errors import LensError, PluginError, RenderError
from lens.exports import make_renderer, renderer_classes
from lens.ir.codec import load_facet, structure
from lens.ir.facets import Labels, Recurrence
from lens.ir.graph import Graph
from lens.render.renderer import Renderer
from lens.render.tables import DTYPES, TABLES

NAMES = ("resnet18", "vit_b_16", "swin_t", "gpt2", "bert", "t5", "lstm_cell_loop")


def small(name):
    model, *shapes = DRAWN[name]
    return model(), tuple(torch.randn(*shape) for shape in shapes), {}


MODELS = {
    **{name: REAL_MODELS[name] for name in NAMES},
    "if": lambda: small("2f"),
    "while": lambda: small("while"),
    "noise": lambda: (TwoBranches(), (torch.ones(2, 4),), {}),
    "views": lambda: (InPlaceThroughView(), (torch.ones(2, 4),), {}),
}


@pytest.fixture(scope="module")
def histories():
    made = {}

    def get(name):
        if name not in made:
            torch.manual_seed(0)
            model, args, kwargs = MODELS[name]()
            made[name] = lens.trace(model.eval(), args, kwargs, save="none")
        return made[name]

    return get


@pytest.fixture(params=MODELS)
def history(request, histories):
    return histories(request.param)


# Tables


def test_pandas_tables_are_typed_and_whole(history):
    graph = history.graph
    rows = {
        "layers": len(history),
        "operations": len(graph.ops),
        "values": len(graph.values),
        "scopes": len(graph.scopes),
        "parameters": len(graph.meta.parameters),
        "edges": sum(len(op.reads) for op in graph.ops) + len(graph.outputs.values),
    }
    assert rows.keys() == TABLES.keys()
    for table, count in rows.items():
        frame = history.to_pandas(table)
        kinds = TABLES[table].columns
        assert list(frame.columns) == list(kinds)
        assert len(frame) == count
        assert {name: str(frame[name].dtype) for name in frame} == {name: DTYPES[kind] for name, kind in kinds.items()}
    operations, edges = history.to_pandas("operations"), history.to_pandas("edges")
    for op, row in zip(graph.ops, operations.itertuples(), strict=True):
        assert row.operands == list(op.operands)
        assert row.label == history.index.by_op[op.id][0].name
        read = edges[edges.target_op == op.id]
        assert list(read.value)[: len(op.operands)] == list(op.operands)
    used = history.to_pandas("parameters").set_index("address").users
    for leaf in graph.leaves:
        if leaf.kind == "parameter":
            assert used[leaf.addresses[0]] == list(graph.users(leaf.value))


@pytest.mark.parametrize("table", TABLES)
def test_parquet_and_csv_come_back(table, histories, tmp_path):
    arrow = {"text": pyarrow.string(), "int": pyarrow.int64(), "float": pyarrow.float64(), "flag": pyarrow.bool_()}
    arrow |= {"ints": pyarrow.list_(pyarrow.int64()), "texts": pyarrow.list_(pyarrow.string())}
    for name in MODELS:
        history = histories(name)
        frame = history.to_pandas(table)
        read = pyarrow.parquet.read_table(history.export(tmp_path / "t.parquet", table=table))
        assert read.schema.types == [arrow[kind] for kind in TABLES[table].columns.values()]
        lists = {n for n, kind in TABLES[table].columns.items() if kind in ("ints", "texts")}
        plain = read.to_pydict()
        again = pandas.read_csv(history.export(tmp_path / "t.csv", table=table), keep_default_na=False)
        assert list(plain) == list(again) == list(frame)
        for column in frame:
            cells = [list(c) if column in lists else None if pandas.isna(c) else c for c in frame[column]]
            assert plain[column] == cells
            texts = [json.dumps(c) if column in lists else "" if c is None else str(c) for c in cells]
            assert column == "seconds" or "time" in column or list(map(str, again[column])) == texts


def test_all_tables_go_into_a_folder(histories, tmp_path):
    for to in ("csv", "parquet"):
        folder = histories("while").export(tmp_path / to, to, table="all")
        assert sorted(p.name for p in (tmp_path / to).iterdir()) == sorted(f"{t}.{to}" for t in TABLES)
        assert folder == str(tmp_path / to)


# Graphs


def test_networkx_has_the_entries_and_what_they_read(history):
    made = history.to_networkx()
    assert isinstance(made, networkx.MultiDiGraph)
    assert networkx.is_directed_acyclic_graph(made)
    assert list(made.nodes) == [entry._row.name for entry in history]
    for entry in history:
        facts = made.nodes[entry._row.name]
        assert tuple(facts["shape"]) == entry.tensor_shape
        assert facts.get("module") == entry.containing_module_origin or "module" not in facts or entry.is_input_layer
        assert list(dict.fromkeys(made.predecessors(entry._row.name))) == entry.parent_layers
        assert set(made.successors(entry._row.name)) == set(entry.child_layers)
    assert None not in [value for _, facts in made.nodes(data=True) for value in facts.values()]


def test_graphml_comes_back(history, tmp_path):
    made, read = history.to_networkx(), networkx.read_graphml(history.export(tmp_path / "g.graphml"))
    assert set(read.nodes) == set(made.nodes)
    assert sorted(e[:2] for e in read.edges) == sorted(e[:2] for e in made.edges)
    for name, facts in read.nodes(data=True):
        for key in ("type", "nbytes", "pass_num", "passes", "function", "seconds"):
            assert facts.get(key) == made.nodes[name].get(key)
    assert read.graph["name"] == history.model_name


@pytest.mark.parametrize("name", ["lstm_cell_loop", "if", "while", "noise", "views"])  # pydot reads slowly
def test_dot_is_read_by_pydot(name, histories, tmp_path):
    history = histories(name)
    (read,) = pydot.graph_from_dot_file(history.export(tmp_path / "g.dot", max_nodes=None))
    drawn = history.drawing(max_nodes=None)
    names, stack = set(), [read]
    while stack:
        graph = stack.pop()
        names |= {node.get_name() for node in graph.get_nodes()} - {"graph", "node", "edge"}
        stack += graph.get_subgraphs()
    assert names == {node.id for node in drawn.nodes}
    assert len(read.get_edges()) == len(drawn.edges)


def test_pydot_objects_have_the_edges_of_the_drawing(history):
    drawn = history.drawing(max_nodes=None)
    assert len(history.to_pydot(max_nodes=None).get_edges()) == len(drawn.edges)


def explorer_problems(graph):
    """What contradicts Model Explorer's description of its format."""
    nodes = {node["id"]: node for node in graph["nodes"]}
    if len(nodes) != len(graph["nodes"]):
        yield "ids are not unique"
    for node in graph["nodes"]:
        outputs = {item["id"] for item in node["outputsMetadata"]}
        if len(outputs) != len(node["outputsMetadata"]):
            yield f"{node['id']}: outputs twice"
        for edge in node["incomingEdges"]:
            if edge["sourceNodeId"] not in nodes:
                yield f"{node['id']} reads {edge}"
            elif edge["sourceNodeOutputId"] not in {
                item["id"] for item in nodes[edge["sourceNodeId"]]["outputsMetadata"]
            }:
                yield f"{node['id']} reads an output that is none: {edge}"
        for item in [*node["attrs"], *(a for m in node["outputsMetadata"] for a in m["attrs"])]:
            value = item["value"]
            if not isinstance(value, str) and not (value["type"] == "node_ids" and set(value["nodeIds"]) <= set(nodes)):
                yield f"{node['id']}: {item}"
    groups = {""} | {"/".join(n["namespace"].split("/")[: i + 1]) for n in graph["nodes"] for i in range(9)}
    if not groups - {""} <= set(graph["groupNodeAttributes"]):
        yield f"namespaces without attributes: {groups - set(graph['groupNodeAttributes'])}"


def test_model_explorer_json_is_sound(history, tmp_path):
    collection = json.loads(open(history.export(tmp_path / "g.json", "model-explorer")).read())
    assert list(collection) == ["label", "graphs"]
    (graph,) = collection["graphs"]
    assert list(explorer_problems(graph)) == []
    made = history.graph
    shown = [leaf for leaf in made.leaves if leaf.kind != "parameter"]
    assert len(graph["nodes"]) == len(shown) + len(made.ops) + len(made.outputs.values)
    deepest = max(len(made.scope_chain(op.scope)) - 1 for op in made.ops)
    depths = [node["namespace"].count("/") + 1 if node["namespace"] else 0 for node in graph["nodes"]]
    assert max(depths) == deepest
    passes = [a["value"] for node in graph["nodes"] for a in node["attrs"] if a["key"] == "pass"]
    assert bool(passes) == history.model_is_recurrent


def test_model_explorer_opens_traces_itself(histories, tmp_path):
    """The adapter, in Model Explorer's own loader, and what it does with a JSON file that is given to it."""
    manager = pytest.importorskip(
        "model_explorer.extension_manager",
        reason="ai-edge-model-explorer is installed by `make test`, without its 128 MB of readers for other formats",
        exc_type=ImportError,
    )
    from model_explorer import config, graph_builder

    loader = manager.ExtensionManager(["lens.render.model_explorer"])
    loader.load_extensions()
    assert "lens" in [known["id"] for known in loader.get_extensions_metadata() if known["fileExts"] == ["lens"]]
    for name in MODELS:
        history = histories(name)
        path = history.save(tmp_path / "t.lens")
        command = {"extensionId": "lens", "cmdId": "convert", "modelPath": path, "settings": {}}
        made = loader.run_cmd({**command, "deleteAfterConversion": False})
        written = json.loads(open(history.export(tmp_path / "g.json", "model-explorer")).read())
        known = graph_builder.Graph.__dataclass_fields__.keys()
        assert {k: v for k, v in made["graphs"][0].items() if v is not None} == written["graphs"][0]
        assert written["graphs"][0].keys() <= known
        for node in written["graphs"][0]["nodes"]:
            assert graph_builder.GraphNode(**node).id == node["id"]
            assert all(graph_builder.IncomingEdge(**edge) for edge in node["incomingEdges"])
    assert config().add_model_from_path(str(tmp_path / "t.lens")).model_sources[0]["url"].endswith("t.lens")


def test_json_is_the_graph_of_the_file(history, tmp_path):
    text = open(history.export(tmp_path / "g.json", "json")).read()
    document = json.loads(text)
    read = structure(document["graph"], Graph, "json")
    assert read.with_facets(*(load_facet(*facet) for facet in document["facets"])) == history.graph


# Mermaid

_NODE = re.compile(r'\s*(\w+)(?:\(\["([^"]*)"\]\)|\[\["([^"]*)"\]\]|\["([^"]*)"\])(?::::(\w+))?')
_EDGE = re.compile(r'\s*(\w+) (?:-->|==>|-\.->)(?:\|"[^"]*"\|)? (\w+)')
_OTHER = re.compile(r'flowchart (BT|TB|LR|RL)|\s*subgraph \w+\["[^"]*"\]|\s*end|\s*(classDef|style) \w+ [\w#:,\- ]+')


def test_json_has_no_numbers_that_json_has_not(tmp_path):
    def refuse(name):
        raise ValueError(name)

    history = lens.trace(Body(lambda x: x.masked_fill(x > 0, float("-inf")) * float("nan")), torch.ones(2))
    document = json.loads(open(history.export(tmp_path / "g.json", "json")).read(), parse_constant=refuse)
    *_, fill, times = document["graph"]["ops"]
    assert (fill["args"][2], times["args"][1]) == ({"float": "-inf"}, {"float": "nan"})


def test_mermaid_has_the_nodes_and_edges_of_the_drawing(history):
    text, drawing = history.to_mermaid(max_nodes=None, limits=False), history.drawing(max_nodes=None)
    lines = text.splitlines()
    nodes = [m[1] for line in lines if (m := _NODE.fullmatch(line))]
    edges = [m.groups() for line in lines if (m := _EDGE.fullmatch(line))]
    assert sorted(nodes) == sorted(node.id for node in drawing.nodes)
    assert edges == [(edge.source, edge.target) for edge in drawing.edges]
    others = [line for line in lines if not _NODE.fullmatch(line) and not _EDGE.fullmatch(line)]
    assert [line for line in others if not _OTHER.fullmatch(line)] == []
    assert sum("subgraph" in line for line in others) == others.count("end") + sum(
        line.strip() == "end" and line != "end" for line in others
    )


def test_mermaid_says_what_the_picture_says(histories):
    history = histories("while")
    gold = {"fillcolor": "gold", "color": "#ff0000", "penwidth": 3, "fontcolor": "blue", "fontsize": 9}
    text = history.to_mermaid(style=lambda node: gold if node.role == "condition" else None)
    drawing = history.drawing(legend=True)
    (first, *_) = [node.id for node in drawing.nodes if node.role == "condition"]
    assert f"  style {first} fill:gold,stroke:#ff0000,stroke-width:3px,color:blue,font-size:9px\n" in text
    text = history.to_mermaid(legend=True)
    assert '  subgraph legend["colours"]\n    legend0["input"]\n' in text
    assert f"  style legend0 fill:{drawing.legend.entries[0][0]}," in text
    with pytest.warns(UserWarning, match="Collapsed") as caught:
        text = histories("resnet18").to_mermaid(max_nodes=10)
    assert '  notes["Collapsed: modules at depth' in text
    assert caught[0].filename == __file__
    assert all(_NODE.fullmatch(line) or _EDGE.fullmatch(line) or _OTHER.fullmatch(line) for line in text.splitlines())


@pytest.mark.parametrize("style", [{"xlabel": "a"}, {"fillcolor": "red,stroke:blue"}, {"penwidth": "thick"}])
def test_mermaid_refuses_a_style_that_it_has_not(style, histories):
    with pytest.raises(RenderError, match=f"Mermaid has no {next(iter(style))}"):
        histories("if").to_mermaid(style=lambda node: style)


def test_mermaid_is_refused_above_its_limits_with_the_way_out(histories):
    with pytest.raises(RenderError, match=r"Mermaid takes") as caught:
        histories("swin_t").to_mermaid()
    assert "depth=1" in caught.value.hint
    assert len(histories("swin_t").to_mermaid(depth=1)) < 50_000


def test_strange_names_are_written_for_everyone(tmp_path):
    model = nn.ModuleDict({'a"b|<&>#`\x01\n;end': nn.Linear(2, 2), "x/y": nn.Sequential(nn.ReLU(), nn.Tanh())})
    model.forward = lambda x: model["x/y"](model['a"b|<&>#`\x01\n;end'](x))
    history = lens.trace(model, torch.ones(1, 2))
    networkx.read_graphml(history.export(tmp_path / "g.graphml"))
    lines = history.to_mermaid().splitlines()
    assert all(_NODE.fullmatch(line) or _EDGE.fullmatch(line) or _OTHER.fullmatch(line) for line in lines)
    (graph,) = json.loads(open(history.export(tmp_path / "g.json", "model-explorer")).read())["graphs"]
    assert list(explorer_problems(graph)) == []
    assert {node["namespace"].count("/") for node in graph["nodes"]} == {0, 1}  # of x/y and the modules inside
    assert pydot.graph_from_dot_file(history.export(tmp_path / "g.dot"))
    assert len(pandas.read_csv(history.export(tmp_path / "t.csv"))) == len(history.graph.ops)


def test_names_that_are_no_utf8_are_exported(tmp_path):
    code = compile("def forward(x):\n    return x.relu() + 1\n", "/home/nu\udcff/net.py", "exec")
    space = {}
    exec(code, space)
    model = nn.Module()
    model.add_module("a\udcffb", nn.Sequential(nn.BatchNorm1d(2), nn.ReLU()))
    model.forward = lambda x: space["forward"](model.get_submodule("a\udcffb")(x))
    history = lens.trace(model, torch.ones(3, 2))
    assert history["relu_2"].location.file == "/home/nu\udcff/net.py"
    for name, cls in renderer_classes().items():
        if not cls.needs_model:
            history.export(tmp_path / name, name)
    for table in TABLES:
        history.export(tmp_path / table, "parquet", table=table)
    assert "/home/nu\ufffd/net.py" in set(history.to_pandas("operations")["file"])
    assert "nu\udcff" in json.dumps(json.loads((tmp_path / "model-explorer").read_text()), ensure_ascii=False)


# The registry, and what all renderers have in common


def test_every_renderer_keeps_to_the_protocol(histories, tmp_path):
    for name, cls in renderer_classes().items():
        renderer = cls()
        assert isinstance(renderer, Renderer)
        assert renderer.name == name
        assert cls.__doc__
        assert renderer.suffix == "" or renderer.suffix.startswith(".")
        if not renderer.needs_model:
            assert renderer.render(histories("if")) == renderer.render(histories("if"))


def test_facets_that_a_renderer_needs_are_made(tmp_path):
    history = lens.trace(TwoBranches(), torch.ones(2, 4), passes="granularity")
    assert history.graph.get(Labels) is None
    assert "linear_1_1" in open(history.export(tmp_path / "t.csv")).read()
    full = history.with_facets(Labels)
    assert full.graph.get(Recurrence) is not None
    assert full.with_facets(Labels) is full
    assert history.graph.get(Labels) is None


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda h, p: h.export(p / "t.xyz"), RenderError, "none has this ending"),
        (lambda h, p: h.export(p / "t.json"), RenderError, "json or model-explorer"),
        (lambda h, p: h.export(p / "t", "nothing"), PluginError, "no renderer 'nothing'"),
        (lambda h, p: h.export(p / "t.csv", tabel="edges"), RenderError, "no option 'tabel'"),
        (lambda h, p: h.export(p / "t.csv", table="nodes"), RenderError, "no table 'nodes'"),
        (lambda h, p: h.export(p / "t.graphml", a=1), RenderError, "no option 'a'"),
        (lambda h, p: h.to_pandas("nodes"), RenderError, "no table 'nodes'"),
        (lambda h, p: h.to_mermaid(depth=0), RenderError, "depth cannot be 0"),
        (lambda h, p: h.export(__file__ + "/t.csv"), RenderError, "cannot be written"),
    ],
)
def test_bad_input(call, error, message, histories, tmp_path):
    with pytest.raises(error, match=message) as caught:
        call(histories("if"), tmp_path)
    assert isinstance(caught.value, LensError)
    assert caught.value.hint


# The command line


def test_lens_export(histories, tmp_path, capsys):
    trace = histories("while").save(tmp_path / "t.lens")
    assert main(["export", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(f"\n{name} (" in f"\n{listed}" for name in renderer_classes())
    assert main(["export", trace, "-o", str(tmp_path / "g.graphml")]) == 0
    assert "g.graphml" in capsys.readouterr().out
    assert main(["export", trace, "--to", "csv", "--option", "table=edges"]) == 0
    assert len(pandas.read_csv(io.StringIO(capsys.readouterr().out))) == len(histories("while").to_pandas("edges"))
    assert main(["export", trace, "--to", "mermaid", "--option", "depth=1", "--option", "view=rolled"]) == 0
    assert capsys.readouterr().out.startswith("flowchart BT\n")
    assert main(["export", trace, "-o", str(tmp_path / "g.dot"), "--option", "max_nodes=10"]) == 0
    assert capsys.readouterr().err.startswith("note:    Collapsed")
    model = tmp_path / "model.py"
    model.write_text("from torch import nn\ndef make():\n    return nn.Sequential(nn.Linear(4, 3), nn.ReLU())\n")
    assert main(["export", f"{model}:make", "--input", "2x4", "--to", "dot", "--seed", "1"]) == 0
    assert capsys.readouterr().out.startswith("digraph")


def test_options_are_read_as_they_are_listed(histories, tmp_path, capsys):
    trace = histories("if").save(tmp_path / "t.lens")
    assert main(["export", "--list"]) == 0
    listed = re.search(r"^dot .*\n.*\n +options +(.*)", capsys.readouterr().out, re.MULTILINE)[1].split(", ")
    assert {"legend=false", "buffers=true", "depth=null", 'theme="light"'} < set(listed)
    options = [word for option in listed for word in ("--option", option)]
    assert main(["export", trace, "--to", "dot", *options]) == 0
    assert capsys.readouterr().out == make_renderer("dot", {}).render(histories("if"))
    for value, drawn in (("False", False), ("false", False), ("True", True)):
        assert main(["export", trace, "--to", "dot", "--option", "depth=None", "--option", f"legend={value}"]) == 0
        assert ("colours" in capsys.readouterr().out) is drawn


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "is missing"),
        (["TRACE"], "is missing"),
        (["TRACE", "--to", "parquet"], "no text to print"),
        (["TRACE", "--to", "csv", "--option", "table"], "not an option"),
        (["missing.lens", "--to", "csv"], "cannot be read"),
        (["nonsense:x", "--to", "csv"], "not a model spec"),
        (["TRACE", "-o", "t.xyz"], "none has this ending"),
        (["TRACE", "--to", "dot", "--option", "legend=no"], "legend of dot cannot be 'no'"),
        (["model.py:make", "--to", "fx", "--option", "guards=0"], "guards of fx cannot be 0"),
    ],
)
def test_lens_export_says_what_is_wrong(arguments, message, histories, tmp_path, capsys):
    trace = histories("if").save(tmp_path / "t.lens")
    assert main(["export", *(trace if a == "TRACE" else a for a in arguments)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err


class NeedsModel:
    """A renderer of another package that needs the parameters, and makes several files."""

    name, suffix, requires, needs_model = "weights", "", (Labels,), True

    def render(self, history):
        leaves = [leaf for leaf in history.graph.leaves if leaf.kind == "parameter"]
        return {f"{leaf.addresses[0]}.txt": str(history.payloads.read(leaf.value).tolist()) for leaf in leaves}


def test_a_renderer_that_needs_the_model_gets_it_traced_first(histories, tmp_path, monkeypatch, capsys):
    known = (*registry.plugins(), registry.Plugin("mine", renderers={"weights": f"{__name__}:NeedsModel"}))
    monkeypatch.setattr(registry, "plugins", lambda: known)
    assert main(["export", "--list"]) == 0
    assert "weights (a folder, needs the model)" in capsys.readouterr().out
    model = tmp_path / "model.py"
    model.write_text("from torch import nn\ndef make():\n    return nn.Linear(2, 1)\n")
    folder = tmp_path / "weights"
    assert main(["export", f"{model}:make", "--input", "2x2", "--to", "weights", "-o", str(folder)]) == 0
    assert sorted(p.name for p in folder.iterdir()) == ["bias.txt", "weight.txt"]
    assert len(json.loads((folder / "weight.txt").read_text())[0]) == 2
    trace = histories("if").save(tmp_path / "t.lens")
    assert main(["export", trace, "--to", "weights", "-o", str(folder)]) == 2
    assert "weights needs the model, which no trace file holds" in capsys.readouterr().err


# Size


class Long(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(blocks))

    def forward(self, x):
        for block in self.blocks:
            x = block(x) * 0.5 + x
        for _ in range(4 * len(self.blocks)):
            x = self.blocks[0](x) + x + 1
        return x


def test_many_operations_are_exported_with_few_calls_for_each(tmp_path):
    short, long = [lens.trace(Long(n), torch.randn(1, 2), save="none") for n in (25, 100)]
    assert len(long.graph.ops) == 2000
    most = {"graphml": 1000}  # three seconds for 10,000, where a call takes 0.3 us
    for name, cls in renderer_classes().items():
        if not cls.needs_model and name != "mermaid":
            few, many = calls_per_op(lambda history, name=name: history.export(tmp_path / name, name), short, long)
            assert many < min(most.get(name, 300), 1.1 * few), name
    few, many = calls_per_op(lambda history: history.to_networkx(), short, long)
    assert many < min(300, 1.1 * few)
    with pytest.raises(RenderError, match="Mermaid takes"):
        long.to_mermaid(max_nodes=None)


def test_renderers_take_any_history(tmp_path):
    """Containers, an orphan, several results, no operation at all."""

    def nothing(x):
        return x

    for model, args in [
        (Containers(), ({"image": torch.ones(2, 3)},)),
        (Body(lambda x: [x.topk(1), torch.ones(2)]), (torch.ones(3),)),
        (Body(nothing), (torch.ones(3),)),
    ]:
        history = lens.trace(model, args)
        for name, cls in renderer_classes().items():
            if not cls.needs_model:
                assert make_renderer(name, {}).render(history)
