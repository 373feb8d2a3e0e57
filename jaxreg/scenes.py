"""Make pairs whose two images are views of one larger photograph.

Content leaves the frame and new content enters, and there are no black corners that reveal the
angle. Both views are rendered in the same way, as by a camera: the photograph is a cubic spline,
one pixel of a view covers two by two of its pixels, and its value is the mean of 4 x 4 points
spread over it.

The photograph comes as square *tiles*, `tile_side` pixels wide, just large enough to hold every
view that the transforms allow. The fixed view lies upright in the middle of the tile; the moving
view is placed such that a pixel p of the fixed view appears at ``T(p)`` in it. Tiles are uint8, so
that a stack of them fits on the device and pairs can be made inside a jitted training step.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.compute.products import apply_separable
from jaxreg.data.photos import MIN_DEVIATION, grey_deviation
from jaxreg.geometry import RigidTransform
from jaxreg.interpolation import spline_coefficients, taps
from jaxreg.pairs import Pairs, draw_transforms
from jaxreg.warping import pixel_grid

SCALE = 2  # photograph pixels to one pixel of a view
SUBPIXELS = 4  # points along each side of a pixel
_SUPPORT = 3  # photograph pixels that the spline and a view pixel reach beyond the pixel's centre
_TRIES = 1000  # number of flat tiles in a row that is an error


def tile_side(size: int, max_shift: float) -> int:
    """Side of a tile, in pixels, that holds every view of a pair with the spline's support.

    Args:
      size: height and width of the views.
      max_shift: largest translation along an axis, in pixels of the view.

    >>> tile_side(32, 5.0), tile_side(96, 15.0)
    (126, 364)
    """
    corner = math.sqrt(2.0) * (size / 2 + max_shift)  # the point farthest from the fixed centre
    # Even, so that a pixel of the fixed view covers whole pixels of the photograph.
    return 2 * math.ceil(SCALE * corner + _SUPPORT)


def _subpixels() -> np.ndarray:
    """``(16, 2)`` offsets ``(x, y)`` of a pixel's sample points from its centre, in pixels."""
    steps = (np.arange(SUBPIXELS) + 0.5) / SUBPIXELS - 0.5
    x, y = np.meshgrid(steps, steps)
    return np.stack([x, y], -1).reshape(-1, 2).astype(np.float32)


def render_view(coefficients: jax.Array, transform: RigidTransform, size: int) -> jax.Array:
    """Render the view in which a pixel p of the fixed view appears at ``T(p)``.

    Args:
      coefficients: ``(S, S, C)`` from `jaxreg.interpolation.spline_coefficients` of a tile. Beyond
        the tile, which should be as large as `tile_side` says, a view is not the photograph's.
      transform: T, one transform, in pixels of the view; the identity gives the fixed view.
      size: height and width of the view.

    Returns:
      ``(size, size, C)`` float32.

    Raises:
      ValueError: the tile is too small for a view of this size.
    """
    side, _, channels = coefficients.shape
    if side < tile_side(size, 0.0):
        raise ValueError(
            f"coefficients are {side} pixels wide, views of size {size} need at least "
            f"{tile_side(size, 0.0)} (tile_side({size}, max_shift))"
        )
    inverse = transform.inverse()
    shape = (size, size)
    centres = inverse.apply(pixel_grid(shape), shape) - (size - 1) / 2
    centres = (SCALE * centres + (side - 1) / 2).reshape(-1, 2)
    turn = RigidTransform(0.0, 0.0, inverse.theta)
    offsets = SCALE * turn.apply(_subpixels(), (1, 1))
    flat = coefficients.reshape(-1, channels)

    def add_point(k: int, total: jax.Array) -> jax.Array:
        points = centres + offsets[k]
        x0, x_weights = taps(points[:, 0], "spline")
        y0, y_weights = taps(points[:, 1], "spline")
        column = jnp.clip(x0, 0, side - 4).astype(jnp.int32)
        first = jnp.clip(y0, 0, side - 4).astype(jnp.int32) * side + column
        for j in range(4):
            row = jnp.zeros_like(total)
            for i in range(4):
                values = flat.at[first + (j * side + i)].get(mode="promise_in_bounds")
                row += x_weights[i][:, None] * values
            total += y_weights[j][:, None] * row
        return total

    # A loop, because one expression for all sixteen points is ten times slower on a CPU.
    zeros = jnp.zeros((size * size, channels), jnp.float32)
    view = jax.lax.fori_loop(0, SUBPIXELS**2, add_point, zeros) / SUBPIXELS**2
    return view.reshape(size, size, channels)


@functools.cache
def _upright_matrix(size: int, side: int) -> np.ndarray:
    """``(size, side)`` matrix from a tile's coefficients to the fixed view, along one axis."""
    centres = SCALE * (np.arange(size) - (size - 1) / 2) + (side - 1) / 2
    offsets = SCALE * ((np.arange(SUBPIXELS) + 0.5) / SUBPIXELS - 0.5)
    d = np.abs(centres[:, None, None] + offsets[:, None] - np.arange(side))
    spline = (np.maximum(2 - d, 0) ** 3 - 4 * np.maximum(1 - d, 0) ** 3) / 6
    return spline.mean(1).astype(np.float32)


