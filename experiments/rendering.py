"""Render tables as Markdown and CSV, with the paper's numbers and ours side by side."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import notes, paper
from experiments.records import (
    Keypoints,
    Record,
    load_keypoints,
    load_record,
    recorded_systems,
)
from experiments.systems import (
    FEATURES,
    FURTHER_SYSTEMS,
    PAPER_SYSTEMS,
    System,
    find_system,
    recorded_system,
)

NOT_AVAILABLE = "N.A."
NOTHING = "–"


@dataclasses.dataclass(frozen=True)
class Rendered:
    """A table as Markdown, with its caption, and as CSV."""

    markdown: str
    csv: str


@dataclasses.dataclass(frozen=True)
class Line:
    """One row of an error table: the paper's numbers, and ours if they are recorded."""

    system: System
    printed: paper.Errors | None
    record: Record | None

    @property
    def figures(self) -> dict[str, Any] | None:
        """Our numbers, see `Record.figures`, or None."""
        return None if self.record is None else self.record.figures()


def error_lines(results: Path, table: paper.ErrorTable) -> list[Line]:
    """Return the paper's rows in its order, then all others that are recorded on the suite."""
    known = {system.name for system in (*PAPER_SYSTEMS, *FURTHER_SYSTEMS)}
    others = [name for name in recorded_systems(results, table.suite) if name not in known]
    lines = []
    for system in (*PAPER_SYSTEMS, *FURTHER_SYSTEMS):
        record = load_record(results, table.suite, system.name)
        printed = table.rows.get(system.name)
        if record is not None or printed is not None:
            lines.append(Line(system, printed, record))
    for name in others:
        record = load_record(results, table.suite, name)
        assert record is not None  # listed a moment ago
        lines.append(Line(recorded_system(name, record.rows.method), None, record))
    return lines


def render(results: Path, table: paper.ErrorTable | paper.KeypointTable) -> Rendered:
    """Render a table from recorded rows; it says which rows are missing."""
    if isinstance(table, paper.KeypointTable):
        return _keypoint_table(results, table)
    return _error_table(table, error_lines(results, table))


def value(mean: float | None, spread: float | None = None) -> str:
    """Format a number as the paper does.

    >>> value(1.4542, 0.662)
    '1.4542 ± 0.6620'
    >>> value(0.00035), value(0.0, 0.0)
    ('0.00035', '0 ± 0')
    >>> value(None)
    'N.A.'
    """
    if mean is None:
        return NOT_AVAILABLE
    if mean == 0 and not spread:
        return "0" if spread is None else "0 ± 0"
    digits = 4
    if 0 < abs(mean) < 10.0 ** (1 - digits):  # show two significant digits
        digits = 1 - math.floor(math.log10(abs(mean)))
    text = f"{mean:.{digits}f}"
    return text if spread is None else f"{text} ± {spread:.{digits}f}"


def rate(number: float) -> str:
    """Format a failure rate as in the paper's brackets: 1 and 0 without decimals.

    >>> rate(0.95052), rate(1.0), rate(0.0)
    ('0.9505', '1', '0')
    """
    return f"{number:.0f}" if number in (0.0, 1.0) else f"{number:.4f}"


def _printed(v: paper.Value | None, row: paper.Errors | None) -> str:
    if row is None:
        return NOTHING
    return NOT_AVAILABLE if v is None else f"{v.mean:.4f} ± {v.spread:.4f}"


def _model(line: Line, figures: Mapping[str, Any] | None) -> str:
    """The label, and for feature methods the paper's and our failure rate in brackets."""
    base = line.system.name.removesuffix("_x4")
    fails = figures is not None and (base in FEATURES or figures["no_answer"] > 0)
    if base not in FEATURES and not fails:
        return line.system.label
    theirs = rate(line.printed.failure) if line.printed and line.printed.failure else NOTHING
    ours = rate(figures["no_answer"]) if figures else NOTHING
    return f"{line.system.label} ({theirs}; {ours})"


def _ours(figures: Mapping[str, Any] | None) -> tuple[str, str, str]:
    """Translation, rotation and time of a row."""
    if figures is None:
        return (NOTHING,) * 3
    if not figures["answered"]:
        return (NOT_AVAILABLE,) * 3
    time = figures["time"]
    return (
        value(figures["translation"]["mean"], figures["translation"]["spread"]),
        value(figures["rotation"]["mean"], figures["rotation"]["spread"]),
        value(time["seconds"]) if time else "not timed",
    )


def _error_table(table: paper.ErrorTable, lines: Sequence[Line]) -> Rendered:
    first, second, flat = [], [], []
    for line in lines:
        f = line.figures
        note = notes.row_note(line.system, table.suite, line.record)
        printed = line.printed or paper.Errors()
        pairs = zip((printed.translation, printed.rotation, printed.seconds), _ours(f), strict=True)
        cells = [cell for theirs, ours in pairs for cell in (_printed(theirs, line.printed), ours)]
        first.append([_model(line, f), *cells, note])
        if f is not None:
            second.append([line.system.label, *_more(f)])
        flat.append(_flat(table, line, f, note))
    header = ["Model (failure rate: paper; ours)"]
    header += [f"{q}, {who}" for q in ("px", "degrees", "s") for who in ("paper", "ours")]
    parts = [
        f"## Table {table.number}. {table.title}",
        notes.error_caption(table, [line.record for line in lines if line.record]),
        markdown_table([*header, "note"], first),
    ]
    if second:
        more = ["Model", "pairs", "px median", "px 95%", "degrees median", "degrees 95%"]
        more += ["gross errors", "pairs/s (batch)", "timed on"]
        parts += ["More of ours:", markdown_table(more, second)]
    return Rendered("\n\n".join(parts) + "\n", _csv(flat))


