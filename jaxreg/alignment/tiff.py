"""What a TIFF tells beside its pixels: where its pages are, and how the pixels are stored.

OpenCV, which decodes them, does not go by all of that; `faithful` does.
"""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

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
_KINDS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # `struct`'s letters for the types of numbers
# Bytes of an element of each type.
_SIZES = {5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 17: 8, 18: 8}
_SIZES |= {kind: struct.calcsize(letter) for kind, letter in _KINDS.items()}
_STRIPS = 273  # StripOffsets
_PIECES = {_STRIPS: 279, 324: 325}  # where strips or tiles are, and how many bytes each has
_TEXT = 270  # ImageDescription
_ELSEWHERE = (330, 34665, 34853)  # tables of their own: smaller copies, the camera, where it was
MOST_BYTES = 2**31 - 1  # that OpenCV decodes

DAMAGE = (struct.error, OverflowError)  # beyond the end, and what no file is as large as


def is_tiff(data: np.ndarray) -> bool:
    """Whether a file of these bytes is a TIFF."""
    return data[:4].tobytes() in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class _Values(NamedTuple):
    """What a tag says: the type of its elements, and their bytes."""

    kind: int
    content: bytes


class Tiff:
    """How numbers are written in a TIFF, or a BigTIFF, whose offsets are wider.

    Its methods raise `DAMAGE`.

    Attributes:
      order: `struct`'s letter for the order of bytes.
      offset: its letter for an offset.
      first: where the offset of the first page is.
      room: bytes of an offset, and of the values that an entry holds itself.
    """

    def __init__(self, data: np.ndarray):
        self._data = data.data
        self.order = "<" if data[:1].tobytes() == b"I" else ">"
        big = self.number("H", 2) == 43
        self.offset, self._counter, self._entry, self.first = (
            ("Q", "Q", 20, 8) if big else ("I", "H", 12, 4)
        )
        self.room = struct.calcsize(self.order + self.offset)

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

    def pack(self, kinds: str, *numbers: int) -> bytes:
        """Numbers of `struct`'s kinds as bytes."""
        return struct.pack(self.order + kinds, *numbers)

    def piece(self, place: int, size: int) -> bytes:
        """So many bytes at a place."""
        found = self._data[place : place + size].tobytes()
        if len(found) < size:
            raise struct.error("beyond the end")
        return found

    def table(self, page: int) -> dict[int, _Values]:
        """What a page's tags say."""
        found = {}
        for entry in self.entries(page):
            tag, kind = self.number("H", entry), self.number("H", entry + 2)
            found[tag] = _Values(kind, self.piece(*self._elements(entry, kind)))
        return found

    def _elements(self, entry: int, kind: int) -> tuple[int, int]:
        """Where the elements of an entry are, of a type, and how many bytes they have."""
        size = self.number(self.offset, entry + 4) * _SIZES.get(kind, 1)
        place = entry + 4 + self.room
        return (self.number(self.offset, place) if size > self.room else place), size

    def numbers(self, values: _Values | None) -> tuple[int, ...]:
        """The numbers that a tag says, if it is there and says any."""
        if values is None or values.kind not in _KINDS:
            return ()
        letter = _KINDS[values.kind]
        return tuple(
            number for (number,) in struct.iter_unpack(self.order + letter, values.content)
        )

    def as_table(self, place: int, table: dict[int, _Values]) -> bytes:
        """A page of these tags, the last one of a file, to be put at a place."""
        rows = self.pack(self._counter, len(table))
        rest, behind = bytearray(), place + len(rows) + len(table) * self._entry + self.room
        for tag, (kind, values) in sorted(table.items()):
            rows += self.pack(f"HH{self.offset}", tag, kind, len(values) // _SIZES.get(kind, 1))
            if len(values) > self.room:
                rows += self.pack(self.offset, behind + len(rest))
                rest += values + b"\0" * (len(values) % 2)
            else:
                rows += values.ljust(self.room, b"\0")
        return rows + self.pack(self.offset, 0) + rest

    def values(self, entries: range) -> Iterator[tuple[int, int, int]]:
        """Tag, first number and the number's place of each entry that holds numbers."""
        for entry in entries:
            tag, kind = self.number("H", entry), self.number("H", entry + 2)
            if kind not in _KINDS:
                continue
            place, _ = self._elements(entry, kind)
            with contextlib.suppress(*DAMAGE):  # of one entry, which may be of no importance
                yield tag, self.number(_KINDS[kind], place), place


def repeats(data: np.ndarray, page: int) -> list[int]:
    """How many bytes further on the pixels of other pages lie that are just like this one, and 0.

    ImageJ describes but the first page of a stack of more than 4 GB.

    Args:
      data: bytes of a TIFF.
      page: where its only page begins.
    """
    tiff = Tiff(data)
    try:
        table = tiff.table(page)
    except DAMAGE:  # the decoder will tell
        return [0]
    text = table.get(_TEXT, _Values(2, b"")).content
    told = re.match(rb"ImageJ=.*?\nimages=(\d+)\n", text, re.DOTALL)
    places, sizes = (tiff.numbers(table.get(tag)) for tag in (_STRIPS, _PIECES[_STRIPS]))
    plain = tiff.numbers(table.get(_COMPRESSION)) in ((), (_PLAIN,))
    if told is None or not plain or not places or len(places) != len(sizes):
        return [0]
    ends = [place + size for place, size in zip(places, sizes, strict=True)]
    count, whole = int(told[1]), sum(sizes)
    if tuple(ends[:-1]) != places[1:] or places[0] + count * whole > len(data):
        return [0]
    return [whole * k for k in range(count)]


def alone(path: object, data: np.ndarray, page: int, shift: int = 0) -> np.ndarray:
    """The bytes of a TIFF of one page of another.

    Args:
      path: what that is called.
      data: its bytes.
      page: where the page begins.
      shift: by how many bytes its pixels lie further on than it says, see `repeats`.

    Raises:
      ValueError: it is cut short, or larger than can be decoded.
    """
    try:
        tiff = Tiff(data)
        table = {t: v for t, v in tiff.table(page).items() if t not in _ELSEWHERE}
        whole = bytearray(data[: tiff.first].tobytes() + bytes(tiff.room))
        for where, how_long in _PIECES.items():
            found = tiff.numbers(table.get(where))
            # Where it is not said, up to the next one.
            sizes = tiff.numbers(table.get(how_long)) or np.diff([*found, len(data)]).tolist()
            if sum(sizes) > MOST_BYTES:
                raise ValueError(f"{path} has over 2 GB, more than is read")
            places = []
            for place, size in zip(found, sizes, strict=False):
                places.append(len(whole))
                whole += tiff.piece(place + shift, size) + bytes(size % 2)  # tables begin evenly
            if places:
                kind = 16 if tiff.offset == "Q" else 4
                values = tiff.pack(f"{len(places)}{tiff.offset}", *places)
                table[where] = _Values(kind, values)
    except DAMAGE:
        raise ValueError(f"{path} is cut short") from None
    whole[tiff.first : tiff.first + tiff.room] = tiff.pack(tiff.offset, len(whole))
    whole += tiff.as_table(len(whole), table)
    return np.frombuffer(whole, np.uint8)


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
