"""A look beside an alignment, along the direction that its images determine least.

On a smooth picture with one straight edge the search may end some pixels off along that edge. There
correlations of neighbourhoods are as good as at the truth, while the residual of the whole, which
counts the faint rest as well, is ten or a hundred times as large.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.compute.products import dots, product
from jaxreg.direct.intensity import fit_intensity
from jaxreg.direct.masking import Masks, Pair
from jaxreg.direct.ranking import same
from jaxreg.direct.refinement import composed, gauss_newton, target_slopes
from jaxreg.direct.resampling import interpolant, pull, source_points
from jaxreg.geometry import RigidTransform

# How far to look, in sides of the image. Chosen with the next on scene pairs of the training
# photographs, without noise and with noise 10.
_BESIDE = np.array([-0.2, -0.1, 0.1, 0.2], np.float32)
# By how much more of the target than the alignment given one beside it must explain.
_CLEARLY = 0.4
_STEPS = 5
# Of an image whose spread is about 1: variances that no longer count, of the residual and the rest.
_EXACT, _FLAT = 1e-5, 1e-3


def slide(views: Pair, transform: RigidTransform) -> tuple[RigidTransform, jax.Array]:
    """The best alignment beside one, and whether it is another and clearly the better of the two.

    Args:
      views: planes ``(H, W)``, their spread about 1.
      transform: from source to target, refined.

    Returns:
      The alignment, refined, and a scalar bool.
    """
    distances = jnp.asarray(_BESIDE)[:, None] * min(views.target.shape)
    starts = composed(transform, distances * _weakest(views, transform))
    beside = gauss_newton(*views[:2], starts, _STEPS, masks=views.masks, turn=views.turn)
    alone = jax.tree.map(lambda v: v[None], transform)
    together = jax.tree.map(lambda *v: jnp.concatenate(v), alone, beside)
    explained = _explained(*views[:2], together, views.masks)
    best = jnp.argmax(explained[1:])
    better = explained[1 + best] > explained[0] + _CLEARLY
    return beside[best], better & ~same(beside[best], transform)


def _weakest(views: Pair, transform: RigidTransform) -> jax.Array:
    """The small transform ``(3,)`` that changes the target least, px, px and degrees.

    Of a shift by one pixel, or a turn by some pixels at the rim where that is weaker.
    """
    shape = views.target.shape
    inside = source_points(shape, transform, masks=views.masks).inside
    degree_at_rim = np.deg2rad(min(shape) / 2)
    units = np.array([1.0, 1.0, 1.0 / degree_at_rim], np.float32)
    slopes = target_slopes(views.target, views.turn) * units[:, None]
    normal = product(slopes * inside, slopes.T)
    held = jnp.stack([0.0, 0.0, 1.0 - views.turn])  # which is not the weakest
    normal += jnp.diag(jnp.trace(normal) * held)
    direction = jnp.linalg.eigh(normal)[1][:, 0]
    return units * direction / jnp.maximum(jnp.hypot(direction[0], direction[1]), 0.3)


def _explained(
    source: jax.Array, target: jax.Array, transform: RigidTransform, masks: Masks | None
) -> jax.Array:
    """How much of the target K alignments explain, ``(K,)``.

    Minus the logarithm of the share of the variance that is left, outliers aside, times the part of
    the frame that this is told of. By the spline kernel: what the bilinear one leaves of a smooth
    picture's edge is as much as a near-miss along it does.
    """
    flat, image = target.reshape(-1, 1), interpolant(source[..., None], linear=False)

    def one(t: RigidTransform) -> jax.Array:
        points = source_points(target.shape, t, masks=masks)
        fit = fit_intensity(pull(image, points, linear=False), flat, points.inside)
        count = jnp.maximum(fit.weight.sum(), 1.0)
        centred = flat[:, 0] - dots(fit.weight, flat[:, 0]) / count
        spread = dots(fit.weight, jnp.square(centred)) / count
        rest = jnp.minimum(fit.variance / (spread + _FLAT), 1.0)
        return -count / flat.size * jnp.log(rest + _EXACT)

    # One by one: outside of a loop CPUs are slow at sampling several at once.
    return jax.lax.map(one, transform)
