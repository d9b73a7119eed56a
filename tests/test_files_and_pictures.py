"""Trace files and pictures."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import msgpack
import pytest
import torch
from models import InPlaceThroughView, TwoBranches

import lens
from lens.errors import FileFormatError, RenderError


@pytest.fixture
def history():
    return lens.trace(TwoBranches(), torch.ones(2, 4), seed=0)


def test_a_history_comes_back_from_its_file(history, tmp_path):
    path = history.save(tmp_path / "sub" / "trace.lens")
    loaded = lens.load(path)
    assert loaded.graph == history.graph
    for entry, other in zip(history, loaded, strict=True):
        assert torch.equal(entry.tensor_contents, other.tensor_contents)
    assert str(loaded) == str(history)
    assert list(tmp_path.glob("sub/*")) == [tmp_path / "sub" / "trace.lens"]


def test_effects_and_reads_come_back(tmp_path):
    history = lens.trace(InPlaceThroughView(), torch.ones(2, 4))
    assert lens.load(history.save(tmp_path / "t.lens", payloads=False)).graph == history.graph


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "damaged"),
        (lambda data: b"", "damaged"),
        (lambda data: b"\x93\x01\x02\x03", "not a lens trace"),
        (lambda data: msgpack.packb({"format": "lens-trace", "version": 99}), "version 99"),
        (lambda data: msgpack.packb({"format": "lens-trace", "version": 1}), "damaged"),
        (lambda data: data.replace(b"\xa8operands\x92", b"\xa8operands\x91"), "damaged|describe"),
    ],
)
def test_damaged_files_give_a_typed_error(history, tmp_path, damage, message):
    path = tmp_path / "t.lens"
    history.save(path)
    data = path.read_bytes()
    assert damage(data) != data
    path.write_bytes(damage(data))
    with pytest.raises(FileFormatError, match=message):
        lens.load(path)


def test_unreadable_and_unwritable_paths(history, tmp_path):
    with pytest.raises(FileFormatError, match="cannot be read"):
        lens.load(tmp_path / "missing.lens")
    blocker = tmp_path / "file"
    blocker.write_text("x")
    with pytest.raises(FileFormatError, match="cannot be written"):
        history.save(blocker / "t.lens")
    with pytest.raises(RenderError, match="cannot be written"):
        history.draw(blocker / "t.svg")


def test_a_pipe_is_written_into_and_stays(history, tmp_path):
    writers = {"t.lens": history.save, "t.svg": history.draw, "t.csv": history.export}
    for name, write in writers.items():
        pipe = tmp_path / name
        os.mkfifo(pipe)
        with ThreadPoolExecutor() as pool:
            read = pool.submit(pipe.read_bytes)
            write(pipe)
            assert pipe.is_fifo()
            pipe.with_name(f"read_from_{name}").write_bytes(read.result(timeout=60))
    assert lens.load(tmp_path / "read_from_t.lens").graph == history.graph
    assert len(list(tmp_path.iterdir())) == 2 * len(writers)


@pytest.mark.parametrize("old", ["old", None])
def test_a_link_is_followed(history, tmp_path, old):
    link, real = tmp_path / "link.lens", tmp_path / "real.lens"
    link.symlink_to("real.lens")
    if old is not None:
        real.write_text(old)
    history.save(link)
    assert link.is_symlink()
    assert lens.load(real).graph == history.graph


def test_values_stand_beside_the_file_that_a_link_leads_to(history, tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.lens"
    link.symlink_to("real/trace.lens")
    history.save(link, beside=True)
    assert (tmp_path / "real" / "trace.lens.safetensors").exists()
    for path in (link, tmp_path / "real" / "trace.lens"):
        loaded = lens.load(path)
        assert all(loaded.payloads.read(value) is not None for value in loaded.payloads)


def test_pictures_are_written(history, tmp_path):
    assert b"<svg" in open(history.draw(tmp_path / "a.svg"), "rb").read()
    assert open(history.draw(tmp_path / "a.png"), "rb").read().startswith(b"\x89PNG")
    assert open(history.draw(tmp_path / "a.dot")).read().startswith("digraph")
    with pytest.raises(RenderError, match=r"\.svg"):
        history.draw(tmp_path / "a.gif")


def test_a_trace_opens_prints_and_draws_without_torch(history, tmp_path):
    history.save(tmp_path / "t.lens")
    script = f"""
import sys
sys.modules["torch"] = None
import lens
from lens.cli import main
from lens.ir.printer import print_graph
from lens.passes.manager import PassManager
from lens.passes.labels import LabelsPass
history = lens.load({str(tmp_path / "t.lens")!r})
graph = history.graph
print(history)
print(print_graph(graph))
assert PassManager((LabelsPass(),)).run(graph).graph.facets
history.draw({str(tmp_path / "t.svg")!r})
history.draw({str(tmp_path / "u.png")!r}, view="rolled", depth=1, color_by="time", theme="dark", direction="right")
assert history.to_pydot().to_string()
assert len(history.to_networkx()) == len(history) == len(history.to_pandas())
for name in ("csv", "parquet", "graphml", "mermaid", "model-explorer", "json", "dot"):
    history.export({str(tmp_path / "out")!r}, name)
    assert main(["export", {str(tmp_path / "t.lens")!r}, "--to", name, "-o", {str(tmp_path / "cli")!r}]) == 0
assert main(["show", {str(tmp_path / "t.lens")!r}]) == 0
history.save({str(tmp_path / "again.lens")!r})
try:
    history["relu_1"].tensor_contents
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "linear_1_1" in done.stdout
    assert "PayloadError" in done.stdout
    assert (tmp_path / "t.svg").exists()
    assert (tmp_path / "again.lens").read_bytes() == (tmp_path / "t.lens").read_bytes()


def test_importing_lens_does_not_import_torch():
    script = "import sys, lens; assert 'torch' not in sys.modules; assert len(lens.__all__) <= 25"
    subprocess.run([sys.executable, "-c", script], check=True)
