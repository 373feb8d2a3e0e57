"""Write a corrected movie for a table of pairs: one TIFF of all moving images aligned to fixed."""

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

from jaxreg.alignment.channels import read_metadata
from jaxreg.alignment.files import check_writable, read_picture
from jaxreg.alignment.moved import MovedPictures, aligned_moving, read_again
from jaxreg.alignment.pages import is_one_of, page_names, split_page
from jaxreg.alignment.table import Job, is_success
from jaxreg.atomic import replacing

_SUFFIXES = (".tif", ".tiff")
_LARGEST = 2**32 - 2**25  # most bytes of pixels for a TIFF of 32-bit offsets


def is_movie(path: str | os.PathLike[str]) -> bool:
    """Whether a value of --out_moving means one TIFF, not a folder of pictures.

    >>> is_movie("steady.tif"), is_movie("steady")
    (True, False)
    """
    return Path(path).suffix.lower() in _SUFFIXES and not os.path.isdir(path)


class MovedMovie:
    """A TIFF of the aligned moving images of all pairs, black if the answer cannot be trusted."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        jobs: Sequence[Job],
        table: str,
        masks: Iterable[str],
    ):
        """Check that nothing will be overwritten; create nothing.

        Args:
          path: the TIFF.
          jobs: all pairs.
          table: path of the table of answers.
          masks: paths of the masks.

        Raises:
          ValueError: the TIFF cannot be written, or is one of the other files.
        """
        self.path = Path(path)
        check_writable(self.path)
        if is_one_of(path, (table, *masks, *itertools.chain(*jobs))):
            raise ValueError(
                f"{path} is one of the images to register, a mask or the table; let "
                "--out_moving be another file"
            )

    def write(self, rows: Sequence[Mapping[str, str]]) -> None:
        """Write the movie from the rows of a table, one page for each.

        Raises:
          OSError, ValueError: an image cannot be read again, or the movie cannot be written.
        """
        frames = (_frame(row) for row in rows)
        first = next(frames)
        pixels = max(float(row["width"] or 0) * float(row["height"] or 0) for row in rows)
        large = len(rows) * max(pixels * first[0, 0].nbytes, first.nbytes) > _LARGEST
        tags = _kept_tags(rows)
        with replacing(self.path) as file, tifffile.TiffWriter(file, bigtiff=large) as tiff:
            for frame in itertools.chain([first], frames):
                photometric = "rgb" if frame.ndim == 3 else "minisblack"
                tiff.write(frame, photometric=photometric, metadata=None, **tags)
                tags.pop("description", None)  # belongs in the first page only


def folder_or_movie(
    path: str | os.PathLike[str], jobs: Sequence[Job], table: str, masks: Iterable[str] = ()
) -> MovedPictures | MovedMovie:
    """Choose by the path how aligned images are written; arguments and errors as of the classes."""
    kind = MovedMovie if is_movie(path) else MovedPictures
    return kind(path, jobs, table, masks)


def _frame(row: Mapping[str, str]) -> np.ndarray:
    """Make the page of a pair."""
    if is_success(row):
        return aligned_moving(row)
    try:
        return np.zeros_like(read_again(row, "moving"))
    except (OSError, ValueError):  # this may be why the pair has no answer
        return np.zeros_like(read_picture(row["fixed"]).pixels)


def _kept_tags(rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Arguments for tifffile's `write` that keep the resolution of the first moving file, a TIFF.

    The text of ImageJ or OME, which also states the axes, is kept if the rows are all its pages.
    """
    moving = [row["moving"] for row in rows]
    name = split_page(moving[0])[0]
    if Path(name).suffix.lower() not in _SUFFIXES:
        return {}
    tags = read_metadata(name, _resolution) or {}
    sizes = {(float(row["width"]), float(row["height"])) for row in rows if row["width"]}
    text = read_metadata(name, lambda tiff: _text(tiff, sizes))
    if text and moving == page_names(name):
        tags["description"] = re.sub(' UUID="[^"]*"', "", text, count=1).encode()
    return tags


def _resolution(tiff: tifffile.TiffFile) -> dict[str, Any]:
    """Pixels a unit across and down, as arguments of `write`; raises if a tag makes no sense."""
    tags = tiff.pages.first.tags
    scale = [Fraction(*tags.valueof(tag)) for tag in (282, 283)]
    if min(scale) <= 0:
        raise ValueError(f"the resolution must be positive, got {scale}")
    unit = tifffile.RESUNIT(tags.valueof(296, default=tifffile.RESUNIT.INCH))
    return {"resolution": [s.as_integer_ratio() for s in scale], "resolutionunit": unit}


def _text(tiff: tifffile.TiffFile, sizes: Set[tuple[float, float]]) -> str:
    """The text of ImageJ, or of OME if it describes only this file and pages of these sizes."""
    page = tiff.pages.first
    text = page.tags.valueof(270)
    if text.startswith("ImageJ="):  # does not state the size of pages
        return text
    ome = text.rstrip().endswith("OME>") and "FileName=" not in text
    return text if ome and sizes <= {(page.imagewidth, page.imagelength)} else ""
