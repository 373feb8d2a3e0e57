"""The Cramér-Rao bound: how well a pair can be registered at all under noise."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxreg.compute.products import product
from jaxreg.geometry import RigidTransform

# Grey levels that all pixels together change by rounding alone, for one pixel or degree.
_ROUNDING = 1e-2


def cramer_rao(
    view: Callable[[RigidTransform], jax.Array],
    transform: RigidTransform,
    overlap: jax.Array,
    noise: float,
) -> jax.Array:
    """Least variance of an unbiased estimate of ``(tx, ty, theta)``.

    Under Gaussian noise of standard deviation s in both images the covariance of any unbiased
    estimate is at least ``2 s^2 (J^T J)^-1``, J the derivative of the moving image by the
    transform over the overlap, all channels (Kay, Fundamentals of Statistical Signal Processing,
    1993, section 3.9).

    Args:
      view: from a transform to the noiseless moving image ``(H, W, C)``; differentiable.
      transform: the pair's true transform.
      overlap: ``(H, W)`` bool, the moving pixels that the fixed image shows too.
      noise: s, in the images' grey levels.

    Returns:
      ``(3,)`` variances in px^2, px^2 and degrees^2; infinite where the image does not determine
      the transform.
    """
    parameters = transform.as_array()
    jacobian = jax.jacfwd(lambda p: view(RigidTransform.from_array(p)))(parameters)
    jacobian = jnp.where(overlap[..., None, None], jacobian, 0.0).reshape(-1, 3)
    # Columns of unit length first: pixels and degrees then weigh alike in the inversion.
    length = jnp.sqrt((jacobian * jacobian).sum(0))
    unit = jacobian / jnp.maximum(length, 1e-12)
    information = product(unit.T, unit)
    a, b, c = information[0, 1], information[0, 2], information[1, 2]
    determinant = 1.0 + 2.0 * a * b * c - a * a - b * b - c * c
    # The cofactors of a symmetric matrix of unit diagonal: the diagonal of its inverse.
    cofactors = 1.0 - jnp.stack([c * c, b * b, a * a])
    solvable = (determinant > 1e-5) & jnp.all(length > _ROUNDING)
    variance = cofactors / jnp.maximum(determinant, 1e-5) / jnp.maximum(length, 1e-12) ** 2
    return jnp.where(solvable, 2.0 * noise**2 * variance, jnp.inf)
