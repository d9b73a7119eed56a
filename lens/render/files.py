"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory

from lens.errors import InputError, LensError, RenderError
from lens.render.renderer import in_utf8


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty file apart from its place; what the block wrote into it is flushed to the disk and moved there.

    Links are followed; what is no file, such as a pipe or a device, stays and is written into. If the block raises,
    the place is as it was. Raises OSError.
    """
    kind = _kind(path)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        with _poured_into(path) as temporary:
            yield temporary
        return
    place = Path(os.path.realpath(path))
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{secrets.token_hex(4)}.{place.name}")  # an ending may tell the format
    temporary.touch(exist_ok=False)
    mode = (place if place.exists() else temporary).stat().st_mode & 0o777
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(mode)  # the block may have put another file there
        os.replace(temporary, place)
    finally:
        temporary.unlink(missing_ok=True)


def _kind(path: Path) -> int:
    """What stands at a path, or at the end of a link, as the type of its mode; 0 if nothing does."""
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except FileNotFoundError:
        return 0


@contextmanager
def _poured_into(path: Path) -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        temporary = Path(folder) / path.name
        temporary.touch()
        yield temporary
        with temporary.open("rb") as made, path.open("wb") as stream:
            shutil.copyfileobj(made, stream)


def path_of(given: str | PathLike[str]) -> Path:
    """A path that a user gave. Raises InputError if it cannot be one."""
    text = os.fspath(given) if isinstance(given, (str, PathLike)) else given
    if not isinstance(text, str) or not text or "\0" in text:
        raise InputError(
            f"{text!r:.60} (a {type(given).__name__}) is no path", where="path", hint='give text such as "model.svg"'
        )
    return Path(text)


def write_whole(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file from pieces. Raises OSError."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.writelines(chunks)


def write_out(path: Path, content: str | bytes) -> None:
    """Write an export or a picture. Raises RenderError if the path cannot be written.

    Where UTF-8 has no form for a character of a text, as in the name of a file, stands that for unknown ones.
    """
    with writing("the file", path, RenderError):
        write_whole(path, [in_utf8(content).encode() if isinstance(content, str) else content])


@contextmanager
def writing(what: str, path: Path, error: type[LensError]) -> Iterator[None]:
    """Turns an OSError of the block into an error of lens."""
    try:
        yield
    except OSError as cause:
        hint = "choose a path in a folder that you may write to"
        raise error(f"{what} cannot be written: {cause.strerror}", where=str(path), hint=hint) from cause
