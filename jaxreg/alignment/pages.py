"""Files of several pictures: pages of a TIFF, each of which has a name, and frames of an animation.

``movie.tif[3]`` is the fourth page of movie.tif, smaller copies of others (previews, levels of a
pyramid) not counted; unless there is a file of just that name.
"""

from __future__ import annotations

import functools
import os
import re
import struct
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

_KIND = 254  # TIFF's tag NewSubfileType
_REDUCED = 1  # its bit for a smaller copy of another page: a preview, or a pyramid's level
_MOST_BYTES = 2**31 - 1  # of a file that OpenCV decodes


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


def page_names(path: str | os.PathLike[str]) -> list[str]:
    """Names of all pages of a TIFF.

    Raises:
      OSError: the file cannot be opened.
      ValueError: it is no TIFF, cut short, or too large; or the path is that of a page.
    """
    name, page = split_page(path)
    if page is not None:
        raise ValueError(f"{path} is one page; for all of them give the whole file, {name}")
    pages = _pages_of_file(name)
    if not pages.whole:
        raise ValueError(
            f"{path} is cut short: it goes on after the {len(pages.offsets)} pages that are left, "
            f"which can be registered one by one, as {path}[0]"
        )
    return [f"{name}[{page}]" for page in range(len(pages.offsets))]


def own_name(path: str | os.PathLike[str]) -> str:
    """What a picture of its own of this name is called: a page's number joins the stem.

    >>> own_name("a/movie.tif[3]"), own_name("a/b.png")
    ('movie_0003.tif', 'b.png')
    """
    file, page = split_page(path)
    name = Path(file)
    return name.name if page is None else f"{name.stem.rstrip('.')}_{page:04d}{name.suffix}"


def read_page(path: str, page: int) -> np.ndarray:
    """The bytes of a TIFF, uint8, changed in memory so that this page is its first.

    Of a large file little more than the page is ever read; nobody may cut it short meanwhile.

    Raises:
      OSError: the file cannot be opened.
      ValueError: it is no TIFF, too large, or has no such page.
    """
    pages = _pages_of_file(path).offsets
    if page >= len(pages):
        raise ValueError(f"{path} has {len(pages)} pages, counted from 0; there is no page {page}")
    data = np.memmap(path, np.uint8, mode="c")  # private: the file stays as it is
    tiff = _Tiff(data)
    struct.pack_into(tiff.order + tiff.offset, data.data, tiff.first, pages[page])
    return data


def count_pages(path: str, data: np.ndarray) -> int:
    """Pages or frames of an image file, smaller copies left out; 0 if it is not a readable one.

    Headers alone are looked at, nothing is decoded.

    Args:
      path: the file.
      data: its bytes.
    """
    if is_tiff(data):
        return len(_full_pages(data).offsets)
    try:
        path.encode()
    except UnicodeEncodeError:  # OpenCV's count crashes on a name that is not UTF-8
        return len(cv2.imdecodemulti(data, cv2.IMREAD_UNCHANGED)[1])
    return cv2.imcount(path)


def is_tiff(data: np.ndarray) -> bool:
    """Whether a file of these bytes is a TIFF."""
    return data[:4].tobytes() in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class _Tiff:
    """How numbers are written in a TIFF, or a BigTIFF, whose offsets are wider.

    Attributes:
      order: `struct`'s letter for the order of bytes.
      offset: its letter for an offset.
      counter: its letter for the number of entries of a page.
      entry: bytes of an entry.
      first: where the offset of the first page is.
    """

    def __init__(self, data: np.ndarray):
        self._data = data.data
        self.order = "<" if data[:1].tobytes() == b"I" else ">"
        big = self.number("H", 2) == 43
        self.offset, self.counter, self.entry, self.first = (
            ("Q", "Q", 20, 8) if big else ("I", "H", 12, 4)
        )

    def number(self, kind: str, place: int) -> int:
        """The number of `struct`'s kind at a place; struct.error beyond the end."""
        return struct.unpack_from(self.order + kind, self._data, place)[0]

    def is_smaller_copy(self, entries: range) -> bool:
        """Whether a page of these entries says that it is one of another."""
        value = 4 + struct.calcsize(self.order + self.offset)
        return any(
            self.number("H", entry) == _KIND and self.number("I", entry + value) & _REDUCED
            for entry in entries
        )


class _Pages(NamedTuple):
    """A TIFF's pages but for smaller copies.

    Attributes:
      offsets: where each begins; of a file that is cut short, of those before the cut.
      whole: whether that is all of them.
    """

    offsets: list[int]
    whole: bool


def _full_pages(data: np.ndarray) -> _Pages:
    found: list[int] = []
    try:
        tiff = _Tiff(data)
        seen, page = set(), tiff.number(tiff.offset, tiff.first)
        while page and page not in seen:
            seen.add(page)
            begin = page + struct.calcsize(tiff.order + tiff.counter)
            end = begin + tiff.entry * tiff.number(tiff.counter, page)
            following = tiff.number(tiff.offset, end)
            if not found or not tiff.is_smaller_copy(range(begin, end, tiff.entry)):
                found.append(page)
            page = following
    except (struct.error, OverflowError):  # beyond the end, and what no file is as large as
        return _Pages(found, False)
    return _Pages(found, True)


def _pages_of_file(path: str) -> _Pages:
    state = os.stat(path)
    return _pages_of_state(path, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=8)
def _pages_of_state(path: str, changed: int, size: int) -> _Pages:
    """`_full_pages` of a file as it was at some time: each page asks for them."""
    del changed
    if size > _MOST_BYTES:
        raise ValueError(f"{path} has over 2 GB, more than is read; split it")
    data = np.memmap(path, np.uint8, mode="r") if size else np.zeros(0, np.uint8)
    if not is_tiff(data):
        raise ValueError(f"{path} is no TIFF file: it has no pages to register")
    return _full_pages(data)
