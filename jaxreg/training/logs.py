"""Metrics on disk: one CSV file that survives restarts, and TensorBoard."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from jaxreg.atomic import write_text

METRICS_FILE = "metrics.csv"
COLUMNS = (
    "step",
    "train_loss",
    "train_translation",
    "train_rotation",
    "gradient_norm",
    "learning_rate",
    "eval_loss",
    "eval_translation",
    "eval_rotation",
    "seconds",
)


class MetricsLog:
    """Appends rows to ``metrics.csv`` and to TensorBoard; rows after ``step`` are dropped first.

    A row stands for the steps since the row before it. ``seconds`` is time spent in steps, over
    all starts of the run.
    """

    def __init__(self, workdir: Path, step: int):
        from tensorboardX import SummaryWriter

        path = workdir / METRICS_FILE
        rows = [row for row in read_metrics(workdir) if int(row["step"]) <= step] if step else []
        self.seconds = float(rows[-1]["seconds"]) if rows else 0.0
        kept = io.StringIO()
        writer = csv.DictWriter(kept, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        write_text(path, kept.getvalue())
        self._file = path.open("a", newline="")
        self._writer = csv.DictWriter(self._file, COLUMNS)
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: dict[str, float], seconds: float) -> None:
        """One row, on disk when this returns."""
        self.seconds += seconds
        row = {name: f"{value:.6g}" for name, value in values.items()}
        self._writer.writerow({"step": step, **row, "seconds": f"{self.seconds:.3f}"})
        self._file.flush()
        for name, value in values.items():
            group, _, rest = name.partition("_")
            tag = f"{group}/{rest}" if group in ("train", "eval") else f"train/{name}"
            self._board.add_scalar(tag, value, step)

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        self._board.close()


def read_metrics(workdir: Path) -> list[dict[str, str]]:
    """The whole rows of ``metrics.csv``; a last one cut short by a kill is left out."""
    path = workdir / METRICS_FILE
    if not path.exists():
        return []
    with path.open(newline="") as file:
        lines = file.read().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    rows = csv.DictReader(whole)
    return [row for row in rows if None not in row.values() and row["seconds"]]
