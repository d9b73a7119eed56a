"""Timing, dumps, verify levels, on the manager and on the command line."""

import pytest
import torch
from attrs import evolve
from models import Conditional

import lens
from lens.cli import main
from lens.errors import PassError
from lens.ir.parser import parse
from lens.passes.instruments import DumpAfter, Timing
from lens.passes.manager import PassManager, PassRecord
from lens.passes.pipeline import parse_pipeline
from lens.registry import pass_classes, providers


@pytest.fixture
def history():
    return lens.trace(Conditional(), torch.ones(2))


def test_timing_and_dumps(history, tmp_path):
    timing = Timing()
    passes = parse_pipeline("orphans,labels", pass_classes())
    manager = PassManager(passes, providers(), "full", [timing, DumpAfter(tmp_path / "dump")])
    result = manager.run(evolve(history.graph, facets=()))
    assert [record.name for record in timing.records] == ["orphans", "recurrence", "labels"]
    assert "us per op" in str(timing)
    files = sorted(path.name for path in (tmp_path / "dump").iterdir())
    assert files == ["01-orphans.txt", "02-recurrence.txt", "03-labels.txt"]
    assert parse((tmp_path / "dump" / "03-labels.txt").read_text()) == result.graph


def test_an_unwritable_dump_folder_is_a_typed_error(history, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PassError, match="cannot be dumped"):
        PassManager(
            parse_pipeline("labels", pass_classes()), providers(), instruments=[DumpAfter(tmp_path / "file")]
        ).run(history.graph)


def test_pipelines_on_the_command_line(history, tmp_path, capsys):
    trace = history.save(tmp_path / "t.lens")
    arguments = ["show", trace, "--pipeline", "recurrence,labels", "--time", "--dump-after", str(tmp_path / "d")]
    assert main([*arguments, "--verify", "full"]) == 0
    out = capsys.readouterr().out
    assert "us per op" in out
    assert "gt_1_3" in out
    assert (tmp_path / "d" / "02-labels.txt").exists()
    assert main(["show", trace, "--pipeline", "nothing"]) == 2
    assert "known passes" in capsys.readouterr().err


def test_the_list_of_passes(capsys):
    assert main(["passes"]) == 0
    out = capsys.readouterr().out
    for name, cls in pass_classes().items():
        assert name in out
        for kind in cls.provides:
            assert kind.name in out


def test_the_columns_of_a_table_of_times_are_as_wide_as_the_longest_name():
    timing = Timing()
    lengths = {len(line) for line in str(timing).splitlines()}
    for name in ("a", "a long name"):
        timing.after(PassRecord(name, 0.5, 3, 2), 1, None)
    assert len({len(line) for line in str(timing).splitlines()}) == len(lengths) == 1
    assert str(timing).startswith("pass         ")
    assert str(Timing()).startswith("pass  ")


def test_a_dump_folder_is_made_with_those_around_it(tmp_path):
    DumpAfter(tmp_path / "a" / "b").after(PassRecord("one", 0.0, 0, 0), 1, parse("graph {\n}\n"))
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["01-one.txt"]
