"""A small part of the zoo, and the machinery that runs the rest."""

import itertools
import time

import pytest
import torch
from attrs import evolve
from torch import nn

import lens
from lens.ir.facets import Recurrence
from lens.model_specs import ModelCall
from lens_zoo import __main__ as zoo
from lens_zoo import processes
from lens_zoo.examination import Findings, examine, note_recurrence
from lens_zoo.libraries import LIBRARIES, Library, builder, is_feedforward, recipes
from lens_zoo.processes import Limits, examine_all
from lens_zoo.table import write_table

SMALL = {
    "handwritten": "feedback settling growing deciding branching noisy siamese sequences",
    "torchvision": "squeezenet1_1 shufflenet_v2_x0_5 mnasnet0_5 mobilenet_v3_small",
    "timm": "test_vit test_resnet test_convnext test_efficientnet test_mambaout test_nfnet test_vit3 test_byobnet",
    "transformers": "albert bert bart clip_vision_model convbert deberta-v2 distilbert electra falcon gpt2 gpt_neox "
    "llama mamba mixtral mpnet opt qwen2_vl rwkv t5 vit whisper xlnet",
}


@pytest.mark.parametrize("recipe", [f"{library}:{name}" for library, names in SMALL.items() for name in names.split()])
def test_small_models_are_proved(recipe):
    findings = examine(recipe, builder(recipe), "torch_function", is_feedforward(recipe))
    assert findings.status == "proved", findings.reasons
    assert findings.ops > 0
    assert findings.verdicts.get("failed", 0) == 0


def test_every_library_lists_models_that_can_be_looked_up():
    names, missing = recipes([name for name in LIBRARIES if name != "torch_geometric"], everything=False)
    assert not missing
    assert len(names) == len(set(names)) > 500
    everything, _ = recipes(["timm"], everything=True)
    assert {name for name in names if name.startswith("timm:")} < set(everything)


def test_a_library_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(LIBRARIES, "absent", Library("absent_models"))
    names, missing = recipes(["absent", "handwritten"], everything=False)
    assert len(names) == 8
    assert "absent_models" in missing["absent"]


class Stateful(nn.Module):
    """Gives another result at every run."""

    runs = itertools.count(1)

    def forward(self, x):
        return x * next(self.runs)


class Unrolled(nn.Module):
    def forward(self, x):
        return torch.tanh(torch.tanh(x))


def call_of(model):
    return lambda: ModelCall(model, (torch.ones(2, 4),), {})


def test_what_is_wrong_is_found_and_named():
    findings = examine("x", call_of(Stateful()), "torch_function")
    assert findings.status == "failed"
    assert "two plain runs differ too" in findings.reasons[0]
    findings = examine("x", call_of(nn.Linear(3, 3)), "torch_function")
    assert (findings.status, findings.ops) == ("not run", 0)
    assert findings.reasons[0].startswith("plain raises RuntimeError: mat1 and mat2")


def test_recurrence_of_feedforward_models():
    """Equal operations in a row are a loop; the same two with a layer between them are not."""
    findings = examine("x", call_of(Unrolled()), "torch_function", feedforward=True)
    assert (findings.status, findings.recurrent) == ("proved", ["tanh_1_1 x2 (loop)"])
    graph = lens.trace(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh()), torch.ones(2, 4)).graph
    wrong = evolve(graph[Recurrence], layer=(0, 1, 2, 1), rule=("", "loop", "", "loop"))
    note_recurrence(findings, graph.with_facets(wrong), feedforward=True)
    assert findings.reasons == ["recurrent though feedforward: tanh_1_2 x2 (loop)"]


def test_the_audit_is_part_of_it():
    class Hidden(nn.Module):
        def forward(self, x):
            with torch._C.DisableTorchFunction():  # nothing above autograd sees what happens here
                y = x * 2
            return x + y

    findings = examine("x", call_of(Hidden()), "torch_function")
    assert findings.status == "failed"
    assert findings.reasons[-1].startswith("an operation is missing: aten.mul.Tensor at")


def test_processes_are_limited(monkeypatch):
    """A model that hangs, one that takes all memory, one that kills its process, one that works."""

    def build(recipe):
        works = recipe.startswith("handwritten") or recipe == "works"
        actions = {"hangs": lambda: time.sleep(60), "grows": lambda: bytearray(4 << 30), "dies": lambda: exit(3)}
        return call_of(nn.Linear(4, 4)) if works else actions[recipe]

    monkeypatch.setattr(processes, "builder", build)
    monkeypatch.setattr(processes, "is_feedforward", lambda recipe: True)
    names = ["hangs", "grows", "dies", "works"]
    found = {f.recipe: f for f in examine_all(names, "torch_function", Limits(5, 2), jobs=2)}
    assert {name: found[name].status for name in names} == dict(zip(names, [*["not run"] * 3, "proved"], strict=True))
    assert found["hangs"].reasons == ["time limit of 5 s: at stage build"]
    assert found["grows"].reasons == ["build raises MemoryError"]
    assert found["dies"].reasons == ["process ended with code 3: at stage build"]


def test_the_ledger_resumes_and_becomes_a_table(tmp_path, capsys):
    ledger, table = tmp_path / "zoo.jsonl", tmp_path / "zoo.md"
    arguments = ["--library", "handwritten", "--ledger", str(ledger), "--table", str(table), "--match"]
    assert zoo.main([*arguments, "noisy"]) == 0
    assert zoo.main([*arguments, "noisy", "deciding"]) == 0
    assert len(ledger.read_text().splitlines()) == 2
    assert capsys.readouterr().out.count("proved") == 2
    assert "| handwritten | torch_function | 2 | 2 | 0 | 0 | 0 |" in table.read_text()


def test_the_table_groups_models_by_reason(tmp_path):
    failed = [Findings(f"timm:{name}", "torch_function", "failed", ["structure: [order] a|b"]) for name in "xy"]
    write_table(
        tmp_path / "zoo.md", failed, {"torch_geometric": "No module named 'torch_geometric'"}, {"aten": ["timm:z"]}
    )
    text = (tmp_path / "zoo.md").read_text()
    assert "| timm:x, timm:y | structure: [order] a\\|b |" in text
    assert "`torch_geometric` was skipped" in text
    assert "**1 models have not run under `aten` yet**: timm:z." in text
