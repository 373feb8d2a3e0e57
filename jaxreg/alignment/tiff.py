"""What a TIFF tells beside its pixels: where its pages are, and how the pixels are stored.

OpenCV, which decodes them, does not go by all of that; `faithful` does.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator

import numpy as np

# Tags of a page.
KIND = 254  # NewSubfileType
_BITS = 258  # BitsPerSample
_COLOURS = 262  # PhotometricInterpretation
_SAMPLES = 277  # SamplesPerPixel
_PLANES = 284  # PlanarConfiguration
_EXTRA = 338  # ExtraSamples
_COMPRESSION = 259
_FORMAT = 339  # SampleFormat
# Values of these.
REDUCED = 1  # NewSubfileType's bit for a smaller copy of another page
_WHITE_IS_ZERO = 0
_INKS = 5  # cyan, magenta, yellow and black
_PLAIN = 1  # no compression
_FLOATS = 3
_APART = 2  # planes one after another
_MULTIPLIED, _UNTOUCHED = 1, 2  # what alpha has done to the colours
_KINDS = {1: "B", 3: "H", 4: "I"}  # `struct`'s letters for the types of numbers

DAMAGE = (struct.error, OverflowError)  # beyond the end, and what no file is as large as


def is_tiff(data: np.ndarray) -> bool:
    """Whether a file of these bytes is a TIFF."""
    return data[:4].tobytes() in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class Tiff:
    """How numbers are written in a TIFF, or a BigTIFF, whose offsets are wider.

    Its methods raise `DAMAGE`.

    Attributes:
      order: `struct`'s letter for the order of bytes.
      offset: its letter for an offset.
      first: where the offset of the first page is.
    """

    def __init__(self, data: np.ndarray):
        self._data = data.data
        self.order = "<" if data[:1].tobytes() == b"I" else ">"
        big = self.number("H", 2) == 43
        self.offset, self._counter, self._entry, self.first = (
            ("Q", "Q", 20, 8) if big else ("I", "H", 12, 4)
        )
        self._room = struct.calcsize(self.order + self.offset)

    def number(self, kind: str, place: int) -> int:
        """The number of `struct`'s kind at a place."""
        return struct.unpack_from(self.order + kind, self._data, place)[0]

    def set_number(self, kind: str, place: int, number: int) -> None:
        """Change the number of `struct`'s kind at a place, in memory."""
        struct.pack_into(self.order + kind, self._data, place, number)

    def entries(self, page: int) -> range:
        """Where the entries of a page are; behind them is the offset of the next page."""
        begin = page + struct.calcsize(self.order + self._counter)
        return range(begin, begin + self._entry * self.number(self._counter, page), self._entry)

    def values(self, entries: range) -> Iterator[tuple[int, int, int]]:
        """Tag, first number and the number's place of each entry that holds numbers."""
        for entry in entries:
            tag, kind = self.number("H", entry), _KINDS.get(self.number("H", entry + 2))
            if kind is None:
                continue
            place = entry + 4 + self._room
            if self.number(self.offset, entry + 4) * struct.calcsize(kind) > self._room:
                place = self.number(self.offset, place)
            with contextlib.suppress(*DAMAGE):  # of one entry, which may be of no importance
                yield tag, self.number(kind, place), place


def leave_colours(data: np.ndarray) -> None:
    """Change a TIFF in memory so that its first page is decoded without a product with alpha."""
    for tag, value, place in _first_page(data):
        if (tag, value) == (_EXTRA, _UNTOUCHED):
            Tiff(data).set_number("H", place, _MULTIPLIED)


def _first_page(data: np.ndarray) -> list[tuple[int, int, int]]:
    """`Tiff.values` of the first page; none where it is damaged, which the decoder will tell."""
    try:
        tiff = Tiff(data)
        return list(tiff.values(tiff.entries(tiff.number(tiff.offset, tiff.first))))
    except DAMAGE:
        return []


def layout(data: np.ndarray) -> str:
    """How the first page is stored, in words; empty where that cannot be told."""
    tags = {tag: value for tag, value, _ in _first_page(data)}
    if not tags:
        return ""
    samples, bits = tags.get(_SAMPLES, 1), tags.get(_BITS, 1)
    kind = "-bit floats" if tags.get(_FORMAT) == _FLOATS else " bits"
    compressed = tags.get(_COMPRESSION, _PLAIN)
    packed = "" if compressed == _PLAIN else f", compression {compressed}"
    return f"{samples} sample{'s' * (samples != 1)} of {bits}{kind} a pixel{packed}"


def has_inks(data: np.ndarray) -> bool:
    """Whether the first page's fourth sample is black ink, not alpha."""
    return any((tag, value) == (_COLOURS, _INKS) for tag, value, _ in _first_page(data))


def faithful(path: object, data: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """The first page as its header means it.

    Args:
      path: what it is called.
      data: bytes of the TIFF.
      pixels: what OpenCV has made of them.

    Raises:
      ValueError: the page is stored in a way that OpenCV garbles.
    """
    tags = {tag: value for tag, value, _ in _first_page(data)}
    bits, samples, deep = tags.get(_BITS, 1), tags.get(_SAMPLES, 1), pixels.dtype.itemsize > 1
    if bits > 8 * pixels.dtype.itemsize:
        raise ValueError(
            f"{path} has {samples} samples of {bits} bits a pixel, which would be cut to "
            f"{8 * pixels.dtype.itemsize}; save it as grey or RGB"
        )
    if deep and samples > 1 and tags.get(_PLANES) == _APART:
        raise ValueError(
            f"{path} has its colours in planes stored one after another; save it interleaved"
        )
    inverted = deep and pixels.dtype.kind in "iu" and tags.get(_COLOURS) == _WHITE_IS_ZERO
    return ~pixels if inverted else pixels  # OpenCV does so at 8 bits
