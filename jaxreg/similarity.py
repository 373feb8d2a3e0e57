"""Measure how well two aligned images agree."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxreg.compute.products import dots, weighted_sum
from jaxreg.geometry import RigidTransform
from jaxreg.result import Registration
from jaxreg.warping import overlap, warp

# Where a method does not measure its own certainty, an answer is trusted if its score is at least
# TRUSTED_SCORE and the overlap covers at least TRUSTED_OVERLAP of the moving image.
TRUSTED_SCORE = 0.5
TRUSTED_OVERLAP = 0.2


def masked_ncc(a: jax.Array, b: jax.Array, mask: jax.Array) -> jax.Array:
    """Compute the normalised cross-correlation of ``(H, W, C)`` images over an ``(H, W)`` mask.

    The mean of each channel is removed, and the sums run over all channels. The result is in
    [-1, 1], and 0 if either image has no texture.
    """
    flat = mask.astype(jnp.float32).reshape(-1)
    count, weight = jnp.maximum(flat.sum(), 1.0), flat[:, None]

    def centre(image: jax.Array) -> tuple[jax.Array, jax.Array]:
        image = image.reshape(-1, image.shape[-1])
        weighted = image * weight
        centred = ((image - weighted_sum(image, flat) / count) * weight).reshape(-1)
        # A centred flat image is rounding: up to a millionth of its energy, in any unit.
        floor = 1e-6 * dots(weighted.reshape(-1), image.reshape(-1)) + 1e-30
        energy = dots(centred, centred)
        textured = energy > floor
        scale = jax.lax.rsqrt(jnp.where(textured, energy, 1.0))  # finite derivatives either way
        return centred, jnp.where(textured, scale, 0.0)

    (a, scale_a), (b, scale_b) = centre(a), centre(b)
    return jnp.clip(dots(a, b) * scale_a * scale_b, -1.0, 1.0)  # rounding may exceed 1


def overlap_ncc(fixed: jax.Array, moving: jax.Array, transform: RigidTransform) -> jax.Array:
    """Compute the correlation of ``warp(fixed, transform)`` and ``moving`` over their overlap.

    Args:
      fixed: ``(H, W, C)``.
      moving: the same shape.
      transform: from fixed to moving.
    """
    return masked_ncc(warp(fixed, transform), moving, overlap(fixed.shape, transform))


def judge(
    fixed: jax.Array, moving: jax.Array, transform: RigidTransform, found: jax.Array | None = None
) -> Registration:
    """Make the `Registration` of a batch of transforms from a method that gives nothing else.

    Args:
      fixed: ``(N, H, W, C)``.
      moving: the same shape.
      transform: N transforms.
      found: ``(N,)`` bool, False where the method has no answer. Default: all True.

    Returns:
      A `Registration` without covariance. ``score`` is `overlap_ncc`, 0 where nothing was found;
      ``success`` follows from it and the overlap.
    """
    score = jax.vmap(overlap_ncc)(fixed, moving, transform)
    share = jax.vmap(lambda t: overlap(fixed.shape[1:], t).mean())(transform)
    found = jnp.ones(score.shape, bool) if found is None else found
    success = found & (score >= TRUSTED_SCORE) & (share >= TRUSTED_OVERLAP)
    return Registration(transform, jnp.where(found, score, 0.0), success, None, found)
