"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from lens.errors import RenderError


def write_whole(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file beside its place, flush it to the disk, and move it there. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def write_out(path: Path, content: str | bytes) -> None:
    """Write an export or a picture, whole or not at all. Raises RenderError if the path cannot be written."""
    try:
        write_whole(path, [content.encode() if isinstance(content, str) else content])
    except OSError as error:
        raise RenderError(
            f"the file cannot be written: {error.strerror}",
            where=str(path),
            hint="choose a path in a folder that you may write to",
        ) from error


def _umask() -> int:
    """The permissions that new files do not get; there is no way to ask but to set them."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
