"""Image files in and out: orientation and bit depth kept, nothing ever half-written."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import cv2
import numpy as np

from jaxreg.alignment.pages import count_pages, read_page, split_page
from jaxreg.alignment.tiff import MOST_BYTES, faithful, has_inks, is_tiff, layout, leave_colours
from jaxreg.atomic import check_replaceable, replacing

# What is read at most. A longer side would be registered at less than a thirty-second of its size,
# and OpenCV warps no more than twice it; more pixels would take gigabytes as float32.
LARGEST_SIDE = 16384
LARGEST_AREA = 2**27
_ORIENTED = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR  # obeys EXIF orientation, drops alpha
_FIT = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
# Formats without loss: pixels of more than 8 bits go into no other.
_EXACT = (".png", ".tif", ".tiff", ".ppm", ".pgm", ".pnm")
_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")  # but for those inside a scan
_JPEG_SEGMENT = re.compile(rb"[\xc0-\xcf\xda-\xef\xfe]")  # markers that a length follows
_GREY_WITH_ALPHA = 4  # PNG's type of colours, in byte 25
_FEW_COLOURS = (".gif", ".pbm")  # would lose the shades that warping makes


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image file's content.

    Attributes:
      pixels: ``(H, W)`` or RGB ``(H, W, 3)``; integers of 8 to 32 bits, float32 or float64, as in
        the file.
      transparent: whether the file had an alpha channel, which is dropped.
    """

    pixels: np.ndarray
    transparent: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.pixels.shape[1], self.pixels.shape[0]


def read_picture(path: str | os.PathLike[str]) -> Picture:
    """Read an image file of any format OpenCV knows; its EXIF orientation is obeyed.

    Args:
      path: the file, or the name of a page of one (see `jaxreg.alignment.pages`).

    Raises:
      OSError: the file cannot be opened.
      ValueError: it is not a whole image, or several, too large, or of an unfit dtype; the file is
        named.
    """
    file, page = split_page(path)
    data = _whole_file(file) if page is None else read_page(file, page)
    if not data.size:
        raise ValueError(f"{path} is empty")
    if _is_cut_short(data):
        raise ValueError(f"{path} is cut short")
    try:
        if page is None:
            _check_single(file, data)
            if data.size > MOST_BYTES:
                raise ValueError(f"{path} has over 2 GB, more than is read")
        if is_tiff(data):
            leave_colours(data)
        pixels = cv2.imdecode(data, _ORIENTED)
        # A second look tells whether there was an alpha channel; JPEG has none.
        whole = pixels if _is_jpeg(data) else cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ValueError(f"{path} cannot be decoded: {error.err or error}") from error
    if pixels is None:
        stored = layout(data) if is_tiff(data) else ""
        if stored and page is None:
            read_page(file, 0)  # tells where it is cut short
        hint = f": a TIFF of {stored}; save it as grey or RGB, uncompressed" if stored else ""
        raise ValueError(f"{path} is not a readable image{hint}")
    if is_tiff(data):
        pixels = faithful(path, data, pixels)
    if pixels.dtype.name not in _FIT:
        raise ValueError(
            f"{path} has {pixels.dtype} pixels; integers of 8 to 32 bits and floats of 32 and 64 "
            "can be registered"
        )
    height, width = pixels.shape[:2]
    if max(height, width) > LARGEST_SIDE or height * width > LARGEST_AREA:
        raise ValueError(
            f"{path} is {width}x{height}, over the limit of {LARGEST_SIDE} pixels a side and "
            f"{LARGEST_AREA / 1e6:.0f} megapixels; downsample it first"
        )
    if pixels.ndim == 3 and _is_png(data) and data[25] == _GREY_WITH_ALPHA:
        pixels = np.ascontiguousarray(pixels[..., 0])  # thrice the same
    transparent = whole is not None and whole.ndim == 3 and whole.shape[2] in (2, 4)
    if is_tiff(data) and has_inks(data):
        transparent = False
    return Picture(_reversed_channels(pixels), transparent)


def _whole_file(path: str) -> np.ndarray:
    """The bytes of a file; one of many pages, which is not read as it is, may be large."""
    if os.path.getsize(path) > MOST_BYTES:
        return np.memmap(path, np.uint8, mode="r")
    return np.fromfile(path, np.uint8)


