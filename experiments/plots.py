"""Draw pictures of recorded rows."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxreg.atomic import replacing
from jaxreg.evaluation.harness import Rows, gross_errors, parameter_errors, risk_curve
from jaxreg.evaluation.protocol import SuiteData
from jaxreg.evaluation.suites import parse_suite
from jaxreg.geometry import RigidTransform
from jaxreg.warping import warp

_GOOD, _GROSS = "#1f5fa8", "#c8411b"
_COLOURS = (*colormaps["tab10"].colors, *colormaps["Dark2"].colors)  # type: ignore[attr-defined]
_PARAMETERS = (("$t_x$", "px"), ("$t_y$", "px"), (r"$\theta$", "degrees"))
# Smaller errors are drawn here, beside the left end of the logarithmic axes (px or degrees).
_LEAST = 1e-4
# Predicted shifts beyond this many times the largest true one are drawn at this limit.
_RIM = 2.5


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, completely or not at all."""
    FigureCanvasAgg(figure)
    with replacing(path) as file:
        # Without matplotlib's version in it, the file changes less often for the same rows.
        figure.savefig(file, format="png", dpi=100, metadata={"Software": None})
    return path


def scatter(path: Path, rows: Rows, title: str, note: str = "") -> Path:
    """Draw prediction against truth for tx, ty and theta, without the unanswered pairs."""
    figure = Figure(figsize=(10.5, 4.0), layout="constrained")
    gross = gross_errors(rows)
    reach = parse_suite(rows.suite).max_shift
    for i, axes in enumerate(figure.subplots(1, 3)):
        limit, rim = (180.0, 180.0) if i == 2 else (reach, _RIM * reach)
        truth, predicted = rows.truth[:, i], rows.estimate[:, i]
        outside = rows.found & (np.abs(predicted) > rim)
        drawn = np.clip(predicted, -rim, rim)
        for chosen, colour, name in (
            (rows.found & ~gross, _GOOD, "answer"),
            (gross, _GROSS, "gross error"),
        ):
            axes.plot(
                truth[chosen],
                drawn[chosen],
                ".",
                markersize=2.5 if chosen.sum() > 200 else 5.0,
                markeredgewidth=0,
                alpha=0.6,
                color=colour,
                label=f"{name} ({chosen.sum():,})",
            )
        axes.plot([-limit, limit], [-limit, limit], color="black", linewidth=0.6)
        _square(axes, limit, float(max(limit, np.abs(drawn[rows.found]).max(initial=0.0))), i)
        if outside.any():
            axes.set_title(f"{outside.sum()} beyond ±{rim:g}, drawn at the rim", fontsize=8)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=2, markerscale=2, frameon=False
    )
    answered = "" if rows.found.all() else f", {rows.found.sum():,} answered"
    lines = [f"{title}: {len(rows.found):,} pairs{answered}", *textwrap.wrap(note, 130)]
    figure.suptitle("\n".join(lines), fontsize=10)
    return save(figure, path)


def _square(axes: Axes, limit: float, extent: float, index: int) -> None:
    name, unit = _PARAMETERS[index]
    axes.set_xlabel(f"true {name} ({unit})")
    axes.set_ylabel(f"predicted {name} ({unit})")
    axes.set_xlim(-1.05 * limit, 1.05 * limit)
    axes.set_ylim(-1.05 * extent, 1.05 * extent)
    if index == 2:
        axes.set_xticks(range(-180, 181, 90))
        axes.set_yticks(range(-180, 181, 90))
    if extent <= 1.2 * limit:
        axes.set_aspect("equal")
    axes.grid(linewidth=0.3)


