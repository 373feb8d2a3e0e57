"""The answers of a table for other pictures of the same views, such as another channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from jaxreg.alignment.channels import frames_of
from jaxreg.alignment.pages import own_name, split_page
from jaxreg.alignment.table import images_in, read_table

_NAMED = 5  # pictures without a row, or rows without a picture, that an error names
_Name = TypeVar("_Name")


def rows_for_stack(table: str, stack: str) -> list[dict[str, str]]:
    """The table's rows for all pages of another TIFF, in their order, frame by frame.

    Raises:
      OSError: a file cannot be read.
      ValueError: it is no table or no TIFF, or has not one row for each frame.
    """
    frames = frames_of(stack)
    rows = _by_name(table, split_page)
    numbers = sorted(page for _, page in rows if page is not None)
    if len(numbers) != len(rows) or not _are_all_frames(numbers, frames):
        paged = len(numbers) == len(rows)
        count = f"{len(rows)} pages, {numbers[0]} to {numbers[-1]}" if paged else "other files"
        kind = "pages" if frames.shape[1] == 1 else "frames"
        raise ValueError(
            f"{stack} has {len(frames)} {kind}, but the rows of {table} are of {count}; there must "
            "be a row for each"
        )
    in_order = [rows[name] for name in sorted(rows, key=lambda name: name[1] or 0)]
    return [_for_picture(row, row["moving"]) for row in for_every_channel(in_order, frames)]


def for_every_channel(
    rows: Sequence[Mapping[str, str]], frames: np.ndarray
) -> list[dict[str, str]]:
    """Rows of a TIFF's frames, in their order, for all its pages in theirs; see `frames_of`."""
    pages = {page: row for row, frame in zip(rows, frames, strict=True) for page in frame}
    return [{**pages[page], "moving": page} for page in sorted(pages, key=split_page)]


def _are_all_frames(numbers: list[int], frames: np.ndarray) -> bool:
    """Whether pages of these numbers, in order, are one a frame: of a channel here or elsewhere."""
    here = [[split_page(page)[1] for page in channel] for channel in frames.T]
    step = numbers[1] - numbers[0] if len(numbers) > 1 else numbers[0] + 1
    evenly = numbers == [numbers[0] + step * k for k in range(len(frames))]
    return numbers in here or (evenly and numbers[0] < step)


def rows_for_folder(table: str, folder: str) -> list[dict[str, str]]:
    """The table's rows for the images of another folder that have the names of its moving ones.

    Raises:
      OSError: a file cannot be read.
      ValueError: it is no table or no folder, or has not the same names, each of one row.
    """
    images = images_in(folder, "moving_dir")
    rows = _by_name(table, lambda moving: Path(own_name(moving)).stem)
    if alone := sorted(rows.keys() ^ images.keys()):
        named = ", ".join(alone[:_NAMED]) + ", ..." * (len(alone) > _NAMED)
        raise ValueError(
            f"{folder} must have an image for each row of {table} and no others; without a partner "
            f"there: {named}"
        )
    return [_for_picture(rows[name], image) for name, image in images.items()]


def _by_name(table: str, name_of: Callable[[str], _Name]) -> dict[_Name, dict[str, str]]:
    """The table's rows by what their moving images are called; ValueError where two share it."""
    rows: dict[_Name, dict[str, str]] = {}
    for row in read_table(table):
        if rows.setdefault(name_of(row["moving"]), row) is not row:
            raise ValueError(
                f"{table} has two rows for an image named {row['moving']}, as of two fixed ones, "
                "and does not tell by which to move; register each in a table of its own, --out"
            )
    return rows


def _for_picture(row: Mapping[str, str], image: str) -> dict[str, str]:
    return {**row, "fixed": image, "moving": image}
