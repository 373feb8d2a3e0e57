"""Draw pictures of a run: examples as in the paper's Fig. 3, and the loss curve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxreg.atomic import replacing
from jaxreg.geometry import RigidTransform
from jaxreg.pairs import Pairs
from jaxreg.training.heldout import Errors
from jaxreg.training.logs import read_metrics
from jaxreg.warping import warp

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # needs no display, whichever backend the user has set
    return figure


def _write(path: Path, figure: Figure) -> None:
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=100)


def write_examples(path: Path, pairs: Pairs, estimate: RigidTransform) -> None:
    """Draw each pair in a row: original, transformed, aligned (the original after the estimate).

    Pixels are enlarged without smoothing, so that they can be seen.
    """
    aligned = warp(pairs.fixed, estimate)
    count = pairs.fixed.shape[0]
    figure = _figure(6.0, 2.1 * count)
    axes = figure.subplots(count, 3, squeeze=False)
    truths = np.asarray(pairs.transform.as_array())
    answers = np.asarray(estimate.as_array())
    for row, truth, answer, images in zip(
        axes, truths, answers, zip(pairs.fixed, pairs.moving, aligned, strict=True), strict=True
    ):
        for axis, image in zip(row, images, strict=True):
            axis.imshow(np.asarray(image).clip(0, 255).astype(np.uint8), interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        for axis, values in ((row[1], truth), (row[2], answer)):
            axis.set_xlabel("{:.1f}, {:.1f} px, {:.0f}°".format(*values), fontsize=8)
    for axis, title in zip(axes[0], ("original", "transformed", "aligned"), strict=True):
        axis.set_title(title)
    _write(path, figure)


def write_curve(path: Path, workdir: Path, constant: Errors) -> None:
    """Draw training and held-out errors against the step, from the metrics on disk.

    The training loss is the one that is minimised, for some networks a likelihood. The loss on
    held-out pairs is Eq. 5.
    """
    rows = read_metrics(workdir)
    figure = _figure(9.0, 3.2)
    axes = figure.subplots(1, 3)
    titles = {"loss": "loss", "translation": "translation, px", "rotation": "rotation, degrees"}
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        for split, style in (("train", "-"), ("eval", "o-")):
            cells = [(int(row["step"]), row[f"{split}_{name}"]) for row in rows]
            points = [(step, float(text)) for step, text in cells if text]
            if points:
                label = "training" if split == "train" else "held out (Eq. 5)"
                axis.plot(*zip(*points, strict=True), style, markersize=3, label=label)
        axis.axhline(getattr(constant, name), color="grey", linestyle=":", label="constant (Eq. 5)")
        axis.set_title(title)
        axis.set_xlabel("step")
        texts = [row[f"train_{name}"] for row in rows]
        if all(float(text) > 0 for text in texts if text):  # a likelihood may be negative
            axis.set_yscale("log")
    axes[0].legend()
    _write(path, figure)
