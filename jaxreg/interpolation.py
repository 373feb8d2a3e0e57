"""Interpolation kernels: the weights of the pixels around a point.

A kernel is separable. For a coordinate ``u`` it names the first pixel it touches and the weights
of that pixel and the following ones; all are exact at whole pixels: where one weight is 1, or, of
the spline, where its coefficients were made to be.

===========  ====  =======================================================================
name         taps  what it is
===========  ====  =======================================================================
``nearest``  1     the nearest pixel's value, for labels, which must not be mixed
``linear``   2     bilinear, the paper's; what ``cv2.warpAffine`` does by default
``cubic``    4     Keys' cubic convolution with a = -0.75, as OpenCV and PyTorch
``spline``   4     cubic B-spline on prefiltered coefficients, as ``scipy.ndimage`` order 3
===========  ====  =======================================================================
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.compute.products import apply_across, apply_down, apply_separable

Interpolation = Literal["nearest", "linear", "cubic", "spline"]
INTERPOLATIONS: tuple[Interpolation, ...] = ("nearest", "linear", "cubic", "spline")
# Keys (1981), doi:10.1109/TASSP.1981.1163711, leaves a free; -0.75 is OpenCV's and PyTorch's.
_KEYS_A = -0.75


def check_interpolation(interpolation: str) -> None:
    """Raise ValueError unless ``interpolation`` names a kernel."""
    if interpolation not in INTERPOLATIONS:
        raise ValueError(
            f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {interpolation!r}"
        )


def taps(u: jax.Array, interpolation: Interpolation) -> tuple[jax.Array, list[jax.Array]]:
    """First pixel touched (float, whole) and the list of weights from it on.

    >>> first, weights = taps(jnp.float32(2.25), "linear")
    >>> float(first), [float(w) for w in weights]
    (2.0, [0.75, 0.25])
    """
    if interpolation == "nearest":
        return jnp.floor(u + 0.5), [jnp.ones_like(u)]
    base = jnp.floor(u)
    t = u - base
    if interpolation == "linear":
        return base, [1.0 - t, t]
    if interpolation == "spline":
        return base - 1.0, spline_weights(t)
    a = _KEYS_A
    near = lambda d: ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0  # noqa: E731
    far = lambda d: ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a  # noqa: E731
    return base - 1.0, [far(1.0 + t), near(t), near(1.0 - t), far(2.0 - t)]


def spline_weights(t: jax.Array) -> list[jax.Array]:
    """Cubic B-spline weights of the four coefficients around a point ``t`` past the second."""
    s = 1.0 - t
    near = lambda d: (4.0 - 3.0 * d * d * (2.0 - d)) / 6.0  # noqa: E731
    return [s * s * s / 6.0, near(t), near(s), t * t * t / 6.0]


@functools.cache
def _prefilter_matrix(n: int) -> np.ndarray:
    """``(n, n)`` matrix from samples to cubic B-spline coefficients, mirrored at the ends.

    Unser (1999), doi:10.1109/79.799930. Dense, because a small matrix product is far faster on
    every device than the recursive filter it replaces.
    """
    sampling = np.zeros((n, n))
    for offset, weight in ((-1, 1 / 6), (0, 4 / 6), (1, 1 / 6)):
        index = np.arange(n) + offset
        if n > 1:  # mirror about the centre of the outermost pixels
            index = np.abs(index)
            index = np.where(index > n - 1, 2 * (n - 1) - index, index)
        else:
            index = np.zeros_like(index)
        np.add.at(sampling, (np.arange(n), index), weight)
    return np.linalg.inv(sampling).astype(np.float32)


@functools.cache
def _rimmed_prefilter(n: int, rim: int) -> np.ndarray:
    """``(n + 2 rim, n)``: `_prefilter_matrix` with the coefficients beyond both ends."""
    index = np.abs(np.arange(-rim, n + rim))
    return _prefilter_matrix(n)[np.where(index > n - 1, 2 * (n - 1) - index, index)]


@functools.cache
def derivative_matrix(n: int) -> np.ndarray:
    """``(n, n)`` matrix from samples to the derivative of their cubic spline at the samples."""
    coefficients = _rimmed_prefilter(n, 1)
    return 0.5 * (coefficients[2:] - coefficients[:-2])


def spline_gradient(image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Derivatives ``(down, right)`` of an image ``(H, W, C)`` by its cubic spline."""
    rows, columns = (derivative_matrix(size) for size in image.shape[:2])
    return apply_down(rows, image), apply_across(image, columns)


def spline_coefficients(image: jax.Array, rim: int = 0) -> jax.Array:
    """Cubic B-spline coefficients of an image ``(H, W, C)``, mirrored at the borders.

    Evaluating them with the ``spline`` kernel at whole pixels gives the image back.

    Args:
      image: ``(H, W, C)``.
      rim: how many coefficients beyond each border to return besides: 0 or 1.
    """
    rows, columns = (_rimmed_prefilter(size, rim) for size in image.shape[:2])
    return apply_separable(rows, image, columns)
