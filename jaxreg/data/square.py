"""Crop and resize pictures to squares."""

from __future__ import annotations

import numpy as np


def to_square(image: np.ndarray, size: int) -> np.ndarray:
    """Crop a picture to its central square, then resize it.

    Args:
      image: ``(H, W, C)`` uint8 or float32. If the number of surplus rows or columns is odd, one
        more is cut at the end.
      size: height and width of the result in pixels.

    Returns:
      ``(size, size, C)`` of the same dtype: area averages when shrinking, bilinear when enlarging.
    """
    height, width = image.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    image = image[top : top + edge, left : left + edge]
    if edge == size:
        return image
    import cv2

    interpolation = cv2.INTER_AREA if size < edge else cv2.INTER_LINEAR
    resized = cv2.resize(image, (size, size), interpolation=interpolation)
    return resized.reshape(size, size, image.shape[2])
