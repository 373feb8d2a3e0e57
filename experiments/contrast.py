"""How many keypoints feature methods find in images of lower contrast, and how often they fail.

The paper's Tables 3 and 6 count a tenth of the keypoints that the same detectors find in the same
image sets at their defaults. This measures one possible reason, a lack of contrast::

    python -m experiments.contrast --gains=1,0.25,0.2 --suites=cifar10,stl10

Every image is multiplied by the gain before it is rounded to grey levels; the paper's counts are
printed beside. Written to experiments/results/tables/keypoint_contrast.md.
"""

from __future__ import annotations

import sys

import numpy as np
from absl import flags

from baselines import features
from experiments import paper
from experiments.records import RESULTS
from experiments.rendering import markdown_table, rate, value
from jaxreg.evaluation.protocol import SuiteData, build_suite

METHODS = ("akaze", "orb", "sift")  # OpenCV's own; SURF may be another library's


def measure(
    method: features.FeatureMethod, data: SuiteData, gain: float
) -> tuple[np.ndarray, float]:
    """Keypoints of every original, and the share of pairs without an answer."""
    fixed, moving = data.fixed * gain, data.moving * gain
    answers = [method.register(f, m) for f, m in zip(fixed, moving, strict=True)]
    return features.count_keypoints(method, fixed), float(np.mean([a is None for a in answers]))


def table(suites: list[str], gains: list[float], pairs: int) -> str:
    """Markdown: for each suite and gain the counts and failure rates of every method."""
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
    """The paper's counts and failure rates for a suite."""
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
    return values


def main() -> None:
    """Print the table and write it."""
    options = _flags()
    options(sys.argv)
    text = table(options.suites, [float(g) for g in options.gains], options.pairs)
    print(text)
    title = "# Keypoints in images of lower contrast\n\n"
    about = f"Originals of {options.pairs} pairs; every image is multiplied by the gain.\n\n"
    folder = RESULTS / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "keypoint_contrast.md").write_text(title + about + text + "\n")


if __name__ == "__main__":
    main()
