"""Write and read recorded rows: a method's answers to every pair of a suite, and their origin.

``rows/SUITE/SYSTEM.npz`` holds the answers and, as JSON, their provenance and timing;
``rows/SUITE/pairs_COUNT_SEED.npz`` holds what all systems share: the true transforms of the pairs
and, if noise is their only disturbance, the Cramér-Rao bound;
``keypoints/SUITE/SYSTEM.npz`` holds counts of keypoints.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from jaxreg.atomic import replacing
from jaxreg.evaluation.harness import Rows, figures

RESULTS = Path(__file__).parent / "results"
_ANSWERS = ("estimate", "score", "success", "found", "variance")


@dataclasses.dataclass(frozen=True)
class Record:
    """Raw rows and their origin.

    Attributes:
      rows: the answers.
      about: provenance (`jaxreg.evaluation.report.provenance`, with pairs, seed, commit, images
        of the suite), ``time`` or None, and ``training`` or None.
    """

    rows: Rows
    about: dict[str, Any]

    def figures(self) -> dict[str, Any]:
        """Compute every number of a table's row; ``time`` is None if it was not measured."""
        return figures(self.rows) | {"time": self.about.get("time")}


@dataclasses.dataclass(frozen=True)
class Keypoints:
    """Counts of keypoints.

    Attributes:
      fixed: ``(N,)`` counts in the original images.
      moving: ``(N,)`` counts in the transformed images.
      matches: ``(N,)`` counts of matches between the two that pass the ratio test.
      about: provenance.
    """

    fixed: np.ndarray
    moving: np.ndarray
    matches: np.ndarray
    about: dict[str, Any]


def save_record(results: Path, system: str, record: Record) -> Path:
    """Write a system's rows; the true transforms are written once for all systems.

    Raises:
      ValueError: other pairs are recorded under the same number and seed.
    """
    rows, about = record.rows, record.about
    folder = results / "rows" / rows.suite
    pairs = f"pairs_{about['pairs']}_{about['seed']}.npz"
    truth: dict[str, np.ndarray] = {
        "truth": rows.truth.astype(np.float32),
        "condition": rows.condition.astype(np.int16),
    }
    if rows.bound is not None:
        truth["bound"] = rows.bound.astype(np.float32)
    about = about | {"truth": pairs, "truth_crc": _checksum(truth["truth"])}
    answers: dict[str, np.ndarray] = {}
    for name in _ANSWERS:
        if (values := getattr(rows, name)) is not None:
            answers[name] = values.astype(bool if name in ("success", "found") else np.float32)
    # Values without an answer have no meaning, and zeros compress well.
    answers["estimate"] = np.where(rows.found[:, None], answers["estimate"], np.float32(0))
    _keep_truth(folder / pairs, truth)
    path = folder / f"{system}.npz"
    _write(path, answers, {"suite": rows.suite, "method": rows.method} | about)
    return path


def _keep_truth(path: Path, truth: dict[str, np.ndarray]) -> None:
    there = _read(path)[0] if path.exists() else {}
    same = {name: name in there and np.array_equal(there[name], truth[name]) for name in truth}
    if there and not (same["truth"] and same["condition"]):
        raise ValueError(
            f"{path} holds other pairs: give another folder as --results, or remove it and the "
            "rows beside it"
        )
    if not all(same.values()):  # a bound that differs was computed elsewhere, or not at all
        _write(path, truth)


def load_record(results: Path, suite: str, system: str) -> Record | None:
    """Read a system's rows; None if none are recorded.

    Raises:
      ValueError: the rows do not belong to the pairs beside them.
    """
    path = results / "rows" / suite / f"{system}.npz"
    if not path.exists():
        return None
    answers, about = _read(path)
    pairs, _ = _read(path.parent / about["truth"])
    if _checksum(pairs["truth"]) != about["truth_crc"]:
        raise ValueError(f"{path} does not belong to the pairs in {about['truth']}: run it again")
    rows = Rows(
        suite=about["suite"],
        method=about["method"],
        condition=pairs["condition"].astype(int),
        truth=pairs["truth"],
        estimate=answers["estimate"],
        score=answers["score"],
        success=answers["success"],
        found=answers["found"],
        variance=answers.get("variance"),
        bound=pairs.get("bound"),
    )
    return Record(rows, about)


def recorded_systems(results: Path, suite: str) -> list[str]:
    """List the systems with rows on a suite, sorted by name."""
    paths = (results / "rows" / suite).glob("*.npz")
    return sorted(path.stem for path in paths if not path.stem.startswith("pairs_"))


def save_keypoints(results: Path, suite: str, system: str, counts: Keypoints) -> Path:
    """Write the counts of one feature method on a suite's images."""
    names = ("fixed", "moving", "matches")
    path = results / "keypoints" / suite / f"{system}.npz"
    _write(path, {name: getattr(counts, name).astype(np.int32) for name in names}, counts.about)
    return path


def load_keypoints(results: Path, suite: str, system: str) -> Keypoints | None:
    """Read the counts of one feature method on a suite's images; None if there are none."""
    path = results / "keypoints" / suite / f"{system}.npz"
    if not path.exists():
        return None
    arrays, about = _read(path)
    return Keypoints(arrays["fixed"], arrays["moving"], arrays["matches"], about)


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


def _write(path: Path, arrays: dict[str, np.ndarray], about: dict[str, Any] | None = None) -> None:
    """Write one compressed file, completely or not at all."""
    if about is not None:
        arrays = arrays | {"about": np.array(json.dumps(about, allow_nan=False))}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    about = json.loads(str(arrays.pop("about"))) if "about" in arrays else {}
    return arrays, about
