"""Interpolation kernels: the weights of the pixels around a point.

Kernels are separable. For a coordinate ``u`` a kernel gives the first pixel it touches, and the
weights of that pixel and the following ones. At whole pixels all kernels return the pixel's value:
one weight is 1, or, for the spline, the coefficients are computed so.

===========  ====  =======================================================================
name         taps  description
===========  ====  =======================================================================
``nearest``  1     the nearest pixel's value, for labels, which must not be mixed
``linear``   2     bilinear, as in the paper; the default of ``cv2.warpAffine``
``cubic``    4     Keys' cubic convolution with a = -0.75, as in OpenCV and PyTorch
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
# A free parameter in Keys (1981), doi:10.1109/TASSP.1981.1163711; OpenCV and PyTorch use -0.75.
_KEYS_A = -0.75


def check_interpolation(interpolation: str) -> None:
    """Raise ValueError unless ``interpolation`` names a kernel."""
    if interpolation not in INTERPOLATIONS:
        raise ValueError(
            f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {interpolation!r}"
        )


def taps(u: jax.Array, interpolation: Interpolation) -> tuple[jax.Array, list[jax.Array]]:
    """Compute the first pixel touched (a whole float) and the weights of it and the following.

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
    """Compute cubic B-spline weights of the four coefficients around a point.

    The point lies ``t``, in [0, 1], past the second of them.
    """
    s = 1.0 - t
    near = lambda d: (4.0 - 3.0 * d * d * (2.0 - d)) / 6.0  # noqa: E731
    return [s * s * s / 6.0, near(t), near(s), t * t * t / 6.0]


@functools.cache
def _prefilter_matrix(n: int) -> np.ndarray:
    """``(n, n)`` matrix from samples to cubic B-spline coefficients, mirrored at the ends.

    Unser (1999), doi:10.1109/79.799930. The matrix is dense: a small matrix product is far faster
    on every device than the recursive filter it replaces.
    """
    sampling = np.zeros((n, n))
    for offset, weight in ((-1, 1 / 6), (0, 4 / 6), (1, 1 / 6)):
        index = np.arange(n) + offset
        if n > 1:  # mirrored about the centres of the outermost pixels
            index = np.abs(index)
            index = np.where(index > n - 1, 2 * (n - 1) - index, index)
        else:
            index = np.zeros_like(index)
        np.add.at(sampling, (np.arange(n), index), weight)
    return np.linalg.inv(sampling).astype(np.float32)


@functools.cache
def coefficient_matrix(n: int, rim: int) -> np.ndarray:
    """``(n + 2 rim, n)``: `_prefilter_matrix` with ``rim`` coefficients beyond each end."""
    index = np.abs(np.arange(-rim, n + rim))
    return _prefilter_matrix(n)[np.where(index > n - 1, 2 * (n - 1) - index, index)]


@functools.cache
def derivative_matrix(n: int) -> np.ndarray:
    """``(n, n)`` matrix from samples to the derivative of their cubic spline at the samples."""
    coefficients = coefficient_matrix(n, 1)
    return 0.5 * (coefficients[2:] - coefficients[:-2])


def spline_gradient(image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute derivatives ``(down, right)`` of an image ``(H, W, C)`` by its cubic spline."""
    rows, columns = (derivative_matrix(size) for size in image.shape[:2])
    return apply_down(rows, image), apply_across(image, columns)


def spline_coefficients(image: jax.Array, rim: int = 0) -> jax.Array:
    """Compute the cubic B-spline coefficients of an image, mirrored at the borders.

    The ``spline`` kernel, evaluated on them at whole pixels, returns the image.

    Args:
      image: ``(H, W, C)``.
      rim: how many coefficients to add beyond each border: 0 or 1.

    Returns:
      ``(H + 2 rim, W + 2 rim, C)``.
    """
    rows, columns = (coefficient_matrix(size, rim) for size in image.shape[:2])
    return apply_separable(rows, image, columns)
