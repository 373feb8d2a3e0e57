"""Messages and exit statuses of the commands that train, where a training ends early."""

from __future__ import annotations

from jaxreg.command_line import ERRORS, complain
from jaxreg.training.loop import Interrupted, NonFiniteError

# Exceptions that end a training early and are not bugs.
ENDINGS = (NonFiniteError, Interrupted, KeyboardInterrupt, *ERRORS)


def failed(name: str, error: BaseException) -> int:
    """Report on standard error why a training ended, and return the exit status.

    Args:
      name: name of the command, with which the message begins.
      error: one of `ENDINGS`.

    Returns:
      1 for a non-finite loss, 128 + n after signal n, 2 for any other error.
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
