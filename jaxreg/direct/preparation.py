"""What the direct method does with two images before it registers them.

It leaves values that are not finite out, dims lone hot pixels, finds what is mere padding, brings
both images into common units, and tells how fine their grey levels are and which mix of channels
says most.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.compute.branching import apart, cond_where_any
from jaxreg.compute.products import contract, mean_once, product, times
from jaxreg.direct.border import Border, without_still_border
from jaxreg.direct.masking import Masks

# Spreads that differ by less than this factor, and means by less than so many spreads, are left for
# the refinement to follow, whose gain may be up to 10.
_ALIKE = 8.0
# Share of an image's largest value below which all channels of a pixel are as good as black, for
# JPEG leaves no zeros; and the shares of such pixels up to which an image has none, and from which
# it may be padded.
_BLACK = 0.02
_NONE, _SOME = 0.005, 0.02
_RIM = 2  # px: a warp blends in a pixel's breadth, which at 45 degrees reaches over two
_FAR = 3.0  # spreads
# By how many ranges of all else a lone pixel sticks out that is a detector's and not the picture's,
# and the share of pixels up to which there are such: the sharpest optics spread a tenth of a spot's
# light to its neighbours.
_LONE, _FEW = 10.0, 0.01
_FAR_OUT = 10.0  # mean deviations: 1% of the pixels ten ranges out either way are beyond 11
_COARSEST = 2.0  # spreads between grey levels: those of black and white, half and half


class Prepared(NamedTuple):
    """A pair, ready to be registered.

    Attributes:
      fixed: ``(H, W, C)`` in common units.
      moving: likewise.
      axis: ``(C, 1)``, the mix of channels that varies most in both.
      padding: ``(2, H, W)`` bool, what of fixed and moving is padding, with a rim.
      more_in_fixed: scalar bool, whether the fixed image has more black pixels than the other.
      grain: scalar, see `jaxreg.direct.masking.Pair`.
      finite: scalar bool; if False, both images are zero.
      border: what of both is a border that stays, in-painted; None where masks say what counts.
    """

    fixed: jax.Array
    moving: jax.Array
    axis: jax.Array
    padding: jax.Array
    more_in_fixed: jax.Array
    grain: jax.Array
    finite: jax.Array
    border: Border | None


def prepare(fixed: jax.Array, moving: jax.Array, masks: Masks | None = None) -> Prepared:
    """Prepare images ``(H, W, C)``, float32 of any unit, whose values are made up where masked.

    Both take the same operations, as one stack: identical images stay so to the last bit.
    Gradients pass through fixed and moving; units and axis count as constants.
    """
    pair = jnp.stack([fixed, moving])
    finite = jnp.isfinite(pair).all()
    pair, lowest, highest, deviation = _without_lone_pixels(jnp.where(finite, pair, 0.0))
    grain_of, border = jax.lax.stop_gradient(pair), None
    if masks is None:
        pair, border = without_still_border(pair, deviation)
    images = jax.lax.stop_gradient(pair)
    brightest = functools.reduce(jnp.maximum, jnp.unstack(images, axis=-1))
    lowest, highest = lowest[:, None, None], highest[:, None, None]
    largest = jnp.maximum(jnp.maximum(highest, -lowest), 1e-30)
    # None if there are values below zero: then zero is a value like any other.
    black = (brightest <= _BLACK * largest) & (lowest >= 0.0)
    share = black.mean((1, 2))
    units = images / largest[..., None]
    padding = _padding(units, black, share)
    offset, scale = _common_units(units, largest[:, 0, 0], padding)
    pair = apart(share[0] <= 1.0, _in_units, pair, offset, scale)
    axis = principal_axis(jax.lax.stop_gradient(pair))
    more_in_fixed = share[0] > share[1] + _SOME
    grain = _grain(grain_of, scale, masks)
    return Prepared(pair[0], pair[1], axis, padding, more_in_fixed, grain, finite, border)


def _without_lone_pixels(pair: jax.Array) -> tuple[jax.Array, ...]:
    """Images ``(2, H, W, C)`` without hot or dead pixels and cosmic rays, and their extremes.

    One of these can be thousands of times as bright as the picture, whose unit it would set. It is
    left as bright as any three neighbours are together, where the finish leaves it out: two may be
    hot. Not if all else is alike: then it is all there is.
    """
    images = jax.lax.stop_gradient(pair)
    extremes = _extremes(images)
    lines = images.reshape(*images.shape[:2], -1)
    mean = lines.mean(1).mean(1)
    spread = jnp.abs(lines - mean[:, None, None]).mean(1).mean(1)
    may_be = jnp.maximum(extremes[1] - mean, mean - extremes[0]) > _FAR_OUT * spread

    def dimmed(pair: jax.Array, _: Any) -> tuple[jax.Array, ...]:
        images = jax.lax.stop_gradient(pair)
        limits = -_largest(_of_three(-images)), _largest(_of_three(images))
        lowest, highest = (v[:, None, None, None] for v in limits)
        room = _LONE * (highest - lowest)
        lone = (images > highest + room) | (images < lowest - room)
        few = lone.mean((1, 2, 3), keepdims=True) <= _FEW
        pair = jnp.where(lone & few & (room > 0.0), jnp.clip(pair, lowest, highest), pair)
        return pair, *_extremes(jax.lax.stop_gradient(pair))

    same = lambda pair, extremes: (pair, *extremes)  # noqa: E731
    return *cond_where_any(may_be.any(), dimmed, same, pair, extremes), spread


def _of_three(images: jax.Array) -> jax.Array:
    """What three neighbours reach together, in a row, a column or a corner, at each pixel."""
    pixel, right, below = images[:, :-2, :-2], images[:, :-2, 1:-1], images[:, 1:-1, :-2]
    row = jnp.minimum(right, images[:, :-2, 2:])
    column = jnp.minimum(below, images[:, 2:, :-2])
    two = jnp.maximum(jnp.maximum(row, column), jnp.minimum(right, below))
    return jnp.minimum(pixel, two)


def _extremes(images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The least and the largest value of each image, ``(N,)``."""
    return -_largest(-images), _largest(images)


