"""Pairs of files to register, and the CSV table that their answers go into.

The table is only ever appended to, whole batches at a time, so a run can be stopped at any moment
and taken up again: pairs that have a row are skipped, and a half-written last row is cut off. Every
row says how it was made; a run with other settings is refused, for a mixture would not show.

Names in a table begin at its own folder, as those of a list do at the list's, or at the root where
they were given so: wherever a run is started, the same files are the same pairs and others are not.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from jaxreg.alignment.pages import split_page
from jaxreg.atomic import check_replaceable, lock, naming
from jaxreg.data.folder import SUFFIXES

COLUMNS = (
    *("fixed", "moving", "method", "settings"),
    *("width", "height", "working_width", "working_height"),
    *("tx", "ty", "theta", "se_tx", "se_ty", "se_theta", "score", "success", "reasons", "error"),
)
_HEADER = (",".join(COLUMNS) + "\n").encode()
_TRUTHS = ("true", "false")  # in lower case


class Job(NamedTuple):
    """Two files to register, or pages of such."""

    fixed: str
    moving: str

    def absolute(self) -> Job:
        """The same pair, its files named from the root."""
        return Job(*map(os.path.abspath, self))


def jobs_of_folders(fixed_dir: str, moving_dir: str) -> tuple[list[Job], list[str]]:
    """Image files of two folders, paired by name; the suffix need not agree.

    Returns:
      The pairs in the order of their names, and the files without a partner.

    Raises:
      ValueError: no folder, no pair, or two files of one folder share a name.
    """
    first, second = images_in(fixed_dir, "fixed_dir"), images_in(moving_dir, "moving_dir")
    jobs = [Job(first[name], second[name]) for name in first if name in second]
    if not jobs:
        raise ValueError(
            f"no image in {fixed_dir} ({len(first)} images) has a namesake in {moving_dir} "
            f"({len(second)} images); list them in --pairs"
        )
    alone = _in_order(first.keys() ^ second.keys())
    return jobs, [first.get(name) or second[name] for name in alone]


def jobs_of_reference(fixed: str, moving_dir: str) -> list[Job]:
    """One fixed image with every image file of a folder, in the order of their names.

    Raises:
      ValueError: no folder, no image in it, or two of them share a name.
    """
    found = images_in(moving_dir, "moving_dir")
    if not found:
        raise ValueError(f"--moving_dir={moving_dir} holds no images")
    reference = one_line_name(fixed)
    return [Job(reference, image) for image in found.values()]


def images_in(folder: str, flag: str) -> dict[str, str]:
    """Image files of a folder by their name without suffix, in the order of these."""
    if not os.path.isdir(folder):
        raise ValueError(f"--{flag}={folder} is no folder")
    found: dict[str, str] = {}
    for name in sorted(os.listdir(folder)):
        stem, suffix = os.path.splitext(name)
        path = os.path.join(folder, name)
        if suffix.lower() not in SUFFIXES or name.startswith(".") or os.path.isdir(path):
            continue
        if stem in found:
            raise ValueError(
                f"{found[stem]} and {path} share the name {stem!r}; pair them by --pairs=list.csv"
            )
        found[stem] = one_line_name(path)
    return {stem: found[stem] for stem in _in_order(found)}


def _in_order(names: Iterable[str]) -> list[str]:
    """Names in the order that people number them in.

    >>> _in_order(["f10", "f9", "f09", "g1", "f"])
    ['f', 'f09', 'f9', 'f10', 'g1']
    """

    def key(name: str) -> tuple:
        parts = re.split(r"(\d+)", name)
        return [int(part) if k % 2 else part for k, part in enumerate(parts)], name

    return sorted(names, key=key)


def jobs_of_list(path: str) -> list[Job]:
    """Pairs of a CSV file with two columns, fixed and moving; a header of these names is optional.

    Relative paths start at the list's folder.

    Raises:
      OSError: the list cannot be opened.
      ValueError: a line does not hold two paths, a pair comes twice, or there is none.
    """
    folder = os.path.dirname(path)
    jobs: dict[Job, int] = {}
    for line, cells in _lines(path):
        header = [cell.lower() for cell in cells] == ["fixed", "moving"] and not jobs
        if header or not any(cells):
            continue
        if len(cells) != 2 or not all(cells):
            raise ValueError(
                f"{path}, line {line}: must be two paths, FIXED,MOVING, got {','.join(cells)!r}"
            )
        job = Job(*(one_line_name(os.path.join(folder, cell)) for cell in cells))
        if job in jobs:
            raise ValueError(f"{path}, line {line}: the same pair as in line {jobs[job]}")
        jobs[job] = line
    if not jobs:
        raise ValueError(f"{path} holds no pairs; write one FIXED,MOVING a line")
    return list(jobs)


def _lines(path: str) -> Iterator[tuple[int, list[str]]]:
    """The lines of a CSV file by their numbers; ValueError at an open quote, or for no text."""
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        for line, text in enumerate(file, 1):
            if "\0" in text:  # as in UTF-16, which some Windows programs write
                raise ValueError(f"{path}, line {line}: not a text in UTF-8; save it as one")
            try:
                (cells,) = csv.reader([text], strict=True)
                yield line, [cell.strip() for cell in cells]
            except csv.Error as error:
                raise ValueError(f"{path}, line {line}: {error}; is a quote left open?") from error


def one_line_name(path: str) -> str:
    """The name by which a file goes in a table: the same for ``./a.png`` and ``a.png``."""
    if "\n" in path or "\r" in path:
        raise ValueError(f"{path!r}: a line break in a file's name cannot be kept in a table")
    return str(Path(path)) if path else path


def job_of(row: Mapping[str, str]) -> Job:
    """The pair that a row of a table is of."""
    return Job(row["fixed"], row["moving"])


def is_success(row: Mapping[str, str]) -> bool:
    """Whether a row's answer can be trusted; spreadsheets save TRUE, pandas True.

    >>> is_success({"success": "TRUE"}), is_success({"success": "false"})
    (True, False)
    """
    return row["success"].lower() == _TRUTHS[0]


def _parsed(path: Path, data: bytes) -> Iterator[tuple[int, dict[str, str]]]:
    """The whole rows of a table by their lines; ValueError where it is none."""
    # A spreadsheet may have saved it, with a byte order mark and other ends of lines.
    if not data.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n", 1).startswith(_HEADER):
        raise ValueError(f"{path} exists and is not a table of jaxreg.align, of this version")
    text = data[: data.rfind(b"\n") + 1].decode("utf-8-sig", errors="surrogateescape")
    for number, row in enumerate(csv.DictReader(io.StringIO(text, newline="")), 2):
        if None in row or None in row.values() or row["success"].lower() not in _TRUTHS:
            raise ValueError(f"{path}, line {number}: not a row of jaxreg.align")
        yield number, row


def read_table(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """The rows of a table, under the names that are in it.

    Raises:
      OSError: it cannot be read.
      ValueError: it is something else, or holds none.
    """
    path = Path(path)
    rows = [row for _, row in _parsed(path, path.read_bytes())]
    if not rows:
        raise ValueError(f"{path} holds no rows")
    return rows


class Table:
    """The CSV file of answers, open for more rows; a context manager.

    Attributes:
      rows: those that were there, and those added, by `Job.absolute`: whether it was a success.
    """

    def __init__(self, path: str | os.PathLike[str], method: str, settings: str):
        """Open the table, or begin one.

        Args:
          path: the CSV file.
          method: of this run; rows of another one are refused, for they would be taken as its own.
          settings: likewise, as a text.

        Raises:
          OSError: the file cannot be written.
          ValueError: it is something else than a table of this command, or of another method or
            other settings, or another run writes it.
        """
        self.path = Path(path)
        self.rows: dict[Job, bool] = {}
        # Not a link to it, from which ".." would lead elsewhere.
        self._folder = os.path.realpath(self.path.parent)
        check_replaceable(path)
        if not self.path.parent.is_dir():
            raise ValueError(f"{path} cannot be written: there is no folder {self.path.parent}")
        self._written = os.stat(path).st_mtime_ns if os.path.exists(path) else 0
        # No buffer, which would try again to write what could not be written.
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        try:
            if not lock(self._file):  # another run would not know these rows
                raise ValueError(f"{self.path} is being written by another run")
            kept = self._load(method, settings)
            if kept < os.path.getsize(path):  # else it would count as written just now
                self._file.truncate(kept)
            if not kept:
                self._append([dict(zip(COLUMNS, COLUMNS, strict=True))])
        except BaseException:
            self._file.close()
            raise

    def _load(self, method: str, settings: str) -> int:
        """Read what is there; returns how many bytes of it are whole rows."""
        data = self.path.read_bytes()
        if _HEADER.startswith(data):  # nothing, or a header cut short
            return len(data) if data == _HEADER else 0
        for number, row in _parsed(self.path, data):
            if (row["method"], row["settings"]) != (method, settings):
                raise ValueError(
                    f"{self.path} was begun with --method={row['method']} {row['settings']}; "
                    f"use another --out for --method={method} {settings}"
                )
            if number == 2:
                self._check_names(row)
            self.rows[self._absolute(row)] = is_success(row)
        return data.rfind(b"\n") + 1

    def _check_names(self, row: Mapping[str, str]) -> None:
        """Raise ValueError where a row's names begin at another folder than the table's."""
        for name in (split_page(name)[0] for name in job_of(row)):
            if os.path.exists(name) and not os.path.exists(os.path.join(self._folder, name)):
                raise ValueError(
                    f"{self.path} names {name}, which is not in its folder but in the current one: "
                    "it was moved, or written by an earlier version; use another --out"
                )

    def _absolute(self, row: Mapping[str, str]) -> Job:
        """The pair of a row in the file, as `Job.absolute`."""
        return Job(*(os.path.join(self._folder, name) for name in job_of(row))).absolute()

    def _from_folder(self, name: str) -> str:
        """The name in the file of what is called so here."""
        if os.path.isabs(name):
            return name
        return one_line_name(os.path.relpath(name, self._folder))

    def add(self, rows: Iterable[Mapping[str, str]]) -> None:
        """Append rows, whose keys are `COLUMNS`; a process that is killed later keeps them.

        Names in them begin at the current folder, and in the file at the table's.
        """
        rows = list(rows)
        names = [Job(*map(self._from_folder, job_of(row)))._asdict() for row in rows]
        self._append({**row, **own} for row, own in zip(rows, names, strict=True))
        for row in rows:
            self.rows[job_of(row).absolute()] = is_success(row)

    def stored(self, jobs: Iterable[Job]) -> Iterator[dict[str, str]]:
        """The rows of these pairs, under the names given; read anew, as `rows` keeps little."""
        given = {job.absolute(): job for job in jobs}
        with open(self.path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            for row in csv.DictReader(file):
                if job := given.get(self._absolute(row)):
                    yield row | job._asdict()

    def check_unchanged(self, job: Job) -> None:
        """Raise ValueError where a pair's row may tell of other images: a file of it is newer."""
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
