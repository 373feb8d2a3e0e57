"""Read and rewrite the headers of TIFF files, which tell how OpenCV must decode the pixels.

Why a reader of our own beside tifffile? OpenCV decodes the pixels: tifffile needs the package
imagecodecs for LZW and JPEG. But OpenCV decodes at most 2 GB, does not find the pages that ImageJ
leaves out of a stack over 4 GB, and ignores part of the header (white is zero, separate colour
planes, whether alpha multiplies the colours). So a page is copied into a TIFF of its own in memory
(`extract_page`), and its header is corrected before it is decoded (`disable_alpha_premultiply`) or
applied afterwards (`apply_tiff_semantics`). Pages must also be found in files that are cut short or
have damaged tags, for which tifffile raises.
"""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# Tags of a page, by the names of the TIFF 6.0 specification.
NEW_SUBFILE_TYPE = 254
_BITS_PER_SAMPLE = 258
_COMPRESSION = 259
_PHOTOMETRIC = 262
_IMAGE_DESCRIPTION = 270
_STRIP_OFFSETS = 273
_SAMPLES_PER_PIXEL = 277
_PLANAR_CONFIGURATION = 284
_EXTRA_SAMPLES = 338
_SAMPLE_FORMAT = 339
_BYTE_COUNTS = {_STRIP_OFFSETS: 279, 324: 325}  # by the offsets of strips or tiles
_POINTERS = (330, 34665, 34853)  # offsets of SubIFDs (smaller copies), EXIF and GPS tables
# Values of these tags.
REDUCED_IMAGE = 1  # bit of NewSubfileType: a smaller copy of another page
_WHITE_IS_ZERO = 0
_CMYK = 5
_UNCOMPRESSED = 1
_IEEE_FLOAT = 3
_PLANAR = 2  # each colour in a plane of its own
_PREMULTIPLIED, _STRAIGHT = 1, 2  # whether alpha has multiplied the colours
# `struct`'s letters for the types of integers, and bytes of an element of each type.
_INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
_TYPE_SIZES = {5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 17: 8, 18: 8}
_TYPE_SIZES |= {kind: struct.calcsize(letter) for kind, letter in _INTEGERS.items()}

MAX_BYTES = 2**31 - 1  # that OpenCV decodes
TIFF_ERRORS = (struct.error, OverflowError)  # an offset beyond the end of the file, or of any file


def is_tiff(data: np.ndarray) -> bool:
    """Whether a file of these bytes is a TIFF."""
    return data[:4].tobytes() in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class _Values(NamedTuple):
    """The value of a tag: the type of its elements, and their bytes."""

    kind: int
    content: bytes


