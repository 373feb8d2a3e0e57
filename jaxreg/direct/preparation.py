"""Prepare a pair of images for the direct method.

A pair with values that are not finite becomes zero, isolated hot and dead pixels are dimmed,
padding is found, and both images are brought to common units. The step between grey levels and the
mix of channels that varies most are measured.
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

# Spreads that differ by less than this factor, and means that differ by less than so many spreads,
# are left to the refinement, whose gain may be up to 10.
_ALIKE = 8.0
# A pixel counts as black if no channel exceeds this share of the image's largest value (JPEG leaves
# no exact zeros). An image has no padding up to the first share of black pixels, and may have some
# from the second one on.
_BLACK = 0.02
_NONE, _SOME = 0.005, 0.02
_RIM = 2  # px: padding blends into the picture over a pixel, at 45 degrees over two
_FAR = 3.0  # spreads: padding is darker than the mean of the rest by more than this
# A lone pixel is a defect of the detector if it exceeds its neighbours by so many ranges of all
# other pixels (the sharpest optics spread a tenth of a spot's light to its neighbours), and if no
# larger share of the pixels does.
_LONE, _FEW = 10.0, 0.01
_FAR_OUT = 10.0  # mean deviations: 1% of the pixels ten ranges out either way are beyond 11
_COARSE = 0.1  # spreads: smallest step of what counts as few grey levels
_COARSEST = 2.0  # spreads: upper limit of the step, that of half black and half white pixels


class Prepared(NamedTuple):
    """A pair that is ready to be registered.

    Attributes:
      fixed: ``(H, W, C)`` in common units.
      moving: the same shape and units.
      axis: ``(C, 1)``, the mix of channels that varies most in both.
      padding: ``(2, H, W)`` bool, which pixels of fixed and moving are padding or next to it.
      more_in_fixed: scalar bool, whether the fixed image has clearly more black pixels.
      grain: scalar, see `jaxreg.direct.masking.Pair`.
      finite: scalar bool; if False, both images are zero.
      border: the static border of both images, in-painted here; None if masks are given.
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
    """Prepare images ``(H, W, C)``, float32 of any unit, whose masked pixels are already filled.

    Both images go through the same operations as one stack, so that identical images stay so to the
    last bit. Gradients pass through fixed and moving; units and axis are constants to them.
    """
    pair = jnp.stack([fixed, moving])
    finite = jnp.isfinite(pair).all()
    pair, *measures = _without_lone_pixels(jnp.where(finite, pair, 0.0))
    lowest, highest, deviation = jax.lax.stop_gradient(measures)
    # The answer to a pair with a flat image has no derivative, nor has a spread of zero.
    pair = jnp.where((lowest == highest).any(), jax.lax.stop_gradient(pair), pair)
    grain_of, border = jax.lax.stop_gradient(pair), None
    if masks is None:
        pair, border = without_still_border(pair, deviation)
    images = jax.lax.stop_gradient(pair)
    brightest = functools.reduce(jnp.maximum, jnp.unstack(images, axis=-1))
    lowest, highest = lowest[:, None, None], highest[:, None, None]
    largest = jnp.maximum(jnp.maximum(highest, -lowest), 1e-30)
    # In an image with negative values zero is a value like any other, and nothing is black.
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
    """Dim hot and dead pixels and cosmic rays in ``(2, H, W, C)``; also describe the images.

    Such a pixel can be thousands of times as bright as the picture, whose unit it would set. It is
    clipped to the brightest level that three neighbours reach together (two may be hot), where the
    robust weights of the finish reject it. If all other pixels are equal it stays, since it is then
    the only content.

    Returns:
      The images; the smallest and the largest value of each, ``(2,)``; and the mean deviation of
      each, with these pixels.
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
    """Largest level that three neighbours reach together (row, column or corner) at each pixel."""
    pixel, right, below = images[:, :-2, :-2], images[:, :-2, 1:-1], images[:, 1:-1, :-2]
    row = jnp.minimum(right, images[:, :-2, 2:])
    column = jnp.minimum(below, images[:, 2:, :-2])
    two = jnp.maximum(jnp.maximum(row, column), jnp.minimum(right, below))
    return jnp.minimum(pixel, two)


def _extremes(images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Smallest and largest value of each image, ``(N,)``."""
    return -_largest(-images), _largest(images)


def _largest(images: jax.Array) -> jax.Array:
    """Largest value of each image, ``(N,)``; row by row, which is ten times as fast on a CPU."""
    return images.reshape(*images.shape[:2], -1).max(1).max(1)


