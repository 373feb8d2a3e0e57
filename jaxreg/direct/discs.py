"""Rotated templates of the coarse search: the disc inscribed in an image, turned by all angles."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.cache
def disc(side: int) -> np.ndarray:
    """``(side, side)`` float32: 1 inside the inscribed disc, else 0."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    return (np.hypot(x, y) <= side / 2).astype(np.float32)


def rotated_discs(image: jax.Array, angles: int) -> jax.Array:
    """Rotate the central disc of an image by ``angles`` evenly spaced angles of the full circle.

    Only the first quarter is interpolated; the others are exact rotations of it by 90 degrees.

    Args:
      image: ``(H, W)``.
      angles: number of angles, a multiple of 4.

    Returns:
      ``(angles, S, S)`` with ``S = min(H, W)``, zero outside the disc; entry k is rotated by
      ``360 k / angles`` degrees.
    """
    quarter = first_quarter(image, angles)
    return jnp.concatenate([jnp.rot90(quarter, -k, axes=(1, 2)) for k in range(4)])


def first_quarter(image: jax.Array, angles: int) -> jax.Array:
    """``(angles / 4, S, S)``: the first quarter of `rotated_discs`."""
    width, flat = image.shape[1], image.reshape(-1)
    first, weights = _bilinear(image.shape, angles)
    pixels = [flat.at[first + step].get(mode="promise_in_bounds") for step in (0, 1)]
    pixels += [flat.at[first + width + step].get(mode="promise_in_bounds") for step in (0, 1)]
    return sum(weight * pixel for weight, pixel in zip(weights, pixels, strict=True))


@functools.lru_cache(maxsize=8)  # 1 MB for the largest grid
def _bilinear(shape: tuple[int, int], angles: int) -> tuple[np.ndarray, np.ndarray]:
    """Where `first_quarter` reads, and the weights of four neighbours, zero outside the disc.

    Returns:
      ``(angles / 4, S, S)`` int32, index of the upper left neighbour; and ``(4, angles / 4, S, S)``
      float32, the weights of it, the next, and the two below them.
    """
    height, width = shape
    side = min(shape)
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    theta = np.deg2rad(90.0 * np.arange(angles // 4) / (angles // 4))[:, None, None]
    cos, sin = np.cos(theta), np.sin(theta)
    # Rounding may put points of the disc just outside the frame; those off the disc do not count.
    u = np.clip(cos * x + sin * y + (width - 1) / 2, 0, width - 1)
    v = np.clip(cos * y - sin * x + (height - 1) / 2, 0, height - 1)
    column, row = np.minimum(np.floor(u), width - 2), np.minimum(np.floor(v), height - 2)
    right, down = u - column, v - row
    weights = [a * b for a in (1 - down, down) for b in (1 - right, right)]
    first = (row * width + column).astype(np.int32)
    return first, (np.stack(weights) * disc(side)).astype(np.float32)
