"""Robust Gauss-Newton refinement of several coarse alignments at once.

The target's gradient replaces that of the warped source (inverse compositional algorithm, Baker and
Matthews 2004, doi:10.1023/B:VISI.0000011205.11775.fd). It is the same for all candidates and steps,
and so are its products: a step costs one sampling and two small matrix products. Gain and bias are
fitted at the same time, and pixels with outlying residuals lose weight.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.compute.products import dots, product, times
from jaxreg.compute.small_systems import solve
from jaxreg.direct.masking import Pair
from jaxreg.direct.resampling import sampled, slopes_by_gradient
from jaxreg.direct.robust import settled_weight
from jaxreg.geometry import RigidTransform
from jaxreg.interpolation import spline_gradient
from jaxreg.warping import pixel_grid

# px, px, degrees: the longest step, about as far as the linear model holds.
_MAX_STEP = (1.0, 1.0, 6.0)
# px: width of the rim of the overlap over which weights fall to zero, because the target's gradient
# there depends on pixels beyond it. No comparison of values is on record for either.
_RIM = 1.5
# Indices of the 15 products of five columns, and their places in the symmetric 5x5 matrix.
_FIRST, _SECOND = (index.astype(np.int32) for index in np.triu_indices(5))
_SYMMETRIC = np.zeros((5, 5), np.int32)
_SYMMETRIC[_FIRST, _SECOND] = _SYMMETRIC[_SECOND, _FIRST] = np.arange(15)


class _Target(NamedTuple):
    """Terms of the normal equations that all candidates share.

    Attributes:
      columns: ``(5, P)``, the target's derivatives by ``(tx, ty, theta)``, the target, and ones.
      products: ``(15, P)``, of every two columns.
    """

    columns: jax.Array
    products: jax.Array


def clip_step(step: jax.Array) -> jax.Array:
    """Shorten steps ``(..., 3)`` so that no component exceeds its limit; directions stay."""
    excess = jnp.max(jnp.abs(step) / jnp.asarray(_MAX_STEP, jnp.float32), -1, keepdims=True)
    return jnp.nan_to_num(step / jnp.maximum(1.0, excess))


def target_slopes(target: jax.Array, rotation_free: float | jax.Array = 1.0) -> jax.Array:
    """``(3, P)``: derivatives of a target by small transforms about its centre (see `composed`).

    Args:
      target: ``(H, W)``.
      rotation_free: factor of the derivative by the angle: 1, or 0 to hold the angle.
    """
    height, width = target.shape
    v, u = (slope.reshape(-1, 1) for slope in spline_gradient(target[..., None]))
    centre = jnp.float32([(width - 1) / 2, (height - 1) / 2])
    lever = (pixel_grid(target.shape).reshape(-1, 2) - centre).T
    return slopes_by_gradient(u, v, rotation_free * lever)[..., 0]


def _shared_terms(pair: Pair) -> _Target:
    flat = pair.target.reshape(1, -1)
    slopes = target_slopes(pair.target, pair.turn)
    columns = jnp.concatenate([slopes, flat, jnp.ones_like(flat)])
    return _Target(columns, columns[_FIRST] * columns[_SECOND])


def _sums(target: _Target, value: jax.Array, weight: jax.Array) -> tuple[jax.Array, ...]:
    """Weighted scatter about the means of the slopes, the target and the source's values.

    Args:
      target: its slopes and values.
      value: ``(K, P)`` of the source.
      weight: ``(K, P)``.

    Returns:
      The scatter ``(K, 4, 4)`` of slopes and target, ``(K, 4)`` of these with the source, ``(K,)``
      of the source; and the means ``(K, 4)`` of slopes and target, ``(K,)`` of the source.
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
    """Least-squares small transforms ``(K, 3)``, and the targets ``(K, P)`` that they predict."""
    scatter, with_value, energy, mean, mean_value = _sums(target, value, weight)
    # Eliminate the gain: subtract the part of each column that the source's values explain.
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
    pair: Pair,
    start: RigidTransform,
    iterations: int,
    near: jax.typing.ArrayLike | None = None,
) -> RigidTransform:
    """Refine K alignments by robust Gauss-Newton steps with bilinear interpolation.

    Args:
      pair: planes ``(H, W)``.
      start: K transforms from source to target, within about a pixel.
      iterations: number of steps.
      near: ``(K,)`` bool, which starts are close enough that outliers can be told before the first
        step, by the residual at gain 1 and bias 0. For the others the first step trusts all pixels.
        Default: none of them is.

    Returns:
      The K refined transforms.
    """
    shared, flat = _shared_terms(pair), pair.target.reshape(-1)
    sample = functools.partial(sampled, pair.source, margin=_RIM, masks=pair.masks)

    def weigh(residual: jax.Array, inside: jax.Array) -> jax.Array:
        # Pixels that are outside now have no residual; they get full weight if they come inside.
        return jnp.where(inside > 0, settled_weight(jnp.square(residual), inside), 1.0)

    def step(state: tuple, _: None) -> tuple:
        t, robust = state
        value, inside = jax.vmap(sample)(t)
        delta, predicted = _linear_step(shared, value, inside * robust)
        return (composed(t, clip_step(delta)), weigh(flat - predicted, inside)), None

    weight = jnp.ones_like(flat, shape=(*start.batch_shape, flat.size))
    if near is not None:
        # In a loop: CPUs are slow at sampling several alignments at once.
        value, inside = jax.lax.map(sample, start)
        weight = jnp.where(jnp.asarray(near)[:, None], weigh(flat - value, inside), weight)
    (end, _), _ = jax.lax.scan(step, (start, weight), None, length=iterations)
    return end
