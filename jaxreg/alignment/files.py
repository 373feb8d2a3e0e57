"""Read and write image files: bit depth is kept, EXIF orientation applied, files written whole."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import cv2
import numpy as np

from jaxreg.alignment.pages import count_pages, read_page, split_page
from jaxreg.alignment.tiff import (
    MAX_BYTES,
    apply_tiff_semantics,
    disable_alpha_premultiply,
    is_cmyk,
    is_tiff,
    layout,
)
from jaxreg.atomic import check_replaceable, replacing

# Limits of what is read. A longer side would be registered at less than 1/32 of its size, and
# OpenCV warps at most twice that side; more pixels would take gigabytes as float32.
LARGEST_SIDE = 16384
LARGEST_AREA = 2**27
_ORIENTED = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR  # applies EXIF orientation, drops alpha
_FIT = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
# Lossless formats, the only ones for pixels of more than 8 bits.
_EXACT = (".png", ".tif", ".tiff", ".ppm", ".pgm", ".pnm")
_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")  # without those inside a scan
_JPEG_SEGMENT = re.compile(rb"[\xc0-\xcf\xda-\xef\xfe]")  # markers that are followed by a length
_GREY_WITH_ALPHA = 4  # PNG's colour type, in byte 25
_FEW_COLOURS = (".gif", ".pbm")  # cannot store the shades that warping makes


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """The content of an image file.

    Attributes:
      pixels: ``(H, W)`` or RGB ``(H, W, 3)``; integers of 8 to 32 bits, float32 or float64, as in
        the file.
      transparent: whether the file has an alpha channel, which ``pixels`` lacks.
    """

    pixels: np.ndarray
    transparent: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]


def read_picture(path: str | os.PathLike[str]) -> Picture:
    """Read an image file of any format OpenCV knows, and apply its EXIF orientation.

    Args:
      path: a file, or the name of a page of a TIFF (see `jaxreg.alignment.pages`).

    Raises:
      OSError: the file cannot be opened.
      ValueError: the file is damaged, holds several pictures, is too large or has pixels of an
        unsupported dtype; the message names it.
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
        pixels, transparent = _decode(data)
    except cv2.error as error:
        raise ValueError(f"{path} cannot be decoded: {error.err or error}") from error
    if pixels is None:
        stored = layout(data) if is_tiff(data) else ""
        if stored and page is None:
            read_page(file, 0)  # raises if the page is cut short
        hint = f": a TIFF of {stored}; save it as grey or RGB, uncompressed" if stored else ""
        raise ValueError(f"{path} is not a readable image{hint}")
    if is_tiff(data):
        pixels = apply_tiff_semantics(path, data, pixels)
    _check_supported(path, pixels)
    if pixels.ndim == 3 and _is_png(data) and data[25] == _GREY_WITH_ALPHA:
        pixels = np.ascontiguousarray(pixels[..., 0])  # decoded as three equal channels
    return Picture(_reversed_channels(pixels), transparent)


def _whole_file(path: str) -> np.ndarray:
    """The bytes of a file; of one too large to decode, which may have many pages, a memory map."""
    if os.path.getsize(path) > MAX_BYTES:
        return np.memmap(path, np.uint8, mode="r")
    return np.fromfile(path, np.uint8)


def _decode(data: np.ndarray) -> tuple[np.ndarray | None, bool]:
    """Decode pixels, None if that fails, and find out whether there is an alpha channel."""
    if is_tiff(data):
        disable_alpha_premultiply(data)
    pixels = cv2.imdecode(data, _ORIENTED)
    # Decoded again with all channels, to see whether alpha is one; JPEG has none.
    whole = pixels if _is_jpeg(data) else cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    transparent = whole is not None and whole.ndim == 3 and whole.shape[2] in (2, 4)
    return pixels, transparent and not (is_tiff(data) and is_cmyk(data))


def _check_supported(path: str | os.PathLike[str], pixels: np.ndarray) -> None:
    """Raise ValueError unless pixels are of a supported dtype and size."""
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


