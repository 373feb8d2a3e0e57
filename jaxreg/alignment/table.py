"""The CSV table of answers, and the pairs of files that its rows describe.

The table is only appended to, a whole batch at a time, so a run can be stopped at any moment and
continued: pairs that have a row are skipped, and a half-written last row is cut off. Every row
states its method and settings; a run with other settings is refused, so that answers do not mix.

Relative paths in a table start at its own folder, as those in a list of pairs start at the list's;
absolute paths stay absolute. A pair is therefore recognised wherever the run is started.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from jaxreg.alignment.pages import split_page
from jaxreg.atomic import check_replaceable, lock, naming

COLUMNS = (
    *("fixed", "moving", "method", "settings"),
    *("width", "height", "working_width", "working_height"),
    *("tx", "ty", "theta", "se_tx", "se_ty", "se_theta", "score", "success", "reasons", "error"),
)
_HEADER = (",".join(COLUMNS) + "\n").encode()
_TRUTHS = ("true", "false")  # compared in lower case


class Job(NamedTuple):
    """Two image files, or pages of files, to register."""

    fixed: str
    moving: str

    def absolute(self) -> Job:
        """The same pair with absolute paths."""
        return Job(*map(os.path.abspath, self))


def one_line_name(path: str) -> str:
    """Normalise a path for a table (``./a.png`` is ``a.png``); ValueError at a line break."""
    if "\n" in path or "\r" in path:
        raise ValueError(f"{path!r}: a line break in a file's name cannot be kept in a table")
    return str(Path(path)) if path else path


def job_of(row: Mapping[str, str]) -> Job:
    """Return the pair of a table's row."""
    return Job(row["fixed"], row["moving"])


def is_success(row: Mapping[str, str]) -> bool:
    """Whether a row's answer can be trusted; spreadsheets write TRUE, pandas True.

    >>> is_success({"success": "TRUE"}), is_success({"success": "false"})
    (True, False)
    """
    return row["success"].lower() == _TRUTHS[0]


