"""Pictures: the DOT text laid out by a program, ``dot`` if it is installed, else the one in ``graphviz-pure``."""

from __future__ import annotations

import shutil
import subprocess
import sys
from os import PathLike
from pathlib import Path

from lens.errors import RenderError
from lens.render.files import path_of

FORMATS = ("svg", "png", "pdf", "dot")
#: What the program in graphviz-pure can write.
_PURE_FORMATS = ("svg", "png", "json", "json0", "dot")
_TIMEOUT_SECONDS = 600
#: What graphviz writes into an SVG for Arial, and the fonts of the same widths that other systems have.
_FONTS, _SAME_WIDTH = b'font-family="Arial"', b'font-family="Arial,Helvetica,Liberation Sans,Nimbus Sans,sans-serif"'


def format_of(path: str | PathLike[str], kind: str | None = None) -> str:
    """The format of a picture: the one asked for, else what the path ends in. Raises RenderError if it is unknown."""
    suffix = path_of(path).suffix.removeprefix(".").lower()
    kind = suffix if kind is None else kind
    if not isinstance(kind, str) or kind not in FORMATS:
        raise RenderError(
            f"lens cannot draw {str(kind)[:40] or 'a file without an ending'!r}",
            where=str(path),
            hint=f"let the path end in one of .{', .'.join(FORMATS)}",
        )
    return kind


def lay_out(dot_text: str, kind: str, *, placed: bool = False) -> bytes:
    """The picture of a DOT text.

    Args:
        dot_text: The text.
        kind: svg, png, pdf, dot (the text with places), json (the layout as data), json0 (without the drawn text).
        placed: Whether the text has the places of everything already.

    Raises:
        RenderError: if no program for it is installed, or if it fails.
    """
    program = program_for(kind)
    try:
        done = subprocess.run(
            [program, "-Knop2" if placed else "-Kdot", f"-T{kind}"],
            input=dot_text.encode(),
            capture_output=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise RenderError(
            f"the layout took longer than {_TIMEOUT_SECONDS} s",
            where=f"{dot_text.count('->')} edges",
            hint='write the text instead: path="graph.dot"',
        ) from error
    if done.returncode != 0 or not done.stdout:
        raise RenderError(
            f"{Path(program).name} failed: {done.stderr.decode(errors='replace').strip()[:500]}",
            where=f"format {kind}",
            hint='write the text instead, path="graph.dot", and report this picture',
        )
    return done.stdout.replace(_FONTS, _SAME_WIDTH) if kind == "svg" else done.stdout


def program_for(kind: str) -> str:
    """The program that can write such a picture. Raises RenderError if there is none."""
    dot = shutil.which("dot")
    if dot is not None:
        return dot
    if kind in _PURE_FORMATS:
        beside = Path(sys.executable).with_name("graphviz-pure")
        pure = str(beside) if beside.exists() else shutil.which("graphviz-pure")
        if pure is not None:
            return pure
        hint = "pip install graphviz-pure, or install graphviz"
    else:
        hint = f"install graphviz (its program `dot` writes {kind}), or draw svg or png"
    raise RenderError(f"no program here can draw {kind}", where=f"format {kind}", hint=hint)
