"""The command line."""

import json
import sys

import pytest

from lens.cli import main

MODEL_FILE = """
import torch
from torch import nn

def make():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU())

def make_with_input():
    return make(), torch.ones(2, 4)

def nothing():
    return 3
"""


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "my_model.py"
    path.write_text(MODEL_FILE)
    return str(path)


def test_trace_and_show(model_file, tmp_path, capsys):
    picture, trace = str(tmp_path / "m.svg"), str(tmp_path / "m.lens")
    arguments = [
        "trace",
        f"{model_file}:make",
        "--input",
        "2x4",
        "-o",
        picture,
        "--save-to",
        trace,
        "--summary",
    ]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "linear_1_1" in out
    assert picture in out
    assert trace in out
    assert main(["show", trace]) == 0
    assert "relu_1_2" in capsys.readouterr().out
    assert main(["show", trace, "--graph"]) == 0
    assert "torch.relu" in capsys.readouterr().out
    for key in ("relu_1", "1", "-1", "0"):
        assert main(["show", trace, "--layer", key]) == 0
    assert main(["show", trace, "-o", str(tmp_path / "n.png")]) == 0
    assert (tmp_path / "n.png").exists()


@pytest.mark.parametrize(
    ("spec", "arguments"),
    [
        ("torchvision:resnet18", ["--input", "1x3x32x32"]),
        ("timm:convnext_atto", ["--input", "1x3x32x32"]),
        ("transformers:albert", ["--input", "1x8:int64"]),
    ],
)
def test_model_libraries(spec, arguments, capsys):
    assert main(["trace", spec, *arguments, "--seed", "1"]) == 0
    assert "operations in" in capsys.readouterr().out


def test_a_file_may_bring_its_inputs(model_file, capsys):
    assert main(["trace", f"{model_file}:make_with_input"]) == 0
    assert "relu_1_2" in capsys.readouterr().out


DATACLASS = """
from __future__ import annotations
from dataclasses import dataclass
from torch import nn

@dataclass
class Config:
    width: int = 4

def make():
    return nn.Linear(Config().width, 2)
"""
PICKLED = """
import pickle
from torch import nn

class Plain(nn.Module):
    def forward(self, x):
        return x + 1

def make():
    return pickle.loads(pickle.dumps(Plain()))
"""
NEIGHBOUR = "from layers_beside_it import layer\n\ndef make():\n    return layer\n"


@pytest.mark.parametrize("text", [DATACLASS, PICKLED, NEIGHBOUR], ids=["dataclass", "pickle", "neighbour"])
@pytest.mark.parametrize("name", ["model_of_the_user.py", "json.py", "not a-name.3.py"])
def test_a_file_is_loaded_as_python_does(text, name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / name).write_text(text)
    (tmp_path / "layers_beside_it.py").write_text("from torch import nn\n\nlayer = nn.ReLU()\n")
    assert main(["trace", f"{tmp_path / name}:make", "--input", "1x4"]) == 0
    assert "operations in" in capsys.readouterr().out
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trace", "nonsense"], "not a model spec"),
        (["trace", "missing.py:f"], "no file"),
        (["trace", "FILE:make"], "no inputs"),
        (["trace", "FILE:nothing"], "not a module"),
        (["trace", "FILE:other"], "no function"),
        (["trace", "FILE:make", "--input", "2xz"], "not the shape"),
        (["trace", "FILE:make", "--input", "2x4:strange"], "not the shape"),
        (["trace", "FILE:make", "--input", "2x999999999999999999"], "no input"),
        (["trace", "torchvision:resnet"], "Unknown model"),
        (["trace", "timm:resnet"], "Unknown model"),
        (["trace", "transformers:resnot"], "no model"),
        (["show", "missing.lens"], "cannot be read"),
    ],
)
def test_errors_are_one_message_without_a_traceback(arguments, message, model_file, capsys):
    assert main([a.replace("FILE", model_file) for a in arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "lens trace torchvision:resnet18" in capsys.readouterr().out