class Tiff:
    """Access to the numbers and tags in the bytes of a TIFF, or of a BigTIFF (64-bit offsets).

    All methods raise `TIFF_ERRORS` where the file is damaged.

    Attributes:
      order: `struct`'s letter for the byte order.
      offset: `struct`'s letter for an offset.
      first: position of the offset of the first page.
      room: bytes of an offset; a value of at most so many is stored in its entry itself.
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
        """Read the number at a position; ``kind`` is a letter of `struct`."""
        return struct.unpack_from(self.order + kind, self._data, place)[0]

    def set_number(self, kind: str, place: int, number: int) -> None:
        """Change the number at a position, in memory; ``kind`` is a letter of `struct`."""
        struct.pack_into(self.order + kind, self._data, place, number)

    def entries(self, page: int) -> range:
        """Positions of a page's entries; the offset of the next page follows the last entry."""
        begin = page + struct.calcsize(self.order + self._counter)
        return range(begin, begin + self._entry * self.number(self._counter, page), self._entry)

    def pack(self, kinds: str, *numbers: int) -> bytes:
        """Encode numbers, whose types are letters of `struct`."""
        return struct.pack(self.order + kinds, *numbers)

    def read_bytes(self, place: int, size: int) -> bytes:
        """Read ``size`` bytes at a position."""
        found = self._data[place : place + size].tobytes()
        if len(found) < size:
            raise struct.error("beyond the end")
        return found

    def read_tags(self, page: int) -> dict[int, _Values]:
        """Read the values of a page's tags."""
        found = {}
        for entry in self.entries(page):
            tag, kind = self.number("H", entry), self.number("H", entry + 2)
            found[tag] = _Values(kind, self.read_bytes(*self._elements(entry, kind)))
        return found

    def _elements(self, entry: int, kind: int) -> tuple[int, int]:
        """Position and size in bytes of the elements of an entry of this type."""
        size = self.number(self.offset, entry + 4) * _TYPE_SIZES.get(kind, 1)
        place = entry + 4 + self.room
        return (self.number(self.offset, place) if size > self.room else place), size

    def integers(self, values: _Values | None) -> tuple[int, ...]:
        """Decode a tag's integers; none if the tag is absent or of another type."""
        if values is None or values.kind not in _INTEGERS:
            return ()
        letter = _INTEGERS[values.kind]
        return tuple(
            number for (number,) in struct.iter_unpack(self.order + letter, values.content)
        )

    def pack_tags(self, place: int, tags: dict[int, _Values]) -> bytes:
        """Encode the last page of a file, to be put at position ``place``."""
        rows = self.pack(self._counter, len(tags))
        rest, behind = bytearray(), place + len(rows) + len(tags) * self._entry + self.room
        for tag, (kind, values) in sorted(tags.items()):
            rows += self.pack(
                f"HH{self.offset}", tag, kind, len(values) // _TYPE_SIZES.get(kind, 1)
            )
            if len(values) > self.room:
                rows += self.pack(self.offset, behind + len(rest))
                rest += values + b"\0" * (len(values) % 2)
            else:
                rows += values.ljust(self.room, b"\0")
        return rows + self.pack(self.offset, 0) + rest

    def first_integers(self, entries: range) -> Iterator[tuple[int, int, int]]:
        """Yield tag, first number and position of that number for each entry of integers."""
        for entry in entries:
            tag, kind = self.number("H", entry), self.number("H", entry + 2)
            if kind not in _INTEGERS:
                continue
            place, _ = self._elements(entry, kind)
            with contextlib.suppress(*TIFF_ERRORS):  # one damaged entry may not matter
                yield tag, self.number(_INTEGERS[kind], place), place


def contiguous_page_offsets(data: np.ndarray, page: int) -> list[int]:
    """Offsets in bytes from the pixels of the only page to those of each page, its own 0 first.

    ImageJ writes the header of only the first page of a stack of more than 4 GB. The pixels of the
    other pages follow, each stored as the first.

    Args:
      data: bytes of a TIFF.
      page: position of its only page.
    """
    tiff = Tiff(data)
    try:
        tags = tiff.read_tags(page)
    except TIFF_ERRORS:  # the decoder will report it
        return [0]
    text = tags.get(_IMAGE_DESCRIPTION, _Values(2, b"")).content
    described = re.match(rb"ImageJ=.*?\nimages=(\d+)\n", text, re.DOTALL)
    places, sizes = (
        tiff.integers(tags.get(tag)) for tag in (_STRIP_OFFSETS, _BYTE_COUNTS[_STRIP_OFFSETS])
    )
    plain = tiff.integers(tags.get(_COMPRESSION)) in ((), (_UNCOMPRESSED,))
    if described is None or not plain or not places or len(places) != len(sizes):
        return [0]
    ends = [place + size for place, size in zip(places, sizes, strict=True)]
    count, whole = int(described[1]), sum(sizes)
    if tuple(ends[:-1]) != places[1:] or places[0] + count * whole > len(data):
        return [0]
    return [whole * k for k in range(count)]


