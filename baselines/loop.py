"""Turn methods that register one pair of NumPy arrays into estimators of batches."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.geometry import RigidTransform, Shape
from jaxreg.images import are_traced
from jaxreg.result import Registration
from jaxreg.similarity import judge

# From a pair of images (H, W, C) to (tx, ty, theta), or None if there is no answer.
PairMethod = Callable[[np.ndarray, np.ndarray], np.ndarray | None]

_judge = jax.jit(judge)


def register_each(method: PairMethod, fixed: jax.Array, moving: jax.Array) -> Registration:
    """Register the pairs of a batch ``(N, H, W, C)`` one by one, and judge the answers.

    An answer that is not finite counts as none.

    Raises:
      ValueError: the images are not batches of one shape, or are being traced.
    """
    if are_traced(fixed, moving):
        raise ValueError(
            "this method works on the host and cannot be traced; call it outside of jit, vmap and "
            "grad, or take method 'direct'"
        )
    images = np.asarray(fixed, np.float32), np.asarray(moving, np.float32)
    if images[0].ndim != 4 or images[0].shape != images[1].shape:
        raise ValueError(
            "fixed and moving must be batches (N, H, W, C) of one shape, "
            f"got {images[0].shape} and {images[1].shape}"
        )
    parameters = np.zeros((len(images[0]), 3), np.float32)
    found = np.zeros(len(images[0]), bool)
    for i, (f, m) in enumerate(zip(*images, strict=True)):
        answer = method(f, m)
        if answer is not None and np.isfinite(answer).all():
            parameters[i], found[i] = answer, True
    transform = RigidTransform.from_array(jnp.asarray(parameters))
    return _judge(jnp.asarray(images[0]), jnp.asarray(images[1]), transform, jnp.asarray(found))


def to_grey(image: np.ndarray) -> np.ndarray:
    """Convert an image ``(H, W, C)`` with one or three channels to grey, ``(H, W)`` float32."""
    image = np.asarray(image, np.float32)
    if image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(f"an image must be (H, W, 1) or (H, W, 3), got shape {image.shape}")
    return image[..., 0] if image.shape[-1] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def from_matrix(matrix: np.ndarray, shape: Shape) -> np.ndarray:
    """Convert a rigid matrix on pixels ``(x, y, 1)`` to ``(tx, ty, theta)`` about the centre.

    `RigidTransform.from_matrix` in NumPy and float64, which the libraries compared here use.

    >>> from_matrix(np.array([[1.0, 0.0, 3.0], [0.0, 1.0, -2.0]]), (32, 32)).tolist()
    [3.0, -2.0, 0.0]
    """
    centre = np.array([(shape[1] - 1) / 2, (shape[0] - 1) / 2])
    tx, ty = matrix[:2, 2] - centre + matrix[:2, :2] @ centre
    return np.array([tx, ty, wrap(np.rad2deg(np.arctan2(matrix[1, 0], matrix[0, 0])))])


def to_matrix(parameters: np.ndarray, shape: Shape) -> np.ndarray:
    """Convert ``(tx, ty, theta)`` to the ``(3, 3)`` matrix on pixels ``(x, y, 1)``.

    >>> to_matrix(np.array([3.0, -2.0, 0.0]), (32, 32))[:2, 2].tolist()
    [3.0, -2.0]
    """
    tx, ty, theta = parameters
    cos, sin = np.cos(np.deg2rad(theta)), np.sin(np.deg2rad(theta))
    cx, cy = (shape[1] - 1) / 2, (shape[0] - 1) / 2
    return np.array(
        [
            [cos, -sin, cx + tx - cos * cx + sin * cy],
            [sin, cos, cy + ty - sin * cx - cos * cy],
            [0.0, 0.0, 1.0],
        ]
    )


def wrap(theta: float) -> float:
    """Return the equivalent angle in [-180, 180) degrees."""
    return float((theta + 180.0) % 360.0 - 180.0)
