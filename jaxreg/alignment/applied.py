"""Find which answer of a table applies to other pictures of the same views (another channel)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from jaxreg.alignment.channels import frames_of
from jaxreg.alignment.jobs import first_names, images_in
from jaxreg.alignment.pages import own_name, split_page
from jaxreg.alignment.table import read_table

_Name = TypeVar("_Name")


def rows_for_stack(table: str, stack: str) -> list[dict[str, str]]:
    """Take a table's rows for all pages of another TIFF, in the order of the pages.

    Args:
      table: path of the table.
      stack: path of the TIFF, with as many frames as the table has rows.

    Raises:
      OSError: a file cannot be read.
      ValueError: a file is no table or no TIFF, or there is not one row for each frame.
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
    """Repeat each frame's row for the pages of its channels, in the order of the pages.

    Args:
      rows: one row for each frame, in their order.
      frames: names of the pages, ``(frames, channels)``, from `frames_of`.
    """
    pages = {page: row for row, frame in zip(rows, frames, strict=True) for page in frame}
    return [{**pages[page], "moving": page} for page in sorted(pages, key=split_page)]


def _are_all_frames(numbers: list[int], frames: np.ndarray) -> bool:
    """Whether pages of these numbers can be one a frame: all of a channel, here or in a like file.

    Args:
      numbers: sorted.
      frames: names of this file's pages, ``(frames, channels)``.
    """
    here = [[split_page(page)[1] for page in channel] for channel in frames.T]
    step = numbers[1] - numbers[0] if len(numbers) > 1 else numbers[0] + 1
    evenly = numbers == [numbers[0] + step * k for k in range(len(frames))]
    return numbers in here or (evenly and numbers[0] < step)


def rows_for_folder(table: str, folder: str) -> list[dict[str, str]]:
    """Take a table's rows for the images of another folder, named like the moving images.

    Args:
      table: path of the table.
      folder: path of the folder; the suffixes of its images may differ.

    Raises:
      OSError: a file cannot be read.
      ValueError: there is no table or no folder, or the names are not those of the rows.
    """
    images = images_in(folder, "moving_dir")
    rows = _by_name(table, lambda moving: Path(own_name(moving)).stem)
    if unpaired := sorted(rows.keys() ^ images.keys()):
        raise ValueError(
            f"{folder} must have an image for each row of {table} and no others; without a partner "
            f"there: {first_names(unpaired)}"
        )
    return [_for_picture(rows[name], image) for name, image in images.items()]


def _by_name(table: str, name_of: Callable[[str], _Name]) -> dict[_Name, dict[str, str]]:
    """Index a table's rows by a name of their moving images; ValueError if two rows share one."""
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
