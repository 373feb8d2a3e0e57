"""Files that are written whole or not at all, and by one run at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO


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
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".jaxreg-{secrets.token_hex(8)}")  # a long name may be the limit
    with naming(path, str(temporary)):
        file = open(temporary, "xb")  # noqa: SIM115 - somebody else's is not ours to remove
        try:
            with file:
                if target.exists():
                    os.chmod(temporary, target.stat().st_mode & 0o777)
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def naming(path: str | os.PathLike[str], temporary: str | None = None) -> Iterator[None]:
    """Let a system's error that names no file, or a temporary one, name the file that is meant."""
    try:
        yield
    except OSError as error:
        if type(error) is OSError and error.errno is None:  # as NumPy's, which tells but of bytes
            raise OSError(f"{path}: not written whole, is the disk full? ({error})") from error
        if error.errno is None or error.filename not in (None, temporary):
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def check_replaceable(path: str | os.PathLike[str]) -> None:
    """Raise ValueError where ``path`` is there and no file, so that it must not be replaced."""
    if os.path.exists(path) and not os.path.isfile(path):
        kind = "a folder" if os.path.isdir(path) else "no regular file"
        raise ValueError(f"{path} is {kind}")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode())


def lock(file: IO[Any]) -> bool:
    """Keep other runs out of an open file until it is closed; False where one is in it.

    Nobody is kept out on Windows, and where the file system knows no locks.
    """
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
            raise
    return True
