"""A user's own image files."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import pathlib

import numpy as np
from absl import logging

from jaxreg.data.square import to_square

SUFFIXES = frozenset(
    {
        ".bmp",
        ".dib",
        ".gif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    }
)
# Part of the files that a folder without train/ and test/ gives to the test split.
TEST_SHARE = 0.1
# Unreadable files named one by one; the others are counted.
_MAX_NAMED = 20


def load(path: str, split: str, size: int) -> np.ndarray:
    """The images below a folder, however deep, in the order of their relative paths.

    Where the folder holds ``train/`` and ``test/``, these are the splits. Else the tenth of the
    files (at least one) with the smallest SHA-256 of their relative paths is "test", the others
    "train": the same on every machine, and nearly the same when files are added.

    Orientation tags (EXIF) are obeyed, transparency is dropped, 16-bit files become 8-bit.
    Unreadable files are named in warnings and skipped; hidden ones are ignored.

    Args:
      path: the folder.
      split: "train" or "test".
      size: height and width of the result in pixels.

    Returns:
      ``(N, size, size, 3)`` uint8 RGB.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split: folder has train and test, got {split!r}")
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"folder:{path}: no such folder")
    files = _files_of_split(root, split)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        images = list(pool.map(lambda file: _read(file, size), files))
    unreadable = [file for file, image in zip(files, images, strict=True) if image is None]
    _warn(unreadable, root)
    readable = [image for image in images if image is not None]
    if not readable:
        raise ValueError(
            f"folder:{path}: none of the {len(files)} image files of the {split} split is readable"
        )
    return np.stack(readable)


def image_files(root: pathlib.Path) -> list[pathlib.Path]:
    """The files below a folder that are images by their suffix, sorted by relative path."""
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            file = pathlib.Path(folder, name)
            if file.suffix.lower() in SUFFIXES and not name.startswith("."):
                found.append(file)
    return sorted(found, key=lambda file: file.relative_to(root).as_posix())


def _files_of_split(root: pathlib.Path, split: str) -> list[pathlib.Path]:
    has_splits = (root / "train").is_dir() and (root / "test").is_dir()
    files = image_files(root / split if has_splits else root)
    if not files:
        raise ValueError(
            f"folder:{root / split if has_splits else root}: no image files; "
            f"expected {' '.join(sorted(SUFFIXES))}"
        )
    if has_splits:
        return files
    if len(files) == 1:
        raise ValueError(f"folder:{root}: one image file cannot be split into train and test")

    def rank(file: pathlib.Path) -> bytes:
        return hashlib.sha256(os.fsencode(file.relative_to(root).as_posix())).digest()

    count = max(1, int(len(files) * TEST_SHARE))
    test = set(sorted(files, key=rank)[:count])
    return [file for file in files if (file in test) == (split == "test")]


def _read(file: pathlib.Path, size: int) -> np.ndarray | None:
    import cv2

    try:
        data = np.fromfile(file, np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except (OSError, cv2.error):
        return None
    return None if image is None else to_square(image, size)[..., ::-1]


def _warn(unreadable: list[pathlib.Path], root: pathlib.Path) -> None:
    for file in unreadable[:_MAX_NAMED]:
        logging.warning("Skipping %s: not a readable image", file.relative_to(root))
    if len(unreadable) > _MAX_NAMED:
        logging.warning(
            "Skipping %d more files that are not readable images", len(unreadable) - _MAX_NAMED
        )