def check_finite(
    pixels: np.ndarray, path: str | os.PathLike[str], mask: np.ndarray | None = None
) -> None:
    """Raise ValueError if pixels that count are NaN or infinite.

    Args:
      pixels: ``(H, W)`` or ``(H, W, C)``.
      path: their file, for the message.
      mask: ``(H, W)`` bool, True where a pixel counts; by default all count.
    """
    if pixels.dtype.kind != "f":
        return
    counting = pixels if mask is None else pixels[mask]
    if not np.isfinite(counting).all():
        raise ValueError(f"{path} has NaN or infinite pixels; fill, crop or mask them first")


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image file as a mask: pixels brighter than half the brightest one count.

    Args:
      path: as for `read_picture`.

    Returns:
      ``(H, W)`` bool, True where a pixel counts.

    Raises:
      OSError, ValueError: as for `read_picture`; or no pixel counts.
    """
    pixels = read_picture(path).pixels
    check_finite(pixels, path)
    grey = pixels if pixels.ndim == 2 else pixels.max(-1)
    if grey.max() <= 0:
        raise ValueError(f"{path} is black all over: as a mask it leaves no pixel that counts")
    return grey > grey.max() / 2  # white may be any value, and JPEG changes black a little


def _check_single(path: str, data: np.ndarray) -> None:
    """Raise ValueError if a file holds several pictures, or is too large to decode."""
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
    if data.size > MAX_BYTES:
        raise ValueError(f"{path} has over 2 GB, more than is read")


def _reversed_channels(pixels: np.ndarray) -> np.ndarray:
    """Convert between RGB and OpenCV's BGR, whose own conversion refuses float64."""
    return pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., ::-1])


def _is_jpeg(data: np.ndarray) -> bool:
    return data[:2].tobytes() == b"\xff\xd8"


def _is_png(data: np.ndarray) -> bool:
    return data[:4].tobytes() == b"\x89PNG"


def _is_cut_short(data: np.ndarray) -> bool:
    """Whether a JPEG or PNG lacks its end.

    Decoders fill what is missing with grey, or report it where we cannot see it.
    """
    if _is_jpeg(data):
        return not _has_end(data)
    return _is_png(data) and b"IEND" not in data.tobytes()


def _has_end(data: np.ndarray) -> bool:
    """Whether a JPEG reaches its end marker; more data may follow it, such as a phone's video."""
    place = 2
    while found := _JPEG_MARKER.search(data.data, place):
        if not _JPEG_SEGMENT.match(found[1]):
            return found[1] == b"\xd9"
        place = found.end() + int.from_bytes(data[found.end() :][:2].tobytes(), "big")
    return False


def keeps(suffix: str, pixels: np.ndarray) -> bool:
    """Whether the format of a suffix stores pixels of this dtype and number of channels.

    >>> keeps(".png", np.zeros((8, 8), np.uint16)), keeps(".png", np.zeros((8, 8), np.float32))
    (True, False)
    """
    suffix = suffix.lower()
    if not _is_format(suffix) or suffix in _FEW_COLOURS:
        return False
    if pixels.dtype != np.uint8 and suffix not in _EXACT:
        return False
    # Tried out, since OpenCV silently converts pixels that a format cannot store to 8 bits.
    like = np.zeros((32, 32, *pixels.shape[2:]), pixels.dtype)
    try:
        done, data = cv2.imencode(suffix, like)
        read = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if done else None
    except cv2.error:
        return False
    return read is not None and read.dtype == pixels.dtype


def _is_format(suffix: str) -> bool:
    """Whether OpenCV writes files of a suffix; it would crash on one that is not UTF-8."""
    return suffix.isascii() and len(suffix) > 1 and cv2.haveImageWriter(f"x{suffix}")


def check_writable(path: str | os.PathLike[str], pixels: np.ndarray | None = None) -> None:
    """Raise ValueError unless pixels of this dtype and these channels can be written to ``path``.

    Called before the images are registered, so that no work is lost. Without pixels only the folder
    and the suffix are checked.
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
    """Raise ValueError unless ``path`` can be created in ``folder``."""
    if not folder.is_dir():
        raise ValueError(f"{path} cannot be written: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"{path} cannot be written: no permission in {folder}")


def write_picture(path: str | os.PathLike[str], pixels: np.ndarray) -> None:
    """Write an image whole or not at all, in the format of its suffix.

    Args:
      path: the file; an existing one is replaced in one step (`jaxreg.atomic.replacing`).
      pixels: ``(H, W)`` or RGB ``(H, W, 3)``.

    Raises:
      OSError: the file cannot be written.
      ValueError: the format of this suffix cannot store such pixels.
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