def _largest(images: jax.Array) -> jax.Array:
    """``(N,)``; row by row: a maximum of all at once takes a CPU ten times as long."""
    return images.reshape(*images.shape[:2], -1).max(1).max(1)


def _in_units(pair: jax.Array, offset: jax.Array, scale: jax.Array) -> jax.Array:
    """Images ``(2, H, W, C)`` less their offsets ``(2, C)``, in units of their spreads ``(2,)``."""
    return (pair - offset[:, None, None]) / scale[:, None, None, None]


def _grain(images: jax.Array, scale: jax.Array, masks: Masks | None) -> jax.Array:
    """The variance that rounding to grey levels leaves of the difference of two images.

    Of few levels most pixels of views a tenth of a pixel apart are the same, as if nothing had
    moved. By the smaller of both steps, each the least that two neighbours in a row differ by: it
    is next to nothing where one image was rendered from the other in floats.

    Args:
      images: ``(2, H, W, C)``, of any unit.
      scale: ``(2,)``, what is 1 in common units.
      masks: which pixels count, if not all; the others' values are made up.
    """
    steps = jnp.abs(images[:, :, 1:] - images[:, :, :-1])
    differ = steps > 0.0
    if masks:
        counts = jnp.stack(masks) > 0.0
        differ &= (counts[:, :, 1:] & counts[:, :, :-1])[..., None]
    step = (-_largest(jnp.where(differ, -steps, -jnp.inf)) / scale).min()
    return jnp.square(jnp.where(jnp.isfinite(step), jnp.minimum(step, _COARSEST), 0.0)) / 6.0


def _planes(images: jax.Array) -> jax.Array:
    """Images ``(2, H, W, C)`` as ``(2, C, H W)``, whose sums over pixels CPUs are fast at."""
    return jnp.moveaxis(images.reshape(2, -1, images.shape[-1]), -1, 1)


