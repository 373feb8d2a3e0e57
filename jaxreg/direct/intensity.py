"""Robust fit of gain and bias between an aligned source and target, and measures of detail."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.compute.products import dots, mean_once, times, weighted_sum
from jaxreg.direct.robust import OUTLIER, settled_weight


class Fit(NamedTuple):
    """Robust fit of the target by the source at some transform.

    Attributes:
      gain: scalar, grey values of the target per grey value of the source.
      bias: ``(C,)``, in grey values of the target.
      residual: ``(P, C)``, ``target - gain * source - bias``, unweighted.
      weight: ``(P,)``, weight of the overlap times robust weight.
      variance: scalar, weighted mean square of the residual.
    """

    gain: jax.Array
    bias: jax.Array
    residual: jax.Array
    weight: jax.Array
    variance: jax.Array

    def covariance(self) -> jax.Array:
        """Weighted second moments ``(C, C)`` of the residual's channels."""
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
    """Compute residuals for a given gain and bias, and their robust weights.

    Args:
      value: ``(P, C)``, the source at the target's pixels.
      target: ``(P, C)``.
      inside: ``(P,)`` weight of the overlap.
      gain: grey values of the target per grey value of the source.
      bias: ``(C,)``, or a scalar for all channels.
      outlier: number of scales from which a residual loses weight, see `settled_weight`.
      steep: ``(P,)`` `gradient_magnitude`, if the scale of the residual is to grow with it.
      grain: see `Pair`.
    """
    residual = target - gain * value - bias
    square = mean_once(jnp.square(residual))
    # Weights are constants to derivatives: the absolute value of a zero residual has none.
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
    """Fit gain and bias to the pixels where the images agree.

    The fit is weighted by the residuals at the expected gain and bias: one to all pixels would
    follow an object that hides a part of the view.

    Args:
      value: ``(P, C)``, the source at the target's pixels.
      target: ``(P, C)``.
      inside: ``(P,)`` weight of the overlap.
      gain: the expected gain.
      bias: the expected bias, ``(C,)``, or a scalar for all channels.
      steep: see `weigh`.
      grain: see `Pair`.
    """
    weight = weigh(value, target, inside, gain, bias, steep=steep, grain=grain).weight
    count = jnp.maximum(weight.sum(), 1.0)
    mean_value, mean_target = (weighted_sum(v, weight) / count for v in (value, target))
    source = value - mean_value
    weighted = (weight[:, None] * source).reshape(-1)
    common = dots(weighted, (target - mean_target).reshape(-1))
    gain = common / jnp.maximum(dots(weighted, source.reshape(-1)), 1e-12)
    # A gain near or below zero means that the images are not aligned. At a small positive gain the
    # residual still tells which way to go.
    gain = jnp.clip(gain, 0.1, 10.0)
    bias = mean_target - gain * mean_value
    return weigh(value, target, inside, gain, bias, steep=steep, grain=grain)


def gradient_magnitude(*images: jax.Array) -> jax.Array:
    """``(P,)``: gradient magnitude around each pixel, the smallest of several aligned images'.

    It is the root mean square over the pixel and its eight neighbours, and a constant to
    derivatives. The residual of a close alignment grows with it, whether it is caused by aliasing,
    by a different kernel or by a small misalignment. In an image that is flat but for a few edges,
    a uniform scale of the residual would make outliers of the edges, which carry all the
    information.

    Args:
      *images: ``(H, W, C)``, or bands ``(B, R, W, C)`` of R rows each, R at least 2.
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

    It measures noise, because few pixels of a picture have such detail. Differences of zero, as in
    padding, do not count. It is a constant to derivatives.
    """
    image = jax.lax.stop_gradient(image)
    down = image[:-2] - 2.0 * image[1:-1] + image[2:]
    detail = jnp.abs(down[:, :-2] - 2.0 * down[:, 1:-1] + down[:, 2:])
    counts = detail > 0.0
    logarithm = jnp.where(counts, jnp.log(jnp.where(counts, detail, 1.0)), 0.0)
    number = jnp.maximum(counts.astype(jnp.float32).sum(), 1.0)
    return jnp.exp(2.0 * logarithm.sum() / number)
