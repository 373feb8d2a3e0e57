"""Folders of pictures beside the table of many pairs: MOVING brought onto FIXED, overlays."""

from __future__ import annotations

import concurrent.futures
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxreg.alignment.files import check_folder, keeps, read_picture, write_picture
from jaxreg.alignment.pages import own_name, split_page
from jaxreg.alignment.pictures import overlay, warp_pixels
from jaxreg.alignment.table import Job, is_success, job_of
from jaxreg.alignment.working import crop
from jaxreg.geometry import RigidTransform

_WRITERS = 4  # threads that decode, warp and encode


class MovedPictures:
    """The pictures of pairs whose answer can be trusted, each named after its moving one.

    See `own_name`. A name without its suffix stands for one pair, as another suffix is taken where
    that of the moving file could not keep its pixels: .png, or .tif for what PNG cannot keep.
    """

    flag = "out_moving"

    def __init__(
        self,
        folder: str | os.PathLike[str],
        jobs: Sequence[Job],
        table: str,
        masks: Iterable[str],
    ):
        """Check that nothing will be overwritten; nothing is made yet.

        Args:
          folder: may be missing, its own folder may not.
          jobs: all pairs.
          table: the file of their answers.
          masks: files, too.

        Raises:
          ValueError: the folder cannot be written to, two pairs would write one file, or a picture
            would take the place of an image to register, of a mask or of the table.
        """
        self.folder = Path(folder)
        there = self.folder.exists()
        if there and not self.folder.is_dir():
            raise ValueError(f"--{self.flag}={folder} is no folder; many pairs need one")
        check_folder(self.folder if there else self.folder.parent, folder)
        self._check_names(jobs)
        self._check_inputs(jobs, table, masks)

    def _check_names(self, jobs: Iterable[Job]) -> None:
        taken: dict[str, Job] = {}
        for job in jobs:
            stem = Path(own_name(job.moving)).stem
            other = taken.setdefault(os.path.normcase(stem), job)
            if other is not job:
                raise ValueError(
                    f"--{self.flag}={self.folder}: the pictures of {', '.join(other)} and of "
                    f"{', '.join(job)} would both be named {stem}; register one of them in a run "
                    "of its own"
                )

    def _check_inputs(self, jobs: Sequence[Job], table: str, masks: Iterable[str]) -> None:
        there = set(os.listdir(self.folder)) if self.folder.exists() else set()
        targets = [path for job in jobs for path in self._candidates(job.moving)]
        folder, own = os.path.split(os.path.realpath(table))  # which need not exist yet
        if folder == os.path.realpath(self.folder) and own in {path.name for path in targets}:
            raise ValueError(f"--out={table} would be overwritten by a picture of --{self.flag}")
        present = [path for path in targets if path.name in there]
        if not present:
            return
        files = {split_page(name)[0] for name in (table, *masks, *itertools.chain(*jobs))}
        inputs = {_identity(file) for file in files if os.path.exists(file)}
        for path in present:
            if _identity(path) in inputs:
                raise ValueError(
                    f"{path} is one of the images to register, a mask or the table; "
                    f"let --{self.flag} be another folder"
                )

    def _candidates(self, moving: str) -> list[Path]:
        """Where the picture of a moving file may be."""
        own = self.folder / own_name(moving)
        return [own, own.with_suffix(".png"), own.with_suffix(".tif")]

    def has(self, job: Job) -> bool:
        """Whether there is a picture of a pair."""
        return any(path.exists() for path in self._candidates(job.moving))

    def shows(self, row: Mapping[str, str]) -> bool:
        """Whether a row of the table is to have a picture."""
        return is_success(row)

    def write(self, rows: Iterable[Mapping[str, str]]) -> None:
        """Write the pictures of a table's rows; where one is to have none, remove an earlier one.

        Raises:
          OSError, ValueError: a file cannot be read again, or its picture not be written.
        """
        self.folder.mkdir(exist_ok=True)
        with concurrent.futures.ThreadPoolExecutor(_WRITERS) as pool:
            try:
                for _ in pool.map(self._write_one, rows):
                    pass  # but for its error
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _write_one(self, row: Mapping[str, str]) -> None:
        """One row's picture; its image is read again, as a batch of them could fill the memory."""
        if not self.shows(row):
            self._remove(job_of(row))
            return
        pixels = self._picture(row)
        write_picture(self._target(row["moving"], pixels), pixels)

    def _picture(self, row: Mapping[str, str]) -> np.ndarray:
        return moved_back(row)

    def _target(self, moving: str, pixels: np.ndarray) -> Path:
        """Where the picture of a moving file goes."""
        candidates = self._candidates(moving)
        fit = (path for path in candidates if keeps(path.suffix, pixels))
        return next(fit, candidates[0])

    def _remove(self, job: Job) -> None:
        """Remove the picture that would be overwritten by one of this pair, and nothing else."""
        if not self.has(job):
            return
        try:
            path = self._target(job.moving, read_picture(job.moving).pixels)
        except (OSError, ValueError):  # of pixels unknown
            path = self._candidates(job.moving)[0]
        path.unlink(missing_ok=True)


class OverlayPictures(MovedPictures):
    """Pictures of both images, before and after, of all pairs that could be registered at all."""

    flag = "overlay"

    def __init__(self, style: str, *given: Any):
        """As for `MovedPictures`; ``style`` is that of `overlay`."""
        super().__init__(*given)
        self._style = style

    def _candidates(self, moving: str) -> list[Path]:
        return [(self.folder / own_name(moving)).with_suffix(".png")]

    def shows(self, row: Mapping[str, str]) -> bool:
        """Whether a row has an answer, be it a wrong one."""
        return bool(row["tx"])

    def _picture(self, row: Mapping[str, str]) -> np.ndarray:
        fixed, moving = (read_again(row, name) for name in ("fixed", "moving"))
        return overlay(fixed, moving, _answer(row), self._style)


def _answer(row: Mapping[str, str]) -> RigidTransform:
    return RigidTransform(*(float(row[name]) for name in ("tx", "ty", "theta")))


def moved_back(row: Mapping[str, str]) -> np.ndarray:
    """A row's moving image brought onto its fixed one; ValueError as for `read_again`."""
    return warp_pixels(read_again(row, "moving"), _answer(row), back=True)


def read_again(row: Mapping[str, str], name: str) -> np.ndarray:
    """Pixels of a row's image as it was registered; ValueError if its size has changed."""
    picture = read_picture(row[name])
    if not row["width"]:  # it was not registered at all
        return picture.pixels
    size = int(float(row["width"])), int(float(row["height"]))  # pandas saves 48 as 48.0
    larger = all(now >= then for now, then in zip(picture.size, size, strict=True))
    if picture.size != size and not (larger and "--crop" in row["settings"].split()):
        raise ValueError(f"{row[name]} is of another size than when it was registered")
    return crop(picture, size).pixels


def _identity(path: str | os.PathLike[str]) -> tuple[int, int]:
    """The file itself, whatever its names."""
    status = os.stat(path)
    return status.st_dev, status.st_ino