def _padding(units: jax.Array, black: jax.Array, share: jax.Array) -> jax.Array:
    """``(2, H, W)`` bool: black pixels that a warp left around a faint picture on a bright ground.

    They, and what blends into them, would outweigh all else. Black that the other image has as
    well, that reaches no corner of the frame, or that is not far below the rest, is content.

    Args:
      units: ``(2, H, W, C)``, fixed and moving in units of their largest value.
      black: ``(2, H, W)``, which of their pixels are near black.
      share: ``(2,)``, of black pixels.
    """
    cornered = black[:, :: black.shape[1] - 1, :: black.shape[2] - 1].any((1, 2))
    padded = cornered & (share > _SOME) & (share[::-1] < _NONE)
    around = black & padded[:, None, None]
    for axis in (1, 2):
        window, pads = [1, 1, 1], [(0, 0)] * 3
        window[axis], pads[axis] = 2 * _RIM + 1, (_RIM, _RIM)
        around = jax.lax.reduce_window(around, False, jax.lax.bitwise_or, window, (1, 1, 1), pads)
    grey = mean_once(units)
    count = jnp.maximum((~around).sum((1, 2), keepdims=True).astype(jnp.float32), 1.0)
    mean = jnp.where(around, 0.0, grey).sum((1, 2), keepdims=True) / count
    energy = jnp.where(around, 0.0, jnp.square(grey - mean)).sum((1, 2), keepdims=True)
    return around & (grey < mean - _FAR * jnp.sqrt(energy / count))


def without_padding(plane: jax.Array, padding: jax.Array) -> jax.Array:
    """A plane ``(H, W)`` with the mean of the rest for its padding."""
    kept = ~padding
    mean = (plane * kept.astype(jnp.float32)).sum()
    mean /= jnp.maximum(kept.sum().astype(jnp.float32), 1.0)
    return jnp.where(padding, mean, plane)


def _common_units(
    units: jax.Array, largest: jax.Array, padding: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Offsets ``(2, C)`` and spreads ``(2,)`` that bring both images about zero, near 1.

    Float32 then resolves a faint texture on a bright background, and thresholds mean the same for
    any unit. Both are treated alike, so that a small change of brightness between them is left for
    the refinement to judge, unless they differ beyond what it can follow (uint8 against [0, 1]).

    Args:
      units: ``(2, H, W, C)``, the images in units of their largest value.
      largest: ``(2,)``, that value.
      padding: ``(2, H, W)``, pixels that do not count.
    """
    planes, kept = _planes(units), (~padding).reshape(2, -1).astype(jnp.float32)
    count = jnp.maximum(kept.sum(1), 1.0)
    over_kept = lambda v: jnp.stack([product(*one) for one in zip(v, kept, strict=True)])  # noqa: E731
    mean = over_kept(planes) / count[:, None]
    square = over_kept(jnp.square(planes - mean[..., None])).mean(1) / count
    # Texture below the rounding of float32 is not blown up.
    spread = jnp.maximum(jnp.sqrt(square), 1e-6) * largest
    mean *= largest[:, None]
    larger = spread.max()
    alike = (larger < _ALIKE * spread.min()) & (jnp.abs(mean[0] - mean[1]).max() < _ALIKE * larger)
    middle = 0.5 * mean[0] + 0.5 * mean[1]
    return jnp.where(alike, middle, mean), jnp.where(alike, larger, spread)


def principal_axis(pair: jax.Array) -> jax.Array:
    """The mix of channels ``(C, 1)`` in which both images of a pair ``(2, H, W, C)`` vary most.

    Both, for black corners vary in grey alone, where the other image may be constant: hence the
    parallel sum of the two covariances, which is large only where both are.
    """
    channels = pair.shape[-1]
    if channels == 1:
        return jnp.ones((1, 1), jnp.float32)
    planes = _planes(pair)
    centred = planes - planes.mean(-1, keepdims=True)
    spread = jnp.stack([times(image, image) for image in centred])
    ridge = 1e-4 * jnp.trace(spread, axis1=1, axis2=2) / channels + 1e-12
    unit = jnp.broadcast_to(jnp.eye(channels, dtype=jnp.float32), spread.shape)
    factor = jnp.linalg.cholesky(spread + ridge[:, None, None] * unit)
    root = jax.lax.linalg.triangular_solve(factor, unit, left_side=True, lower=True)
    inverses = contract("ikc,ikd->cd", root, root)
    return jnp.linalg.eigh(inverses)[1][:, :1]
