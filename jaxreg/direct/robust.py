"""Robust weights of pixels: the larger a residual beyond its scale, the smaller its weight."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxreg.compute.products import dots, product

# Scales of the residual (mean absolute residuals) from which it is an outlier: far enough out to
# leave Gaussian noise alone, near enough that an occlusion has little weight.
OUTLIER = 3.0
# Square of the residual that float32 rounding leaves of zero, per pixel of the image, where the
# image's spread is 1: the longer the sides, the coarser the coordinates. It is largest where the
# image is steep. In a pair that fits exactly those pixels, which tell most, would be outliers.
_ROUNDING = 1e-13


def scale_of(size: jax.Array, steep: jax.Array | None = None) -> Callable[[jax.Array], jax.Array]:
    """Return the scale of absolute residuals ``(..., P)`` as a function of their weights.

    Without ``steep`` the scale is their weighted mean, on which a few large residuals have little
    effect. With it, the scale of each pixel is a least-squares line over the gradient magnitude,
    with a slope and an intercept of zero or more. A hidden part of the view does not tilt that
    line, since it is no steeper than the rest.

    Args:
      size: absolute residuals.
      steep: ``(P,)`` gradient magnitude of the images, if the scale is to grow with it; then
        ``size`` has no leading axes.
    """
    if steep is None:
        return lambda weight: (dots(weight, size) / jnp.maximum(weight.sum(-1), 1.0))[..., None]
    summands = jnp.stack([jnp.ones_like(steep), steep, jnp.square(steep), size, steep * size])

    def line(weight: jax.Array) -> jax.Array:
        count, first, second, total, along = product(summands, weight)
        slope = count * along - first * total
        slope /= jnp.maximum(count * second - jnp.square(first), 1e-12)
        slope = jnp.clip(slope, 0.0, total / jnp.maximum(first, 1e-12))
        return (total - slope * first) / jnp.maximum(count, 1.0) + slope * steep

    return line


def robust_weight(
    square: jax.Array,
    scale: jax.Array,
    outlier: jax.typing.ArrayLike = OUTLIER,
    grain: jax.typing.ArrayLike = 0.0,
) -> jax.Array:
    """Weight of each pixel by its squared residual ``r^2``, ``(..., P)``: 1, less for outliers.

    The weight is ``min(1, (k^2 (s^2 + grain) + e) / (r^2 + e))^2``, where ``k`` is the ``outlier``
    limit, ``s`` the scale and ``e`` the square of the rounding error. Like Huber's weight it is 1
    up to ``k`` scales; beyond, it falls with ``r^-4`` like that of Geman and McClure, so that the
    M-estimator is a redescending one (Zhang 1997, doi:10.1016/S0262-8856(96)01112-2, lists both).

    Args:
      square: squared residuals.
      scale: their scale, see `scale_of`.
      outlier: number of scales from which a residual loses weight.
      grain: what rounding to grey levels adds to the square of the scale, see `Pair`.
    """
    rounding = _ROUNDING * square.shape[-1]
    limit = jnp.square(outlier) * (jnp.square(scale) + grain) + rounding
    return jnp.square(jnp.minimum(1.0, limit / (square + rounding)))


def settled_weight(
    square: jax.Array,
    inside: jax.Array,
    outlier: jax.typing.ArrayLike = OUTLIER,
    steep: jax.Array | None = None,
    grain: jax.typing.ArrayLike = 0.0,
) -> jax.Array:
    """Compute `robust_weight` by a scale that is estimated again without the outliers.

    Args:
      square: squared residuals ``(..., P)``.
      inside: weight of each pixel in the scale, ``(..., P)``.
      outlier: number of scales from which a residual loses weight.
      steep: see `scale_of`.
      grain: see `robust_weight`.
    """
    scale = scale_of(jnp.sqrt(square), steep)
    kept = inside * robust_weight(square, scale(inside), grain=grain)
    return robust_weight(square, scale(kept), outlier, grain)
