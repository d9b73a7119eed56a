"""What installed packages add, and that none of them stands in the way of what does not use it."""

import json
import math
import sys
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import EntryPoint
from typing import ClassVar

import numpy
import pytest
import torch
from attrs import field, frozen
from attrs.validators import instance_of
from torch import nn

import lens
from lens import registry
from lens.capture.torch_function import TorchFunctionBackend
from lens.cli import main
from lens.errors import BackendError, PassError, PluginError, RenderError
from lens.exports import write_rendered
from lens.ir.facets import Facet, Labels, Orphans, UnknownFacet
from lens.ir.graph import Graph
from lens.ir.printer import print_graph
from lens.passes.labels import LabelsPass
from lens.passes.manager import PassManager
from lens.passes.protocol import PassResult
from lens.render.renderer import Renderer
from lens.session import DEFAULT_PIPELINE


@frozen
class Mine(Facet):
    name: ClassVar[str] = "mine"


class MinePass:
    name = "mine"
    requires = ()
    provides = (Mine,)
    preserves = ()

    def run(self, graph, context):
        return PassResult((Mine(),))


class NeedyPass(MinePass):
    name = "needy"
    requires = (Mine,)
    provides = ()

    def run(self, graph, context):
        return PassResult()


@frozen
class ChoosyPass(MinePass):
    kind: str
    often: int = 1


class OtherLabelsPass(LabelsPass):
    """Never run."""


class NoPass:
    pass


AN_INSTANCE = MinePass()


class Driverless(TorchFunctionBackend):
    def unavailable(self):
        raise RuntimeError("driver not found")


class Unmade(TorchFunctionBackend):
    def __init__(self):
        raise RuntimeError("no card")


class Spelled(TorchFunctionBackend):
    capabilities = "functions"


class Boastful(TorchFunctionBackend):
    capabilities = frozenset({"functions", "everything"})


HERE = __name__
BAD = ["no_such_package:P", f"{HERE}:NoSuchPass", HERE, f"{HERE}:NoPass", f"{HERE}:ChoosyPass"]


def install(monkeypatch, **sections):
    known = (registry.BUILT_IN, registry.Plugin("installed", **sections))
    monkeypatch.setattr(registry, "plugins", lambda: known)


def filled_in():
    """The passes that are run for one that requires the facet ``mine``."""
    result = PassManager((NeedyPass(),), registry.providers()).run(Graph())
    return [record.name for record in result.records]


@pytest.mark.parametrize("target", BAD)
def test_a_pass_that_cannot_be_used_breaks_no_trace(target, tmp_path, monkeypatch):
    install(monkeypatch, passes={"bad": target})
    history = lens.trace(nn.Softplus(), torch.ones(2))
    assert history.layer_list == ["input_1", "softplus_1_1", "output_1"]
    history.export(tmp_path / "layers.csv")
    assert lens.load(history.save(tmp_path / "t.lens")).layer_list == history.layer_list


@pytest.mark.parametrize("target", BAD)
def test_it_is_an_error_where_it_is_asked_for(target, monkeypatch):
    install(monkeypatch, passes={"bad": target})
    if "Choosy" in target:  # for it is asked by its facet
        with pytest.raises(PluginError, match=r"'bad' cannot be run for the facet .*'kind'"):
            filled_in()
        return
    with pytest.raises(PluginError, match="pass 'bad' "):
        lens.trace(nn.Softplus(), torch.ones(2), passes="labels,bad")
    if target.startswith(HERE):  # the package of the facet itself
        with pytest.raises(PluginError, match="pass 'bad' "):
            filled_in()
        return
    with (
        pytest.raises(PassError, match="requires the facet 'mine', which no known pass provides"),
        pytest.warns(UserWarning, match="lens goes without a pass: pass 'bad' cannot be loaded"),
    ):
        filled_in()


def test_a_module_that_ends_the_process_is_an_error_of_the_plugin(tmp_path, monkeypatch):
    (tmp_path / "exits_on_import.py").write_text("import sys\nsys.exit('no card')\n")
    monkeypatch.syspath_prepend(tmp_path)
    install(monkeypatch, passes={"bad": "exits_on_import:P"})
    with pytest.raises(PluginError, match=r"pass 'bad' cannot be loaded: .*SystemExit: no card"):
        registry.find("passes", "bad")


