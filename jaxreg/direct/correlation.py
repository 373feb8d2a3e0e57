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
from jaxreg.direct.discs import disc, first_quarter, rotated_discs
from jaxreg.direct.masking import Masks, Pair
from jaxreg.geometry import RigidTransform

# Number of values in all windows from which they are made in a loop. It writes them faster than a
# program of one copy for each shift, which takes longer to compile, but each of its steps costs 3
# us on a CPU: 121 windows of 16x16 take 50 instead of 30 us, 289 of 24x24 57 instead of 98.
_LOOP = 65_536


def _start(size: int, side: int) -> int:
    """First pixel of a centred square of ``side`` pixels along an axis of ``size`` pixels."""
    return (size - side) // 2


def _columns(image: jax.Array, side: int, reach: int) -> jax.Array:
    """``(2 reach + 1, side + 2 reach, side)``: the columns of a window at all shifts to the right.

    Beyond the image they are zero.
    """
    height, width = image.shape
    top, left = reach - _start(height, side), reach - _start(width, side)
    top, left = max(top, 0), max(left, 0)
    padded = jnp.pad(image, ((top, top), (left, left)))
    y0 = _start(height, side) + top - reach
    x0 = _start(width, side) + left - reach
    lines = padded[y0 : y0 + side + 2 * reach]
    return jnp.stack([lines[:, x0 + dx : x0 + dx + side] for dx in range(2 * reach + 1)])


def _windows(image: jax.Array, side: int, reach: int) -> jax.Array:
    """``((2 reach + 1)^2, side^2)``: windows at all shifts (dy major), zero outside the image."""
    columns, span = _columns(image, side, reach), 2 * reach + 1
    windows = jnp.stack([columns[:, dy : dy + side] for dy in range(span)])
    return windows.reshape(span * span, side * side)


def _correlations(image: jax.Array, turned: jax.Array, reach: int) -> jax.Array:
    """Sum the products of an image's windows at all shifts and templates of the full circle.

    Windows and templates are split into parts that are even and odd under half a turn. A part has
    half of the pixels; and the templates of the second half of the circle, which are those of the
    first after half a turn, have the same even parts and the opposite odd ones.

    Args:
      image: ``(H, W)``.
      turned: ``(angles / 2, S, S)``, the templates of the first half of the circle.
      reach: largest shift.

    Returns:
      ``((2 reach + 1)^2, angles)``, dy major.
    """
    side, span = turned.shape[1], 2 * reach + 1
    rows = -(-side // 2)
    columns = _columns(image, side, reach)
    after = columns[:, ::-1, ::-1]  # half a turn

    def parts_at(dy: jax.typing.ArrayLike) -> tuple[jax.Array, jax.Array]:
        one = jax.lax.dynamic_slice_in_dim(columns, dy, rows, axis=1)
        other = jax.lax.dynamic_slice_in_dim(after, 2 * reach - dy, rows, axis=1)
        return one + other, one - other

    if span**2 * side**2 > _LOOP:
        parts = jax.lax.map(parts_at, np.arange(span, dtype=np.int32))
    else:
        parts = jax.tree.map(lambda *v: jnp.stack(v), *map(parts_at, range(span)))
    share = np.full((rows, 1), 0.5, np.float32)
    if side % 2:
        share[-1] = 0.25  # the middle row has both pixels of each pair
    own, opposite = turned[:, :rows], turned[:, ::-1, ::-1][:, :rows]
    templates = share * (own + opposite), share * (own - opposite)
    even, odd = (
        product(part.reshape(span * span, -1), template.reshape(len(turned), -1).T)
        for part, template in zip(parts, templates, strict=True)
    )
    return jnp.concatenate([even + odd, even - odd], axis=1)


@functools.cache
def _in_frame(size: int, side: int, reach: int, mirrored: bool) -> np.ndarray:
    """``(2 reach + 1, side)``: 1 where a line of the template is in the frame at each shift."""
    start = _start(size, side)
    if mirrored:  # an odd difference of the sizes leaves the extra pixel on the other side
        start = size - side - start
    line = start + np.arange(side) + np.arange(-reach, reach + 1)[:, None]
    return ((line >= 0) & (line < size)).astype(np.float32)


@functools.cache
def _lines_of_disc(shape: tuple[int, int], side: int, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors of the sums over the disc's part of the frame at all shifts, see `_sums_in_disc`.

    Returns:
      ``(H K, 2 reach + 1)``, 1 where a row of the frame lies in a line of the disc of one of K
      lengths; and ``(W, K (2 reach + 1))``, 1 where a column does.
    """
    lines = disc(side)
    _, line, kind = np.unique(lines.sum(1), return_index=True, return_inverse=True)
    of_kind = (kind == np.arange(len(line))[:, None]).astype(np.float32)

    def shifted(lines: np.ndarray, size: int) -> np.ndarray:  # (size, K, shifts)
        place = np.arange(size)[:, None] - _start(size, side) + reach - np.arange(2 * reach + 1)
        inside = (place >= 0) & (place < side)
        return np.moveaxis(np.where(inside, lines[:, np.clip(place, 0, side - 1)], 0.0), 0, 1)

    rows, columns = (shifted(*v) for v in zip((of_kind, lines[line]), shape, strict=True))
    return rows.reshape(-1, 2 * reach + 1), columns.reshape(shape[1], -1)


def _sums_in_disc(planes: jax.Array, side: int, reach: int) -> jax.Array:
    """Sum planes ``(N, H, W)`` over the disc's part of the frame at each shift.

    All lines of the disc that have the same length are summed at once, first across and then down.

    Returns:
      ``(N, (2 reach + 1)^2)``, dy major.
    """
    count, height, width = planes.shape
    rows, columns = _lines_of_disc((height, width), side, reach)
    lines = product(planes.reshape(-1, width), columns).reshape(count, len(rows), -1)
    return jnp.stack([product(rows.T, plane) for plane in lines]).reshape(count, -1)


@functools.cache
def _pixels_in_disc(shape: tuple[int, int], side: int, reach: int) -> np.ndarray:
    """``((2 reach + 1)^2, 1)``: how many pixels of the disc are in the frame at each shift."""
    rows, columns = _lines_of_disc(shape, side, reach)
    of_a_row = columns.sum(0).reshape(-1, 2 * reach + 1)
    return (rows.T @ np.tile(of_a_row, (shape[0], 1))).reshape(-1, 1)


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
    share = sums.number / disc(min(pair.source.shape)).sum()
    return evidence(ncc, share).reshape(span, span, -1)


def _sums_over_frame(pair: Pair, angles: int, reach: int) -> _Sums:
    """Sums where all pixels count: most of them are then separable products."""
    source, target = pair.source, pair.target
    side = min(source.shape)
    quarter = first_quarter(source - source.mean(), angles)
    target = target - target.mean()
    count = _pixels_in_disc(target.shape, side, reach)
    of_template = _sums_in_frame(quarter, target.shape, reach)
    template, template_energy = (of_template[:, :, k].reshape(-1, angles) for k in range(2))
    of_window = _sums_in_disc(jnp.stack([target, target**2]), side, reach)
    window, window_energy = of_window[0, :, None], of_window[1, :, None]
    turned = jnp.concatenate([quarter, jnp.rot90(quarter, -1, axes=(1, 2))])
    both = _correlations(target, turned, reach)
    return _Sums(count, template, template_energy, window, window_energy, both)


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
