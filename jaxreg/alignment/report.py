"""Report the registration of one pair, as JSON or as text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jaxreg.alignment.table import Job
from jaxreg.alignment.working import Answer, WorkingPair

_SHOWN = {  # what each picture shows, by its flag
    "out": "fixed, warped to look like moving",
    "out_moving": "moving, warped to look like fixed",
    "overlay": "before and after",
}


def report_of(
    job: Job,
    pair: WorkingPair,
    answer: Answer,
    method: str,
    written: Mapping[str, str | None],
) -> dict[str, Any]:
    """Collect all results of one pair in types that JSON knows; None stands for NaN and infinity.

    Args:
      job: the files.
      pair: the images that were registered.
      answer: the registration in pixels of the files.
      method: name of the method.
      written: paths of the pictures by their flags, None if not asked for.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {
        **{"fixed": job.fixed, "moving": job.moving, "method": method},
        **{"size": list(pair.size), "working_size": list(pair.working_size)},
        **{"tx": plain(answer.tx), "ty": plain(answer.ty), "theta": plain(answer.theta)},
        "standard_errors": plain(answer.standard_errors),
        "covariance": plain(answer.covariance),
        **{"score": plain(answer.score), "success": answer.success, "found": answer.found},
        "reasons": list(answer.reasons),
        "notes": list(pair.notes),
        **written,
    }


def text_of(report: Mapping[str, Any]) -> str:
    """Format `report_of` for reading."""
    units = {"tx": "px", "ty": "px", "theta": "degrees"}
    errors = report["standard_errors"] or [None] * 3
    lines = []
    for (name, unit), error in zip(units.items(), errors, strict=True):
        spread = "" if error is None else f" +- {error:.2g}"
        lines.append(f"{name:<8} {round(report[name], 4) + 0.0:.4f}{spread} {unit}")
    score = "unknown" if report["score"] is None else f"{report['score']:.4f}"
    lines.append(f"{'score':<8} {score}")
    trust = "yes" if report["success"] else "no: do not trust this answer"
    lines.append(f"{'success':<8} {trust if report['found'] else 'no: the method found no answer'}")
    lines += [f"{'because':<8} {reason}" for reason in report["reasons"]]
    size, working = ("{}x{}".format(*report[name]) for name in ("size", "working_size"))
    lines.append(f"{'size':<8} {size}, registered at {working}")
    lines += [f"{'note':<8} {note}" for note in report["notes"]]
    lines += [f"{name:<8} {report[name]}: {what}" for name, what in _SHOWN.items() if report[name]]
    return "\n".join(lines)
