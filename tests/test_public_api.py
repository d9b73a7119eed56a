"""The public names and their signatures, as users see them; importing lens; types for users."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lens

HERE = Path(__file__).parent
SNAPSHOT = HERE / "public_api.txt"


def line_of(owner: str, name: str, member: object) -> str:
    if isinstance(member, property):
        return f"{owner}.{name}: {inspect.signature(member.fget).return_annotation}"
    if isinstance(member, (classmethod, staticmethod)):
        member = member.__func__
    if inspect.isclass(member):
        return f"{owner}.{name}: class"
    if callable(member):
        return f"{owner}.{name}{inspect.signature(member)}"
    if hasattr(member, "func"):  # a cached property
        return f"{owner}.{name}: {inspect.signature(member.func).return_annotation}"
    return f"{owner}.{name}: {type(member).__name__}"


def public_api() -> str:
    lines = [line_of("lens", name, getattr(lens, name)) for name in sorted(lens.__all__)]
    for cls in (lens.ModelHistory, lens.OpEntry, lens.LayerEntry):
        members = {name: inspect.getattr_static(cls, name) for name in dir(cls) if not name.startswith("_")}
        lines += [line_of(cls.__name__, name, member) for name, member in sorted(members.items())]
    return "\n".join(lines) + "\n"


def test_the_public_names_are_those_of_the_snapshot():
    """After a wanted change: ``LENS_UPDATE_SNAPSHOT=1 python -m pytest tests/test_public_api.py``."""
    if os.environ.get("LENS_UPDATE_SNAPSHOT"):
        SNAPSHOT.write_text(public_api(), encoding="utf-8")
    assert public_api() == SNAPSHOT.read_text(encoding="utf-8")


def test_at_most_25_public_names():
    assert len(lens.__all__) <= 25
    assert set(dir(lens)) == set(lens.__all__)


def test_every_public_member_is_documented():
    for cls in (lens.ModelHistory, lens.OpEntry, lens.LayerEntry):
        for name in dir(cls):
            if not name.startswith("_"):
                assert inspect.getdoc(inspect.getattr_static(cls, name)), f"{cls.__name__}.{name}"


@pytest.mark.parametrize("path", sorted(Path(lens.__file__).parent.glob("*.py")), ids=lambda path: path.name)
def test_classes_of_the_users_side_are_small(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            assert node.end_lineno - node.lineno < 250, node.name


def test_importing_lens_imports_no_torch_and_little_else():
    script = """
import sys
before = set(sys.modules)
import lens
new = set(sys.modules) - before
assert "torch" not in sys.modules and "numpy" not in sys.modules, new
assert not {name for name in new if name.split(".")[0] not in (*sys.stdlib_module_names, "lens")}, new
assert {name for name in new if name.startswith("lens")} == {"lens"}, new
import lens.cli
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_strict_type_checker_is_content_with_what_users_write(tmp_path):
    pytest.importorskip("mypy", reason="mypy is in the extra `lint`; `make lint` checks this file too")
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import lens, torch\n"
        "history = lens.load('x')\n"
        "number: int = history.one('relu_1').layer_label\n"
        "history.layers(typ='relu')\n"
        "history.summary('tme')\n"
        "lens.get_model_activations(torch.nn.ReLU(), 0, transfrom=torch.half)\n"
        "lens.show_model_graph(torch.nn.ReLU(), 0, view='sideways')\n"
        "lens.trace(torch.nn.ReLU(), 0, stop_at=3)\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "mypy", "--strict", str(HERE / "typed_user.py"), str(wrong)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE.parent)
    errors = [line for line in done.stdout.splitlines() if "error:" in line and not line.startswith("lens/")]
    assert [line.rpartition("/")[2].partition(": ")[0] for line in errors] == [
        "wrong.py:3",
        "wrong.py:4",
        "wrong.py:5",
        "wrong.py:6",
        "wrong.py:7",
        "wrong.py:8",
    ], done.stdout
