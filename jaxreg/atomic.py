"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write that takes the place of ``path`` once the block ends without an error.

    A reader sees the old file or the new one, never half of either, also after a crash. The
    permissions are those of the old file, or what a plainly opened one would get. A symbolic link
    stays one.

    Raises:
      OSError: it cannot be written.
      ValueError: there is something else than a file, such as a device or a pipe.
    """
    check_replaceable(path)
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    file = open(temporary, "xb")  # noqa: SIM115 - somebody else's is not ours to remove
    try:
        with file:
            if path.exists():
                os.chmod(temporary, path.stat().st_mode & 0o777)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_replaceable(path: str | os.PathLike[str]) -> None:
    """Raise ValueError where ``path`` is there and no file, so that it must not be replaced."""
    if os.path.exists(path) and not os.path.isfile(path):
        kind = "a folder" if os.path.isdir(path) else "no regular file"
        raise ValueError(f"{path} is {kind}")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode())