def test_a_plugin_that_uses_a_name_of_lens_is_told(monkeypatch):
    manifest = registry.Plugin("loud", passes={"labels": f"{HERE}:MinePass"}, renderers={"dot": f"{HERE}:R"})
    monkeypatch.setattr(f"{HERE}.MANIFEST", manifest, raising=False)
    monkeypatch.setattr(registry, "entry_points", lambda group: [EntryPoint("loud", f"{HERE}:MANIFEST", group)])
    with pytest.warns(UserWarning, match="which goes before that of plugin 'loud'") as told:
        registry.plugins.__wrapped__()
    assert [str(one.message).split("'")[1] for one in told] == ["labels", "dot"]


def test_a_manifest_with_a_class_for_its_name_is_told_in_a_line():
    with pytest.raises(TypeError, match=r"^passes holds <class .*MinePass'>, where text such as \"module:attribute\""):
        registry.Plugin("mine", passes={"mine": MinePass})


def test_what_raises_on_import_is_an_error_of_the_plugin(tmp_path, monkeypatch):
    (tmp_path / "raises_on_import.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    install(monkeypatch, passes={"bad": "raises_on_import:P"})
    with pytest.raises(PluginError, match="pass 'bad' cannot be loaded: division by zero"):
        registry.find("passes", "bad")
    with pytest.raises(PluginError, match="lens knows no pass 'good'"):
        registry.find("passes", "good")


def test_a_provider_is_found_behind_others_that_cannot_be_used(monkeypatch):
    bad = {f"bad{number}": target for number, target in enumerate(BAD)}
    install(monkeypatch, passes={**bad, "mine": f"{HERE}:MinePass"})
    assert filled_in() == ["mine", "needy"]


def test_the_facets_of_lens_come_from_its_own_passes(monkeypatch):
    install(monkeypatch, passes={"other": f"{HERE}:OtherLabelsPass", "labels": f"{HERE}:NoPass"})
    assert type(registry.providers()[Labels]) is LabelsPass
    assert registry.pass_classes()["labels"] is LabelsPass
    assert list(registry.pass_classes())[-1] == "other"


def test_a_facet_type_that_cannot_be_loaded_breaks_no_file(tmp_path, monkeypatch):
    passes, facets = {"mine": f"{HERE}:MinePass"}, {"mine": f"{HERE}:Mine"}
    install(monkeypatch, passes=passes, facets=facets)
    file = lens.trace(nn.Softplus(), torch.ones(2), passes=f"{DEFAULT_PIPELINE},mine").save(tmp_path / "t.lens")
    assert lens.load(file).graph.get(Mine) == Mine()
    install(monkeypatch, facets={"mine": "no_such_package:Mine"})
    with pytest.warns(UserWarning, match="facet 'mine' cannot be loaded"):
        assert lens.load(file).graph.get(UnknownFacet).original == "mine"


@frozen
class OtherDistances(Facet):
    name: ClassVar[str] = "distances"
    metres: tuple[float, ...] = ()


@frozen
class NamelessFacet(Facet):
    pass


@pytest.mark.parametrize(
    ("kind", "what"),
    [("NoPass", "no subclass of"), ("NamelessFacet", "no name"), ("OtherDistances", "itself has a facet 'distances'")],
)
def test_a_facet_type_that_cannot_be_used_breaks_no_file(kind, what, tmp_path, monkeypatch):
    history = lens.trace(nn.Softplus(), torch.ones(2))
    file = history.save(tmp_path / "t.lens")
    install(monkeypatch, facets={"mine": f"{HERE}:{kind}"})
    with pytest.warns(UserWarning, match=f"facet 'mine' cannot be used: .*{what}"):
        assert lens.load(file).graph == history.graph


@pytest.mark.parametrize("sections", ['passes=["m:P"]', 'passes={"p": int}', "no_such=1"])
def test_a_manifest_that_cannot_be_used_is_left_out_with_a_warning(sections, tmp_path, monkeypatch):
    (tmp_path / "manifest_of_a_test.py").write_text(
        f'from lens.registry import Plugin\nGOOD = Plugin("good")\nDICT = {{}}\n'
        f'def __getattr__(name):\n    if name == "BAD":\n        return Plugin("bad", {sections})\n    raise AttributeError\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "manifest_of_a_test", raising=False)
    entries = [
        EntryPoint(name, f"manifest_of_a_test:{name}", registry.ENTRY_POINT_GROUP) for name in ("BAD", "DICT", "GOOD")
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    with pytest.warns(UserWarning, match="lens goes without a plugin") as told:
        found = registry.plugins.__wrapped__()
    assert [plugin.name for plugin in found] == ["lens", "good"]
    assert len(told) == 2


def test_the_list_of_passes_shows_what_can_be_used_and_why_the_rest_cannot(monkeypatch, capsys):
    passes = {
        "bad": "no_such_package:P",
        "made": f"{HERE}:AN_INSTANCE",
        "choosy": f"{HERE}:ChoosyPass",
        "mine": f"{HERE}:MinePass",
    }
    install(monkeypatch, passes=passes)
    assert main(["passes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "bad (unavailable: pass 'bad' cannot be loaded: No module named 'no_such_package')" in lines
    assert "made (unavailable: pass 'made' cannot be used: it is a MinePass, not a class)" in lines
    assert lines[-4:] == ["choosy{kind=(required), often=1}", "    provides  mine", "mine", "    provides  mine"]
    assert main(["passes", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["mine"] == {"options": {}, "what": "", "requires": [], "provides": ["mine"], "preserves": []}
    assert "no_such_package" in listed["bad"]["unavailable"]


@pytest.mark.parametrize(
    ("target", "what"),
    [
        ("AN_INSTANCE", "it is a MinePass, not a class"),
        ("MinePass", "it has no suffix"),
    ],
)
def test_the_list_of_renderers_is_shown_without_those_that_cannot_be_used(target, what, monkeypatch, capsys):
    install(monkeypatch, renderers={"bad": f"{HERE}:{target}"})
    with pytest.warns(UserWarning, match=f"renderer 'bad' cannot be used: {what}"):
        assert main(["export", "--list"]) == 0
    assert "bad" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("target", "what"),
    [
        ("AN_INSTANCE", "backend 'bad' cannot be used: it is a MinePass, not a class"),
        ("NoPass", "it has no name"),
        ("Driverless", "RuntimeError: driver not found"),
        ("Unmade", "it cannot be made: RuntimeError: no card"),
        ("Spelled", "its capabilities are a str, not a set"),
        ("Boastful", "lens knows no capability 'everything'"),
    ],
)
def test_a_backend_that_cannot_be_used_is_listed_with_the_reason(target, what, monkeypatch, capsys):
    install(monkeypatch, backends={"bad": f"{HERE}:{target}"})
    assert main(["backends"]) == 0
    assert f"bad (unavailable: {what})" in capsys.readouterr().out.splitlines()
    with pytest.raises(BackendError, match=what):
        lens.trace(nn.Softplus(), torch.ones(2), backend="bad")


@pytest.mark.parametrize("target", ["no_such_package:R", f"{HERE}:NoSuchRenderer", f"{HERE}:NoPass"])
def test_a_renderer_that_cannot_be_used_breaks_no_export(target, tmp_path, monkeypatch, capsys):
    install(monkeypatch, renderers={"bad": target})
    history = lens.trace(nn.Softplus(), torch.ones(2))
    with pytest.warns(UserWarning, match="renderer 'bad'"):
        history.export(tmp_path / "layers.csv")
    assert (tmp_path / "layers.csv").exists()


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({1: "text"}, "for the file 1"),
        ({"../a": "text"}, r"for the file '\.\./a'"),
        ({"a": 3}, "gave a int"),
        (3, "gave a int"),
        ({}, "gave no file"),
        ({"a\0b": "text"}, r"for the file 'a\\x00b'"),
    ],
)
def test_a_renderer_gives_text_or_bytes_for_files_in_its_folder(files, what, tmp_path):
    with pytest.raises(RenderError, match=what):
        write_rendered(files, tmp_path / "folder")
    assert not any(tmp_path.iterdir())


def test_text_that_has_no_form_in_utf8_is_written(tmp_path):
    written = write_rendered("model\udcff.py", tmp_path / "a.txt")
    assert open(written, encoding="utf-8").read() == "model\ufffd.py"


@frozen
class FaultyRenderer(Renderer):
    name: ClassVar[str] = "faulty"
    suffix: ClassVar[str] = ".faulty"
    column: str = field(validator=instance_of(str))

    def render(self, history):
        if self.column == "lens":
            raise RenderError("its own")
        if self.column == "attrs":
            history.graph.ops = ()
        return 1 / 0


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({}, r"faulty does not take these options: (.|\n)*its options: column=\(required\)"),
        ({"column": 3}, "faulty does not take these options: 'column' must be <class 'str'>"),
        ({"column": "shape"}, r"faulty failed: ZeroDivisionError: division by zero\n  where: .*test_plugins.py:"),
        ({"column": "attrs"}, r"FrozenInstanceError: .*\n  where: .*test_plugins.py:"),
        ({"column": "lens"}, "^its own$"),
    ],
)
def test_what_a_renderer_raises_is_told_with_its_name(options, what, tmp_path, monkeypatch):
    install(monkeypatch, renderers={"faulty": f"{HERE}:FaultyRenderer"})
    with pytest.raises(RenderError, match=what):
        lens.trace(nn.Softplus(), torch.ones(2)).export(tmp_path / "a.faulty", **options)


def generator(self, emit):
    yield


@pytest.mark.parametrize(
    ("parts", "what"),
    [
        ({"record": lambda self, emit: None}, "'torch_function' gave a NoneType, not a context manager"),
        ({"record": generator}, "gave a generator, not a context manager"),
        ({"record": lambda self, emit: 1 / 0}, "cannot record: ZeroDivisionError"),
        ({"unavailable": lambda self: 1 / 0}, "cannot be used here: ZeroDivisionError"),
        ({"capabilities": None}, "its capabilities are a NoneType"),
    ],
)
def test_a_backend_that_breaks_its_contract_is_named(parts, what):
    backend = type("Broken", (TorchFunctionBackend,), parts)()
    with pytest.raises(BackendError, match=what):
        lens.trace(nn.Softplus(), torch.ones(2), backend=backend)


def recording_as(body):
    """A backend that records as a generator says."""
    return type("Faulty", (TorchFunctionBackend,), {"name": "faulty", "record": contextmanager(body)})()


def fails_to_begin(self, emit):
    raise OSError("no device")
    yield


def fails_to_end(self, emit):
    yield
    raise OSError("cannot close")


def does_not_yield(self, emit):
    return
    yield


def yields_twice(self, emit):
    yield
    yield


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (fails_to_begin, "when it began: OSError: no device"),
        (fails_to_end, "when it ended: OSError: cannot close"),
        (does_not_yield, "when it began: RuntimeError: generator didn't yield"),
        (yields_twice, "when it ended: RuntimeError: generator didn't stop"),
    ],
)
def test_a_backend_that_cannot_begin_or_end_is_named(body, what):
    with pytest.raises(BackendError, match=f"'faulty' broke its contract {what}") as caught:
        lens.trace(nn.Softplus(), torch.ones(2), backend=recording_as(body))
    assert caught.value.__cause__ is not None
    assert caught.value.lens_history.graph.meta.fault.type == "BackendError"


