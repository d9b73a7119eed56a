"""The command line for machines and builds: JSON, exit codes, quiet, errors of the user's model."""

import errno
import io
import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import lens
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


def test_options_that_would_do_nothing_are_refused(spec, saved, tmp_path, capsys):
    show, folder = ["show", saved], str(tmp_path / "dump")
    for options in (["--time"], ["--dump-after", folder], ["--verify", "full"]):
        assert main([*show, *options]) == 2
        assert f"{options[0]} does nothing without --pipeline TEXT\n  where: " in capsys.readouterr().err
    for options in (["--view", "rolled"], ["--depth", "1"], ["--max-nodes", "0"], ["--legend"], ["--no-buffers"]):
        for command in (show, ["trace", spec.replace("make", "broken")]):
            assert main([*command, *options]) == 2
            assert f"{options[0]} does nothing without -o PICTURE\n  where: " in capsys.readouterr().err


def test_what_cannot_be_saved_is_told_also_where_no_trace_is_written(spec, capsys):
    assert main(["trace", spec, "--save", "no_such_layer", "--quiet"]) == 2
    assert "no_such_layer" in capsys.readouterr().err
    assert main(["trace", spec, "--save", "1", "--stop-at", "saved"]) == 0
    assert "STOPPED     at 1" in capsys.readouterr().out


@pytest.fixture
def saved(tmp_path):
    model = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 2)), nn.ReLU())
    return lens.trace(model, torch.ones(1, 4), save=["0", "1"]).save(tmp_path / "saved.lens")


def test_nothing_but_json_stands_in_json(saved, tmp_path, capsys):
    assert main(["show", saved, "--json", "--pipeline", "labels", "--time", "-o", str(tmp_path / "a.dot")]) == 0
    shown = capsys.readouterr()
    rows = json.loads(shown.out)["layers"]
    assert [(row["layer"], row["ordinal"], row["saved"]) for row in rows[:3]] == [
        ("input_1", None, False),
        ("linear_1_1", 0, True),
        ("relu_1_2", None, False),
    ]
    assert "" not in rows[0]
    assert "a.dot" in shown.err
    assert "labels" in shown.err
    _, one = printed(capsys, "show", saved, "--json", "--layer", "1.1")
    assert [(row["layer_label"], row["parent_layers"]) for row in one["layers"]] == [("linear_2_3", ["relu_1_2"])]


@pytest.mark.parametrize(
    ("key", "label"), [("0", "linear_1_1"), ("1", "linear_2_3"), ("2", "relu_2_4"), ("-1", "linear_2_3")]
)
def test_a_key_is_an_address_before_it_is_a_number(key, label, saved, capsys):
    assert main(["show", saved, f"--layer={key}"]) == 0
    assert capsys.readouterr().out.startswith(f"{label}: ")


@pytest.mark.parametrize("key", ["--3", "\u00b2", "9", ""])
def test_a_key_that_leads_nowhere_is_no_traceback(key, saved, capsys):
    assert main(["show", saved, f"--layer={key}"]) == 2
    assert "there is no layer" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "code"), [("diff", 1), ("show", 141)])
def test_the_verdict_does_not_depend_on_who_reads_it(command, code, saved, tmp_path):
    other = lens.trace(nn.ReLU(), torch.ones(2)).save(tmp_path / "other.lens")
    reader, writer = os.pipe()
    os.close(reader)
    arguments = [command, saved, other] if command == "diff" else [command, saved]
    done = subprocess.run(
        [sys.executable, "-m", "lens.cli", *arguments], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (code, b"")


class Full(io.StringIO):
    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (Full, "No space left"),
        (lambda: io.TextIOWrapper(io.BytesIO(), encoding="ascii"), "PYTHONIOENCODING"),
    ],
)
def test_output_that_cannot_be_written_is_no_traceback(stream, message, tmp_path, monkeypatch, capsys):
    odd = type("Gr\u00f6\u00dfe", (nn.ReLU,), {})
    path = lens.trace(odd(), torch.ones(2)).save(tmp_path / "t.lens")
    monkeypatch.setattr(sys, "stdout", stream())
    assert main(["show", path]) == 2
    err = capsys.readouterr().err
    assert "lens: the output cannot be written" in err
    assert message in err


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
    assert ("--input" in err) is (name == "wrong")
    with pytest.raises((RuntimeError, ZeroDivisionError)):
        main(["--debug", "trace", spec.replace("make", name)])


@pytest.mark.parametrize("command", ["trace", "show", "validate", "export", "diff", "conform", "passes", "backends"])
def test_every_command_has_help_with_examples(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert "lens " + command in capsys.readouterr().out.partition("examples:")[2]
