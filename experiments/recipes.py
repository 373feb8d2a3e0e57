"""Measure what each part of the training recipe brings to the paper's LSTM, at equal compute.

    python -m experiments.recipes                 # trains the missing rows, then makes the table
    python -m experiments.recipes --only=all,constant_rate

A narrow LSTM of the paper's architecture is trained with the whole recipe of `lstm512_cifar10`, and
with one part of it changed at a time. All see the same number of pairs (--pairs), which determines
most of the compute. Runs are kept in --runs, so that an interrupted command can be continued. The
table shows the finished runs; once it has every row it is written to
experiments/results/tables/recipes.md.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.records import RESULTS
from experiments.running import nameless
from jaxreg.atomic import write_text
from jaxreg.command_line import keep_compilations, run_command
from jaxreg.models.fields import override
from jaxreg.training.checkpoint import read_config
from jaxreg.training.configs import CONFIGS, TrainConfig, changed_fields
from jaxreg.training.endings import ENDINGS, failed
from jaxreg.training.loop import train

# Changes to the whole recipe, as overrides of its fields.
WITHOUT: dict[str, tuple[str, ...]] = {
    "all": (),
    "constant_rate": ("--schedule=constant", "--warmup_steps=0"),
    "unscaled_outputs": ("--network.output_scale=1,1,1",),
    "no_average": ("--average_decay=0",),
    "no_clipping": ("--clip_norm=0",),
    "batch_16": ("--batch_size=16",),
    "batch_1024": ("--batch_size=1024",),
    "chord": ("--angle_loss=chord",),
}
LABELS = {
    "all": "the whole recipe",
    "constant_rate": "constant learning rate",
    "unscaled_outputs": "outputs not scaled",
    "no_average": "no averaging of weights",
    "no_clipping": "gradient not clipped",
    "batch_16": "batches of 16",
    "batch_1024": "batches of 1,024",
    "chord": "chord of the angle in the loss",
}


def recipe(name: str, pairs: int, hidden: int, data: Sequence[str], seed: int) -> TrainConfig:
    """Make the configuration of one row; all see the same number of pairs.

    >>> recipe("batch_16", 16000, 128, ["random"], 0).steps
    1000
    """
    base = CONFIGS["lstm512_cifar10"]
    network: Any = dataclasses.replace(base.network, hidden=hidden)  # type: ignore[type-var]
    config = dataclasses.replace(base, network=network, data=tuple(data), seed=seed)
    config = override(config, WITHOUT[name])
    steps = max(pairs // config.batch_size, 1)
    return dataclasses.replace(
        config,
        steps=steps,
        warmup_steps=min(config.warmup_steps, steps // 20),
        eval_every=steps,
        save_every=steps,
    )


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_list("only", list(WITHOUT), "Rows to train.", flag_values=values)
    flags.DEFINE_integer("pairs", 1_000_000, "That each training sees.", 1, flag_values=values)
    flags.DEFINE_integer("hidden", 128, "Units of a layer.", 1, flag_values=values)
    flags.DEFINE_integer("seed", 0, "Of weights and pairs.", 0, flag_values=values)
    flags.DEFINE_list("data", ["cifar10"], "Image sources.", flag_values=values)
    flags.DEFINE_string("runs", "runs/recipes", "Folder of the trainings.", flag_values=values)
    flags.DEFINE_string("results", str(RESULTS), "Folder of the table.", flag_values=values)
    flags.DEFINE_bool("help", False, "Show this help.", short_name="h", flag_values=values)
    return values


def table(rows: dict[str, dict[str, Any]], config: TrainConfig, pairs: int) -> str:
    """Make the Markdown table from the summaries of the trainings."""
    lines = [
        f"LSTM of the paper's architecture with {config.network.hidden:,} units "  # type: ignore[attr-defined]
        f"({nameless(', '.join(config.data))}; {pairs:,} pairs each, seed {config.seed}); "
        f"errors on {config.eval_pairs:,} held-out pairs, of test images, after training. "
        f"`python -m experiments.recipes --pairs={pairs}`. One seed: differences of a few "
        "hundredths of a pixel or a degree or two mean nothing.",
        "",
        "| recipe | steps | px | degrees | loss (Eq. 5) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        trained = row["trained"]
        lines.append(
            f"| {LABELS[name]} | {row['step']:,} | {trained['translation']:.3f} "
            f"| {trained['rotation']:.2f} | {trained['loss']:.2f} |"
        )
    constant = next(iter(rows.values()))["constant"]
    lines.append(
        f"| best constant answer | | {constant['translation']:.3f} "
        f"| {constant['rotation']:.2f} | {constant['loss']:.2f} |"
    )
    return "\n".join(lines) + "\n"


def _trained(folder: Path, config: TrainConfig) -> dict[str, Any] | None:
    """Read the summary of a finished training of this configuration; None if there is none."""
    path = folder / "summary.json"
    if not path.exists() or changed_fields(read_config(folder), config):
        return None
    return json.loads(path.read_text())


def _rows(options: flags.FlagValues) -> dict[str, dict[str, Any]]:
    """Train the chosen rows, and return the summaries of all rows that are trained."""
    rows = {}
    for name in WITHOUT:
        config = recipe(name, options.pairs, options.hidden, options.data, options.seed)
        folder = Path(options.runs) / f"{name}_{options.hidden}_{options.pairs}_{options.seed}"
        if name in options.only:
            train(config, folder)
        if row := _trained(folder, config):
            rows[name] = row
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status, that of `jaxreg.train` if a training ends early."""
    name, options = "experiments.recipes", _flags()
    return run_command(name, options, argv, __doc__, _recipes, errors=ENDINGS, failed=failed)


def _recipes(options: flags.FlagValues) -> int:
    unknown = [name for name in options.only if name not in WITHOUT]
    if unknown:
        raise ValueError(f"--only={unknown[0]}: there are {', '.join(WITHOUT)}")
    if not options.only:
        raise ValueError("--only is empty")
    rows = _rows(options)
    whole = recipe("all", options.pairs, options.hidden, options.data, options.seed)
    text = table(rows, whole, options.pairs)
    print(text)
    missing = [name for name in WITHOUT if name not in rows]
    if missing:
        print(f"not recorded, for {', '.join(missing)} are not trained yet", file=sys.stderr)
        return 0
    path = Path(options.results) / "tables" / "recipes.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return 0


if __name__ == "__main__":
    keep_compilations()
    sys.exit(main())
