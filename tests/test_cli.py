"""The command line."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lens import model_specs
from lens.cli import main
from lens.errors import InputError
from lens.model_specs import load_spec

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


class OfConfig(nn.Module):
    """What the command line looks at of a model of transformers."""

    def __init__(self, main_input_name, **sizes):
        super().__init__()
        self.main_input_name, self.config = main_input_name, SimpleNamespace(**sizes)

    def forward(self, decoder_input_ids=None, **inputs):
        return inputs


@pytest.mark.parametrize(
    ("model", "inputs", "made"),
    [
        (OfConfig("input_ids"), [], {"input_ids": (torch.int64, 1, 16)}),
        (OfConfig("pixel_values"), [], {"pixel_values": (torch.float32, 1, 3, 224, 224)}),
        (OfConfig("pixel_values", image_size=[8, 9]), [], {"pixel_values": (torch.float32, 1, 3, 8, 9)}),
        (
            OfConfig("pixel_values", vision_config=SimpleNamespace(model_type="v", image_size=32, num_channels=1)),
            [],
            {"pixel_values": (torch.float32, 1, 1, 32, 32)},
        ),
        (OfConfig("pixel_values", num_frames=4), ["1x2x3x8x8"], {"pixel_values": (torch.float32, 1, 2, 3, 8, 8)}),
        (OfConfig("input_values"), [], {"input_values": (torch.float32, 1, 16000)}),
        (
            OfConfig("input_features", is_encoder_decoder=True, num_mel_bins=80, max_source_positions=1500),
            [],
            {"input_features": (torch.float32, 1, 80, 3000), "decoder_input_ids": (torch.int64, 1, 16)},
        ),
        (
            OfConfig("input_ids", is_encoder_decoder=True),
            ["1x8", "1x3"],
            {"input_ids": (torch.int64, 1, 8), "decoder_input_ids": (torch.int64, 1, 3)},
        ),
    ],
)
def test_inputs_of_transformers_follow_the_configuration(model, inputs, made, monkeypatch):
    monkeypatch.setattr(model_specs, "_transformers", lambda name: model)
    given = load_spec("transformers:any", inputs).kwargs
    assert {name: (tensor.dtype, *tensor.shape) for name, tensor in given.items()} == made


def test_an_input_that_nothing_is_known_of_is_asked_for(monkeypatch):
    monkeypatch.setattr(model_specs, "_transformers", lambda name: OfConfig("past_values"))
    with pytest.raises(InputError, match=r"usual input(.|\n)*shape of past_values"):
        load_spec("transformers:any", [])


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


def test_a_model_file_that_fails_is_no_module(tmp_path, capsys):
    (tmp_path / "failing_model.py").write_text("1 / 0")
    assert main(["trace", f"{tmp_path}/failing_model.py:make"]) == 2
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert "failing_model" not in sys.modules


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
        (["trace", "transformers:albert", "--input", "1x16", "--input", "1x7"], "is given input_ids, and no 2 inputs"),
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
