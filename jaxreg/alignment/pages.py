"""Files of several pictures: named pages of a TIFF, and frames of an animation.

``movie.tif[3]`` names the fourth page of movie.tif, unless a file of exactly that name exists.
Smaller copies of other pages (previews, levels of a pyramid) are not counted.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from jaxreg.alignment.tiff import (
    NEW_SUBFILE_TYPE,
    REDUCED_IMAGE,
    TIFF_ERRORS,
    Tiff,
    contiguous_page_offsets,
    extract_page,
    is_tiff,
)


def split_page(path: str | os.PathLike[str]) -> tuple[str, int | None]:
    """Split a name into the file and the page number, None if it names a whole file.

    >>> split_page("movie.tif[3]"), split_page("movie.tif")
    (('movie.tif', 3), ('movie.tif', None))
    """
    name = os.fspath(path)
    found = re.fullmatch(r"(.+)\[(0|[1-9][0-9]{0,8})\]", name, re.DOTALL)
    if found is None or os.path.exists(name):
        return name, None
    return found[1], int(found[2])


def is_one_of(path: str | os.PathLike[str], names: Iterable[str]) -> bool:
    """Whether ``path`` exists and is the same file as one of these names, or one of its pages."""
    files = {split_page(name)[0] for name in names} if os.path.exists(path) else set()
    return any(os.path.exists(file) and os.path.samefile(path, file) for file in files)


def page_names(path: str | os.PathLike[str]) -> list[str]:
    """List the names of all pages of a TIFF.

    Raises:
      OSError: the file cannot be opened.
      ValueError: the file is no TIFF or is cut short, or ``path`` names a page.
    """
    name, page = split_page(path)
    if page is not None:
        raise ValueError(f"{path} is one page; for all of them give the whole file, {name}")
    pages = _pages_of_file(name)
    if not pages.whole:
        raise ValueError(
            f"{path} is cut short: it goes on after the {len(pages.places)} pages that are left, "
            f"which can be registered one by one, as {path}[0]"
        )
    return [f"{name}[{page}]" for page in range(len(pages.places))]


def own_name(path: str | os.PathLike[str]) -> str:
    """Name the file for a picture made from this one: a page's number is appended to the stem.

    >>> own_name("a/movie.tif[3]"), own_name("a/b.png")
    ('movie_0003.tif', 'b.png')
    """
    file, page = split_page(path)
    name = Path(file)
    return name.name if page is None else f"{name.stem.rstrip('.')}_{page:04d}{name.suffix}"


def read_page(path: str, page: int) -> np.ndarray:
    """Read one page as the bytes of a TIFF of its own, uint8.

    Little more than the page is read, however large the file is.

    Raises:
      OSError: the file cannot be opened.
      ValueError: the file is no TIFF or has no such page, or the page is cut short or too large.
    """
    places = _pages_of_file(path).places
    if page >= len(places):
        raise ValueError(f"{path} has {len(places)} pages, counted from 0; there is no page {page}")
    data = np.memmap(path, np.uint8, mode="r")
    return extract_page(f"{path}[{page}]", data, *places[page])


def count_pages(path: str, data: np.ndarray) -> int:
    """Count the pages or frames of an image file without smaller copies; 0 if it is unreadable.

    No pixels are decoded, except of a file whose name is not UTF-8.

    Args:
      path: the file.
      data: its bytes.
    """
    if is_tiff(data):
        return len(_full_pages(data).places)
    try:
        path.encode()
    except UnicodeEncodeError:  # cv2.imcount crashes on a name that is not UTF-8
        return len(cv2.imdecodemulti(data, cv2.IMREAD_UNCHANGED)[1])
    return cv2.imcount(path)


class _Pages(NamedTuple):
    """A TIFF's pages without smaller copies.

    Attributes:
      places: position of each page's header in bytes, and what to add to its pixels' offsets; of a
        file that is cut short, the pages before the cut.
      whole: False if the file is cut short.
    """

    places: list[tuple[int, int]]
    whole: bool


def _full_pages(data: np.ndarray) -> _Pages:
    found: list[int] = []
    try:
        tiff = Tiff(data)
        seen, page = set(), tiff.number(tiff.offset, tiff.first)
        while page and page not in seen:
            seen.add(page)
            entries = tiff.entries(page)
            following = tiff.number(tiff.offset, entries.stop)
            if not found or not _is_smaller_copy(tiff, entries):
                found.append(page)
            page = following
    except TIFF_ERRORS:
        return _Pages([(page, 0) for page in found], False)
    if len(found) == 1:
        return _Pages([(found[0], shift) for shift in contiguous_page_offsets(data, *found)], True)
    return _Pages([(page, 0) for page in found], True)


def _is_smaller_copy(tiff: Tiff, entries: range) -> bool:
    """Whether a page with these entries is marked as a preview or a level of a pyramid."""
    return any(
        tag == NEW_SUBFILE_TYPE and value & REDUCED_IMAGE
        for tag, value, _ in tiff.first_integers(entries)
    )


def _pages_of_file(path: str) -> _Pages:
    state = os.stat(path)
    return _pages_of_state(path, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=8)
def _pages_of_state(path: str, changed: int, size: int) -> _Pages:
    """`_full_pages` of a file in this state; cached, since every page that is read needs them."""
    del changed
    data = np.memmap(path, np.uint8, mode="r") if size else np.zeros(0, np.uint8)
    if not is_tiff(data):
        raise ValueError(f"{path} is no TIFF file: it has no pages to register")
    return _full_pages(data)
