"""The code blocks of the README and the guides run, and a third-party package is found."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from models import TwoBranches
from nbclient import NotebookClient

import lens

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TABLES = ("operator-coverage.md", "private-names.md", "zoo.md")  # without code
PAGES = [page for page in PAGES if page.name not in TABLES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    assert blocks
    namespace = {"__name__": page.stem}
    for block in blocks:
        exec(compile(block, str(page), "exec"), namespace)


def test_a_third_party_package_is_found(tmp_path):
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    source = tmp_path / "source"
    subprocess.run(["cp", "-r", str(ROOT / "examples" / "plugin"), str(source)], check=True)
    subprocess.run([*install, "--target", str(tmp_path / "site"), str(source)], check=True)
    trace = lens.trace(TwoBranches(), torch.ones(2, 4)).save(tmp_path / "t.lens")
    script = f"""
import sys
sys.path.insert(0, {str(tmp_path / "site")!r})
import torch, lens
from lens.cli import main
assert main(["passes"]) == 0
assert main(["show", {trace!r}, "--pipeline", "traffic", "--time"]) == 0
history = lens.trace(torch.nn.ReLU(), torch.ones(4), passes="granularity,labels,traffic")
from lens_intensity.traffic import Traffic
assert history.graph[Traffic].nbytes == (32,)
again = lens.load(history.save({str(tmp_path / "u.lens")!r}))
assert again.graph[Traffic].nbytes == (32,)
assert lens.trace(torch.nn.ReLU(), torch.ones(4), backend="plain_mode").graph.meta.backend == "plain_mode"
assert main(["backends"]) == 0
assert main(["export", {trace!r}, "--to", "edges"]) == 0
assert main(["export", "--list"]) == 0
sys.exit(main(["conform", "plain_mode"]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "traffic" in done.stdout
    assert "linear_0 -> relu_1" in done.stdout
    assert "edges" in done.stdout.split("model-explorer")[0]  # in the list, among lens's own
    assert "sees functions, reads, scopes, sites" in done.stdout
    assert "plain_mode: 7" in done.stdout
    # Without the package, the facet is kept as it is.
    assert "traffic" in {
        facet.original for facet in lens.load(tmp_path / "u.lens").graph.facets if hasattr(facet, "original")
    }


def test_every_private_name_of_torch_is_listed():
    listed = (ROOT / "docs" / "private-names.md").read_text(encoding="utf-8")
    sources = [p for p in (ROOT / "lens").rglob("*.py") if not p.match("*_cases.py")]
    pattern = r"\b(?:torch|overrides)\.(?:[a-zA-Z.]*\.)?_[a-zA-Z][a-zA-Z_]*(?:\.[A-Za-z_]+)*"
    used = {name for path in sources for name in re.findall(pattern, path.read_text(encoding="utf-8"))}
    words = set(re.findall(r"[A-Za-z_]+", listed))
    private = {word for name in used for word in name.split(".") if word.startswith("_") and not word.startswith("__")}
    assert {"_push_mode", "_functorch"} <= private
    assert private <= words


def test_the_site_builds(tmp_path):
    """Without network, and without a broken link."""
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "site" / "reference" / "history" / "index.html").read_text(encoding="utf-8")
    assert "tensor_contents" in reference
    assert (tmp_path / "site" / "img" / "rolled.svg").exists()


def test_the_notebook_runs(tmp_path):
    notebook = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    done = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/svg+xml" in output.get("data", {}) for output in outputs)
    assert outputs[-1]["data"]["text/plain"] == "True"