class Raising(nn.Module):
    def forward(self, x):
        raise ValueError(f"the model's own, {x.exp()}")


def swallows(self, emit):
    with suppress(Exception), TorchFunctionBackend().record(emit):
        yield


def changes(self, emit):
    try:
        with TorchFunctionBackend().record(emit):
            yield
    except ValueError:
        raise OSError("another") from None


@pytest.mark.parametrize("body", [swallows, changes])
@pytest.mark.filterwarnings(
    "ignore:the backend 'faulty' broke its contract when the model had raised. OSError. another"
)
def test_what_the_model_raises_comes_out_of_a_backend_that_swallows_or_changes_it(body):
    with pytest.raises(ValueError, match="the model's own") as caught:
        lens.trace(Raising(), torch.ones(2), backend=recording_as(body))
    assert [op.function.name for op in caught.value.lens_history.graph.ops] == ["exp"]


def telling(**changes):
    """A backend that changes what the recorder is told: by the name of its method, a function of it and what is told."""

    def body(self, emit):
        for name, change in changes.items():
            setattr(emit, name, partial(change, getattr(emit, name)))
        emit.takes_ended = False
        with TorchFunctionBackend().record(emit):
            yield

    return recording_as(body)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"finish": lambda finish, call, result, took: finish(call, result, None)}, "took None seconds"),
        ({"finish": lambda finish, call, result, took: finish(call, result, math.nan)}, "took nan seconds"),
        ({"finish": lambda finish, call, result, took: finish(call, result, -took)}, "took -.* seconds"),
        ({"finish": lambda finish, call, result, took: finish(None, result, took)}, "TypeError: cannot unpack"),
        (
            {"start": lambda start, function, *rest: start(function.callable, *rest)},
            "AttributeError: .*has no attribute",
        ),
        (
            {"exit": lambda leave, entered, output: leave(((entered[0] + 1) % 3, *entered[1:]), output)},
            "outside its scope",
        ),
    ],
)
def test_what_a_backend_tells_is_an_error_of_the_backend_if_it_makes_no_graph(change, what):
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    with pytest.raises(BackendError, match=f"'faulty' broke its contract in what it told the recorder: .*{what}"):
        lens.trace(model, torch.ones(1, 2), backend=telling(**change))


