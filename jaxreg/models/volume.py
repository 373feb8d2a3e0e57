"""Correlate two feature maps over all rotations and shifts: the geometry of the compact network.

Maps are square grids of ``GRID x GRID`` cells, flattened to their last axis. The template is a
disc of the fixed map, which stays within the map at any angle. Every rotation of the disc and
every window of the moving map is a constant sparse linear map. The correlation of all rotations
with all shifts is then one matrix product.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.compute.pytrees import allow_rank_promotion

GRID = 16  # cells along each side of a feature map


@allow_rank_promotion  # also in the derivative, which is traced later
def _gather(x: jax.Array, index: np.ndarray, weight: np.ndarray) -> jax.Array:
    """``out[..., j] = sum_i weight[j, i] * x[..., index[j, i]]``."""
    # One fused loop over the taps, unrolled: a sum over a gathered axis is ten times slower.
    total = jnp.zeros((*x.shape[:-1], len(index)), x.dtype)
    for i in range(index.shape[1]):
        total += weight[:, i] * x.at[..., index[:, i]].get(mode="promise_in_bounds")
    return total


def _by_row(
    rows: np.ndarray, columns: np.ndarray, weights: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Index and weight tables ``(count, most in a row)`` of a sparse matrix's entries."""
    order = np.argsort(rows, kind="stable")
    rows, columns, weights = rows[order], columns[order], weights[order]
    start = np.searchsorted(rows, np.arange(count))
    place = np.arange(len(rows)) - start[rows]
    most = max(1, int(place.max(initial=0)) + 1)
    index = np.zeros((count, most), np.int32)
    weight = np.zeros((count, most), np.float32)
    index[rows, place] = columns
    weight[rows, place] = weights
    return index, weight


@dataclasses.dataclass(frozen=True, eq=False)
class SparseMap:
    """A constant sparse linear map ``(..., inputs) -> (..., outputs)``.

    The derivative is a gather too. The scatter into which XLA would turn it is many times slower
    on a CPU.
    """

    apply: Callable[[jax.Array], jax.Array]

    @classmethod
    def from_entries(
        cls,
        rows: np.ndarray,
        columns: np.ndarray,
        weights: np.ndarray,
        outputs: int,
        inputs: int,
    ) -> SparseMap:
        """The map whose matrix holds ``weights`` at ``(rows, columns)`` and zeros elsewhere."""
        forward = _by_row(rows, columns, weights, outputs)
        backward = _by_row(columns, rows, weights, inputs)

        @jax.custom_vjp
        def apply(x: jax.Array) -> jax.Array:
            return _gather(x, *forward)

        apply.defvjp(
            lambda x: (_gather(x, *forward), None),
            lambda _, slope: (_gather(slope, *backward),),
        )
        return cls(apply)

    def __call__(self, x: jax.Array) -> jax.Array:
        """``(..., inputs)`` to ``(..., outputs)``."""
        return self.apply(jnp.asarray(x))


def disc(window: int) -> tuple[np.ndarray, np.ndarray]:
    """Offsets ``x, y`` of the cells of a disc from its centre; ``window`` is its diameter."""
    side = np.arange(window) - (window - 1) / 2
    y, x = np.meshgrid(side, side, indexing="ij")
    inside = x * x + y * y <= (window / 2) ** 2
    return x[inside], y[inside]


