"""Write a trained network into a single file, which `jaxreg.load` reads.

    python -m jaxreg.export --workdir=runs/compact32 --out=compact32.safetensors

The file holds the weights that the network is used with and the configuration of its training, but
not the optimiser's state. The networks of the package (jaxreg/weights) are such files.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from jaxreg.command_line import end_by_exit, run_command


def _flags() -> flags.FlagValues:
    """A flag set separate from absl's global one, so that names cannot clash with others'."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "Folder of the training run.", flag_values=values)
    flags.DEFINE_string("out", None, "The file to write, *.safetensors.", flag_values=values)
    dtypes, dtype = ["float32", "float16"], "Data type of the weights in the file."
    flags.DEFINE_enum("dtype", dtypes[0], dtypes, dtype, flag_values=values)
    flags.DEFINE_bool("help", False, "Show this help.", short_name="h", flag_values=values)
    return values


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 if it cannot do what it is asked for."""
    return run_command("jaxreg.export", _flags(), argv, __doc__, _export)


def _export(options: flags.FlagValues) -> int:
    for name in ("workdir", "out"):
        if not options[name].value:
            raise ValueError(f"--{name} is missing")
    from jaxreg.models.weights import write_weights
    from jaxreg.network_files import SUFFIX
    from jaxreg.training.loading import load

    out = Path(os.path.expanduser(options.out))
    if out.suffix != SUFFIX:
        raise ValueError(f"--out={out} must end in {SUFFIX}")
    network = load(options.workdir)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_weights(network, out, options.dtype)
    print(f"{out}: {network.parameter_count:,} weights after {network.step} steps")
    return 0


if __name__ == "__main__":
    end_by_exit()
    sys.exit(main())