def fixed_view(coefficients: jax.Array, size: int) -> jax.Array:
    """Render the view of the identity; faster than `render_view`, because the axes separate."""
    matrix = _upright_matrix(size, coefficients.shape[0])
    return apply_separable(matrix, coefficients, matrix)


def scene_pairs(tiles: jax.Array, transform: RigidTransform, size: int) -> Pairs:
    """Render pairs of N tiles ``(N, S, S, C)`` and N transforms; jittable with static ``size``."""

    def pair(tile: jax.Array, t: RigidTransform) -> tuple[jax.Array, jax.Array]:
        coefficients = spline_coefficients(tile.astype(jnp.float32))
        return fixed_view(coefficients, size), render_view(coefficients, t, size)

    fixed, moving = jax.vmap(pair)(tiles, transform)
    return Pairs(fixed, moving, transform)


def draw_scene_pairs(
    key: jax.Array, tiles: jax.Array, count: int, size: int, max_shift: float
) -> Pairs:
    """Draw tiles from a stack, with replacement, and a random transform for each.

    Args:
      key: a JAX random key; the same key gives the same pairs.
      tiles: ``(N, S, S, C)`` uint8, on the device, from `draw_tiles` with the same ``size`` and
        ``max_shift``.
      count: number of pairs.
      size: height and width of the views.
      max_shift: translations are uniform on ``[-max_shift, max_shift]`` pixels of the view.

    Raises:
      ValueError: the tiles are too small for ``size`` and ``max_shift``.
    """
    if tiles.shape[1] < tile_side(size, max_shift):
        raise ValueError(
            f"tiles are {tiles.shape[1]} pixels wide, views of size {size} shifted by up to "
            f"{max_shift} need {tile_side(size, max_shift)}"
        )
    tile_key, transform_key = jax.random.split(key)
    index = jax.random.randint(tile_key, (count,), 0, tiles.shape[0])
    tiles = jnp.asarray(tiles)[index]
    return scene_pairs(tiles, draw_transforms(transform_key, count, max_shift), size)


def _is_flat(tile: np.ndarray, size: int) -> bool:
    """Whether the fixed view of a tile has almost no texture; the view is averaged 2 x 2 here."""
    start = (tile.shape[0] - SCALE * size) // 2
    middle = tile[start : start + SCALE * size, start : start + SCALE * size]
    view = middle.reshape(size, SCALE, size, SCALE, -1).mean((1, 3), dtype=np.float32)
    return bool(grey_deviation(view[None])[0] < MIN_DEVIATION)


def iter_tiles(
    photographs: Mapping[str, np.ndarray], size: int, max_shift: float, seed: int
) -> Iterator[np.ndarray]:
    """Iterate endlessly over tiles drawn as by `draw_tiles`; each is a view, not a copy."""
    side = tile_side(size, max_shift)
    large = [photographs[name] for name in sorted(photographs)]
    large = [photograph for photograph in large if min(photograph.shape[:2]) >= side]
    if not large:
        sizes = ", ".join(f"{n} {p.shape[1]}x{p.shape[0]}" for n, p in photographs.items())
        raise ValueError(
            f"photographs must be at least {side}x{side} for views of size {size} shifted by up "
            f"to {max_shift}; got {sizes or 'none'}"
        )
    rng = np.random.default_rng(seed)
    flat = 0
    while True:
        photograph = large[rng.integers(len(large))]
        top = rng.integers(photograph.shape[0] - side + 1)
        left = rng.integers(photograph.shape[1] - side + 1)
        tile = photograph[top : top + side, left : left + side]
        flat = flat + 1 if _is_flat(tile, size) else 0
        if flat > _TRIES:
            raise ValueError(f"photographs show no texture: {flat} tiles in a row were flat")
        if not flat:
            yield tile


def draw_tiles(
    photographs: Mapping[str, np.ndarray], count: int, size: int, max_shift: float, seed: int
) -> np.ndarray:
    """Draw tiles from photographs, from each photograph equally often, at random places.

    A tile whose fixed view has a grey standard deviation below 12 of 255 has too little texture to
    register, and is drawn again. Photographs too small for a tile are left out. A shorter draw
    gives the first tiles of a longer one.

    Args:
      photographs: name -> ``(H, W, 3)`` uint8.
      count: number of tiles.
      size: height and width of the views.
      max_shift: largest translation of the pairs, in pixels of the view.
      seed: seed of NumPy's generator; the same seed gives the same tiles.

    Returns:
      ``(count, S, S, 3)`` uint8, S = ``tile_side(size, max_shift)``.

    Raises:
      ValueError: no photograph is large enough, or none has enough texture.
    """
    tiles = list(itertools.islice(iter_tiles(photographs, size, max_shift, seed), count))
    return np.stack(tiles)
