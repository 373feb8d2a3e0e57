"""Write captions, and notes on rows that are missing or under-trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments import paper
from experiments.records import Keypoints, Record
from experiments.systems import System
from jaxreg.evaluation.protocol import CONDITIONS, PAIRS
from jaxreg.evaluation.suites import parse_suite

RUN = "python -m experiments.tables --run"
# Images in the genuine sets: another number means that other images replace them.
_TRAINING_IMAGES = {"cifar10": 50_000, "stl10": 5_000}
_TEST_IMAGES = {"cifar10": 10_000, "stl10": 8_000}


def row_note(system: System, suite: str, record: Record | None) -> str:
    """Say what is special about a row: that it is missing, its pairs, or how it was trained."""
    if record is None:
        command = f"`{RUN}={system.name} --suites={suite}`"
        return f"not trained yet; then {command}" if system.configs else f"not recorded: {command}"
    training, seed = record.about.get("training"), record.about["seed"]
    pairs = len(record.rows.found)
    parts = [f"{pairs:,} pairs"] if pairs != PAIRS else []
    parts += [f"seed {seed}"] if seed else []
    return "; ".join([*parts, training_note(training)] if training else parts)


def training_note(training: Mapping[str, Any]) -> str:
    """Say how far a network was trained, compared with the configuration it is named after.

    >>> training_note({"pairs_seen": 2000, "pairs_planned": 4000000, "parameters": 7})
    '**under-trained**: 0.002 of 4 million pairs seen; 7 weights'
    """
    seen, planned = training["pairs_seen"], training["pairs_planned"]
    if seen < planned:
        parts = [f"**under-trained**: {_millions(seen)} of {_millions(planned)} million pairs seen"]
    else:
        parts = [f"{_millions(seen)} million pairs seen"]
    if training.get("seconds"):
        parts[0] += f" in {training['seconds'] / 60:.0f} min"
    parts.append(f"{training['parameters']:,} weights")
    if changes := training.get("network_changes"):
        parts.append("with " + ", ".join(f"{k}={v}" for k, v in changes.items()))
    start, planned_start = training.get("init_from", ""), training.get("init_planned", "")
    if planned_start and not start:
        parts.append(f"started from random weights, not from {planned_start}")
    elif start and start != planned_start:
        parts.append(f"started from {start}")
    return "; ".join(parts + training_images(training))


def _millions(pairs: int) -> str:
    return f"{pairs / 1e6:.3g}"


def training_images(training: Mapping[str, Any]) -> list[str]:
    """Say which training images are stand-ins for those of a genuine set, or the user's own.

    >>> training_images({"images": {"stl10": 800}})
    ['training images are stand-ins: stl10 (800 images, where the set itself has 5,000)']
    >>> training_images({"images": {"folder:own": 90}})
    ['trained on folder:own (90 images)']
    """
    images: Mapping[str, int | None] = training.get("images", {})
    replaced, own = [], []
    for source, count in images.items():
        genuine = _TRAINING_IMAGES.get(source)
        number = "unknown number of" if count is None else f"{count:,}"
        if genuine and count is not None and count != genuine:
            replaced.append(f"{source} ({number} images, where the set itself has {genuine:,})")
        elif source.startswith(("folder:", "arrays:")):
            own.append(f"{source} ({number} images)")
    partly = "partly " if len(replaced) < len(images) else ""
    parts = [f"training images are {partly}stand-ins: {', '.join(replaced)}"] if replaced else []
    return parts + ([f"trained on {', '.join(own)}"] if own else [])


def error_caption(table: paper.ErrorTable, records: Sequence[Record]) -> str:
    """Write the caption of Table 1, 2, 4 or 5."""
    suite = parse_suite(table.suite)
    pairs = sorted({len(record.rows.found) for record in records})
    counts = " or ".join(f"{n:,}" for n in pairs) or "no"
    several = (
        f"over {'up to ' if min(pairs, default=0) < CONDITIONS else ''}{CONDITIONS} conditions"
    )
    few = f" (no ± for fewer than {PAIRS:,} pairs)" if min(pairs, default=PAIRS) < PAIRS else ""
    parts = [
        f"Ours: {counts} pairs {several}, shifts to {suite.max_shift:g} px, all angles; mean ± "
        f"standard deviation of the condition means{few}, over the answered pairs. In brackets: "
        "how often there is no answer. Time: one pair, median of repeated calls, device "
        "synchronised; the paper's is for its GPU (a GeForce GTX TITAN X). "
        f"N.A.: no pair answered. Gross error: over 5 degrees or {suite.gross_pixels:g} px."
    ]
    test = {int(record.about["images"]) for record in records}
    genuine = _TEST_IMAGES.get(suite.source)
    if genuine and test - {genuine}:
        images = ", ".join(f"{n:,}" for n in sorted(test))
        parts.append(f"The pairs come from {images} test images; the genuine set has {genuine:,}.")
    trainings = [record.about.get("training") or {} for record in records]
    if any("stand-ins" in text for training in trainings for text in training_images(training)):
        parts.append("Stand-ins: other photographs of the same size; see the notes of the rows.")
    return " ".join(parts)


def keypoint_caption(counts: Sequence[Keypoints]) -> str:
    """Write the caption of Table 3 or 6."""
    images = " or ".join(sorted({f"{len(c.fixed)}" for c in counts})) or "no"
    return (
        f"Ours: mean ± standard deviation over {images} images at native size with the library's "
        "defaults, in the original and in the transformed images; matches: pairs of keypoints "
        "that pass the ratio test."
    )


def hardware(about: Mapping[str, Any]) -> str:
    """Name the device in a few words."""
    h = about["hardware"]
    return f"{h['processor']}, {h['cores']} cores" if h["platform"] == "cpu" else h["device"]


def load(time: Mapping[str, Any]) -> str:
    """Say how busy the machine was when the time was measured, if that is recorded.

    >>> load({"load_average": 4.21})
    ', load 4.2'
    """
    average = time.get("load_average")
    return "" if average is None else f", load {average:.1f}"


def origin(about: Mapping[str, Any]) -> list[str]:
    """Return pairs, seed, date, commit, hardware and versions of a record."""
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    date = about["date"][:16].replace("T", " ")
    return [
        *(str(about["pairs"]), str(about["seed"]), date, about["commit"]),
        *(hardware(about), versions),
    ]
