"""``python -m jaxreg.train``: train a network, or continue an interrupted run.

Without flags the quick start is run into ``runs/quickstart``. Any field of the configuration is
set by its name, ``--batch_size=64`` or ``--network.hidden=512``.

Several processes train together, each on the devices it sees, if each is given
``--coordinator=HOST:PORT --processes=N --process_id=0..N-1``, or ``--distributed`` if a cluster
(Slurm, Open MPI, Kubernetes, Cloud TPU) provides these three. They must share the workdir.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from absl import flags

from jaxreg.command_line import keep_compilations, run_command
from jaxreg.models.fields import flat_fields
from jaxreg.training.configs import CONFIGS
from jaxreg.training.devices import join_processes
from jaxreg.training.endings import ENDINGS, failed
from jaxreg.training.loop import train


def _flags() -> flags.FlagValues:
    """A flag set separate from absl's global one, so that names cannot clash with others'."""
    values = flags.FlagValues()
    text, number, switch = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_bool
    text("config", "quickstart", f"One of {', '.join(CONFIGS)}.", flag_values=values)
    text("workdir", None, "The run's folder; default runs/CONFIG.", flag_values=values)
    text("coordinator", None, "HOST:PORT of the first of several processes.", flag_values=values)
    number("processes", None, "How many there are.", 1, flag_values=values)
    number("process_id", None, "Which this is, from 0.", 0, flag_values=values)
    switch("distributed", False, "Ask the cluster for these three.", flag_values=values)
    switch("help", False, "Say what can be set.", short_name="h", flag_values=values)
    return values


def _read(
    options: flags.FlagValues, argv: Sequence[str] | None, doc: str | None
) -> list[str] | None:
    """Read the flags as `read_arguments` does; returns the others, fields of the configuration."""
    _, *overrides = options(list(sys.argv if argv is None else argv), known_only=True)
    config = options.config
    if config not in CONFIGS:
        raise ValueError(f"config must be one of {', '.join(CONFIGS)}, got {config!r}")
    if options.help:
        print(f"{doc}\n{options.get_help()}\nfields, with their values in {config}:")
        print(*(f"  --{k}={value}" for k, value in flat_fields(CONFIGS[config]).items()), sep="\n")
        return None
    return overrides


def _train(options: flags.FlagValues, *overrides: str) -> int:
    config = CONFIGS[options.config].override(overrides)
    placed = (options.coordinator, options.processes, options.process_id)
    if options.distributed or placed != (None, None, None):
        join_processes(*placed)
    train(config, options.workdir or f"runs/{options.config}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status.

    That is 0 when training is done, 1 if the loss is not finite, 2 for a mistake of the user's and
    128 + n after signal n.
    """
    name, options = "jaxreg.train", _flags()
    return run_command(
        name, options, argv, __doc__, _train, read=_read, errors=ENDINGS, failed=failed
    )


def _is_news(record: logging.LogRecord) -> bool:
    """False for the tracebacks that orbax logs, one a thread, of exceptions that it also raises."""
    return not (record.exc_info and "orbax" in record.pathname)


if __name__ == "__main__":
    logging.getLogger("absl").addFilter(_is_news)
    keep_compilations()
    sys.exit(main())
