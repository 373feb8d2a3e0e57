"""One TIFF beside the table of many pairs: every MOVING brought onto FIXED, a corrected movie."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from jaxreg.alignment.channels import told_by_tags
from jaxreg.alignment.files import check_writable, read_picture
from jaxreg.alignment.moved import MovedPictures, moved_back, read_again
from jaxreg.alignment.pages import is_one_of, page_names, split_page
from jaxreg.alignment.table import Job, is_success
from jaxreg.atomic import replacing

_SUFFIXES = (".tif", ".tiff")
_LARGEST = 2**32 - 2**25  # bytes of pixels that a TIFF of 32-bit offsets takes


def is_movie(path: str | os.PathLike[str]) -> bool:
    """Whether the moved pictures of many pairs are to be pages of this file, and not a folder.

    >>> is_movie("steady.tif"), is_movie("steady")
    (True, False)
    """
    return Path(path).suffix.lower() in _SUFFIXES and not os.path.isdir(path)


class MovedMovie:
    """The pictures of all pairs, in their order, black where the answer cannot be trusted."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        jobs: Sequence[Job],
        table: str,
        masks: Iterable[str],
    ):
        """Check that nothing will be overwritten; nothing is made yet.

        Args:
          path: the TIFF.
          jobs: all pairs.
          table: the file of their answers.
          masks: files, too.

        Raises:
          ValueError: it cannot be written, or it is one of the files that are read.
        """
        self.path = Path(path)
        check_writable(self.path)
        if is_one_of(path, (table, *masks, *itertools.chain(*jobs))):
            raise ValueError(
                f"{path} is one of the images to register, a mask or the table; let "
                "--out_moving be another file"
            )

    def write(self, rows: Sequence[Mapping[str, str]]) -> None:
        """Write the whole movie from the rows of a table, a page at a time.

        Raises:
          OSError, ValueError: a file cannot be read again, or the movie not be written.
        """
        frames = (_frame(row) for row in rows)
        first = next(frames)
        pixels = max(float(row["width"] or 0) * float(row["height"] or 0) for row in rows)
        large = len(rows) * max(pixels * first[0, 0].nbytes, first.nbytes) > _LARGEST
        how = _scale(rows)
        with replacing(self.path) as file, tifffile.TiffWriter(file, bigtiff=large) as tiff:
            for frame in itertools.chain([first], frames):
                photometric = "rgb" if frame.ndim == 3 else "minisblack"
                tiff.write(frame, photometric=photometric, metadata=None, **how)
                how.pop("description", None)  # of all pages, in the first one


def folder_or_movie(
    path: str | os.PathLike[str], jobs: Sequence[Job], table: str, masks: Iterable[str] = ()
) -> MovedPictures | MovedMovie:
    """Where the moved pictures of many pairs go; arguments and errors as theirs."""
    kind = MovedMovie if is_movie(path) else MovedPictures
    return kind(path, jobs, table, masks)


def _frame(row: Mapping[str, str]) -> np.ndarray:
    """A pair's page."""
    if is_success(row):
        return moved_back(row)
    try:
        return np.zeros_like(read_again(row, "moving"))
    except (OSError, ValueError):  # it may be why there is no answer
        return np.zeros_like(read_picture(row["fixed"]).pixels)


def _scale(rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """What the first moving file, if a TIFF, says of the size of its pixels, as of a page to write.

    ImageJ's and OME's text, which tells the axes too, is that of all pages of a file.
    """
    moving = [row["moving"] for row in rows]
    name = split_page(moving[0])[0]
    if Path(name).suffix.lower() not in _SUFFIXES:
        return {}
    how = told_by_tags(name, _resolution) or {}
    sizes = {(float(row["width"]), float(row["height"])) for row in rows if row["width"]}
    text = told_by_tags(name, lambda tiff: _text(tiff, sizes))
    if text and moving == page_names(name):
        how["description"] = re.sub(' UUID="[^"]*"', "", text, count=1).encode()
    return how


def _resolution(tiff: tifffile.TiffFile) -> dict[str, Any]:
    """Pixels a unit, across and down, as of a page to write; raises where a tag makes no sense."""
    tags = tiff.pages.first.tags
    scale = [Fraction(*tags.valueof(tag)) for tag in (282, 283)]
    if min(scale) <= 0:
        raise ValueError(f"pixels of no size, {scale}")
    unit = tifffile.RESUNIT(tags.valueof(296, default=tifffile.RESUNIT.INCH))
    return {"resolution": [s.as_integer_ratio() for s in scale], "resolutionunit": unit}


def _text(tiff: tifffile.TiffFile, sizes: Set[tuple[float, float]]) -> str:
    """ImageJ's text, or OME's of this file and no others, if pages of these sizes fit it."""
    page = tiff.pages.first
    text = page.tags.valueof(270)
    if text.startswith("ImageJ="):  # says nothing of the size
        return text
    ome = text.rstrip().endswith("OME>") and "FileName=" not in text
    return text if ome and sizes <= {(page.imagewidth, page.imagelength)} else ""
