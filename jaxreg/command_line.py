"""What the commands share: flags, errors in one line, keeping what they compile, their end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence

import jax
from absl import flags

from jaxreg.data.cache import user_folder


def keep_compilations() -> None:
    """Keep what XLA compiles on disk, so that a second start is fast; unless JAX is told where."""
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        jax.config.update("jax_compilation_cache_dir", str(user_folder() / "compiled"))


def end_by_exit() -> None:
    """Let SIGTERM end the program as `sys.exit` does: what is half-written is then removed."""

    def end(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # lest a second one end that halfway
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)


def describe(error: object) -> str:
    """An error, or what is said of one, in one line; a system's error without its number.

    >>> describe(ValueError("too long  a   line"))
    'too long a line'
    """
    if isinstance(error, OSError) and error.strerror:
        name = error.filename
        return f"{os.fsdecode(name)}: {error.strerror}" if name is not None else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def run_command(
    name: str,
    options: flags.FlagValues,
    argv: Sequence[str] | None,
    doc: str | None,
    body: Callable[[flags.FlagValues], int],
) -> int:
    """Read a command's flags and run it; returns its exit status.

    Args:
      name: of the command, as its errors begin.
      options: as for `read_flags`.
      argv: likewise.
      doc: likewise.
      body: given the flags once they are read; returns the exit status. What it cannot do, an error
        of flags, ValueError, OSError or ImportError, ends in one line and status 2.
    """
    try:
        return body(options) if read_flags(options, argv, doc) else 0
    except (flags.Error, ValueError, OSError, ImportError) as error:
        complain(name, error)
        return 2


def complain(name: str, *problems: object) -> None:
    """Print what is wrong, a line each, on the standard error of the command of that name."""
    for problem in problems:
        if isinstance(problem, BrokenPipeError):  # as `head` has seen enough
            continue
        print(printable(f"{name}: {describe(problem)}"), file=sys.stderr)


def printable(text: str) -> str:
    r"""A text that can be printed although a file's name in it is not UTF-8.

    >>> printable(os.fsdecode(b"\xff.png"))
    '\\udcff.png'
    """
    return text.encode(errors="backslashreplace").decode()


def read_flags(options: flags.FlagValues, argv: Sequence[str] | None, doc: str | None) -> bool:
    """Read a command's flags; False if it was only asked for help, which is then printed.

    Args:
      options: the command's own flags, ``help`` among them.
      argv: the command line, its name first; default ``sys.argv``.
      doc: what the help says above the flags.

    Raises:
      flags.Error: a flag is unknown or ill-formed.
      ValueError: there is an argument that is no flag.
    """
    rest = options(list(sys.argv if argv is None else argv))
    if options.help:
        print(f"{doc}\n{options.get_help()}")
        return False
    if len(rest) > 1:
        raise ValueError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
    return True