def qualitative(path: Path, data: SuiteData, rows: Rows, label: str) -> Path:
    """Draw each pair in a row: original, transformed, aligned by the estimate, difference.

    Args:
      path: path of the PNG file.
      data: the first pairs of the suite.
      rows: answers to at least those pairs.
      label: name of the method.
    """
    count = len(data.fixed)
    if not np.array_equal(data.truth, rows.truth[:count]):
        raise ValueError(f"the rows of {label} are of other pairs than the images")
    estimate = RigidTransform.from_array(jnp.asarray(rows.estimate[:count]))
    aligned = np.asarray(warp(data.fixed, estimate))
    difference = np.abs(aligned - data.moving)
    figure = Figure(figsize=(7.0, 1.75 * count), layout="constrained")
    figure.suptitle("Below: tx, ty, theta, the true ones and the estimated", fontsize=8)
    names = ("original", "transformed", f"aligned: {label}", "|aligned - transformed|")
    grid = figure.subplots(count, len(names), squeeze=False)
    for k, line in enumerate(grid):
        for axes, picture in zip(
            line, (data.fixed[k], data.moving[k], aligned[k], difference[k]), strict=True
        ):
            axes.imshow(np.clip(picture, 0, 255).astype(np.uint8), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
        line[1].set_xlabel(_numbers(data.truth[k]), fontsize=7)
        found = bool(rows.found[k])
        line[2].set_xlabel(_numbers(rows.estimate[k]) if found else "no answer", fontsize=7)
    for axes, name in zip(grid[0], names, strict=True):
        axes.set_title(name, fontsize=9)
    return save(figure, path)


def _numbers(parameters: np.ndarray) -> str:
    tx, ty, theta = parameters
    return f"{tx:.2f} px, {ty:.2f} px, {theta:.1f}°"


def error_cdf(path: Path, rows: Mapping[str, Rows], title: str) -> Path:
    """Draw the share of all pairs with an error below a value; no answer counts as infinite error.

    Args:
      path: path of the PNG file.
      rows: rows by label; labels that are equal up to the first comma share a colour.
      title: title of the suite.
    """
    figure = Figure(figsize=(10.5, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    families = list(dict.fromkeys(label.partition(",")[0] for label in rows))
    for label, r in rows.items():
        errors = np.where(r.found[:, None], np.abs(parameter_errors(r)), np.inf)
        family = label.partition(",")[0]
        style = {
            "color": _COLOURS[families.index(family) % len(_COLOURS)],
            "linestyle": _line_style(label),
            "linewidth": 2.4 if family.startswith("direct") else 1.2,
        }
        if not r.found.any():
            label = f"{label}: no answers"
        share = (np.arange(len(errors)) + 1) / len(errors)
        for axes, values in zip(panels, (errors[:, :2].sum(-1), errors[:, 2]), strict=True):
            finite = np.isfinite(values := np.sort(values))
            axes.plot(np.maximum(values[finite], _LEAST), share[finite], label=label, **style)
    names = ("translation error (px, L1)", "rotation error (degrees)")
    for axes, name in zip(panels, names, strict=True):
        axes.set_xscale("log")
        axes.set_xlim(left=_LEAST / 2)  # a curve at the least value must not hide in the frame
        axes.xaxis.set_major_formatter(_power_of_ten)
        axes.set_xlabel(name)
        axes.grid(linewidth=0.3)
    panels[0].set_ylim(0, 1.02)
    panels[0].set_ylabel("share of pairs")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8, frameon=False)
    pairs = " or ".join(f"{n:,}" for n in sorted({len(r.found) for r in rows.values()}))
    figure.suptitle(f"Errors on {title}, {pairs} pairs; no answer counts as infinite")
    return save(figure, path)


def _power_of_ten(value: float, _: object = None) -> str:
    r"""Label a tick of a logarithmic axis of errors.

    >>> print(_power_of_ten(1e-4), _power_of_ten(0.1))
    $\leq 10^{-4}$ $10^{-1}$
    """
    at_most = r"\leq " if value <= _LEAST else ""
    return f"${at_most}10^{{{round(np.log10(value))}}}$"


def risk(path: Path, rows: Mapping[str, Rows], title: str) -> Path:
    """Draw the share of wrong answers among the most confident ones, against the share kept.

    Args:
      path: path of the PNG file.
      rows: rows by label.
      title: title of the suite.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for (label, r), colour in zip(rows.items(), _COLOURS, strict=False):
        success = r.success & r.found
        curve = risk_curve(r.score, success, gross_errors(r) | ~r.found)
        coverage = (np.arange(len(curve)) + 1) / len(curve)
        axes.plot(coverage, curve, color=colour, label=label, linewidth=1.5)
        axes.plot(success.mean(), curve[max(success.sum(), 1) - 1], "o", color=colour)
    axes.set_xlim(0, 1.01)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("share of the pairs that are kept, the surest first")
    axes.set_ylabel("wrong answers among them")
    axes.grid(linewidth=0.3)
    axes.legend(frameon=False)
    axes.set_title(f"Risk and coverage on {title}; dots: success")
    return save(figure, path)


def _line_style(label: str) -> str:
    """Feature methods at native size are dashed, narrow networks dotted, all others solid."""
    if label.endswith("units"):
        return ":"
    return "--" if label in ("AKAZE", "ORB", "SURF", "SIFT") else "-"
