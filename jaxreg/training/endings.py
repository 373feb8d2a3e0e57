"""What the commands that train say, and with which status they exit, where one ends early."""

from __future__ import annotations

from absl import flags

from jaxreg.training.loop import Interrupted, NonFiniteError

# What ends a training early without being a fault of the program.
ENDINGS = (
    *(NonFiniteError, Interrupted, KeyboardInterrupt),
    *(flags.Error, ValueError, OSError, ImportError),
)


def ending(error: BaseException) -> tuple[object, int]:
    """Message and exit status for one of `ENDINGS`.

    Returns:
      Status 1 for a non-finite loss, 2 for a mistake of the user's, 128 + n after signal n.
    """
    if isinstance(error, NonFiniteError):
        return error, 1
    if isinstance(error, Interrupted):
        return error, 128 + error.signal
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the same command goes on from what is saved, if anything", 130
    return error, 2
