"""Write metrics to a CSV file, which restarts continue, and to TensorBoard."""

from __future__ import annotations

import csv
import io
import math
import socket
import time
from pathlib import Path
from typing import Any

from jaxreg.atomic import naming, write_text

METRICS_FILE = "metrics.csv"
METRICS_COLUMNS = (
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
    """Appends rows to ``metrics.csv`` and to TensorBoard; rows after ``step`` are removed first.

    A row is about the steps since the previous row. ``seconds`` is the time spent in steps, over
    all starts of the run.

    Raises:
      ValueError: the file that a restart continues is damaged, see `read_metrics`.
    """

    def __init__(self, workdir: Path, step: int):
        path = workdir / METRICS_FILE
        rows = [row for row in read_metrics(workdir) if int(row["step"]) <= step] if step else []
        self.seconds = float(rows[-1]["seconds"]) if rows else 0.0
        kept = io.StringIO()
        writer = csv.DictWriter(kept, METRICS_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        write_text(path, kept.getvalue())
        self._file = path.open("a", newline="")
        self._writer = csv.DictWriter(self._file, METRICS_COLUMNS)
        self._path = path
        self._board = _Board(workdir / "tensorboard", step)

    def write(self, step: int, values: dict[str, float], seconds: float) -> None:
        """Write one row; it is on disk when this returns.

        Raises:
          OSError: the row cannot be written.
        """
        self.seconds += seconds
        row = {name: f"{value:.6g}" for name, value in values.items()}
        with naming(self._path):
            self._writer.writerow({"step": step, **row, "seconds": f"{self.seconds:.3f}"})
            self._file.flush()
        self._board.write(step, values)

    def close(self) -> None:
        """Flush and close both files."""
        try:
            with naming(self._path):
                self._file.close()
        finally:
            self._board.close()


class _Board:
    """Writes events for TensorBoard, which ignores those of earlier starts after ``step``.

    tensorboardX's `SummaryWriter` writes in a thread. If the disk is full the thread dies, and the
    run would wait for it forever. So this class writes the events one by one.
    """

    def __init__(self, folder: Path, step: int):
        from tensorboardX.proto.event_pb2 import SessionLog
        from tensorboardX.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        # In nanoseconds: two starts within a second would share a file.
        self._path = folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self._records = RecordWriter(str(self._path))
        self._write(file_version="brain.Event:2")
        self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write the values of one row; they are on disk when this returns."""
        from tensorboardX.proto.summary_pb2 import Summary

        scalars = []
        for name, value in values.items():
            group, _, rest = name.partition("_")
            tag = f"{group}/{rest}" if group in ("train", "eval") else f"train/{name}"
            scalars.append(Summary.Value(tag=tag, simple_value=value))
        self._write(step=step, summary=Summary(value=scalars))

    def _write(self, **event: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        with naming(self._path):
            self._records.write(Event(wall_time=time.time(), **event).SerializeToString())
            self._records.flush()

    def close(self) -> None:
        """Flush and close the file."""
        with naming(self._path):
            self._records.close()


def read_metrics(workdir: Path) -> list[dict[str, str]]:
    """Read the rows of ``metrics.csv``, without an incomplete last one of a killed run.

    Returns:
      The cells of each row by column; none if there is no file.

    Raises:
      ValueError: the file is damaged or was edited: it has other columns, a row has another number
        of cells, or a cell is no number.
      OSError: the file cannot be read.
    """
    path = workdir / METRICS_FILE
    if not path.exists():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = file.read().splitlines(keepends=True)
        return _parsed([line for line in lines if line.endswith("\n")])
    except (ValueError, csv.Error) as error:
        raise ValueError(
            f"{path} is not as a jaxreg.train run wrote it ({error}): restore it, or remove it, "
            "and the run goes on with a new one"
        ) from error


def _parsed(lines: list[str]) -> list[dict[str, str]]:
    """Convert the lines of the file to rows, and check that their cells are numbers."""
    if not lines:
        return []
    header, *body = csv.reader(lines)
    if tuple(header) != METRICS_COLUMNS:
        raise ValueError(f"its columns are {','.join(header)}")
    rows = []
    for number, cells in enumerate(body, 2):
        if len(cells) != len(METRICS_COLUMNS):
            raise ValueError(f"row {number} has {len(cells)} cells")
        row = dict(zip(METRICS_COLUMNS, cells, strict=True))
        for name, text in row.items():
            _check_cell(number, name, text)
        rows.append(row)
    return rows


def _check_cell(number: int, name: str, text: str) -> None:
    """Raise ValueError unless a cell is a number, or empty: not all rows have an evaluation."""
    must = name in ("step", "seconds")
    try:
        value = int(text) if name == "step" else float(text or ("nan" if must else 0))
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise ValueError(f"row {number} has {text!r} as {name}")


def read_seconds(workdir: Path, step: int) -> float | None:
    """Read the seconds of training up to a step; None if no log of it can be read."""
    try:
        rows = read_metrics(workdir)
    except (OSError, ValueError):
        return None
    seconds = [float(row["seconds"]) for row in rows if int(row["step"]) <= step]
    return seconds[-1] if seconds else None