@frozen
class TensorFacet(Facet):
    name: ClassVar[str] = "tensor"
    value: object = None


@frozen
class IntsFacet(Facet):
    name: ClassVar[str] = "ints"
    values: tuple[int, ...] = ()


@frozen
class NewIntsFacet(Facet):
    name: ClassVar[str] = "ints"
    numbers: tuple[int, ...] = ()


@frozen
class UnionFacet(Facet):
    name: ClassVar[str] = "union"
    value: int | str


class SpacedFacet(Facet):
    name: ClassVar[str] = "my facet"


@pytest.mark.parametrize(
    ("facet", "then", "fields"),
    [
        (IntsFacet((1, 2.5)), IntsFacet, '{"values": [1, 2.5]}'),
        (IntsFacet((1,)), NewIntsFacet, '{"values": [1]}'),
        (UnionFacet("x"), UnionFacet, '{"value": "x"}'),
    ],
)
def test_a_facet_of_a_plugin_that_does_not_fit_is_kept_as_it_was_written(facet, then, fields, tmp_path, monkeypatch):
    history = lens.trace(nn.Softplus(), torch.ones(2))
    history.graph = history.graph.with_facets(facet)
    install(monkeypatch, facets={facet.name: f"{HERE}:{then.__name__}"})
    with pytest.warns(UserWarning, match=f"facet '{facet.name}' is kept as it was written, as no {then.__name__}"):
        loaded = lens.load(history.save(tmp_path / "t.lens"))
    assert loaded.graph.facets[-1] == UnknownFacet(facet.name, fields)
    assert loaded.graph[Labels] == history.graph[Labels]