def _parsed(path: Path, data: bytes) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line number and content of each whole row of a table; ValueError if it is no table."""
    # A spreadsheet may have saved it with a byte order mark and line ends of its own.
    if not data.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n", 1).startswith(_HEADER):
        raise ValueError(f"{path} exists and is not a table of jaxreg.align, of this version")
    text = data[: data.rfind(b"\n") + 1].decode("utf-8-sig", errors="surrogateescape")
    for number, row in enumerate(csv.DictReader(io.StringIO(text, newline="")), 2):
        if None in row or None in row.values() or row["success"].lower() not in _TRUTHS:
            raise ValueError(f"{path}, line {number}: not a row of jaxreg.align")
        yield number, row


def read_table(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """Read the rows of a table, with paths as they are written in it.

    Raises:
      OSError: the file cannot be read.
      ValueError: the file is no table of this command, or has no rows.
    """
    path = Path(path)
    rows = [row for _, row in _parsed(path, path.read_bytes())]
    if not rows:
        raise ValueError(f"{path} holds no rows")
    return rows


class Table:
    """The CSV file of answers, open to append rows; a context manager.

    Attributes:
      path: the file.
      success_of: whether each pair that has a row is a success, by `Job.absolute`.
    """

    def __init__(self, path: str | os.PathLike[str], method: str, settings: str):
        """Open the table, or create it.

        Args:
          path: the CSV file.
          method: this run's method; a table of another one is refused.
          settings: this run's settings as a text; a table of other ones is refused.

        Raises:
          OSError: the file cannot be written.
          ValueError: the file is no table of this command, has rows of another method or of other
            settings, or is being written by another run.
        """
        self.path = Path(path)
        self.success_of: dict[Job, bool] = {}
        # Links are resolved, since ".." in a link to the folder would lead elsewhere.
        self._folder = os.path.realpath(self.path.parent)
        check_replaceable(path)
        if not self.path.parent.is_dir():
            raise ValueError(f"{path} cannot be written: there is no folder {self.path.parent}")
        self._written = os.stat(path).st_mtime_ns if os.path.exists(path) else 0
        # Unbuffered: a buffer would try again to write what could not be written.
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        try:
            if not lock(self._file):  # two runs would not know each other's rows
                raise ValueError(f"{self.path} is being written by another run")
            kept = self._load(method, settings)
            if kept < os.path.getsize(path):  # only then: to truncate changes the file's time
                self._file.truncate(kept)
            if not kept:
                self._append([dict(zip(COLUMNS, COLUMNS, strict=True))])
        except BaseException:
            self._file.close()
            raise

    def _load(self, method: str, settings: str) -> int:
        """Read the existing rows; returns how many bytes of the file are whole rows."""
        data = self.path.read_bytes()
        if _HEADER.startswith(data):  # an empty file, or a header cut short
            return len(data) if data == _HEADER else 0
        for number, row in _parsed(self.path, data):
            if (row["method"], row["settings"]) != (method, settings):
                raise ValueError(
                    f"{self.path} was begun with --method={row['method']} {row['settings']}; "
                    f"use another --out for --method={method} {settings}"
                )
            if number == 2:
                self._check_names(row)
            self.success_of[self._absolute(row)] = is_success(row)
        return data.rfind(b"\n") + 1

    def _check_names(self, row: Mapping[str, str]) -> None:
        """Raise ValueError if a row's paths start at the current folder and not the table's."""
        for name in (split_page(name)[0] for name in job_of(row)):
            if os.path.exists(name) and not os.path.exists(os.path.join(self._folder, name)):
                raise ValueError(
                    f"{self.path} names {name}, which is not in its folder but in the current one: "
                    "it was moved, or written by an earlier version; use another --out"
                )

    def _absolute(self, row: Mapping[str, str]) -> Job:
        """The pair of a row in the file with absolute paths, as `Job.absolute`."""
        return Job(*(os.path.join(self._folder, name) for name in job_of(row))).absolute()

    def _from_folder(self, name: str) -> str:
        """Convert a path from the current folder into one from the table's folder."""
        if os.path.isabs(name):
            return name
        return one_line_name(os.path.relpath(name, self._folder))

    def add(self, rows: Iterable[Mapping[str, str]]) -> None:
        """Append rows, whose keys are `COLUMNS`, and write them out at once.

        Relative paths start at the current folder; in the file they start at the table's.
        """
        rows = list(rows)
        names = [Job(*map(self._from_folder, job_of(row)))._asdict() for row in rows]
        self._append({**row, **own} for row, own in zip(rows, names, strict=True))
        for row in rows:
            self.success_of[job_of(row).absolute()] = is_success(row)

    def stored(self, jobs: Iterable[Job]) -> Iterator[dict[str, str]]:
        """Read the rows of these pairs from the file, with paths as given here."""
        given = {job.absolute(): job for job in jobs}
        for _, row in _parsed(self.path, self.path.read_bytes()):
            if job := given.get(self._absolute(row)):
                yield row | job._asdict()

    def check_unchanged(self, job: Job) -> None:
        """Raise ValueError if an image is newer than its row, which may describe another image."""
        for name in job:
            file = split_page(name)[0]
            if os.path.exists(file) and os.stat(file).st_mtime_ns > self._written:
                raise ValueError(
                    f"{name} is newer than {self.path}, whose answer may be of another image; "
                    "delete its rows, use another --out or, if it was but copied anew, touch "
                    f"{self.path}"
                )

    def _append(self, rows: Iterable[Mapping[str, str]]) -> None:
        text = io.StringIO(newline="")
        csv.DictWriter(text, COLUMNS, lineterminator="\n").writerows(rows)
        data = text.getvalue().encode(errors="surrogateescape")
        with naming(self.path):
            while data:
                data = data[self._file.write(data) :]

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
