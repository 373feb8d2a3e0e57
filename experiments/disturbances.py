"""Make the table of scenes and disturbed suites: errors, and how many of them are flagged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import notes
from experiments.records import load_record, recorded_systems
from experiments.rendering import NOTHING, markdown_table, value
from experiments.systems import recorded_system
from jaxreg.evaluation.harness import PARAMETERS
from jaxreg.evaluation.suites import parse_suite

# Suites in the order of the table; other disturbed suites follow if they are recorded.
SUITES = (
    *("scene32", "scene96", "scene32+noise10"),
    *(f"cifar10+noise{s}" for s in (2, 5, 10, 20)),
    *(f"cifar10+{name}" for name in ("gain", "blur", "jpeg75", "bicubic", "occlusion")),
    *("cifar10+shift10", "cifar10+unrelated"),
)
_CAPTION = (
    "Errors are those of the answered pairs: translation as the sum over both axes, in pixels, and "
    "rotation in degrees. Gross errors (of all pairs): rotation off by more than 5 degrees, or "
    "translation by more than 2 px (4 px at 96x96); of unrelated pictures every answer. *Flagged*: "
    "`success` is False. The last two columns are of tx, ty and theta, of the answers that are not "
    "gross: their root mean square over that of the Cramér-Rao bound, where noise alone disturbs "
    "(1 is the least there can be), and the mean of error² over predicted "
    "variance (1 where the covariance is right)."
)


def table(results: Path) -> str:
    """Make the Markdown table, with a row for each recorded suite and system."""
    header = ["suite", "method", "pairs", "px mean", "px median", "degrees mean", "degrees median"]
    header += ["no answer", "gross errors", "of those flagged", "good ones refused"]
    header += ["RMSE / Cramér-Rao", "error² / variance"]
    recorded = sorted(folder.name for folder in (results / "rows").glob("*+*"))
    suites = [*SUITES, *(suite for suite in recorded if suite not in SUITES)]
    body, missing = [], []
    for suite in suites:
        names = sorted(recorded_systems(results, suite), key=lambda name: (name != "direct", name))
        body += [_line(results, suite, name) for name in names]
        missing += [] if names else [suite]
    parts = ["## Scenes and disturbed pairs", _CAPTION, markdown_table(header, body)]
    if missing:
        parts.append(f"Not recorded: `{notes.RUN}=direct,compact --suites={','.join(missing)}`.")
    return "\n\n".join(parts) + "\n"


def _line(results: Path, suite: str, name: str) -> list[str]:
    record = load_record(results, suite, name)
    assert record is not None  # listed a moment ago
    f = record.figures()
    errors = [value(f[q][n]) for q in ("translation", "rotation") for n in ("mean", "median")]
    if parse_suite(suite).unrelated:
        errors = [NOTHING] * 4  # there is no true transform
    rates = [_percent(f[n]) for n in ("no_answer", "gross", "flagged_gross", "rejected_good")]
    ratios = [_ratios(f[n]) for n in ("cramer_rao", "calibration")]
    label = recorded_system(name, record.rows.method).label
    return [suite, label, f"{f['pairs']:,}", *errors, *rates, *ratios]


def _percent(rate: float | None) -> str:
    return NOTHING if rate is None else f"{100 * rate:.2f}%"


def _ratios(ratios: Mapping[str, Any] | None) -> str:
    return NOTHING if ratios is None else " ".join(f"{ratios[p]:.3g}" for p in PARAMETERS)
