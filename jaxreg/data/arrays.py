"""Load a user's images from a NumPy file."""

from __future__ import annotations

import contextlib
import pathlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from jaxreg.data.square import to_square

# In a file without named splits, every tenth image is a test image.
TEST_EVERY = 10


def load(path: str, split: str, size: int) -> np.ndarray:
    """Load images from a ``.npy`` or ``.npz`` file.

    An ``.npz`` with arrays named "train" and "test" is split by these names. In a ``.npy``, or an
    ``.npz`` with one array or one named "images", every tenth image (the 10th, 20th, ...) is "test"
    and the others "train".

    Args:
      path: the file. Its images are ``(N, H, W)`` or ``(N, H, W, 1)`` grey, or ``(N, H, W, 3)``
        RGB; uint8, or floats in 0..255, which are rounded.
      split: "train" or "test".
      size: height and width of the result in pixels.

    Returns:
      ``(N, size, size, 3)`` uint8.

    Raises:
      ValueError: the split, the file or its arrays are not usable; says why.
      FileNotFoundError: there is no such file.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split: arrays has train and test, got {split!r}")
    images, already_split = _read(pathlib.Path(path).expanduser(), split)
    _check(images, path)
    if not already_split:
        is_test = np.arange(len(images)) % TEST_EVERY == TEST_EVERY - 1
        if split == "test" and not is_test.any():
            raise ValueError(
                f"arrays:{path}: every 10th image is a test image and there are {len(images)}; "
                "give 10 or more, or an .npz with arrays named train and test"
            )
        images = images[is_test == (split == "test")]
    return _rgb(images, size, path)


def _read(path: pathlib.Path, split: str) -> tuple[np.ndarray, bool]:
    if not path.is_file():
        raise FileNotFoundError(f"arrays:{path}: no such file")
    with open(path, "rb") as file:  # NumPy would leave a damaged file open
        with _reading(path):
            stored = np.load(file, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            return stored, False
        name = _member(stored.files, split, path)
        with _reading(path):
            array = stored[name]
            if not isinstance(array, np.ndarray):
                raise ValueError(f"{name} is no array")
        return array, name == split


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"arrays:{path}: not a .npy or .npz file of numbers ({error})") from error


def _member(names: Sequence[str], split: str, path: pathlib.Path) -> str:
    """The name of the array to read."""
    for name in (split, "images"):
        if name in names:
            return name
    if len(names) == 1 and names[0] not in ("train", "test"):
        return names[0]
    raise ValueError(
        f"arrays:{path}: has arrays {', '.join(names) or 'none'}; "
        f"the split needs one named {split}, or a single one named images"
    )


def _check(images: np.ndarray, path: str) -> None:
    shape = images.shape
    if images.ndim == 3 and shape[-1] in (3, 4):
        raise ValueError(
            f"arrays:{path}: shape {shape} looks like a single picture; "
            "a set is (N, H, W) or (N, H, W, 3): add a leading axis"
        )
    if images.ndim not in (3, 4) or (images.ndim == 4 and shape[-1] not in (1, 3)):
        hint = "; drop the alpha channel" if images.ndim == 4 and shape[-1] == 4 else ""
        hint = hint or (
            "; move the channels last" if images.ndim == 4 and shape[1] in (1, 3) else ""
        )
        raise ValueError(
            f"arrays:{path}: expected (N, H, W), (N, H, W, 1) or (N, H, W, 3), got {shape}{hint}"
        )
    if 0 in shape:
        raise ValueError(f"arrays:{path}: has no images, shape {shape}")
    if images.dtype == np.uint8:
        return
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"arrays:{path}: expected uint8 or float in 0..255, got {images.dtype}")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 255):
        raise ValueError(f"arrays:{path}: floats must lie in 0..255, got {low:g}..{high:g}")
    if high <= 1:
        raise ValueError(
            f"arrays:{path}: floats must span 0..255, got {low:g}..{high:g}; multiply by 255"
        )


def _rgb(images: np.ndarray, size: int, path: str) -> np.ndarray:
    if images.ndim == 3:
        images = images[..., None]
    out = np.empty((len(images), size, size, 3), np.uint8)
    for i, image in enumerate(images):
        if image.dtype != np.uint8:
            image = image.astype(np.float32)
        square = to_square(image, size)
        out[i] = square if square.dtype == np.uint8 else np.rint(square)
    return out