def check_finite(
    pixels: np.ndarray, path: str | os.PathLike[str], mask: np.ndarray | None = None
) -> None:
    """Raise ValueError where pixels that count are NaN or infinite.

    Args:
      pixels: ``(H, W)`` or ``(H, W, C)``.
      path: where they come from.
      mask: ``(H, W)`` bool, which of them count; all by default.
    """
    if pixels.dtype.kind != "f":
        return
    counting = pixels if mask is None else pixels[mask]
    if not np.isfinite(counting).all():
        raise ValueError(f"{path} has NaN or infinite pixels; fill, crop or mask them first")


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Which pixels count by an image file, ``(H, W)`` bool: those above half of the brightest.

    Args:
      path: as for `read_picture`.

    Raises:
      OSError, ValueError: as for `read_picture`; or it is black all over.
    """
    pixels = read_picture(path).pixels
    check_finite(pixels, path)
    grey = pixels if pixels.ndim == 2 else pixels.max(-1)
    if grey.max() <= 0:
        raise ValueError(f"{path} is black all over: as a mask it leaves no pixel that counts")
    return grey > grey.max() / 2  # whatever is white, and what JPEG makes of black


def _check_single(path: str, data: np.ndarray) -> None:
    """Raise ValueError if a file holds several pictures: it would not be told which is meant."""
    pages = count_pages(path, data)
    if pages > 1 and is_tiff(data):
        raise ValueError(
            f"{path} has {pages} pages; say which, such as {path}[0], or --stack={path} for all"
        )
    if pages > 1:
        raise ValueError(
            f"{path} has {pages} frames; split it into files of one each, which "
            "--fixed=REFERENCE --moving_dir=FOLDER registers"
        )


def _reversed_channels(pixels: np.ndarray) -> np.ndarray:
    """OpenCV keeps blue first; its own conversion refuses float64."""
    return pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., ::-1])


def _is_jpeg(data: np.ndarray) -> bool:
    return data[:2].tobytes() == b"\xff\xd8"


def _is_png(data: np.ndarray) -> bool:
    return data[:4].tobytes() == b"\x89PNG"


def _is_cut_short(data: np.ndarray) -> bool:
    """Whether a JPEG or PNG lacks its end.

    Decoders fill what is missing with grey, or complain past our reach.
    """
    if _is_jpeg(data):
        return not _has_end(data)
    return _is_png(data) and b"IEND" not in data.tobytes()


def _has_end(data: np.ndarray) -> bool:
    """Whether a JPEG goes on to its end marker; there may be more behind, as a phone's film."""
    place = 2
    while found := _JPEG_MARKER.search(data.data, place):
        if not _JPEG_SEGMENT.match(found[1]):
            return found[1] == b"\xd9"
        place = found.end() + int.from_bytes(data[found.end() :][:2].tobytes(), "big")
    return False


def keeps(suffix: str, pixels: np.ndarray) -> bool:
    """Whether files of a suffix keep pixels of this dtype and number of channels.

    >>> keeps(".png", np.zeros((8, 8), np.uint16)), keeps(".png", np.zeros((8, 8), np.float32))
    (True, False)
    """
    suffix = suffix.lower()
    if not _is_format(suffix) or suffix in _FEW_COLOURS:
        return False
    if pixels.dtype != np.uint8 and suffix not in _EXACT:
        return False
    # OpenCV is asked, for it makes other pixels 8-bit in silence.
    like = np.zeros((32, 32, *pixels.shape[2:]), pixels.dtype)
    try:
        done, data = cv2.imencode(suffix, like)
        read = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if done else None
    except cv2.error:
        return False
    return read is not None and read.dtype == pixels.dtype


def _is_format(suffix: str) -> bool:
    """Whether OpenCV writes files of a suffix; it crashes on names that are not UTF-8."""
    return suffix.isascii() and len(suffix) > 1 and cv2.haveImageWriter(f"x{suffix}")


def check_writable(path: str | os.PathLike[str], pixels: np.ndarray | None = None) -> None:
    """Raise ValueError unless an image of this dtype and these channels can be written to ``path``.

    Asked before the work, so that nothing is registered in vain. With no pixels only the folder
    and the suffix are looked at.
    """
    path = Path(path)
    check_replaceable(path)
    check_folder(path.parent, path)
    if not _is_format(path.suffix):
        raise ValueError(f"{path} has no suffix of an image format, such as .png")
    if pixels is not None and not keeps(path.suffix, pixels):
        kept = " or ".join(suffix for suffix in _EXACT if keeps(suffix, pixels))
        hint = f"use {kept}" if kept else "nor does any other format of this OpenCV"
        kind = f"{pixels.dtype} pixels{' in colour' if pixels.ndim == 3 else ''}"
        raise ValueError(f"{path} would not keep {kind}; {hint}")


def check_folder(folder: Path, path: str | os.PathLike[str]) -> None:
    """Raise ValueError unless ``path`` can be made in ``folder``."""
    if not folder.is_dir():
        raise ValueError(f"{path} cannot be written: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{path} cannot be written: no permission in {folder}")


def write_picture(path: str | os.PathLike[str], pixels: np.ndarray) -> None:
    """Write an image whole or not at all; its format is that of the suffix.

    Args:
      path: the file; an existing one is replaced at once, never seen half-written.
      pixels: ``(H, W)`` or RGB ``(H, W, 3)``.

    Raises:
      OSError: the file cannot be written.
      ValueError: no format of this suffix keeps such pixels.
    """
    path = Path(path)
    check_writable(path, pixels)
    try:
        done, data = cv2.imencode(path.suffix.lower(), _reversed_channels(pixels))
    except cv2.error as error:
        raise ValueError(f"{path} cannot be written: {error.err or error}") from error
    if not done:
        raise ValueError(f"{path} cannot be written in this format")
    with replacing(path) as file:
        file.write(data.tobytes())