@functools.cache
def rotations(angles: int, window: int) -> SparseMap:
    """Map ``GRID^2`` cells to ``angles / 4 * P``: the P cells of the disc, rotated (bilinear).

    The k-th rotation is by ``360 k / angles`` degrees, clockwise on the screen. Only the rotations
    below 90 degrees are made here; `quarter_turns` makes the others from them.
    """
    x, y = disc(window)
    theta = 2 * np.pi * np.arange(angles // 4)[:, None] / angles
    cos, sin = np.cos(theta), np.sin(theta)
    u = (cos * x + sin * y + (GRID - 1) / 2).ravel()
    v = (cos * y - sin * x + (GRID - 1) / 2).ravel()
    u0, v0 = (np.clip(np.floor(w), 0, GRID - 2).astype(int) for w in (u, v))
    rows, columns, weights = [], [], []
    for b in (0, 1):
        for a in (0, 1):
            rows.append(np.arange(u.size))
            columns.append((v0 + b) * GRID + u0 + a)
            weights.append(np.abs(1 - a - (u - u0)) * np.abs(1 - b - (v - v0)))
    return SparseMap.from_entries(
        np.concatenate(rows), np.concatenate(columns), np.concatenate(weights), u.size, GRID**2
    )


@functools.cache
def quarter_turns(channels: int, angles: int, window: int) -> SparseMap:
    """Map the ``channels * angles / 4 * P`` values of `rotations` to ``angles * channels * P``.

    A quarter turn maps the disc onto itself, so the other three quarters hold the same values in
    another order. The result has one template of ``channels * P`` values after the other.
    """
    x, y = disc(window)
    place = {point: i for i, point in enumerate(zip(x, y, strict=True))}
    turned = [(x, y), (y, -x), (-x, -y), (-y, x)]  # the point that each value is taken from
    point = np.array([[place[p] for p in zip(*t, strict=True)] for t in turned])
    first = np.arange(channels * angles // 4).reshape(channels, -1).T * x.size
    columns = (first[None, :, :, None] + point[:, None, None, :]).ravel()
    rows = np.arange(columns.size)
    return SparseMap.from_entries(rows, columns, np.ones(rows.size), rows.size, rows.size // 4)


def _windows(window: int, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """The cell ``(P, S)`` under each point of the disc at each shift; whether the map has it."""
    x, y = disc(window)
    shift = np.arange(-reach, reach + 1)
    dy, dx = (d.ravel() for d in np.meshgrid(shift, shift, indexing="ij"))
    u = np.rint(x[:, None] + dx + (GRID - 1) / 2).astype(int)
    v = np.rint(y[:, None] + dy + (GRID - 1) / 2).astype(int)
    inside = (u >= 0) & (u < GRID) & (v >= 0) & (v < GRID)
    return np.where(inside, v * GRID + u, 0), inside


@functools.cache
def windows(window: int, reach: int) -> SparseMap:
    """Map ``GRID^2`` cells to ``P * S``: the disc's P cells at each of S shifts.

    There are ``S = (2 reach + 1)^2`` shifts. Cells outside the map are zero.
    """
    cell, inside = _windows(window, reach)
    rows = np.flatnonzero(inside.ravel())
    return SparseMap.from_entries(rows, cell.ravel()[rows], np.ones(rows.size), cell.size, GRID**2)


@functools.cache
def window_sums(window: int, reach: int) -> np.ndarray:
    """``(GRID^2, S)`` matrix that sums a map's cells over the disc at each shift."""
    cell, inside = _windows(window, reach)
    sums = np.zeros((GRID**2, cell.shape[1]), np.float32)
    np.add.at(sums, (cell, np.arange(cell.shape[1])[None, :]), inside.astype(np.float32))
    return sums


@functools.cache
def visible(window: int, reach: int) -> np.ndarray:
    """``(P, S)`` float32: 1 where a point of the shifted disc lies in the map, 0 elsewhere."""
    return _windows(window, reach)[1].astype(np.float32)


def correlate(
    fixed: jax.Array, moving: jax.Array, angles: int, window: int, reach: int
) -> jax.Array:
    """Compute the normalised correlation of N pairs of maps at all rotations and shifts.

    Args:
      fixed: ``(N, C, GRID^2)`` float32 features.
      moving: the same shape.
      angles: number of rotations, evenly over the full turn.
      window: diameter of the template, in cells.
      reach: largest shift in each direction, in cells.

    Returns:
      ``(N, angles, S)``, the S shifts row by row: the correlation over the part of the disc that
      lies in the moving map, about in [-1, 1].
    """
    n, channels = fixed.shape[:2]
    points = visible(window, reach)
    shifts = points.shape[1]
    quarter = rotations(angles, window)(fixed).reshape(n, -1)
    template = quarter_turns(channels, angles, window)(quarter).reshape(n, angles, -1)
    patches = windows(window, reach)(moving).reshape(n, -1, shifts)
    product = jnp.einsum("nkp,nps->nks", template, patches)
    # The template's energy is taken as uniform over the disc: exact sums for each rotation cost as
    # much as a channel and change nothing. Quarter turns keep the energy.
    energy = (quarter.reshape(n, channels, angles // 4, -1) ** 2).sum((1, 3))
    template_energy = jnp.tile(energy, (1, 4))[:, :, None] * points.mean(0)
    moving_energy = ((moving**2).sum(1) @ window_sums(window, reach))[:, None, :]
    floor = 1e-4 * template_energy.mean((1, 2)) * moving_energy.mean((1, 2)) + 1e-8
    return product / jnp.sqrt(template_energy * moving_energy + floor[:, None, None])
