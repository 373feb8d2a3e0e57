"""``python -m jaxreg.train``: train a network, or go on with a run that was cut off.

Without flags the quick start is run into ``runs/quickstart``. Any field of the configuration is
set by its name, ``--batch_size=64`` or ``--network.hidden=512``.

Several processes train together, each on the devices it sees, if each is given
``--coordinator=HOST:PORT --processes=N --process_id=0..N-1``, or ``--distributed`` where a cluster
(Slurm, Open MPI, Kubernetes, Cloud TPU) tells them the same. They must share the workdir.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from absl import flags

from jaxreg.command_line import keep_compilations
from jaxreg.training.configs import CONFIGS
from jaxreg.training.devices import join_processes
from jaxreg.training.endings import ENDINGS, failed
from jaxreg.training.loop import train

FLAGS = flags.FlagValues()
flags.DEFINE_string("config", "quickstart", f"One of {', '.join(CONFIGS)}.", flag_values=FLAGS)
flags.DEFINE_string("workdir", None, "The run's folder; default runs/CONFIG.", flag_values=FLAGS)
flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of the first of several processes.", flag_values=FLAGS
)
flags.DEFINE_integer("processes", None, "How many there are.", 1, flag_values=FLAGS)
flags.DEFINE_integer("process_id", None, "Which this is, from 0.", 0, flag_values=FLAGS)
flags.DEFINE_bool("distributed", False, "Ask the cluster for these three.", flag_values=FLAGS)
flags.DEFINE_bool("help", False, "Say what can be set.", short_name="h", flag_values=FLAGS)


def _help(config: str) -> str:
    from jaxreg.models.fields import flat_fields

    lines = [__doc__ or "", FLAGS.get_help(), f"fields, with their values in {config}:"]
    lines += [f"  --{name}={value}" for name, value in flat_fields(CONFIGS[config]).items()]
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Exit status: 0 done, 1 non-finite, 2 a mistake of the user's, 128 + n after signal n."""
    try:
        FLAGS.unparse_flags()
        _, *overrides = FLAGS(argv, known_only=True)
        if FLAGS.config not in CONFIGS:
            raise ValueError(f"config must be one of {', '.join(CONFIGS)}, got {FLAGS.config!r}")
        if FLAGS.help:
            print(_help(FLAGS.config))
            return 0
        config = CONFIGS[FLAGS.config].override(overrides)
        placed = (FLAGS.coordinator, FLAGS.processes, FLAGS.process_id)
        if FLAGS.distributed or placed != (None, None, None):
            join_processes(*placed)
        train(config, FLAGS.workdir or f"runs/{FLAGS.config}")
    except ENDINGS as error:
        return failed("jaxreg.train", error)
    return 0


def _is_news(record: logging.LogRecord) -> bool:
    """Whether it isn't one of the tracebacks that orbax logs, one a thread, of what it raises."""
    return not (record.exc_info and "orbax" in record.pathname)


if __name__ == "__main__":
    logging.getLogger("absl").addFilter(_is_news)
    keep_compilations()
    sys.exit(main(sys.argv))
