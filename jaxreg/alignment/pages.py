"""Files of several pictures: pages of a TIFF, each of which has a name, and frames of an animation.

``movie.tif[3]`` is the fourth page of movie.tif, smaller copies of others (previews, levels of a
pyramid) not counted; unless there is a file of just that name.
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

from jaxreg.alignment.tiff import DAMAGE, KIND, REDUCED, Tiff, alone, is_tiff, repeats


def split_page(path: str | os.PathLike[str]) -> tuple[str, int | None]:
    """The file that a name means, and the page of it if it means one.

    >>> split_page("movie.tif[3]"), split_page("movie.tif")
    (('movie.tif', 3), ('movie.tif', None))
    """
    name = os.fspath(path)
    found = re.fullmatch(r"(.+)\[(0|[1-9][0-9]{0,8})\]", name, re.DOTALL)
    if found is None or os.path.exists(name):
        return name, None
    return found[1], int(found[2])


def is_one_of(path: str | os.PathLike[str], names: Iterable[str]) -> bool:
    """Whether a path is that of a file which one of these names means, and which is there."""
    files = {split_page(name)[0] for name in names} if os.path.exists(path) else set()
    return any(os.path.exists(file) and os.path.samefile(path, file) for file in files)


def page_names(path: str | os.PathLike[str]) -> list[str]:
    """Names of all pages of a TIFF.

    Raises:
      OSError: the file cannot be opened.
      ValueError: it is no TIFF, or cut short; or the path is that of a page.
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
    """What a picture of its own of this name is called: a page's number joins the stem.

    >>> own_name("a/movie.tif[3]"), own_name("a/b.png")
    ('movie_0003.tif', 'b.png')
    """
    file, page = split_page(path)
    name = Path(file)
    return name.name if page is None else f"{name.stem.rstrip('.')}_{page:04d}{name.suffix}"


def read_page(path: str, page: int) -> np.ndarray:
    """The bytes of a TIFF of this page alone, uint8; of a large file little more is ever read.

    Raises:
      OSError: the file cannot be opened.
      ValueError: it is no TIFF, cut short there, or has no such page, or one too large.
    """
    places = _pages_of_file(path).places
    if page >= len(places):
        raise ValueError(f"{path} has {len(places)} pages, counted from 0; there is no page {page}")
    return alone(f"{path}[{page}]", np.memmap(path, np.uint8, mode="r"), *places[page])


def count_pages(path: str, data: np.ndarray) -> int:
    """Pages or frames of an image file, smaller copies left out; 0 if it is not a readable one.

    Headers alone are looked at, nothing is decoded.

    Args:
      path: the file.
      data: its bytes.
    """
    if is_tiff(data):
        return len(_full_pages(data).places)
    try:
        path.encode()
    except UnicodeEncodeError:  # OpenCV's count crashes on a name that is not UTF-8
        return len(cv2.imdecodemulti(data, cv2.IMREAD_UNCHANGED)[1])
    return cv2.imcount(path)


class _Pages(NamedTuple):
    """A TIFF's pages but for smaller copies.

    Attributes:
      places: where each begins, and by how many bytes its pixels lie further on than it says; of a
        file that is cut short, of those before the cut.
      whole: whether that is all of them.
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
    except DAMAGE:
        return _Pages([(page, 0) for page in found], False)
    if len(found) == 1:
        return _Pages([(found[0], shift) for shift in repeats(data, found[0])], True)
    return _Pages([(page, 0) for page in found], True)


def _is_smaller_copy(tiff: Tiff, entries: range) -> bool:
    """Whether a page of these entries says that it is a preview, or a pyramid's level."""
    return any(tag == KIND and value & REDUCED for tag, value, _ in tiff.values(entries))


def _pages_of_file(path: str) -> _Pages:
    state = os.stat(path)
    return _pages_of_state(path, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=8)
def _pages_of_state(path: str, changed: int, size: int) -> _Pages:
    """`_full_pages` of a file as it was at some time: each page asks for them."""
    del changed
    data = np.memmap(path, np.uint8, mode="r") if size else np.zeros(0, np.uint8)
    if not is_tiff(data):
        raise ValueError(f"{path} is no TIFF file: it has no pages to register")
    return _full_pages(data)
