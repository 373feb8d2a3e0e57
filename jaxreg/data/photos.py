"""Make crops of the photographs in the scikit-image wheel; needs no download."""

from __future__ import annotations

import functools
from importlib import metadata, resources

import numpy as np

# Photographs only: the wheel also holds drawings, test charts, scanned text and a colour wheel.
# clock_motion, cell and microaneurysms are left out too, as nearly all of their area is too flat.
PHOTOGRAPHS = {
    # The two motorcycles are one scene, seen by a stereo camera, so they are in one split.
    "train": (
        "astronaut.png",
        "brick.png",
        "coins.png",
        "gravel.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "motorcycle_left.png",
        "motorcycle_right.png",
        "retina.jpg",
    ),
    "test": ("camera.png", "chelsea.png", "coffee.png", "grass.png", "moon.png", "rocket.jpg"),
}
COUNT = {"train": 8192, "test": 2048}
# A crop with a smaller standard deviation of its grey levels has nothing to register.
MIN_DEVIATION = 12.0
# Nor does a crop with fewer pixels on a side.
MIN_SIZE = 8
# Weights of red, green and blue in grey: ITU-R BT.601, which cv2.cvtColor and PIL use too.
LUMA = (0.299, 0.587, 0.114)
_SEED = {"train": 11, "test": 12}


def photographs(split: str) -> dict[str, np.ndarray]:
    """Read the photographs of a split, uncropped.

    Args:
      split: "train" or "test"; no photograph and no scene is in both.

    Returns:
      Name without suffix -> ``(H, W, 3)`` uint8 RGB; grey photographs have three equal channels.

    Raises:
      FileNotFoundError: the installed scikit-image lacks one of the files.
    """
    _check_split(split)
    return {name.partition(".")[0]: _read(name).copy() for name in PHOTOGRAPHS[split]}


def load(split: str, size: int) -> np.ndarray:
    """Make square crops at several scales: 8,192 for "train", 2,048 for "test".

    For each crop the photograph and the place are drawn uniformly, and the scale: a whole number of
    photograph pixels for each pixel, up to what the shorter side allows, small ones more often. The
    pixels are means over squares. A crop whose grey standard deviation is below 12 of 255 is
    replaced by a new one, of a photograph drawn anew. The draws come from fixed seeds and the means
    are exact, so the set is the same on every machine (three of the photographs are JPEG files,
    which decoders may round differently by one grey level).

    Args:
      split: "train" or "test".
      size: height and width of the crops in pixels.

    Returns:
      ``(N, size, size, 3)`` uint8.

    Raises:
      ValueError: the split is unknown, or the size below 8 or beyond the smallest photograph.
      FileNotFoundError: the installed scikit-image lacks one of the files.
    """
    _check_split(split)
    tables = [_integral(_read(name)) for name in PHOTOGRAPHS[split]]
    largest = min(min(table.shape[:2]) - 1 for table in tables)
    if not MIN_SIZE <= size <= largest:
        raise ValueError(f"size: photos {split} gives {MIN_SIZE} to {largest} pixels, got {size}")
    crops = np.empty((COUNT[split], size, size, 3), np.uint8)
    pending = np.arange(COUNT[split])
    attempt = 0
    while pending.size:
        draws = _uniforms((_SEED[split], attempt), (COUNT[split], 4))[pending]
        for crop, draw in zip(pending, draws, strict=True):
            crops[crop] = _crop(tables[int(draw[0] * len(tables))], draw[1:], size)
        pending = pending[grey_deviation(crops[pending]) < MIN_DEVIATION]
        attempt += 1
    return crops


def grey_deviation(images: np.ndarray) -> np.ndarray:
    """Compute the standard deviation of each image's grey levels (ITU-R BT.601 luma).

    Args:
      images: ``(N, H, W, 3)``, intensities 0..255.

    Returns:
      ``(N,)`` float32.
    """
    luma = np.array(LUMA, np.float32)
    deviation = np.empty(len(images), np.float32)
    for start in range(0, len(images), 256):  # bounds the float copy
        part = slice(start, start + 256)
        deviation[part] = (images[part] @ luma).std((1, 2))
    return deviation


def _check_split(split: str) -> None:
    if split not in PHOTOGRAPHS:
        raise ValueError(f"split: photos has train and test, got {split!r}")


@functools.cache
def _read(name: str) -> np.ndarray:
    import cv2

    file = resources.files("skimage.data").joinpath(name)
    try:
        data = np.frombuffer(file.read_bytes(), np.uint8)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"the installed scikit-image {metadata.version('scikit-image')} lacks the photograph "
            f"{name}; pip install 'scikit-image==0.26.*' has it"
        ) from None
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    if decoded is None:
        raise ValueError(f"the photograph {file} is damaged; reinstall scikit-image")
    picture = decoded[..., ::-1]
    picture.setflags(write=False)
    return picture


def _uniforms(seed: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Draw uniformly on [0, 1), from the raw stream of PCG64, which NumPy never changes."""
    raw = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(int(np.prod(shape)))
    return ((raw >> np.uint64(11)) * 2.0**-53).reshape(shape)


def _integral(picture: np.ndarray) -> np.ndarray:
    """Compute the summed-area table ``(H + 1, W + 1, 3)`` of a picture."""
    height, width = picture.shape[:2]
    table = np.zeros((height + 1, width + 1, 3), np.int32)  # room for 8 million pixels
    picture.cumsum(0, np.int32).cumsum(1, out=table[1:, 1:])
    return table


def _crop(table: np.ndarray, draw: np.ndarray, size: int) -> np.ndarray:
    """Draw a crop ``(size, size, 3)`` of means from a photograph's table.

    Args:
      table: summed-area table of the photograph.
      draw: three uniform numbers in [0, 1), for scale, row and column.
      size: height and width of the crop.
    """
    height, width = table.shape[0] - 1, table.shape[1] - 1
    scale = int((min(height, width) // size + 1) ** draw[0])
    edge = scale * size
    top, left = int(draw[1] * (height - edge + 1)), int(draw[2] * (width - edge + 1))
    sums = table[top : top + edge + 1 : scale, left : left + edge + 1 : scale]
    rows = sums[1:] - sums[:-1]
    cells = rows[:, 1:] - rows[:, :-1]
    return (cells + scale**2 // 2) // scale**2
