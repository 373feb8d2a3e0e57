"""What the commands that train say, and with which status they exit, where one ends early."""

from __future__ import annotations

from absl import flags

from jaxreg.command_line import complain
from jaxreg.training.loop import Interrupted, NonFiniteError

# What ends a training early without being a fault of the program.
ENDINGS = (
    *(NonFiniteError, Interrupted, KeyboardInterrupt),
    *(flags.Error, ValueError, OSError, ImportError),
)


def failed(name: str, error: BaseException) -> int:
    """Say on standard error which of `ENDINGS` ended a training; returns the exit status.

    Args:
      name: of the command, as its errors begin.
      error: one of `ENDINGS`.

    Returns:
      1 for a non-finite loss, 2 for a mistake of the user's, 128 + n after signal n.
    """
    message: object = error
    status = 2
    if isinstance(error, NonFiniteError):
        status = 1
    elif isinstance(error, Interrupted):
        status = 128 + error.signal
    elif isinstance(error, KeyboardInterrupt):
        message = "interrupted; the same command goes on from what is saved, if anything"
        status = 130
    complain(name, message)
    return status