def _more(f: Mapping[str, Any]) -> list[str]:
    if not f["answered"]:
        return [f"{f['pairs']:,}", *[NOT_AVAILABLE] * 7]
    numbers = [value(f[q][n]) for q in ("translation", "rotation") for n in ("median", "p95")]
    if time := f["time"]:
        speed = f"{time['pairs_per_second']:.4g} ({time['best_batch']})"
        where = notes.hardware(time) + notes.load(time)
    else:
        speed = where = NOTHING
    return [f"{f['pairs']:,}", *numbers, f"{100 * f['gross']:.2f}%", speed, where]


def _flat(
    table: paper.ErrorTable, line: Line, f: Mapping[str, Any] | None, note: str
) -> dict[str, Any]:
    """One line of CSV: all numbers, unrounded."""
    printed = line.printed or paper.Errors()
    flat: dict[str, Any] = {
        "table": table.number,
        "suite": table.suite,
        "system": line.system.name,
        "model": line.system.label,
        "paper_failure": printed.failure,
        "no_answer": f and f["no_answer"],
        "gross": f and f["gross"],
    }
    for quantity in ("translation", "rotation"):
        theirs = getattr(printed, quantity)
        flat[f"paper_{quantity}"] = theirs and theirs.mean
        flat[f"paper_{quantity}_spread"] = theirs and theirs.spread
        for name in ("mean", "spread", "median", "p95"):
            flat[f"{quantity}_{name}"] = f and f[quantity][name]
    time = (f and f["time"]) or {}
    flat["paper_seconds"] = printed.seconds and printed.seconds.mean
    flat["paper_seconds_spread"] = printed.seconds and printed.seconds.spread
    flat |= {name: time.get(name) for name in ("seconds", "pairs_per_second", "best_batch")}
    return flat | {"pairs": f and f["pairs"], "note": note}


def _keypoint_table(results: Path, table: paper.KeypointTable) -> Rendered:
    kinds = ("originals", "transformed", "matches")
    body, flat, counted = [], [], []
    for name, printed in table.rows.items():
        cells = []
        for suite, theirs in zip(table.suites, printed, strict=True):
            counts = load_keypoints(results, suite, name)
            counted.append(counts)
            cells += [value(theirs.mean, theirs.spread), *_counts(counts)]
            flat.append(_flat_counts(table, suite, name, theirs, counts))
        body.append([find_system(name).label, *cells])
    header = ["Model"]
    for suite in table.suites:
        header += [f"{suite}, paper", *(f"ours, {kind}" for kind in kinds)]
    missing = "" if all(counted) else f" Missing counts: `{notes.RUN}=keypoints`."
    caption = notes.keypoint_caption([c for c in counted if c]) + missing
    title = f"## Table {table.number}. {table.title}"
    return Rendered("\n\n".join([title, caption, markdown_table(header, body)]) + "\n", _csv(flat))


def _counts(counts: Keypoints | None) -> list[str]:
    if counts is None:
        return [NOTHING] * 3
    arrays = (counts.fixed, counts.moving, counts.matches)
    return [value(float(a.mean()), float(a.std())) for a in arrays]


def _flat_counts(
    table: paper.KeypointTable, suite: str, name: str, theirs: paper.Value, counts: Keypoints | None
) -> dict[str, Any]:
    flat: dict[str, Any] = {"table": table.number, "suite": suite, "system": name}
    flat |= {"paper": theirs.mean, "paper_spread": theirs.spread}
    for kind in ("fixed", "moving", "matches"):
        array = None if counts is None else getattr(counts, kind)
        flat[kind] = None if array is None else float(array.mean())
        flat[f"{kind}_spread"] = None if array is None else float(array.std())
    return flat | {"images": None if counts is None else len(counts.fixed)}


def provenance_table(results: Path) -> str:
    """Make the Markdown table of the origins of all recorded rows."""
    header = ["suite", "row", "method", "pairs", "seed", "date", "commit", "hardware", "versions"]
    body = []
    for folder in sorted((results / "rows").glob("*")):
        for name in recorded_systems(results, folder.name):
            record = load_record(results, folder.name, name)
            assert record is not None  # listed a moment ago
            body.append([folder.name, name, record.rows.method, *notes.origin(record.about)])
            body[-1].append(f"`{record.about['command']}`")
    for path in sorted((results / "keypoints").glob("*/*.npz")):
        counts = load_keypoints(results, path.parent.name, path.stem)
        assert counts is not None
        about = counts.about | {"pairs": counts.about["images"]}
        body.append([path.parent.name, f"keypoints of {path.stem}", path.stem])
        body[-1] += [*notes.origin(about), f"`{about['command']}`"]
    return (
        "# Where the recorded rows come from\n\n"
        + markdown_table([*header, "command"], body)
        + "\n"
    )


def markdown_table(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table with pipes."""
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _csv(lines: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
