"""The frame of all commands: reading flags, errors in one line, exit status, compilation cache."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence

import jax
from absl import flags

from jaxreg.data.cache import user_folder

# What a command raises if it cannot do what it is asked for.
ERRORS: tuple[type[BaseException], ...] = (flags.Error, ValueError, OSError, ImportError)


def keep_compilations() -> None:
    """Cache compiled programs on disk, for a fast second start, unless JAX has a cache already."""
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        jax.config.update("jax_compilation_cache_dir", str(user_folder() / "compiled"))


def end_by_exit() -> None:
    """Let SIGTERM end the program as `sys.exit` does, so that half-written files are removed."""

    def end(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second signal must not interrupt the cleaning up
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)


def describe(error: object) -> str:
    """Write an exception or a message in one line; a system's error without its number.

    >>> describe(ValueError("too long  a   line"))
    'too long a line'
    """
    if isinstance(error, OSError) and error.strerror:
        name = error.filename
        return f"{os.fsdecode(name)}: {error.strerror}" if name is not None else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def complain(name: str, *problems: object) -> None:
    """Print problems on standard error, one a line, after the name of the command."""
    for problem in problems:
        if isinstance(problem, BrokenPipeError):  # the reader, such as `head`, has closed the pipe
            continue
        print(printable(f"{name}: {describe(problem)}"), file=sys.stderr)


def fail(name: str, error: BaseException) -> int:
    """Print an error of `ERRORS` in one line; returns the exit status 2."""
    complain(name, error)
    return 2


def printable(text: str) -> str:
    r"""Escape what cannot be printed: file names may hold bytes that are not UTF-8.

    >>> printable(os.fsdecode(b"\xff.png"))
    '\\udcff.png'
    """
    return text.encode(errors="backslashreplace").decode()


def read_arguments(
    options: flags.FlagValues, argv: Sequence[str] | None, doc: str | None
) -> list[str] | None:
    """Read a command's flags; returns the other arguments, or None after printing the help.

    Args:
      options: the command's own flags, ``help`` among them.
      argv: the command line, which starts with the command's name; default ``sys.argv``.
      doc: the text of the help above the flags.

    Raises:
      flags.Error: a flag is unknown or has an invalid value.
    """
    _, *rest = options(list(sys.argv if argv is None else argv))
    if options.help:
        print(f"{doc}\n{options.get_help()}")
        return None
    return rest


def read_flags(
    options: flags.FlagValues, argv: Sequence[str] | None, doc: str | None
) -> list[str] | None:
    """As `read_arguments` for a command that has only flags; ValueError if there is more."""
    rest = read_arguments(options, argv, doc)
    if rest:
        raise ValueError(f"unexpected argument {rest[0]!r}; flags are written --name=value")
    return rest


def run_command(
    name: str,
    options: flags.FlagValues,
    argv: Sequence[str] | None,
    doc: str | None,
    body: Callable[..., int],
    *,
    read: Callable[..., Sequence[str] | None] = read_flags,
    errors: tuple[type[BaseException], ...] = ERRORS,
    failed: Callable[[str, BaseException], int] = fail,
) -> int:
    """Read a command's flags and run it; returns its exit status.

    Args:
      name: the command's name, with which its errors begin.
      options: the command's own flags, ``help`` among them.
      argv: the command line, which starts with the command's name; default ``sys.argv``.
      doc: the text of the help above the flags.
      body: takes the flags, then what ``read`` returns; returns the exit status.
      read: reads the flags, called as `read_arguments`.
      errors: exceptions that end the command without a traceback.
      failed: reports one of these, given ``name``; returns the exit status.
    """
    try:
        rest = read(options, argv, doc)
        return 0 if rest is None else body(options, *rest)
    except errors as error:
        return failed(name, error)