def _in_units(pair: jax.Array, offset: jax.Array, scale: jax.Array) -> jax.Array:
    """Subtract offsets ``(2, C)`` from images ``(2, H, W, C)`` and divide by spreads ``(2,)``."""
    offset, scale = jax.lax.stop_gradient((offset, scale))  # whose square may be zero in float32
    return (pair - offset[:, None, None]) / scale[:, None, None, None]


def _grain(images: jax.Array, scale: jax.Array, masks: Masks | None) -> jax.Array:
    """Variance of the difference of two images that is due to rounding to grey levels.

    With few levels most pixels of two views a tenth of a pixel apart are equal, as if nothing had
    moved. An image's step is the smallest difference between neighbours in a row, and the smaller
    step of the two images counts: it is almost zero if one of them was rendered in floats.

    Args:
      images: ``(2, H, W, C)``, of any unit.
      scale: ``(2,)``, the common unit in units of each image.
      masks: which pixels count, if not all do; the others are filled.
    """
    steps = jnp.abs(images[:, :, 1:] - images[:, :, :-1])
    differ = steps > 0.0
    if masks:
        counts = jnp.stack(masks) > 0.0
        differ &= (counts[:, :, 1:] & counts[:, :, :-1])[..., None]
    of_rows = jnp.where(differ, steps, jnp.inf).reshape(*steps.shape[:2], -1).min(2)
    of_rows /= scale[:, None]
    # Of few levels, three rows running have the step; a smaller one is that of a stuck pixel.
    of_three = jnp.maximum(jnp.maximum(of_rows[:, :-2], of_rows[:, 1:-1]), of_rows[:, 2:]).min(1)
    step = jnp.where(of_three > _COARSE, of_three, of_rows.min(1)).min()
    return jnp.square(jnp.where(jnp.isfinite(step), jnp.minimum(step, _COARSEST), 0.0)) / 6.0


def _planes(images: jax.Array) -> jax.Array:
    """Reshape images ``(2, H, W, C)`` to ``(2, C, H W)``, of which CPUs sum the pixels faster."""
    return jnp.moveaxis(images.reshape(2, -1, images.shape[-1]), -1, 1)


def _padding(units: jax.Array, black: jax.Array, share: jax.Array) -> jax.Array:
    """``(2, H, W)`` bool: black pixels that a warp left around a faint picture on a bright ground.

    They and the pixels that blend into them would outweigh the picture. Black pixels are content if
    the other image has some too, if none is in a corner of the frame, or if they are not far below
    the rest.

    Args:
      units: ``(2, H, W, C)``, fixed and moving in units of their largest value.
      black: ``(2, H, W)``, which pixels are black.
      share: ``(2,)``, share of black pixels.
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
    """Replace the padding of a plane ``(H, W)`` by the mean of the rest."""
    kept = ~padding
    mean = (plane * kept.astype(jnp.float32)).sum()
    mean /= jnp.maximum(kept.sum().astype(jnp.float32), 1.0)
    return jnp.where(padding, mean, plane)


def _common_units(
    units: jax.Array, largest: jax.Array, padding: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Offsets ``(2, C)`` and spreads ``(2,)`` that bring both images to mean 0 and spread 1.

    Float32 then resolves a faint texture on a bright background, and thresholds mean the same in
    any unit. Both images get the same offset and spread, so that a change of brightness is left to
    the refinement, unless it is larger than that can follow (uint8 against [0, 1]).

    Args:
      units: ``(2, H, W, C)``, the images in units of their largest value.
      largest: ``(2,)``, that value.
      padding: ``(2, H, W)`` bool, pixels that do not count.
    """
    planes, kept = _planes(units), (~padding).reshape(2, -1).astype(jnp.float32)
    count = jnp.maximum(kept.sum(1), 1.0)
    over_kept = lambda v: jnp.stack([product(*one) for one in zip(v, kept, strict=True)])  # noqa: E731
    mean = over_kept(planes) / count[:, None]
    square = over_kept(jnp.square(planes - mean[..., None])).mean(1) / count
    # Do not amplify texture below the rounding error of float32.
    spread = jnp.maximum(jnp.sqrt(square), 1e-6) * largest
    mean *= largest[:, None]
    larger = spread.max()
    alike = (larger < _ALIKE * spread.min()) & (jnp.abs(mean[0] - mean[1]).max() < _ALIKE * larger)
    middle = 0.5 * mean[0] + 0.5 * mean[1]
    return jnp.where(alike, middle, mean), jnp.where(alike, larger, spread)


def principal_axis(pair: jax.Array) -> jax.Array:
    """``(C, 1)``: the mix of channels in which both images of a pair ``(2, H, W, C)`` vary most.

    It is the leading eigenvector of the parallel sum of the two covariances, which is large only
    where both are. Their sum would not do: black corners vary in grey alone, where the other image
    may be constant.
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
