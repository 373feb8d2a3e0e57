"""Report results: a text table, JSON with all figures, CSV with the raw rows."""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxreg.atomic import write_text
from jaxreg.evaluation.harness import PARAMETERS, Rows

_VERSIONS = ("jax", "jaxlib", "flax", "numpy", "opencv-contrib-python", "tensorflow-datasets")
_TRIPLES = ("true", "estimated", "variance", "bound")
ROW_COLUMNS = (
    *("suite", "method", "condition"),
    *(f"{triple}_{p}" for triple in _TRIPLES for p in PARAMETERS),
    *("score", "success", "found"),
)


def provenance(**more: Any) -> dict[str, Any]:
    """Return the origin of numbers: date, command, versions and hardware; ``more`` is added."""
    versions = {"python": platform.python_version()}
    for name in ("jaxreg", *_VERSIONS):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "-m", "jaxreg.evaluate", *sys.argv[1:]]),
        "versions": versions,
        "hardware": {
            "machine": platform.machine(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "device": device.device_kind,
            "platform": device.platform,
        },
        **more,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor()


def write_json(
    path: str | os.PathLike[str], results: Sequence[Mapping[str, Any]], origin: Mapping[str, Any]
) -> None:
    """Write figures and provenance as JSON; numbers that are not finite become null."""
    document = {"provenance": origin, "results": results}
    write_text(path, json.dumps(_finite(document), indent=1, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which strict JSON lacks, by None."""
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


class _Lines(list):
    """A file for `csv.writer` that collects the lines."""

    def write(self, text: str) -> None:
        self.append(text)


def rows_to_csv(rows: Iterable[Rows]) -> str:
    """Format raw rows as CSV after `ROW_COLUMNS`, with the nine digits that preserve float32."""
    lines = _Lines()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(ROW_COLUMNS)
    for r in rows:
        empty = np.full(r.truth.shape, None)
        triples = [r.truth, r.estimate, r.variance, r.bound]
        numbers = np.concatenate([empty if t is None else t for t in triples], axis=1)
        for k in range(len(r.truth)):
            writer.writerow(
                [
                    *(r.suite, r.method, int(r.condition[k])),
                    *("" if v is None else f"{v:.9g}" for v in numbers[k]),
                    *(f"{r.score[k]:.9g}", int(r.success[k]), int(r.found[k])),
                ]
            )
    return "".join(lines)


def write_rows(path: str | os.PathLike[str], rows: Iterable[Rows]) -> None:
    """Write raw rows as CSV."""
    write_text(path, rows_to_csv(rows))


def read_rows(path: str | os.PathLike[str]) -> list[Rows]:
    """Read raw rows that `write_rows` wrote: a `Rows` for each suite and method, in their order.

    ``[figures(rows) for rows in read_rows(path)]`` gives all figures again, except the time.

    Raises:
      ValueError: the file has other columns.
    """
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != ROW_COLUMNS:
            raise ValueError(f"{path}: not raw rows of an evaluation, columns {reader.fieldnames}")
        for line in reader:
            groups.setdefault((line["suite"], line["method"]), []).append(line)
    return [_rows(suite, method, lines) for (suite, method), lines in groups.items()]


def _rows(suite: str, method: str, lines: list[dict[str, str]]) -> Rows:
    def triple(name: str) -> np.ndarray | None:
        names = [f"{name}_{p}" for p in PARAMETERS]
        if lines[0][names[0]] == "":
            return None
        return np.array([[line[n] for n in names] for line in lines]).astype(np.float32)

    def column(name: str, dtype: type) -> np.ndarray:
        return np.array([line[name] for line in lines]).astype(dtype)

    truth, estimate = triple("true"), triple("estimated")
    if truth is None or estimate is None:
        raise ValueError(f"rows of {suite}, {method} lack their transforms")
    return Rows(
        suite,
        method,
        column("condition", int),
        truth,
        estimate,
        column("score", np.float32),
        column("success", int).astype(bool),
        column("found", int).astype(bool),
        triple("variance"),
        triple("bound"),
    )


def text_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Format figures as a table for the screen, one line for each suite and method."""
    from tabulate import tabulate

    headers = [
        *("suite", "method", "pairs", "translation px", "median", "p95"),
        *("rotation deg", "median", "p95", "no answer", "gross", "rejected"),
        *("flagged gross", "rejected good"),
        *("x Cramér-Rao\n(not gross)", "err²/var\n(not gross)", "ms", "pairs/s"),
    ]
    table = [_table_line(result) for result in results]
    empty = [all(line[i] in ("", "-") for line in table) for i in range(len(headers))]

    def kept(line: list[str]) -> list[str]:
        return [cell for cell, drop in zip(line, empty, strict=True) if not drop]

    aligned = ["left", "left"] + ["right"] * (len(headers) - 2)
    return tabulate(
        [kept(line) for line in table],
        kept(headers),
        disable_numparse=True,
        colalign=kept(aligned),
    )


def _table_line(result: Mapping[str, Any]) -> list[str]:
    def spread(name: str) -> list[str]:
        f = result[name]
        if f["mean"] is None:
            return ["-", "-", "-"]
        plus_minus = "" if f["spread"] is None else f" ± {f['spread']:.4f}"
        return [f"{f['mean']:.4f}{plus_minus}", f"{f['median']:.4f}", f"{f['p95']:.4f}"]

    def rate(name: str) -> str:
        return "-" if result[name] is None else f"{100 * result[name]:.2f}%"

    def three(name: str) -> str:
        value = result[name]
        return "" if value is None else " ".join(f"{value[p]:.3f}" for p in PARAMETERS)

    timing = result.get("time")
    return [
        *(result["suite"], result["method"], str(result["pairs"])),
        *(*spread("translation"), *spread("rotation")),
        *(rate("no_answer"), rate("gross"), rate("rejected")),
        *(rate("flagged_gross"), rate("rejected_good")),
        *(three("cramer_rao"), three("calibration")),
        f"{1e3 * timing['seconds']:.3g}" if timing else "",
        f"{timing['pairs_per_second']:.4g}" if timing else "",
    ]
