"""Load a user's image files from a folder."""

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
# Share of the files in the test split of a folder without train/ and test/.
TEST_SHARE = 0.1
_MAX_NAMED = 20  # skipped files that are named in warnings; further ones are counted


def load(path: str, split: str, size: int) -> np.ndarray:
    """Load the images below a folder, at any depth, in the order of their relative paths.

    If the folder holds ``train/`` and ``test/``, these are the splits. Otherwise the tenth of the
    files (at least one) with the smallest SHA-256 of their relative paths is "test", and the others
    are "train": the same on every machine, and nearly the same when files are added.

    Links are followed, and a folder to which several lead is read once. Orientation tags (EXIF) are
    applied, transparency is dropped, and only the first page of a file is read. A 16-bit file
    counts as one of 8, 10, 12, 14 or 16 bits, the fewest that hold its values, and the upper 8 of
    these are kept. Files that are unreadable or have other dtypes are named in warnings and
    skipped; hidden files are ignored.

    Args:
      path: the folder.
      split: "train" or "test".
      size: height and width of the result in pixels.

    Returns:
      ``(N, size, size, 3)`` uint8 RGB.

    Raises:
      ValueError: the split is unknown, or the folder has no usable image for it.
      FileNotFoundError: there is no such folder.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split: folder has train and test, got {split!r}")
    root = pathlib.Path(path).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"folder:{path}: no such folder")
    files = _files_of_split(root, split)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        images = list(pool.map(lambda file: _read(file, size), files))
    problems = [
        f"{file.relative_to(root)}: {image}"
        for file, image in zip(files, images, strict=True)
        if isinstance(image, str)
    ]
    usable = [image for image in images if not isinstance(image, str)]
    if not usable:
        raise ValueError(
            f"folder:{path}: none of the {len(files)} image files of the {split} split is usable: "
            f"{problems[0]}"
        )
    _warn(problems)
    return np.stack(usable)


def image_files(root: pathlib.Path) -> list[pathlib.Path]:
    """List the files below a folder with an image's suffix, sorted by relative path.

    Links to folders are followed after everything in the folder itself is listed. So each folder is
    listed once, and by its own path if it lies below ``root``.
    """
    found, seen, starts = [], set(), [root]
    for start in starts:  # the list grows by the links that are found
        for folder, subfolders, names in os.walk(start):
            if os.path.realpath(folder) in seen:
                subfolders.clear()
                continue
            seen.add(os.path.realpath(folder))
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            below = [pathlib.Path(folder, name) for name in subfolders]
            starts += [path for path in below if path.is_symlink()]
            files = [pathlib.Path(folder, name) for name in names if not name.startswith(".")]
            found += [file for file in files if file.suffix.lower() in SUFFIXES]
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


def _read(file: pathlib.Path, size: int) -> np.ndarray | str:
    """Read a file as a square picture ``(size, size, 3)`` uint8, or say why it is skipped."""
    import cv2

    try:
        data = np.fromfile(file, np.uint8)
        flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH
        image = cv2.imdecode(data, flags) if data.size else None
    except (OSError, cv2.error):
        image = None
    if image is None:
        return "not a readable image"
    if image.dtype == np.uint16:
        image = _upper_bits(image)
    if image.dtype != np.uint8:
        return f"{image.dtype} pixels, 8- and 16-bit files are read"
    square = to_square(np.atleast_3d(image), size)[..., ::-1]
    return np.broadcast_to(square, (size, size, 3))


def _upper_bits(image: np.ndarray) -> np.ndarray:
    """Return the upper 8 of the bits that an image uses; cameras use 10 to 14 of 16."""
    bits = next(bits for bits in (8, 10, 12, 14, 16) if image.max() < 1 << bits)
    return (image >> (bits - 8)).astype(np.uint8)


def _warn(problems: list[str]) -> None:
    for problem in problems[:_MAX_NAMED]:
        logging.warning("Skipping %s", problem)
    if len(problems) > _MAX_NAMED:
        logging.warning("Skipping %d more files", len(problems) - _MAX_NAMED)
