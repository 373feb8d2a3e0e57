"""Escape from local optima along a straight edge (the aperture problem).

On a smooth picture with one straight edge the search may end several pixels off along that edge.
Correlations within neighbourhoods are as good there as at the truth, while the residual of the
whole image, which includes its faint rest, is ten to a hundred times as large. So the refinement is
restarted at offsets along the direction that the images determine least.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.compute.products import dots, product
from jaxreg.direct.intensity import fit_intensity
from jaxreg.direct.masking import Pair
from jaxreg.direct.ranking import same_alignment
from jaxreg.direct.refinement import composed, gauss_newton, target_slopes
from jaxreg.direct.resampling import interpolant, pull, source_points
from jaxreg.geometry import RigidTransform

# Offsets of the restarts, in shorter sides of the image. Chosen together with `_LEAST_GAIN` on
# scene pairs of the training photographs, without noise and with noise 10.
_OFFSETS = np.array([-0.2, -0.1, 0.1, 0.2], np.float32)
# Difference of `_explained` by which another alignment must beat the given one.
_LEAST_GAIN = 0.4
_STEPS = 5  # Gauss-Newton steps from each restart
# Of an image whose spread is about 1; no comparison of values is on record:
_EXACT = 1e-5  # share of the variance left unexplained that counts as none
_FLAT = 1e-3  # variance of the target that counts as none


def slide(pair: Pair, transform: RigidTransform) -> tuple[RigidTransform, jax.Array]:
    """Search for a better alignment along the direction that the images determine least.

    Args:
      pair: planes ``(H, W)`` with a spread of about 1.
      transform: from source to target, refined.

    Returns:
      The best alignment found, refined; and a scalar bool, whether it differs from the given one
      and is clearly better.
    """
    distances = jnp.asarray(_OFFSETS)[:, None] * min(pair.target.shape)
    starts = composed(transform, distances * _weakest_direction(pair, transform))
    beside = gauss_newton(pair, starts, _STEPS)
    alone = jax.tree.map(lambda v: v[None], transform)
    together = jax.tree.map(lambda *v: jnp.concatenate(v), alone, beside)
    explained = _explained(pair, together)
    best = jnp.argmax(explained[1:])
    better = explained[1 + best] > explained[0] + _LEAST_GAIN
    return beside[best], better & ~same_alignment(beside[best], transform)


def _weakest_direction(pair: Pair, transform: RigidTransform) -> jax.Array:
    """The small transform ``(3,)`` that changes the target least; px, px and degrees.

    It is scaled to a shift of one pixel, or to a few pixels at the rim if it is mostly a rotation.
    """
    shape = pair.target.shape
    inside = source_points(shape, transform, masks=pair.masks).inside
    degree_at_rim = np.deg2rad(min(shape) / 2)
    units = np.array([1.0, 1.0, 1.0 / degree_at_rim], np.float32)
    slopes = target_slopes(pair.target, pair.turn) * units[:, None]
    normal = product(slopes * inside, slopes.T)
    held = jnp.stack([0.0, 0.0, 1.0 - pair.turn])  # a held angle is not the weakest direction
    normal += jnp.diag(jnp.trace(normal) * held)
    direction = jnp.linalg.eigh(normal)[1][:, 0]
    return units * direction / jnp.maximum(jnp.hypot(direction[0], direction[1]), 0.3)


def _explained(pair: Pair, transform: RigidTransform) -> jax.Array:
    """``(K,)``: how much of the target K alignments explain.

    It is minus the logarithm of the unexplained share of the variance, without outliers, times the
    share of the frame that is left to compare. The kernel is the spline: with the bilinear one a
    smooth picture's edge has as large a residual at the truth as a near-miss along it has.
    """
    target = pair.target
    flat, image = target.reshape(-1, 1), interpolant(pair.source[..., None], linear=False)

    def one(t: RigidTransform) -> jax.Array:
        points = source_points(target.shape, t, masks=pair.masks)
        fit = fit_intensity(pull(image, points, linear=False), flat, points.inside)
        count = jnp.maximum(fit.weight.sum(), 1.0)
        centred = flat[:, 0] - dots(fit.weight, flat[:, 0]) / count
        spread = dots(fit.weight, jnp.square(centred)) / count
        rest = jnp.minimum(fit.variance / (spread + _FLAT), 1.0)
        return -count / flat.size * jnp.log(rest + _EXACT)

    # In a loop: CPUs are slow at sampling several alignments at once.
    return jax.lax.map(one, transform)
