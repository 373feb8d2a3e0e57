"""Image pyramids, blurs and local contrast, as products with small constant matrices.

All levels share the image centre: a transform ``(tx, ty, theta)`` of the full image is
``(tx / factor, ty / factor, theta)`` on a level whose pixels are ``factor`` times as large.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.compute.products import separable

# Standard deviation of the blur before downsampling, in pixels of the coarser level. A smaller one
# aliases, a larger one loses detail; no comparison of values is on record.
_SIGMA = 0.45
# `local_contrast`, chosen on training images, with and without a hidden part:
_NEIGHBOURHOOD = 1.0  # px, standard deviation of the Gaussian neighbourhood
_FAINT = 0.1  # share of the mean energy added to the local one, so that faint detail stays faint


def gaussian_rows(positions: np.ndarray, size: int, sigma: float) -> np.ndarray:
    """``(len(positions), size)``: rows of Gaussian weights around positions; each sums to 1."""
    distance = positions[:, None] - np.arange(size)
    weights = np.exp(-0.5 * np.square(distance / max(sigma, 1e-3)))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


@functools.cache
def downsampling_matrix(size: int, coarse: int, factor: float) -> np.ndarray:
    """``(coarse, size)``: matrix that blurs ``size`` pixels and samples every ``factor`` pixels."""
    if factor == 1.0:
        return np.eye(size, dtype=np.float32)
    positions = (size - 1) / 2 + (np.arange(coarse) - (coarse - 1) / 2) * factor
    return gaussian_rows(positions, size, _SIGMA * factor)


@functools.cache
def blurring_matrix(size: int, sigma: float) -> np.ndarray:
    """``(size, size)``: matrix that blurs ``size`` pixels, normalised at the borders."""
    return gaussian_rows(np.arange(size), size, sigma)


def local_contrast(image: jax.Array) -> jax.Array:
    """Subtract the local mean of an image ``(H, W)`` and divide by its local standard deviation.

    An object that hides a part of the view, or the black beyond the frame of a warped image, then
    has no more weight than the rest.
    """
    rows, columns = (blurring_matrix(size, _NEIGHBOURHOOD) for size in image.shape)
    detail = image - separable(rows, image, columns)
    energy = jnp.square(detail)
    faint = _FAINT * energy.mean() + 1e-12
    return detail * jax.lax.rsqrt(separable(rows, energy, columns) + faint)


def level_factors(shape: tuple[int, ...], coarsest: int, step: float) -> list[float]:
    """Pixel sizes of the levels in pixels of the image, coarsest first, full size (1.0) last.

    Args:
      shape: of the image, starting with ``(H, W)``.
      coarsest: shorter side of the coarsest level, in its pixels.
      step: the largest ratio between neighbouring levels.

    >>> level_factors((32, 32), 16, 2.5)
    [2.0, 1.0]
    """
    total = max(min(shape[:2]) / coarsest, 1.0)
    levels = int(np.ceil(np.log(total) / np.log(step) - 1e-6))
    return [float(total ** (k / levels)) for k in range(levels, 0, -1)] + [1.0]


def downsample(image: jax.Array, factor: float) -> jax.Array:
    """Resample an image ``(H, W)`` to pixels ``factor`` times as large, about the same centre."""
    height, width = image.shape
    if factor == 1.0:
        return image
    rows = downsampling_matrix(height, max(round(height / factor), 1), factor)
    columns = downsampling_matrix(width, max(round(width / factor), 1), factor)
    return separable(rows, image, columns)
