"""Write files whole or not at all, and lock them against other runs."""

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
    """Open a temporary file that replaces ``path`` when the block ends without an error.

    A reader sees the old file or the new one, never part of one, even after a crash. The new file
    gets the permissions of the old one, or the default ones. A symbolic link stays a link.

    Raises:
      OSError: the file cannot be written.
      ValueError: ``path`` is something else than a file, such as a device or a pipe.
    """
    check_replaceable(path)
    target = Path(os.path.realpath(path))
    # Not the target's name with a suffix, which may be longer than the file system allows.
    temporary = target.with_name(f".jaxreg-{secrets.token_hex(8)}")
    with naming(path, str(temporary)):
        # Opened outside of the try, so that another process's file is not removed.
        file = open(temporary, "xb")  # noqa: SIM115
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
    """Make OSErrors that name no file, or the temporary one, name ``path`` instead."""
    try:
        yield
    except OSError as error:
        if type(error) is OSError and error.errno is None:  # NumPy's, which only counts bytes
            raise OSError(f"{path}: not written whole, is the disk full? ({error})") from error
        if error.errno is None or error.filename not in (None, temporary):
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def check_replaceable(path: str | os.PathLike[str]) -> None:
    """Raise ValueError if ``path`` exists and is not a regular file."""
    if os.path.exists(path) and not os.path.isfile(path):
        kind = "a folder" if os.path.isdir(path) else "no regular file"
        raise ValueError(f"{path} is {kind}")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode())


def lock(file: IO[Any]) -> bool:
    """Lock an open file until it is closed; returns False if another process has locked it.

    On Windows, and on file systems without locks, nothing is locked and the result is True.
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
