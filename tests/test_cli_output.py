"""The command line for machines and builds: JSON, exit codes, quiet, errors of the user's model."""

import json

import pytest

from lens.cli import main

MODEL = """
import torch
from torch import nn

def make():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.ones(1, 4)

def wrong():
    return nn.Linear(4, 3), torch.ones(1, 5)

def broken():
    raise ZeroDivisionError("no model today")
"""


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "nets.py").write_text(MODEL)
    return f"{tmp_path / 'nets.py'}:make"


def printed(capsys, *argv):
    code = main(list(argv))
    return code, json.loads(capsys.readouterr().out)


def test_trace_and_show_as_json(spec, tmp_path, capsys):
    path = str(tmp_path / "t.lens")
    code, traced = printed(capsys, "trace", spec, "--save-to", path, "--save", "linear_*", "--json")
    assert code == 0
    assert [row["layer"] for row in traced["layers"]] == ["input_1", "linear_1_1", "relu_1_2", "linear_2_3", "output_1"]
    assert (traced["operations"], traced["parameters"], traced["recurrent"]) == (3, 23, False)
    code, shown = printed(capsys, "show", path, "--json")
    assert code == 0
    assert shown == traced


def test_stop_at_and_quiet(spec, tmp_path, capsys):
    path = str(tmp_path / "t.lens")
    assert main(["trace", spec, "--stop-at", "1", "--save-to", path, "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert main(["show", path]) == 0
    assert "STOPPED     at 1" in capsys.readouterr().out
    assert main(["show", path, "--layer", "relu_1"]) == 0
    assert "relu number 1" in capsys.readouterr().out


def test_a_picture_that_cannot_be_drawn_costs_no_run_and_no_trace(spec, tmp_path, capsys):
    path = tmp_path / "t.lens"
    for options in (["-o", "late.gif"], ["-o", "late.svg", "--depth", "0"]):
        assert main(["trace", spec.replace("make", "broken"), "--save-to", str(path), *options]) == 2
        assert "no model today" not in capsys.readouterr().err
    picture = ["-o", str(tmp_path / "late.svg"), "--collapse", "typo"]
    assert main(["trace", spec, "--save-to", str(path), *picture]) == 2
    assert path.exists()


def test_what_cannot_be_saved_is_told_also_where_no_trace_is_written(spec, capsys):
    assert main(["trace", spec, "--save", "no_such_layer", "--quiet"]) == 2
    assert "no_such_layer" in capsys.readouterr().err
    assert main(["trace", spec, "--save", "1", "--stop-at", "saved"]) == 0
    assert "STOPPED     at 1" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["passes", "backends"])
def test_lists_as_json(command, capsys):
    code, known = printed(capsys, command, "--json")
    assert code == 0
    assert "recurrence" in known or {"torch_function", "decoration"} <= {row["name"] for row in known}


@pytest.mark.parametrize(("name", "message"), [("wrong", "RuntimeError"), ("broken", "no model today")])
def test_what_the_users_model_raises_is_no_traceback(spec, name, message, capsys):
    assert main(["trace", spec.replace("make", name)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "--debug" in err
    with pytest.raises((RuntimeError, ZeroDivisionError)):
        main(["--debug", "trace", spec.replace("make", name)])


@pytest.mark.parametrize("command", ["trace", "show", "validate", "export", "diff", "conform", "passes", "backends"])
def test_every_command_has_help_with_examples(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert "lens " + command in capsys.readouterr().out.partition("examples:")[2]
