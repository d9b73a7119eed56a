"""The code blocks of the README and the guides run, and a third-party package is found."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from models import TwoBranches
from nbclient import NotebookClient
from torch import nn

import lens
from lens.cli import _parser, help_of_all
from lens.model_specs import import_torchvision

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


class Documented(nn.Module):
    """Has what the tables of the README and of the migration page name."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        for number in (1, 2, 3, 4):
            layer = nn.Sequential(nn.Sequential(), nn.ReLU())
            layer[0].add_module("conv2", nn.Conv2d(4, 4, 1))
            setattr(self, f"layer{number}", layer)
        self.block = nn.Linear(4, 4)
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x))))).mean((2, 3))
        for _ in range(2):
            x = torch.sin(self.block(x))
        return self.fc(x)


@pytest.mark.parametrize("name", ["README.md", "docs/migrating.md"])
def test_the_cells_of_tables_run(name, tmp_path, monkeypatch):
    """Each cell of a last column that is an expression of lens."""
    monkeypatch.chdir(tmp_path)
    sequence = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 5)).eval()
    model = Documented() if name == "README.md" else sequence
    x = image = torch.randn(1, 3, 8, 8)
    history = lens.trace(model, x)
    resnet = import_torchvision().models.resnet18().eval()
    traced = lens.trace(resnet, torch.randn(1, 3, 64, 64), save="none")
    names = {"model": model, "x": x, "image": image, "history": history, "lens": lens, "f": torch.nn.Identity()}
    names |= {"a": lens.trace(model, x), "b": lens.trace(model, torch.randn(2, 3, 8, 8))}
    cells = [
        row.rpartition("| ")[2] for row in (ROOT / name).read_text(encoding="utf-8").splitlines() if row[:1] == "|"
    ]
    ran = [
        code for cell in cells for code in re.findall(r"`([^`]+)`", cell) if re.search(r"\b(lens\.\w|history\b)", code)
    ]
    for code in ran:
        if code.startswith("with "):
            continue
        chosen = {"model": resnet, "history": traced} if "layer4" in code and name != "README.md" else {}
        eval(code, names | chosen)  # a cell that raises fails the test
    assert len(ran) > 20


def test_the_command_lines_of_the_pages_are_understood():
    """And every command of the program stands in the README."""
    pages = [page.read_text(encoding="utf-8") for page in PAGES]
    blocks = [block for page in pages for block in re.findall(r"```(\w*)\n(.*?)```", page, re.S)]
    texts = [text for language, text in blocks if language in ("", "sh", "console")]
    lines = [line for text in texts for line in text.splitlines() if line.startswith("lens ")]
    lines += [line.strip() for text in help_of_all().values() for line in re.findall(r"^  lens [a-z].*$", text, re.M)]
    for line in lines:
        _parser().parse_args(shlex.split(line.partition("  #")[0])[1:])
    assert len(lines) > 40
    for name in help_of_all():
        assert re.search(rf"^{name}\b", pages[0], re.M)


def test_every_page_is_in_the_navigation():
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        assert f": {page.relative_to(ROOT / 'docs')}\n" in listed + "\n", page


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
    assert "plain_mode: 8" in done.stdout
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
    command_line = (tmp_path / "site" / "reference" / "command-line" / "index.html").read_text(encoding="utf-8")
    assert "--stop-at" in command_line
    assert "lens validate" in command_line


def test_the_notebook_runs(tmp_path):
    notebook = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    done = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/svg+xml" in output.get("data", {}) for output in outputs)
    assert outputs[-1]["data"]["text/plain"] == "True"
