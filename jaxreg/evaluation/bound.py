"""The Cramér-Rao bound: the least variance with which a noisy pair can be registered."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxreg.compute.products import product
from jaxreg.geometry import RigidTransform

# Norm of the change of all pixels, in grey levels for one pixel or degree, up to which it counts as
# rounding: a parameter that changes the image no more than this is not determined.
_ROUNDING = 1e-2


def cramer_rao(
    view: Callable[[RigidTransform], jax.Array],
    transform: RigidTransform,
    overlap: jax.Array,
    noise: float,
) -> jax.Array:
    """Compute the least variance of an unbiased estimate of ``(tx, ty, theta)``.

    Under Gaussian noise of standard deviation s in both images the covariance of any unbiased
    estimate is at least ``2 s^2 (J^T J)^-1``. J is the derivative of the moving image with respect
    to the transform, over all channels of the overlap (Kay, Fundamentals of Statistical Signal
    Processing, 1993, section 3.9).

    Args:
      view: differentiable function from a transform to the noiseless moving image ``(H, W, C)``.
      transform: the pair's true transform.
      overlap: ``(H, W)`` bool, the moving pixels that the fixed image shows too.
      noise: s, in grey levels.

    Returns:
      ``(3,)`` variances in px^2, px^2 and degrees^2; infinite where the image does not determine
      the transform.
    """
    parameters = transform.as_array()
    jacobian = jax.jacfwd(lambda p: view(RigidTransform.from_array(p)))(parameters)
    jacobian = jnp.where(overlap[..., None, None], jacobian, 0.0).reshape(-1, 3)
    # Columns are scaled to unit length, so that pixels and degrees count equally in the inversion.
    length = jnp.sqrt((jacobian * jacobian).sum(0))
    unit = jacobian / jnp.maximum(length, 1e-12)
    information = product(unit.T, unit)
    a, b, c = information[0, 1], information[0, 2], information[1, 2]
    determinant = 1.0 + 2.0 * a * b * c - a * a - b * b - c * c
    # Over the determinant, these cofactors are the diagonal of the inverse.
    cofactors = 1.0 - jnp.stack([c * c, b * b, a * a])
    solvable = (determinant > 1e-5) & jnp.all(length > _ROUNDING)
    variance = cofactors / jnp.maximum(determinant, 1e-5) / jnp.maximum(length, 1e-12) ** 2
    return jnp.where(solvable, 2.0 * noise**2 * variance, jnp.inf)
