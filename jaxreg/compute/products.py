"""Matrix products of a few vectors or planes, written in forms that are fast on CPUs.

On a CPU a product of a few rows or columns by thousands is five to ten times slower than one
product for each of them. So is a sum of thousands of products that is not written as a product.
All products use full float32: on a GPU the default precision (TF32) would cost the third digit.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

_HIGHEST = jax.lax.Precision.HIGHEST
_MANY = 4096  # array size from which XLA's own sums are slow on CPUs


def product(a: jax.Array | np.ndarray, b: jax.Array | np.ndarray) -> jax.Array:
    """Compute ``a @ b`` in full float32."""
    return jnp.matmul(a, b, precision=_HIGHEST)


def contract(subscripts: str, *operands: jax.Array | np.ndarray) -> jax.Array:
    """Call `jax.numpy.einsum` in full float32."""
    return jnp.einsum(subscripts, *operands, precision=_HIGHEST)


def times(matrix: jax.Array | np.ndarray, vectors: jax.Array) -> jax.Array:
    """Compute ``vectors @ matrix.T`` vector by vector: ``(M, N)``, ``(K, N)`` to ``(K, M)``."""
    return jnp.stack([product(matrix, v) for v in vectors])


def dots(a: jax.Array, b: jax.Array) -> jax.Array:
    """Compute ``(a * b).sum(-1)`` of two arrays of the same shape ``(..., P)``."""
    if a.shape[-1] < _MANY:
        return (a * b).sum(-1)
    if a.ndim == 1:
        return product(a, b)
    return jnp.stack([dots(*rows) for rows in zip(a, b, strict=True)])


def mean_over_channels(image: jax.Array) -> jax.Array:
    """Compute ``image.mean(-1)`` of ``(..., C)``, channel by channel.

    Use it on cheap inputs only: XLA recomputes the sum in every consumer.
    """
    if image.size < _MANY:
        return image.mean(-1)
    total = image[..., 0]
    for k in range(1, image.shape[-1]):
        total = total + image[..., k]  # += would overwrite a NumPy image
    return total / image.shape[-1]


def mean_once(image: jax.Array) -> jax.Array:
    """Compute ``image.mean(-1)`` of ``(..., C)``, once for all its consumers."""
    if image.size < _MANY:
        return image.mean(-1)
    channels = image.shape[-1]
    share = np.full(channels, 1.0 / channels, np.float32)
    return product(share, image.reshape(-1, channels).T).reshape(image.shape[:-1])


def weighted_sum(image: jax.Array, weight: jax.Array) -> jax.Array:
    """Compute ``weight @ image`` of ``(P,)`` and ``(P, C)`` as ``image.T @ weight``.

    This order is seven times as fast.
    """
    return product(image.T, weight)


def mix(weights: jax.Array, planes: jax.Array) -> jax.Array:
    """Compute ``weights @ planes`` plane by plane: ``(D, C)`` and ``(C, P)`` to ``(D, P)``."""
    mixed = weights[:, :1] * planes[0]
    for k in range(1, len(planes)):
        mixed += weights[:, k, None] * planes[k]
    return mixed


def separable(
    rows: jax.Array | np.ndarray, planes: jax.Array, columns: jax.Array | np.ndarray
) -> jax.Array:
    """Compute ``rows @ plane @ columns.T`` for a plane ``(H, W)``, or for each of ``(C, H, W)``."""
    if planes.ndim == 2:
        return product(rows, product(planes, columns.T))
    count, height, width = planes.shape
    lines = product(planes.reshape(-1, width), columns.T)
    lines = lines.reshape(count, height, len(columns))
    return jnp.stack([product(rows, plane) for plane in lines])


def apply_separable(
    rows: jax.Array | np.ndarray, image: jax.Array, columns: jax.Array | np.ndarray
) -> jax.Array:
    """Compute ``rows @ image @ columns.T`` for each channel of an image ``(H, W, C)``."""
    return apply_across(apply_down(rows, image), columns)


def apply_down(rows: jax.Array | np.ndarray, image: jax.Array) -> jax.Array:
    """Compute ``rows @ image`` for each channel of an image ``(H, W, C)``."""
    return contract("yi,ixc->yxc", rows, image)


def apply_across(image: jax.Array, columns: jax.Array | np.ndarray) -> jax.Array:
    """Compute ``image @ columns.T`` for each channel of an image ``(H, W, C)``."""
    return contract("xj,yjc->yxc", columns, image)
