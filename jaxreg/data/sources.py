"""Load images by the name of their source."""

from __future__ import annotations

import operator

import numpy as np

from jaxreg.data import arrays, folder, noise, photos, tfds

# Sources with a fixed name; every other name is looked up in tensorflow-datasets.
_NAMED = {"photos": photos.load, "random": noise.load}
# Sources written prefix:PATH.
_PATHS = {"folder": folder.load, "arrays": arrays.load}


def load_images(source: str, split: str, size: int) -> np.ndarray:
    """Load the images of a source as squares.

    Pictures are cropped to the central square, then resized: by averages over areas when shrinking,
    bilinearly when enlarging. Grey pictures become RGB.

    Args:
      source: one of

        - ``photos``: crops of the photographs that ship inside the scikit-image wheel
          (`jaxreg.data.photos`);
        - ``random``: uniform noise (`jaxreg.data.noise`);
        - ``folder:PATH``: the image files below a folder (`jaxreg.data.folder`);
        - ``arrays:PATH``: a ``.npy`` or ``.npz`` file (`jaxreg.data.arrays`);
        - ``cifar10``, ``stl10`` or another image set of tensorflow-datasets by its name, also
          ``name/config`` and ``name:version`` (`jaxreg.data.tfds`).
      split: "train" or "test"; with tensorflow-datasets also any other split of the set, such as
        "unlabelled".
      size: height and width in pixels.

    Returns:
      ``(N, size, size, 3)`` uint8 RGB, in the same order on every call.

    Raises:
      ValueError: the source, the split or the contents are not usable; says what is possible.
      FileNotFoundError: the file, folder or prepared image set is missing; says what to do.

    >>> load_images("random", "test", 8).shape
    (4096, 8, 8, 3)
    """
    size = _checked_size(size)
    if source in _NAMED:
        return _NAMED[source](split, size)
    prefix, _, path = source.partition(":")
    if prefix in _PATHS:
        if not path:
            raise ValueError(f"source: {source!r} lacks its path; write {prefix}:PATH")
        return _PATHS[prefix](path, split, size)
    return tfds.load(source, split, size)


def _checked_size(size: int) -> int:
    try:
        size = operator.index(size)
    except TypeError:
        raise ValueError(f"size: must be a whole number of pixels, got {size!r}") from None
    if size < 1:
        raise ValueError(f"size: must be at least 1 pixel, got {size}")
    return size
