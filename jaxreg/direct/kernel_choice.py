"""Choose which image is pulled onto the other's pixels, and by which kernel.

The choice is the direction and kernel with the smaller residual, relative to the noise that
interpolation leaves. So pairs that were made by bilinear warping are recognised and solved exactly.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.compute.branching import apart
from jaxreg.compute.products import dots
from jaxreg.direct.intensity import fit_intensity, gradient_magnitude
from jaxreg.direct.masking import Pair
from jaxreg.direct.normal_equations import Unknowns, after_a_small_move
from jaxreg.direct.resampling import (
    interpolant,
    noise_gain,
    pull,
    slopes_by_gradient,
    source_points,
)
from jaxreg.direct.settings import AUTO, LINEAR
from jaxreg.geometry import RigidTransform

_MANY_PIXELS = 3072  # images with so many or more are judged by a third of their rows
# Largest residual of the bilinear kernel, as a share of the spline's, with which it is chosen even
# though the spline's residual looks like aliasing. Measured on pairs of training images (up to
# 0.01) and scenes of the training photographs (from 0.3).
_OF_ALIASING = 0.1
# Variance of a residual, in units of the pair's spread, below which the fit is exact.
_EXACT = 1e-9


class Trial(NamedTuple):
    """How well a kernel explains a pair.

    Attributes:
      mismatch: variance of the residual, in units of the noise that the kernel lets through.
      neighbours: correlation of neighbouring residuals, see `_neighbour_correlation`.
      gain: scalar, fitted.
      bias: ``(C,)``, fitted.
    """

    mismatch: jax.Array
    neighbours: jax.Array
    gain: jax.Array
    bias: jax.Array


class Choice(NamedTuple):
    """The chosen direction and kernel.

    Attributes:
      back: scalar bool, whether the pair is to be swapped.
      linear: scalar bool, whether the kernel is bilinear; else it is the spline.
      start: the alignment in that direction, with the fitted gain and bias.
    """

    back: jax.Array
    linear: jax.Array
    start: Unknowns


def choose(
    there: tuple[Pair, RigidTransform],
    back: tuple[Pair, RigidTransform],
    kernel: jax.typing.ArrayLike,
) -> Choice:
    """Choose direction and kernel.

    Args:
      there: a pair and its alignment.
      back: the swapped pair and the inverse alignment.
      kernel: `LINEAR` or `SPLINE` to force one; `AUTO` to choose.
    """
    ways = jax.tree.map(lambda *v: jnp.stack(v), there, back)

    def unfinished(state: tuple[jax.Array, Trial]) -> jax.Array:
        number, trials = state
        # A pair that the bilinear kernel explains to rounding needs no trial of the spline.
        more = trials.mismatch[:2].min() >= _EXACT
        return (number < 2) | ((number < count) & more)

    def step(state: tuple[jax.Array, Trial]) -> tuple[jax.Array, Trial]:
        number, trials = state
        # Both ways by the bilinear kernel, which is not the same in both and tells them apart.
        way = jnp.where(number < 2, number, _better_way(trials))
        found = trial(*jax.tree.map(lambda v: v[way], ways), linear=number < 2)
        return number + 1, jax.tree.map(lambda v, new: v.at[number].set(new), trials, found)

    # A loop: a trial's program is compiled once.
    count = jnp.where(kernel == AUTO, 3, 2)
    # Like an image: over a mesh, what changes with the pair begins so.
    like = lambda value, *shape: jnp.full_like(ways[0].source, value, shape=shape)  # noqa: E731
    channels = ways[0].source.shape[-1]
    begin = Trial(like(jnp.inf, 3), like(0.0, 3), like(0.0, 3), like(0.0, 3, channels))
    first = jnp.zeros_like(begin.gain[0], jnp.int32)
    _, trials = jax.lax.while_loop(unfinished, step, (first, begin))
    way = _better_way(trials)
    start = Unknowns(ways[1][way], trials.gain[way], trials.bias[way])
    better = bilinear_explains_more(trials.mismatch[way], jax.tree.map(lambda v: v[2], trials))
    return Choice(way == 1, jnp.where(kernel == AUTO, better, kernel == LINEAR), start)


def _better_way(trials: Trial) -> jax.Array:
    """Index of the direction with the smaller mismatch; 0 if they are equal."""
    return (trials.mismatch[1] < trials.mismatch[0]).astype(jnp.int32)


@functools.cache
def _some_rows(height: int, width: int) -> tuple[np.ndarray | slice, int]:
    """Bands of rows to judge a kernel by: every third pair of rows, or all rows of a small image.

    Returns:
      The index of the rows, and the number of rows in a band.
    """
    if height * width < _MANY_PIXELS:
        return slice(None), height
    return (np.arange(0, height - 1, 6)[:, None] + np.arange(2)).reshape(-1), 2


def trial(pair: Pair, t: RigidTransform, *, linear: bool | jax.Array) -> Trial:
    """Measure how well a kernel explains a pair.

    The part of the residual that a small move would explain does not count, because the start is
    not the optimum yet.
    """
    height, width, channels = pair.source.shape
    rows, band = _some_rows(height, width)
    some = lambda v, *last: v.reshape(height, width, *last)[rows].reshape(-1, *last)  # noqa: E731
    points = source_points(pair.source.shape, t, masks=pair.masks, counts=pair.counts)
    lever = jnp.stack([some(v) for v in pair.turn * points.lever])
    x, y, inside = some(points.x), some(points.y), some(points.inside)
    points = points._replace(x=x, y=y, inside=inside, lever=lever)

    def slopes(target: jax.Array, lever: jax.Array) -> jax.Array:
        v, u = (some(g, channels) for g in jnp.gradient(target, axis=(0, 1)))
        return slopes_by_gradient(u, v, lever).reshape(3, -1)

    slope = apart(points.cos > -2.0, slopes, pair.target, lever)
    value = pull(interpolant(pair.source, linear), points, linear)
    bands = -1, band, width, channels
    steep = gradient_magnitude(value.reshape(bands), pair.target[rows].reshape(bands))
    pixels = some(pair.target, channels)
    fit = fit_intensity(value, pixels, points.inside, steep=steep, grain=pair.grain)
    rest, moved = after_a_small_move(slope, fit.weight, fit.residual)
    variance = fit.variance - moved / (channels * jnp.maximum(fit.weight.sum(), 1.0))
    variance = jnp.maximum(variance, 1e-3 * fit.variance)
    kept = jnp.square(fit.gain) * noise_gain(points, linear)
    of_target = pair.noise_of_target(fit.gain)
    neighbours = _neighbour_correlation((fit.weight[:, None] * rest).reshape(bands))
    # In units of the geometric mean of both images' noise, which is the same in both directions.
    mismatch = variance * jnp.sqrt(of_target) / (kept + of_target)
    return Trial(mismatch, neighbours, fit.gain, fit.bias)


def bilinear_explains_more(least: jax.Array, spline: Trial) -> jax.Array:
    """Decide whether a pair was made by the bilinear kernel.

    If it was, neighbours in the spline's residual are correlated, because the detail that the
    bilinear kernel smoothed away is coarser than noise. Aliasing makes them anticorrelated, and the
    bilinear kernel damps it: then a somewhat smaller residual proves nothing.

    Args:
      least: `Trial.mismatch` of the bilinear kernel.
      spline: the trial of the spline.
    """
    most = jnp.where(spline.neighbours > 0.0, 1.0, _OF_ALIASING)
    return least <= most * spline.mismatch


def _neighbour_correlation(bands: jax.Array) -> jax.Array:
    """Correlation with the pixel below plus that with the pixel beside, -2 to 2; a scalar.

    Args:
      bands: bands of rows ``(B, R, W, C)``.
    """

    def mean(a: jax.Array, b: jax.Array) -> jax.Array:
        return dots(a.reshape(-1), b.reshape(-1)) / a.size

    below = mean(bands[:, 1:], bands[:, :-1])
    beside = mean(bands[:, :, 1:], bands[:, :, :-1])
    return (below + beside) / jnp.maximum(mean(bands, bands), 1e-30)
