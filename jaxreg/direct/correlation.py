"""Global search: normalised cross-correlation over all rotations and shifts, on a coarse grid.

The disc inscribed in the source is rotated by angles of the full circle and correlated with the
target at every whole shift. Means and variances are those of the overlap at each shift, inside the
target's frame (Padfield 2012, doi:10.1109/TIP.2011.2181402). On a grid this small all of it is a
few matrix products, which are faster than the FFT on every device.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.compute.products import contract, product
from jaxreg.direct.masking import Masks, Pair
from jaxreg.geometry import RigidTransform
from jaxreg.warping import sample


@functools.cache
def _disc(side: int) -> np.ndarray:
    """``(side, side)`` float32: 1 inside the inscribed disc, else 0."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    return (np.hypot(x, y) <= side / 2).astype(np.float32)


def rotated_discs(image: jax.Array, angles: int) -> jax.Array:
    """Rotate the central disc of an image by ``angles`` evenly spaced angles of the full circle.

    Only the first quarter is interpolated; the others are exact rotations of it by 90 degrees.

    Args:
      image: ``(H, W)``.
      angles: number of angles, a multiple of 4.

    Returns:
      ``(angles, S, S)`` with ``S = min(H, W)``, zero outside the disc; entry k is rotated by
      ``360 k / angles`` degrees.
    """
    height, width = image.shape
    side = min(height, width)
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    theta = np.deg2rad(90.0 * np.arange(angles // 4) / (angles // 4))[:, None, None]
    cos, sin = np.cos(theta), np.sin(theta)
    source = np.stack([cos * x + sin * y, cos * y - sin * x], axis=-1)
    # Rounding may put points of the disc just outside the frame; those off the disc do not count.
    source = np.clip(source, -(side - 1) / 2, (side - 1) / 2)
    points = source + np.array([(width - 1) / 2, (height - 1) / 2])
    quarter = sample(image, points.astype(np.float32)) * _disc(side)
    turns = [jnp.rot90(quarter, -k, axes=(1, 2)) for k in range(4)]
    return jnp.concatenate(turns)


def _start(size: int, side: int) -> int:
    """First pixel of a centred square of ``side`` pixels along an axis of ``size`` pixels."""
    return (size - side) // 2


def _windows(image: jax.Array, side: int, reach: int) -> jax.Array:
    """``((2 reach + 1)^2, side^2)``: windows at all shifts (dy major), zero outside the image."""
    height, width = image.shape
    top, left = reach - _start(height, side), reach - _start(width, side)
    top, left = max(top, 0), max(left, 0)
    padded = jnp.pad(image, ((top, top), (left, left)))
    y0 = _start(height, side) + top - reach
    x0 = _start(width, side) + left - reach
    span = 2 * reach + 1
    columns = jnp.stack([padded[:, x0 + dx : x0 + dx + side] for dx in range(span)])
    windows = jnp.stack([columns[:, y0 + dy : y0 + dy + side] for dy in range(span)])
    return windows.reshape(span * span, side * side)


@functools.cache
def _in_frame(size: int, side: int, reach: int, mirrored: bool) -> np.ndarray:
    """``(2 reach + 1, side)``: 1 where a line of the template is in the frame at each shift."""
    start = _start(size, side)
    if mirrored:  # an odd difference of the sizes leaves the extra pixel on the other side
        start = size - side - start
    line = start + np.arange(side) + np.arange(-reach, reach + 1)[:, None]
    return ((line >= 0) & (line < size)).astype(np.float32)


@functools.lru_cache(maxsize=8)  # few: they are large for elongated images
def _shifted_disc(shape: tuple[int, int], side: int, reach: int) -> np.ndarray:
    """``((2 reach + 1)^2, H W)``: 1 where the disc covers the frame at each shift (dy major)."""
    span = 2 * reach + 1
    place = np.zeros((span, span, *shape), np.float32)
    for shift in np.ndindex(span, span):
        # The rows and columns of the square that are in the frame, and their place in the frame.
        first = [_start(size, side) + s - reach for size, s in zip(shape, shift, strict=True)]
        disc = tuple(slice(max(-f, 0), min(side, n - f)) for f, n in zip(first, shape, strict=True))
        frame = tuple(slice(max(f, 0), min(f + side, n)) for f, n in zip(first, shape, strict=True))
        place[shift][frame] = _disc(side)[disc]
    return place.reshape(span * span, -1)


def _sums_in_frame(quarter: jax.Array, shape: tuple[int, ...], reach: int) -> jax.Array:
    """Sum each template and its square over its pixels in the target's frame at each shift.

    A template rotated by 90 degrees has the sums of the unrotated one over the frame rotated by
    -90 degrees.

    Args:
      quarter: ``(angles / 4, S, S)``, the templates of the first quarter of the circle.
      shape: of the target.
      reach: largest shift.

    Returns:
      ``(2 reach + 1, 2 reach + 1, 2, angles)``.
    """
    count, side = quarter.shape[:2]
    lines = jnp.concatenate([quarter, quarter**2]).reshape(-1, side)
    span = 2 * reach + 1
    turns = []
    for k, (height, width) in enumerate([shape, shape[::-1]] * 2):
        rows = _in_frame(height, side, reach, mirrored=k in (1, 2))
        columns = _in_frame(width, side, reach, mirrored=k in (2, 3))
        sums = product(lines, columns.T).reshape(-1, side, span)
        sums = contract("yi,nix->yxn", rows, sums)
        turns.append(jnp.rot90(sums.reshape(span, span, 2, count), -k))
    return jnp.concatenate(turns, axis=3)


class Limits(NamedTuple):
    """Limits of a search; arrays, so that other values need no new compilation.

    Attributes:
      shift: largest shift along either axis, in pixels of the grid; one pixel is always searched.
      rotation: largest absolute rotation, in degrees.
      of_inverse: whether they apply to the inverse transform, whose shift has rotated axes.
    """

    shift: jax.typing.ArrayLike
    rotation: jax.typing.ArrayLike
    of_inverse: jax.typing.ArrayLike = False


def within(limits: Limits, angles: int, reach: int) -> jax.Array:
    """``(2 reach + 1, 2 reach + 1, angles)``: which entries of a correlation volume are searched.

    The grid's angles cover those up to the limit: the last one may lie beyond it.

    >>> [int(k) for k in jnp.arange(36)[within(Limits(2.0, 15.0), 36, reach=2)[0, 0]]]
    [0, 1, 2, 34, 35]
    >>> within(Limits(1.0, 0.0), 36, reach=2)[..., 0].astype(int).tolist()
    [[0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]
    """
    y, x, k = np.mgrid[-reach : reach + 1, -reach : reach + 1, :angles].astype(np.float32)
    cos, sin = (f(2.0 * np.pi / angles * k) for f in (np.cos, np.sin))
    forward = np.maximum(abs(y), abs(x))
    inverse = np.maximum(abs(cos * y - sin * x), abs(cos * x + sin * y))
    # Half a pixel more, because the shifts of an inverse lie between whole pixels.
    furthest = jnp.maximum(jnp.round(limits.shift), 1.0) + 0.5
    near = jnp.where(limits.of_inverse, inverse, forward) < furthest
    return near & (np.minimum(k, angles - k) < limits.rotation * (angles / 360.0) + (1.0 - 1e-4))


class _Sums(NamedTuple):
    """Sums over the overlap: a row for each shift, a column for each angle or one for all.

    Attributes:
      number: of pixels.
      template: of the rotated source.
      template_energy: of its square.
      window: of the shifted target.
      window_energy: of its square.
      both: of their product.
    """

    number: jax.Array | np.ndarray
    template: jax.Array
    template_energy: jax.Array
    window: jax.Array
    window_energy: jax.Array
    both: jax.Array


def correlation_volume(pair: Pair, angles: int, reach: int) -> jax.Array:
    """Compute the `evidence` of every rotation of the source's disc at every shift.

    Args:
      pair: planes ``(H, W)``.
      angles: number of evenly spaced angles, a multiple of 4.
      reach: largest shift, in pixels.

    Returns:
      ``(2 reach + 1, 2 reach + 1, angles)``, axes ``(ty, tx, theta)``; entry
      ``[reach + dy, reach + dx, k]`` is the alignment ``(dx, dy, 360 k / angles)``, less half a
      pixel along the longer axis if its length has the other parity (see `search`).
    """
    if pair.masks is None:
        sums = _sums_over_frame(pair, angles, reach)
    else:
        sums = _sums_over_masks(pair, pair.masks, angles, reach)
    template_energy = sums.template_energy - sums.template**2 / sums.number
    window_energy = sums.window_energy - sums.window**2 / sums.number
    covariance = sums.both - sums.template * (sums.window / sums.number)
    energy = template_energy * window_energy
    floor = 1e-6 * jnp.max(energy) + 1e-12
    ncc = covariance * jax.lax.rsqrt(jnp.maximum(energy, floor))
    span = 2 * reach + 1
    share = sums.number / _disc(min(pair.source.shape)).sum()
    return evidence(ncc, share).reshape(span, span, -1)


def _sums_over_frame(pair: Pair, angles: int, reach: int) -> _Sums:
    """Sums where all pixels count: most of them are then separable products."""
    source, target = pair.source, pair.target
    side = min(source.shape)
    template = rotated_discs(source - source.mean(), angles)
    target = target - target.mean()
    window = _windows(target, side, reach)
    disc = _shifted_disc(target.shape, side, reach)
    count = disc.sum(1, keepdims=True)
    sums = _sums_in_frame(template[: angles // 4], target.shape, reach)
    template_sum, template_energy = (sums[:, :, k].reshape(-1, angles) for k in range(2))
    flat = target.reshape(-1)
    window_sum, window_energy = (product(disc, v)[:, None] for v in (flat, flat**2))
    # Windows times templates is two to three times as fast on CPUs as templates times windows.
    both = product(window, template.reshape(angles, -1).T)
    return _Sums(count, template_sum, template_energy, window_sum, window_energy, both)


def _sums_over_masks(pair: Pair, masks: Masks, angles: int, reach: int) -> _Sums:
    """Sums where only some pixels count: each of them is a product of windows and templates."""
    side, span = min(pair.source.shape), 2 * reach + 1

    def centred(image: jax.Array, mask: jax.Array) -> jax.Array:
        return image - (image * mask).sum() / jnp.maximum(mask.sum(), 1.0)

    # A rotated pixel counts if half of it does; the finish is stricter.
    seen = (rotated_discs(masks.source, angles) >= 0.5).astype(jnp.float32)
    template = rotated_discs(centred(pair.source, masks.source), angles) * seen
    templates = jnp.stack([seen, template, template**2])
    window = centred(pair.target, masks.target) * masks.target
    windows = jnp.stack([_windows(v, side, reach) for v in (masks.target, window, window**2)])
    sums = product(windows.reshape(-1, side * side), templates.reshape(-1, side * side).T)
    sums = jnp.moveaxis(sums.reshape(3, span * span, 3, -1), 1, 2)
    (count, template, template_energy), (window, both, _), (window_energy, *_) = sums
    return _Sums(jnp.maximum(count, 1.0), template, template_energy, window, window_energy, both)


def evidence(ncc: jax.Array, share: jax.Array) -> jax.Array:
    """Evidence for an alignment: the mutual information of two Gaussian images over their overlap.

    A correlation of 0.99 over half of the image is less likely a coincidence than 1.0 over a tenth
    of it, because a corner with few features matches anything. Correlations are distinguished up to
    about 0.99; those between -0.1 and 0.1 give almost no evidence.

    Args:
      ncc: normalised cross-correlation; a negative one gives negative evidence.
      share: share of the image that overlaps, in [0, 1].
    """
    return -jnp.sign(ncc) * share * jnp.log(1.01 - jnp.square(jnp.clip(ncc, -1.0, 1.0)))


def search(pair: Pair, angles: int, reach: int, count: int, limits: Limits) -> RigidTransform:
    """Find the best local maxima of `correlation_volume`.

    Args:
      pair: planes ``(H, W)``.
      angles: number of evenly spaced angles, a multiple of 4.
      reach: largest shift that any limits allow, in pixels.
      count: number of maxima.
      limits: of the alignments searched.

    Returns:
      ``(count,)`` transforms from source to target, best first. If there are too few local maxima,
      the best other alignments follow.
    """
    volume = correlation_volume(pair, angles, reach)
    volume = jnp.where(within(limits, angles, reach), volume, -jnp.inf)
    highest = _highest_around(volume)
    ranked = jnp.where(volume >= highest, volume, volume - 100.0)  # maxima come first
    _, index = jax.lax.top_k(ranked.reshape(-1), count)
    y, x, k = jnp.unravel_index(index, ranked.shape)
    # An even square in an axis of odd length, or the reverse, is half a pixel off the centre.
    shape = pair.source.shape
    half_y, half_x = (0.5 * ((size - min(shape)) % 2) for size in shape)
    return RigidTransform(
        (x - reach).astype(jnp.float32) - half_x,
        (y - reach).astype(jnp.float32) - half_y,
        k.astype(jnp.float32) * (360.0 / angles),
    )


def _highest_around(volume: jax.Array) -> jax.Array:
    """Maximum of each cell and its 26 neighbours; the last axis, the angles, is periodic."""
    around = jnp.concatenate([volume[..., -1:], volume, volume[..., :1]], axis=2)
    for axis, padding in enumerate((1, 1, 0)):
        window, pads = [1, 1, 1], [(0, 0)] * 3
        window[axis], pads[axis] = 3, (padding, padding)
        around = jax.lax.reduce_window(around, -jnp.inf, jax.lax.max, window, (1, 1, 1), pads)
    return around
