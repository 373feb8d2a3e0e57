"""Make uniform random images."""

from __future__ import annotations

import numpy as np

# Images in each split. More than the 3,840 pairs of an evaluation, so that none repeats.
COUNT = 4096
_SEED = {"train": 1, "test": 2}


def load(split: str, size: int) -> np.ndarray:
    """Make images of independent uniform uint8 noise, the same on every machine.

    The bytes are the raw stream of PCG64, seeded by 1 for "train" and 2 for "test". NumPy promises
    never to change this stream, unlike the distributions of `numpy.random.Generator`.

    Returns:
      ``(4096, size, size, 3)`` uint8.
    """
    if split not in _SEED:
        raise ValueError(f"split: random has train and test, got {split!r}")
    shape = (COUNT, size, size, 3)
    words = np.random.PCG64(_SEED[split]).random_raw(-(-int(np.prod(shape)) // 8))
    return words.astype("<u8").view(np.uint8)[: int(np.prod(shape))].reshape(shape)