@pytest.mark.parametrize(
    ("facet", "what"),
    [
        (IntsFacet(None), "facet 'ints' has fields that are not what they are declared as: TypeError"),
        (TensorFacet(numpy.ones(2)), "facet 'tensor' has fields that are not .*: ValueError"),
        (SpacedFacet(), "facet 'my facet' has no form in files and text: its name 'my facet' is not made of"),
    ],
)
def test_a_facet_that_cannot_be_written_is_an_error_of_its_name(facet, what, tmp_path):
    history = lens.trace(nn.Softplus(), torch.ones(2))
    history.graph = history.graph.with_facets(facet)
    for write in (lambda: history.save(tmp_path / "t.lens"), lambda: print_graph(history.graph)):
        with pytest.raises(RenderError, match=what):
            write()


@pytest.mark.parametrize("value", [torch.ones(1), {1: 2}, [(1, {3})], 2**64, (-(2**63) - 1, 0), [None, {"a": 2**65}]])
def test_a_facet_that_has_no_form_is_an_error_of_its_name(value, tmp_path):
    history = lens.trace(nn.Softplus(), torch.ones(2))
    history.graph = history.graph.with_facets(TensorFacet(value))
    for write in (lambda: history.save(tmp_path / "t.lens"), lambda: print_graph(history.graph)):
        with pytest.raises(RenderError, match="facet 'tensor' holds a"):
            write()


def test_facets_are_filled_in_again_where_one_pass_drops_what_another_gave():
    class Net(nn.Module):
        def forward(self, x):
            torch.zeros(2) + 1  # an orphan
            return x * 2

    history = lens.trace(Net(), torch.ones(2), passes="granularity")
    found = history.with_facets(Labels, Orphans)
    assert found.graph.get(Labels) is not None
    assert found.graph.get(Orphans) is not None


def test_a_backend_that_says_it_is_unavailable_is_not_used():
    class Missing(TorchFunctionBackend):
        def unavailable(self):
            return "the driver is missing"

    with pytest.raises(BackendError, match="the driver is missing"):
        lens.trace(nn.Softplus(), torch.ones(2), backend=Missing())
