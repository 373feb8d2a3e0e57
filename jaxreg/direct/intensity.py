"""How bright the target is for an aligned source, and which pixels agree: a robust fit."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.compute.products import dots, mean_once, times, weighted_sum
from jaxreg.direct.robust import OUTLIER, settled_weight


class Fit(NamedTuple):
    """How well the source explains the target at some transform.

    Attributes:
      gain: scalar, grey values of the target for one of the source.
      bias: ``(C,)``.
      residual: ``(P, C)``, raw.
      weight: ``(P,)``, of the overlap, less where the residual is an outlier.
      variance: scalar, the weighted mean square of the residual.
    """

    gain: jax.Array
    bias: jax.Array
    residual: jax.Array
    weight: jax.Array
    variance: jax.Array

    def covariance(self) -> jax.Array:
        """``(C, C)`` of the channels of the residual."""
        planes = self.residual.T
        return times(planes, self.weight * planes) / jnp.maximum(self.weight.sum(), 1.0)


def weigh(
    value: jax.Array,
    target: jax.Array,
    inside: jax.Array,
    gain: jax.typing.ArrayLike,
    bias: jax.typing.ArrayLike,
    outlier: jax.typing.ArrayLike = OUTLIER,
    steep: jax.Array | None = None,
    grain: jax.typing.ArrayLike = 0.0,
) -> Fit:
    """Residuals for a given gain and bias, and their robust weights.

    Args:
      value: ``(P, C)`` of the source.
      target: ``(P, C)``.
      inside: ``(P,)`` weight of the overlap.
      gain: grey values of the target for one of the source.
      bias: ``(C,)``, or one for all channels.
      outlier: how many scales of the residual are one, see `settled_weight`.
      steep: ``(P,)`` `steepness`, if the scale is to grow with it.
      grain: see `Pair`.
    """
    residual = target - gain * value - bias
    square = mean_once(jnp.square(residual))
    # Weights count as constants: a residual of zero has no slope to derive them by.
    settled = settled_weight(square, inside, outlier, steep, grain)
    weight = inside * jax.lax.stop_gradient(settled)
    variance = dots(weight, square) / jnp.maximum(weight.sum(), 1.0)
    return Fit(jnp.asarray(gain), jnp.asarray(bias), residual, weight, variance)


def fit_intensity(
    value: jax.Array,
    target: jax.Array,
    inside: jax.Array,
    gain: jax.typing.ArrayLike = 1.0,
    bias: jax.typing.ArrayLike = 0.0,
    steep: jax.Array | None = None,
    grain: jax.typing.ArrayLike = 0.0,
) -> Fit:
    """Fit gain and bias where images agree.

    The first weights are those of the brightness expected: a fit to all pixels would follow what
    hides a part of the view.

    Args:
      value: ``(P, C)`` of the source.
      target: ``(P, C)``.
      inside: ``(P,)`` weight of the overlap.
      gain: about what will be found.
      bias: likewise; ``(C,)``, or one for all channels.
      steep: see `weigh`.
      grain: likewise.
    """
    weight = weigh(value, target, inside, gain, bias, steep=steep, grain=grain).weight
    count = jnp.maximum(weight.sum(), 1.0)
    mean_value, mean_target = (weighted_sum(v, weight) / count for v in (value, target))
    source = value - mean_value
    weighted = (weight[:, None] * source).reshape(-1)
    common = dots(weighted, (target - mean_target).reshape(-1))
    gain = common / jnp.maximum(dots(weighted, source.reshape(-1)), 1e-12)
    # A gain near or below zero means that the images are not aligned: hold it where the residual
    # still says which way to go.
    gain = jnp.clip(gain, 0.1, 10.0)
    bias = mean_target - gain * mean_value
    return weigh(value, target, inside, gain, bias, steep=steep, grain=grain)


def steepness(*images: jax.Array) -> jax.Array:
    """Gradient magnitude of aligned images about each pixel, the smallest of them; ``(P,)``.

    Its root mean square over the pixel and its eight neighbours, a constant to derivatives. The
    residual of a close alignment grows with it, be its cause aliasing, another kernel or the rest
    of the way. In an image that is flat but for a few edges, a scale that is the same everywhere
    would make outliers of these, and they carry all the information.

    Args:
      *images: ``(H, W, C)``, or bands of rows ``(B, R, W, C)``, two rows or more.
    """

    def energy(image: jax.Array) -> jax.Array:
        down, right = jnp.gradient(image, axis=(-3, -2))
        square = mean_once(jnp.square(down) + jnp.square(right))
        square = jnp.pad(square, [(0, 0)] * (square.ndim - 2) + [(1, 1)] * 2, mode="edge")
        rows = square[..., :-2, :] + square[..., 1:-1, :] + square[..., 2:, :]
        return (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / 9.0

    least = functools.reduce(jnp.minimum, map(energy, images))
    return jax.lax.stop_gradient(jnp.sqrt(least)).reshape(-1)


def finest_detail(image: jax.Array) -> jax.Array:
    """Squared geometric mean of the mixed second differences (d²/dx² d²/dy²) of ``(H, W, C)``.

    A measure of noise, for few pixels of a picture have such detail; zeros, as in padding, do not
    count. A constant to derivatives.
    """
    image = jax.lax.stop_gradient(image)
    down = image[:-2] - 2.0 * image[1:-1] + image[2:]
    detail = jnp.abs(down[:, :-2] - 2.0 * down[:, 1:-1] + down[:, 2:])
    counts = detail > 0.0
    logarithm = jnp.where(counts, jnp.log(jnp.where(counts, detail, 1.0)), 0.0)
    number = jnp.maximum(counts.astype(jnp.float32).sum(), 1.0)
    return jnp.exp(2.0 * logarithm.sum() / number)
