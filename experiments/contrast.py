"""Count the keypoints and failures of feature methods in images of lower contrast.

On the same image sets and with its defaults, SIFT finds 8 to 30 times as many keypoints as the
paper's Tables 3 and 6 count. At 96x96, where they find any, AKAZE and ORB find 37 to 161 times as
many, and SURF 1.1 to 1.3 times. This script tests one possible reason, a lack of contrast. No
single gain gives all of the paper's counts: most are reached between .15 and .3, that of AKAZE on
random96 between .5 and 1::

    python -m experiments.contrast --gains=1,0.25,0.2 --suites=cifar10,stl10

Every image is multiplied by the gain before it is rounded to grey levels. The table also has the
paper's counts; it is written to experiments/results/tables/keypoint_contrast.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from baselines import features
from experiments import paper
from experiments.records import RESULTS
from experiments.rendering import markdown_table, rate, value
from jaxreg.atomic import write_text
from jaxreg.command_line import run_command
from jaxreg.evaluation.protocol import SuiteData, build_suite

METHODS = ("akaze", "orb", "sift")  # OpenCV's own; SURF may be another library's


def measure(
    method: features.FeatureMethod, data: SuiteData, gain: float
) -> tuple[np.ndarray, float]:
    """Return the keypoint counts of the originals, and the share of pairs without an answer."""
    fixed, moving = data.fixed * gain, data.moving * gain
    answers = [method.register(f, m) for f, m in zip(fixed, moving, strict=True)]
    return features.count_keypoints(method, fixed), float(np.mean([a is None for a in answers]))


def table(suites: list[str], gains: list[float], pairs: int) -> str:
    """Make the Markdown table: counts and failure rates of every method, by suite and gain."""
    header = ["suite", "gain"]
    header += [f"{m.upper()} {what}" for m in METHODS for what in ("keypoints", "fails")]
    body = []
    for suite in suites:
        body.append([suite, "paper", *printed(suite)])
        data = build_suite(suite, pairs)
        for gain in gains:
            line = [suite, f"{gain:g}"]
            for name in METHODS:
                counts, failure = measure(getattr(features, name), data, gain)
                line += [value(float(counts.mean()), float(counts.std())), rate(failure)]
            body.append(line)
    return markdown_table(header, body)


def printed(suite: str) -> list[str]:
    """Return the paper's counts and failure rates for a suite."""
    counts = next(t for t in paper.KEYPOINT_TABLES if suite in t.suites)
    errors = next(t for t in paper.ERROR_TABLES if t.suite == suite)
    cells = []
    for name in METHODS:
        count = counts.rows[name][counts.suites.index(suite)]
        failure = errors.rows[name].failure
        cells += [value(count.mean, count.spread), "" if failure is None else rate(failure)]
    return cells


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    gains = ["1", "0.5", "0.3", "0.25", "0.2", "0.15"]
    flags.DEFINE_list("gains", gains, "Factors of contrast.", flag_values=values)
    flags.DEFINE_list("suites", list(paper.SUITES), "Suites of pairs.", flag_values=values)
    flags.DEFINE_integer("pairs", 384, "Pairs of each suite.", 1, flag_values=values)
    flags.DEFINE_string("results", str(RESULTS), "Folder of the tables.", flag_values=values)
    flags.DEFINE_bool("help", False, "Show this help.", short_name="h", flag_values=values)
    return values


def _gain(text: str) -> float:
    try:
        gain = float(text)
    except ValueError:
        gain = 0.0
    if not 0.0 < gain <= 1.0:
        raise ValueError(f"--gains must be numbers in (0, 1], got {text!r}")
    return gain


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 where it cannot do what was asked for."""
    return run_command("experiments.contrast", _flags(), argv, __doc__, _contrast)


def _contrast(options: flags.FlagValues) -> int:
    unknown = [name for name in options.suites if name not in paper.SUITES]
    if unknown:
        raise ValueError(f"--suites={unknown[0]}: there are {', '.join(paper.SUITES)}")
    text = table(options.suites, [_gain(g) for g in options.gains], options.pairs)
    print(text)
    title = "# Keypoints in images of lower contrast\n\n"
    about = f"Originals of {options.pairs} pairs; every image is multiplied by the gain.\n\n"
    path = Path(options.results) / "tables" / "keypoint_contrast.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, title + about + text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
