"""What long work shows on a terminal, and that it shows nothing elsewhere."""

import io
import sys
import threading
import time
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import lens
from lens.cli import main
from lens.stages import stage

WIPE = "\r\x1b[K"


class Terminal(io.StringIO):
    def isatty(self):
        return True

    @property
    def lines(self):
        return [line for line in self.getvalue().split(WIPE) if line]

    def wait_for(self, text, seconds=20):
        end = time.monotonic() + seconds
        while text not in self.getvalue():
            assert time.monotonic() < end, self.lines
            time.sleep(0.005)


class Waits(nn.Module):
    """Goes on when the terminal shows a text."""

    def __init__(self, terminal, text):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.go_on = lambda: terminal.wait_for(text)

    def forward(self, x):
        for _ in range(30):
            x = self.fc(x)
        self.go_on()
        return x


def quick(terminal):
    return lens.progress(terminal, after=0.02)


def test_a_slow_forward_is_shown_with_its_operations_and_wiped():
    terminal = Terminal()
    with quick(terminal):
        history = lens.trace(Waits(terminal, "running the model: 30 operations, 0 s"), torch.ones(1, 4))
    assert terminal.getvalue().endswith(WIPE)
    assert history["linear_1"].layer_passes_total == 30


def test_the_innermost_stage_is_shown_with_the_time_of_the_outermost():
    terminal = Terminal()
    with quick(terminal):
        with stage("validating", lambda: 3, 7):
            terminal.wait_for("lens: validating: 3 of 7 operations, ")
            with stage("running the model"):
                terminal.wait_for("lens: running the model, ")
            shown = len(terminal.lines)
            while len(terminal.lines) == shown:
                time.sleep(0.005)
            assert "validating" in terminal.lines[-1]
        between = terminal.getvalue()
        assert between.endswith(WIPE)
        time.sleep(0.1)
        assert terminal.getvalue() == between  # between two stages there is nothing to show


def test_a_line_is_no_longer_than_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    terminal = Terminal()
    with quick(terminal), stage("a" * 50):
        terminal.wait_for("lens: aaaaaaaaaaaaa")
    assert max(map(len, terminal.lines)) == 19


def test_drawing_validation_and_exports_say_what_they_do(tmp_path, monkeypatch):
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.ones(1, 4)
    seen = []

    def note(display, one):
        seen.append(str(one))
        return nullcontext()

    monkeypatch.setattr("lens.stages._Display.within", note)
    with quick(Terminal()):
        lens.show_model_graph(model, x, tmp_path / "a.svg")
        assert [text.partition(":")[0] for text in seen] == ["running the model", "analysing", "drawing"]
        seen.clear()
        lens.trace(model, x, save="none").export(tmp_path / "a.dot")
        assert seen[-1] == "making dot"
        seen.clear()
        lens.validate_saved_activations(model, x)
    assert "validating: 0 of 2 operations" in seen
    assert {"running the model as it is", "looking for what is missing"} <= set(seen)


def test_nothing_is_shown_and_no_thread_started_where_there_is_no_terminal():
    stream, threads = io.StringIO(), threading.active_count()
    with lens.progress(stream, after=0.0), stage("running the model"):
        assert threading.active_count() == threads
        time.sleep(0.05)
    assert stream.getvalue() == ""


def test_without_progress_a_stage_does_nothing():
    with stage("one", lambda: 1 / 0):
        pass
    before = threading.active_count()
    lens.trace(nn.ReLU(), torch.ones(1))
    assert threading.active_count() == before


def test_an_exception_wipes_the_line_and_ends_the_thread():
    terminal = Terminal()

    def fails():
        with quick(terminal), stage("drawing"):
            terminal.wait_for("drawing")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert terminal.getvalue().endswith(WIPE)
    end = time.monotonic() + 10
    while any(thread.name == "lens progress" for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.01)


SLOW = """
import time
from torch import nn, ones

class Slow(nn.Module):
    def forward(self, x):
        time.sleep(2.6)
        return x + 1

def make():
    return Slow(), ones(2)
"""


def test_the_command_line_shows_it_on_standard_error_only(tmp_path, monkeypatch, capsys):
    (tmp_path / "slow.py").write_text(SLOW)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["trace", f"{tmp_path / 'slow.py'}:make"]) == 0
    assert any(line.startswith("lens: running the model: 0 operations, 2 s") for line in terminal.lines)
    out = capsys.readouterr().out
    assert "add_1_1" in out
    assert "running the model" not in out


@pytest.mark.parametrize("silent", ["--quiet", "--json"])
def test_the_command_line_is_silent_when_asked(silent, tmp_path, monkeypatch, capsys):
    (tmp_path / "slow.py").write_text(SLOW.replace("2.6", "0"))
    started = []
    monkeypatch.setattr(lens, "progress", started.append)
    assert main(["trace", f"{tmp_path / 'slow.py'}:make", silent]) == 0
    assert not started
    assert (capsys.readouterr().out == "") == (silent == "--quiet")
