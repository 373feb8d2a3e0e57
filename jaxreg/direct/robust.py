"""Robust weights: pixels whose residual is out of line lose theirs."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxreg.compute.products import dots, product

# Residuals beyond this many standard deviations count as outliers: far enough out to leave Gaussian
# noise alone, near enough that an occlusion weighs little.
OUTLIER = 3.0
# The square of what rounding leaves of a residual that should be zero, in units of the image's
# spread, by the number of pixels: coordinates are the coarser the longer the sides. It is largest
# where the image is steep: those pixels, which say most, would be outliers of a pair that fits.
_ROUNDING = 1e-13


def scale_of(size: jax.Array, steep: jax.Array | None = None) -> Callable[[jax.Array], jax.Array]:
    """The scale of absolute residuals ``(..., P)``, as a function of their weights.

    Their weighted mean, on which a few large ones have little effect. Or, pixel by pixel, the line
    over steepness that fits them best, neither falling nor negative: an occlusion is no steeper
    than the rest, and the line is level.

    Args:
      size: absolute residuals.
      steep: ``(P,)``, how steep the images are, if the scale is to grow with that; then no leading
        axes.
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
    """Weight of each pixel by its squared residual ``(..., P)``: 1, falling off for outliers.

    Args:
      square: squared residuals.
      scale: theirs, see `scale_of`.
      outlier: from how many scales on a residual loses its weight.
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
    """`robust_weight` by a scale estimated without the outliers, which would dominate it.

    Args:
      square: squared residuals ``(..., P)``.
      inside: weight of each pixel in the scale, likewise.
      outlier: how many scales are one.
      steep: see `scale_of`.
      grain: see `robust_weight`.
    """
    scale = scale_of(jnp.sqrt(square), steep)
    kept = inside * robust_weight(square, scale(inside), grain=grain)
    return robust_weight(square, scale(kept), outlier, grain)
