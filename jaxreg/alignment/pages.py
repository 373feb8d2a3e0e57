"""How many pictures a file holds: pages of a TIFF, frames of an animation."""

from __future__ import annotations

import contextlib
import os
import struct

import cv2
import numpy as np

_KIND = 254  # TIFF's tag NewSubfileType
_REDUCED = 1  # its bit for a smaller copy of another page: a preview, or a pyramid's level


def count_pages(path: str | os.PathLike[str], data: np.ndarray) -> int:
    """Pages or frames of an image file, previews left out; 0 if it is not a readable one.

    Headers alone are looked at, nothing is decoded.

    Args:
      path: the file.
      data: its bytes.
    """
    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:  # OpenCV's count crashes on a name that is not UTF-8
        count = len(cv2.imdecodemulti(data, cv2.IMREAD_UNCHANGED)[1])
    else:
        count = cv2.imcount(name)
    if count > 1 and data[:2].tobytes() in (b"II", b"MM"):
        with contextlib.suppress(struct.error):  # torn: none is known to be a preview
            count -= _previews(data.tobytes(), count)
    return count


def _previews(data: bytes, pages: int) -> int:
    """How many pages after the first of a TIFF say that they are smaller copies."""
    order = "<" if data.startswith(b"II") else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43  # BigTIFF: wider numbers
    place, counter, size = ("Q", "Q", 20) if big else ("I", "H", 12)

    def number(kind: str, offset: int) -> int:
        return struct.unpack_from(order + kind, data, offset)[0]

    found, page = 0, number(place, 8 if big else 4)
    for index in range(pages):
        first = page + struct.calcsize(order + counter)
        end = first + size * number(counter, page)
        for entry in range(first, end, size):
            if number("H", entry) == _KIND and index:
                found += number("I", entry + (12 if big else 8)) & _REDUCED
        page = number(place, end)
    return found
