"""Gauss-Newton refinement of coarse alignments, many at once: from near to close.

The moving target's own gradient stands in for that of the warped source (inverse compositional,
Baker and Matthews 2004, doi:10.1023/B:VISI.0000011205.11775.fd): it is the same for all candidates
and steps, and so are its products, so a step costs one sampling and two small matrix products.
Gain and bias are fitted along, and pixels whose residual is out of line lose their weight.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.compute.products import dots, product, times
from jaxreg.compute.small_systems import solve
from jaxreg.direct.masking import Masks
from jaxreg.direct.resampling import sampled, slopes_by_gradient
from jaxreg.direct.robust import settled_weight
from jaxreg.geometry import RigidTransform
from jaxreg.interpolation import spline_gradient
from jaxreg.warping import pixel_grid

# px, px, degrees: the farthest that one step may go, about the reach of a linear model.
_MAX_STEP = (1.0, 1.0, 6.0)
# px: towards the rim of the overlap the target's gradient feels what lies beyond, and counts less.
_RIM = 1.5
# The products of five columns, each pair once, and where in that list a 5x5 matrix finds them.
_FIRST, _SECOND = (index.astype(np.int32) for index in np.triu_indices(5))
_SYMMETRIC = np.zeros((5, 5), np.int32)
_SYMMETRIC[_FIRST, _SECOND] = _SYMMETRIC[_SECOND, _FIRST] = np.arange(15)


class _Target(NamedTuple):
    """What all candidates share: columns ``(t's slopes, t, 1)`` and their products."""

    columns: jax.Array  # (5, P)
    products: jax.Array  # (15, P), of each two columns


def clip_step(step: jax.Array) -> jax.Array:
    """Shorten steps ``(..., 3)``, without turning them, so that no component passes its limit."""
    excess = jnp.max(jnp.abs(step) / jnp.asarray(_MAX_STEP, jnp.float32), -1, keepdims=True)
    return jnp.nan_to_num(step / jnp.maximum(1.0, excess))


def target_slopes(target: jax.Array, turn: float | jax.Array = 1.0) -> jax.Array:
    """``(3, P)``: how a target ``(H, W)`` changes with small transforms (see `composed`).

    Args:
      target: the image.
      turn: what the derivative by the angle is multiplied with: 0 holds it.
    """
    height, width = target.shape
    v, u = (slope.reshape(-1, 1) for slope in spline_gradient(target[..., None]))
    centre = jnp.float32([(width - 1) / 2, (height - 1) / 2])
    lever = (pixel_grid(target.shape).reshape(-1, 2) - centre).T
    return slopes_by_gradient(u, v, turn * lever)[..., 0]


def _shared(target: jax.Array, turn: float | jax.Array) -> _Target:
    flat = target.reshape(1, -1)
    columns = jnp.concatenate([target_slopes(target, turn), flat, jnp.ones_like(flat)])
    return _Target(columns, columns[_FIRST] * columns[_SECOND])


def _sums(target: _Target, value: jax.Array, weight: jax.Array) -> tuple[jax.Array, ...]:
    """Weighted scatter about the means of ``(slopes, t)``, with the source's value, and of that.

    Returns:
      ``(K, 4, 4)``, ``(K, 4)``, ``(K,)``, and the ``(K, 5)`` and ``(K,)`` means.
    """
    sums = times(target.products, weight)[:, _SYMMETRIC]
    weighted = weight * value
    with_value = times(target.columns, weighted)
    energy = dots(weighted, value)
    count = jnp.maximum(sums[:, 4, 4], 1.0)
    mean, mean_value = sums[:, 4] / count[:, None], with_value[:, 4] / count
    scatter = sums - count[:, None, None] * mean[:, :, None] * mean[:, None]
    with_value = with_value - (count * mean_value)[:, None] * mean
    energy = energy - count * jnp.square(mean_value)
    return scatter[:, :4, :4], with_value[:, :4], energy, mean[:, :4], mean_value


def _linear_step(
    target: _Target, value: jax.Array, weight: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Small transforms ``(K, 3)`` that explain most, and the targets ``(K, P)`` they predict."""
    scatter, with_value, energy, mean, mean_value = _sums(target, value, weight)
    # Eliminate the gain: what of each column the source's value explains goes.
    energy = jnp.maximum(energy, 1e-6)
    share = with_value / energy[:, None]
    rest = scatter - share[:, :, None] * with_value[:, None]
    delta = solve(rest[:, :3, :3], rest[:, :3, 3])
    gain = share[:, 3] - (share[:, :3] * delta).sum(-1)
    predicted = gain[:, None] * (value - mean_value[:, None]) + mean[:, 3:]
    predicted -= (mean[:, :3] * delta).sum(-1, keepdims=True)
    return delta, predicted + product(delta, target.columns[:3])


def composed(t: RigidTransform, step: jax.Array) -> RigidTransform:
    """Compose small transforms ``(K, 3)`` about the centre onto K transforms, or onto one."""
    return RigidTransform(step[:, 0], step[:, 1], step[:, 2]).compose(t)


def gauss_newton(
    source: jax.Array,
    target: jax.Array,
    start: RigidTransform,
    iterations: int,
    near: jax.typing.ArrayLike | None = None,
    masks: Masks | None = None,
    turn: float | jax.Array = 1.0,
) -> RigidTransform:
    """Robust Gauss-Newton from K starts, with bilinear interpolation.

    Args:
      source: ``(H, W)``.
      target: the same shape.
      start: K transforms from source to target, within about a pixel.
      iterations: how many steps.
      near: ``(K,)`` bool, which starts are close enough for the first step to tell outliers
        already, by the residual at unchanged brightness; the others trust all pixels at first.
        Default: none.
      masks: which pixels count, if not all do.
      turn: 1, or 0 to hold the angles.

    Returns:
      The K refined transforms.
    """
    shared, flat = _shared(target, turn), target.reshape(-1)
    sample = functools.partial(sampled, source, margin=_RIM, masks=masks)

    def weigh(residual: jax.Array, inside: jax.Array) -> jax.Array:
        # Pixels outside now may be inside later: they start unprejudiced.
        return jnp.where(inside > 0, settled_weight(jnp.square(residual), inside), 1.0)

    def step(state: tuple, _: None) -> tuple:
        t, robust = state
        value, inside = jax.vmap(sample)(t)
        delta, predicted = _linear_step(shared, value, inside * robust)
        return (composed(t, clip_step(delta)), weigh(flat - predicted, inside)), None

    weight = jnp.ones_like(flat, shape=(*start.batch_shape, flat.size))
    if near is not None:
        # Candidate by candidate: outside of a loop CPUs are slow at sampling several at once.
        value, inside = jax.lax.map(sample, start)
        weight = jnp.where(jnp.asarray(near)[:, None], weigh(flat - value, inside), weight)
    (end, _), _ = jax.lax.scan(step, (start, weight), None, length=iterations)
    return end
