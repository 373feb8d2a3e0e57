"""Small linear systems, solved in closed form or by sweeping: cheaper than a LAPACK call."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def solve(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    """Solve ``(..., 3, 3)`` normal equations by cofactors.

    The matrix is scaled to unit diagonal, and 1e-6 is added to that diagonal. Cofactors cost less
    than a linear algebra library for thousands of 3x3 systems.
    """
    diagonal = jnp.diagonal(matrix, axis1=-2, axis2=-1)
    scale = jax.lax.rsqrt(jnp.maximum(jnp.abs(diagonal), 1e-12))
    m = matrix * scale[..., :, None] * scale[..., None, :] + 1e-6 * jnp.eye(3, dtype=jnp.float32)
    a, b, c = m[..., :, 0], m[..., :, 1], m[..., :, 2]
    cofactors = jnp.stack(_crossed(a, b, c), axis=-2)
    determinant = (a * cofactors[..., 0, :]).sum(-1, keepdims=True)
    v = (cofactors * (scale * vector)[..., None, :]).sum(-1)
    return scale * v / jnp.where(jnp.abs(determinant) > 1e-12, determinant, 1e-12)


def inverse(matrix: jax.Array) -> jax.Array:
    """Invert N symmetric positive 3x3 matrices ``(N, 3, 3)`` by cofactors.

    >>> inverse(2.0 * jnp.eye(3)[None])[0].tolist()
    [[0.5, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 0.5]]
    """
    a, b, c = matrix[:, 0], matrix[:, 1], matrix[:, 2]
    cofactors = _crossed(a, b, c)
    determinant = (a * cofactors[0]).sum(-1)[:, None, None]
    return jnp.stack(cofactors, -1) / jnp.maximum(determinant, 1e-30)


def _crossed(a: jax.Array, b: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cofactors of a 3x3 matrix, as rows if given its rows, or as columns if given its columns."""
    return jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)


def swept_inverse(matrix: jax.Array) -> jax.Array:
    """Invert a matrix ``(U, U)`` that needs no pivoting, such as a damped normal matrix.

    The sweep operator (Goodnight 1979, doi:10.1080/00031305.1979.10482685) applies one rank-one
    update per row, and is faster to compile and to launch than a decomposition.
    """

    def sweep(k: int, m: jax.Array) -> jax.Array:
        unit = (jnp.arange(len(m)) == k).astype(jnp.float32)
        pivot = jnp.where(jnp.abs(m[k, k]) > 1e-12, m[k, k], 1e-12)
        return m - jnp.outer(m[:, k] - unit, m[k] + unit) / pivot

    return jax.lax.fori_loop(0, len(matrix), sweep, matrix)
