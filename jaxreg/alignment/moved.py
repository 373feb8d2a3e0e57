"""Write a folder of pictures for a table of pairs: moving images aligned to fixed, or overlays."""

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
    """A folder of aligned moving images, one for each pair whose answer can be trusted.

    Each is named after its moving image (`own_name`). Where the format of that file cannot store
    the pixels without loss, the suffix is .png, or .tif if PNG cannot either. Names of two pairs
    must therefore differ in more than the suffix.
    """

    flag = "out_moving"

    def __init__(
        self,
        folder: str | os.PathLike[str],
        jobs: Sequence[Job],
        table: str,
        masks: Iterable[str],
    ):
        """Check that nothing will be overwritten; create nothing.

        Args:
          folder: the folder of the pictures; its parent must exist.
          jobs: all pairs.
          table: path of the table of answers.
          masks: paths of the masks.

        Raises:
          ValueError: the folder cannot be written to, two pairs would write the same file, or a
            picture would overwrite an image to register, a mask or the table.
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
        folder, own = os.path.split(os.path.realpath(table))  # the table need not exist yet
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
        """Paths at which the picture of a moving file may be."""
        own = self.folder / own_name(moving)
        return [own, own.with_suffix(".png"), own.with_suffix(".tif")]

    def has(self, job: Job) -> bool:
        """Whether the picture of a pair exists."""
        return any(path.exists() for path in self._candidates(job.moving))

    def shows(self, row: Mapping[str, str]) -> bool:
        """Whether a row of the table should have a picture."""
        return is_success(row)

    def write(self, rows: Iterable[Mapping[str, str]]) -> None:
        """Write the pictures of rows that should have one; remove old pictures of the other rows.

        Raises:
          OSError, ValueError: an image cannot be read again, or its picture cannot be written.
        """
        self.folder.mkdir(exist_ok=True)
        with concurrent.futures.ThreadPoolExecutor(_WRITERS) as pool:
            try:
                for _ in pool.map(self._write_one, rows):
                    pass  # only to raise its error
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _write_one(self, row: Mapping[str, str]) -> None:
        """Write or remove one row's picture.

        The image is read again, since a batch of images could fill the memory.
        """
        if not self.shows(row):
            self._remove(job_of(row))
            return
        pixels = self._picture(row)
        write_picture(self._target(row["moving"], pixels), pixels)

    def _picture(self, row: Mapping[str, str]) -> np.ndarray:
        return aligned_moving(row)

    def _target(self, moving: str, pixels: np.ndarray) -> Path:
        """Path to which the picture of a moving file is written."""
        candidates = self._candidates(moving)
        fit = (path for path in candidates if keeps(path.suffix, pixels))
        return next(fit, candidates[0])

    def _remove(self, job: Job) -> None:
        """Remove only the picture that writing this pair's picture would overwrite."""
        if not self.has(job):
            return
        try:
            path = self._target(job.moving, read_picture(job.moving).pixels)
        except (OSError, ValueError):  # the dtype of its pixels is unknown
            path = self._candidates(job.moving)[0]
        path.unlink(missing_ok=True)


class OverlayPictures(MovedPictures):
    """A folder of overlays before and after alignment, one for each pair that has an answer."""

    flag = "overlay"

    def __init__(self, style: str, *given: Any):
        """Take the arguments of `MovedPictures`, after the ``style`` of `overlay`."""
        super().__init__(*given)
        self._style = style

    def _candidates(self, moving: str) -> list[Path]:
        return [(self.folder / own_name(moving)).with_suffix(".png")]

    def shows(self, row: Mapping[str, str]) -> bool:
        """Whether a row has an answer, trusted or not."""
        return bool(row["tx"])

    def _picture(self, row: Mapping[str, str]) -> np.ndarray:
        fixed, moving = (read_again(row, name) for name in ("fixed", "moving"))
        return overlay(fixed, moving, _answer(row), self._style)


def _answer(row: Mapping[str, str]) -> RigidTransform:
    return RigidTransform(*(float(row[name]) for name in ("tx", "ty", "theta")))


def aligned_moving(row: Mapping[str, str]) -> np.ndarray:
    """Align a row's moving image to its fixed one; errors as for `read_again`."""
    return warp_pixels(read_again(row, "moving"), _answer(row), back=True)


def read_again(row: Mapping[str, str], name: str) -> np.ndarray:
    """Read a row's image again, cropped as it was to be registered.

    Args:
      row: a row of the table.
      name: its column, ``"fixed"`` or ``"moving"``.

    Raises:
      OSError, ValueError: the image cannot be read, or its size has changed.
    """
    picture = read_picture(row[name])
    if not row["width"]:  # the pair could not be registered
        return picture.pixels
    size = int(float(row["width"])), int(float(row["height"]))  # pandas saves 48 as 48.0
    larger = all(now >= then for now, then in zip(picture.size, size, strict=True))
    if picture.size != size and not (larger and "--crop" in row["settings"].split()):
        raise ValueError(f"{row[name]} is of another size than when it was registered")
    return crop(picture, size).pixels


def _identity(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Identify a file by its device and inode, whichever name it is given by."""
    status = os.stat(path)
    return status.st_dev, status.st_ino