def extract_page(path: object, data: np.ndarray, page: int, shift: int = 0) -> np.ndarray:
    """Copy one page into a TIFF of its own; returns the bytes of that, uint8.

    Args:
      path: the name of the page, for errors.
      data: bytes of the whole TIFF.
      page: position of the page.
      shift: what to add to its pixels' offsets, see `contiguous_page_offsets`.

    Raises:
      ValueError: the page is cut short, or larger than OpenCV can decode.
    """
    try:
        tiff = Tiff(data)
        tags = {t: v for t, v in tiff.read_tags(page).items() if t not in _POINTERS}
        whole = bytearray(data[: tiff.first].tobytes() + bytes(tiff.room))
        for offsets, counts in _BYTE_COUNTS.items():
            found = tiff.integers(tags.get(offsets))
            # Without byte counts, a strip ends where the next one begins.
            sizes = tiff.integers(tags.get(counts)) or np.diff([*found, len(data)]).tolist()
            if sum(sizes) > MAX_BYTES:
                raise ValueError(f"{path} has over 2 GB, more than is read")
            places = []
            for place, size in zip(found, sizes, strict=False):
                places.append(len(whole))
                whole += tiff.read_bytes(place + shift, size) + bytes(size % 2)  # even offsets
            if places:
                kind = 16 if tiff.offset == "Q" else 4
                values = tiff.pack(f"{len(places)}{tiff.offset}", *places)
                tags[offsets] = _Values(kind, values)
    except TIFF_ERRORS:
        raise ValueError(f"{path} is cut short") from None
    whole[tiff.first : tiff.first + tiff.room] = tiff.pack(tiff.offset, len(whole))
    whole += tiff.pack_tags(len(whole), tags)
    return np.frombuffer(whole, np.uint8)


def disable_alpha_premultiply(data: np.ndarray) -> None:
    """Declare the first page's alpha premultiplied, in memory: OpenCV then keeps the colours."""
    for tag, value, place in _first_page(data):
        if (tag, value) == (_EXTRA_SAMPLES, _STRAIGHT):
            Tiff(data).set_number("H", place, _PREMULTIPLIED)


def _first_page(data: np.ndarray) -> list[tuple[int, int, int]]:
    """`Tiff.first_integers` of the first page; none if damaged, which the decoder will report."""
    try:
        tiff = Tiff(data)
        return list(tiff.first_integers(tiff.entries(tiff.number(tiff.offset, tiff.first))))
    except TIFF_ERRORS:
        return []


def layout(data: np.ndarray) -> str:
    """Describe in words how the first page is stored; empty if its header cannot be read."""
    tags = {tag: value for tag, value, _ in _first_page(data)}
    if not tags:
        return ""
    samples, bits = tags.get(_SAMPLES_PER_PIXEL, 1), tags.get(_BITS_PER_SAMPLE, 1)
    kind = "-bit floats" if tags.get(_SAMPLE_FORMAT) == _IEEE_FLOAT else " bits"
    compressed = tags.get(_COMPRESSION, _UNCOMPRESSED)
    packed = "" if compressed == _UNCOMPRESSED else f", compression {compressed}"
    return f"{samples} sample{'s' * (samples != 1)} of {bits}{kind} a pixel{packed}"


def is_cmyk(data: np.ndarray) -> bool:
    """Whether the first page is CMYK, so that its fourth sample is black ink and not alpha."""
    return any((tag, value) == (_PHOTOMETRIC, _CMYK) for tag, value, _ in _first_page(data))


def apply_tiff_semantics(path: object, data: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Correct the decoded pixels of the first page for what OpenCV ignores in its header.

    Args:
      path: the name of the page, for errors.
      data: bytes of the TIFF.
      pixels: as OpenCV decoded them.

    Raises:
      ValueError: the page is stored in a way that OpenCV decodes wrongly.
    """
    tags = {tag: value for tag, value, _ in _first_page(data)}
    bits, samples = tags.get(_BITS_PER_SAMPLE, 1), tags.get(_SAMPLES_PER_PIXEL, 1)
    deep = pixels.dtype.itemsize > 1
    if bits > 8 * pixels.dtype.itemsize:
        raise ValueError(
            f"{path} has {samples} samples of {bits} bits a pixel, which would be cut to "
            f"{8 * pixels.dtype.itemsize}; save it as grey or RGB"
        )
    if deep and samples > 1 and tags.get(_PLANAR_CONFIGURATION) == _PLANAR:
        raise ValueError(
            f"{path} has its colours in planes stored one after another; save it interleaved"
        )
    inverted = deep and pixels.dtype.kind in "iu" and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    return ~pixels if inverted else pixels  # OpenCV itself inverts 8-bit pixels
