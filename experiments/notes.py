"""Write captions, and notes on rows that are missing or under-trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments import paper
from experiments.records import Keypoints, Record
from experiments.systems import System
from jaxreg.evaluation.protocol import PAIRS
from jaxreg.evaluation.suites import parse_suite

RUN = "python -m experiments.tables --run"
# Images in the genuine sets: another number means that other images replace them.
_TRAINING_IMAGES = {"cifar10": 50_000, "stl10": 5_000}
_TEST_IMAGES = {"cifar10": 10_000, "stl10": 8_000}


def row_note(system: System, suite: str, record: Record | None) -> str:
    """Say what is special about a row: that it is missing or smaller, or how it was trained."""
    if record is None:
        command = f"`{RUN}={system.name} --suites={suite}`"
        return f"not trained yet; then {command}" if system.configs else f"not recorded: {command}"
    training, pairs = record.about.get("training"), len(record.rows.found)
    parts = [f"{pairs:,} pairs"] if pairs != PAIRS else []
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
    return "; ".join(parts)


def _millions(pairs: int) -> str:
    return f"{pairs / 1e6:.3g}"


def stand_ins(training: Mapping[str, Any]) -> list[str]:
    """List the sources of a training set that are not the genuine set of their name."""
    found = []
    for source, count in training.get("images", {}).items():
        genuine = _TRAINING_IMAGES.get(source)
        images = "unknown number of" if count is None else f"{count:,}"
        if genuine and count is not None and count != genuine:
            found.append(f"{source} ({images} images, where the set itself has {genuine:,})")
        elif source.startswith(("folder:", "arrays:")):
            found.append(f"{source} ({images} images)")
    return found


def error_caption(table: paper.ErrorTable, records: Sequence[Record]) -> str:
    """Write the caption of Table 1, 2, 4 or 5."""
    suite = parse_suite(table.suite)
    pairs = sorted({len(record.rows.found) for record in records})
    counts = " or ".join(f"{n:,}" for n in pairs) or "no"
    parts = [
        f"Ours: {counts} pairs over 384 conditions, shifts to {suite.max_shift:g} px, all angles; "
        "mean ± standard deviation of the condition means, over the answered pairs. In brackets: "
        "how often there is no answer. Time: one pair, median of repeated calls, device "
        "synchronised; the paper's is for its GPU (a GeForce GTX TITAN X). "
        f"N.A.: no pair answered. Gross error: over 5 degrees or {suite.gross_pixels:g} px."
    ]
    test = {int(record.about["images"]) for record in records}
    genuine = _TEST_IMAGES.get(suite.source)
    if genuine and test - {genuine}:
        few = ", ".join(f"{n:,}" for n in sorted(test))
        parts.append(f"The pairs come from {few} test images; the genuine set has {genuine:,}.")
    sources = {s for record in records for s in stand_ins(record.about.get("training") or {})}
    if sources:
        parts.append(
            "The networks' training set is partly stand-ins, other photographs of the same size: "
            + "; ".join(sorted(sources))
            + "."
        )
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
