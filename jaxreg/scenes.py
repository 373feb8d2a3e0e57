"""Pairs whose two images are views of one larger photograph.

What leaves the frame is lost and new scene enters; there are no black corners that give the angle
away. Both views are rendered alike, as a camera would: the photograph is a cubic spline, two of
its pixels go to one pixel of the view, and a pixel is the mean of 4 x 4 points spread over it.

The photograph comes as square *tiles*, `tile_side` pixels wide, just large enough that every view
the transforms allow lies inside. The fixed view sits upright in the tile's middle; the moving one
is placed such that a pixel p of the fixed view is found at ``T(p)`` in it. Tiles are uint8, so a
stack of them fits on the device, and pairs can be made inside a jitted training step.
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
_SUPPORT = 3  # photograph pixels that the spline and a pixel's width reach beyond its centre
_TRIES = 1000  # flat tiles in a row before the photographs are given up


def tile_side(size: int, max_shift: float) -> int:
    """Side of a tile that holds every view of a pair, and the spline's support around it.

    >>> tile_side(32, 5.0), tile_side(96, 15.0)
    (126, 364)
    """
    corner = math.sqrt(2.0) * (size / 2 + max_shift)  # the point farthest from the fixed centre
    # Even, so that two whole photograph pixels go to one pixel of the fixed view.
    return 2 * math.ceil(SCALE * corner + _SUPPORT)


def _subpixels() -> np.ndarray:
    """``(16, 2)`` offsets ``(x, y)`` of a pixel's sample points from its centre, in pixels."""
    steps = (np.arange(SUBPIXELS) + 0.5) / SUBPIXELS - 0.5
    x, y = np.meshgrid(steps, steps)
    return np.stack([x, y], -1).reshape(-1, 2).astype(np.float32)


def render_view(coefficients: jax.Array, transform: RigidTransform, size: int) -> jax.Array:
    """The view of a scene in which the fixed view's pixel p appears at ``transform(p)``.

    Args:
      coefficients: ``(S, S, C)`` from `jaxreg.interpolation.spline_coefficients` of a tile. What
        a view sees beyond the tile is made up (see `tile_side` for how large it must be).
      transform: one transform, in pixels of the view; the identity gives the fixed view.
      size: height and width of the view.

    Returns:
      ``(size, size, C)`` float32.
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

    # A loop, because one expression for all sixteen points is ten times slower on CPU.
    zeros = jnp.zeros((size * size, channels), jnp.float32)
    view = jax.lax.fori_loop(0, SUBPIXELS**2, add_point, zeros) / SUBPIXELS**2
    return view.reshape(size, size, channels)


@functools.cache
def _upright_matrix(size: int, side: int) -> np.ndarray:
    """``(size, side)`` weights of a tile's coefficients in the fixed view, along one axis."""
    centres = SCALE * (np.arange(size) - (size - 1) / 2) + (side - 1) / 2
    offsets = SCALE * ((np.arange(SUBPIXELS) + 0.5) / SUBPIXELS - 0.5)
    d = np.abs(centres[:, None, None] + offsets[:, None] - np.arange(side))
    spline = (np.maximum(2 - d, 0) ** 3 - 4 * np.maximum(1 - d, 0) ** 3) / 6
    return spline.mean(1).astype(np.float32)


def fixed_view(coefficients: jax.Array, size: int) -> jax.Array:
    """`render_view` of the identity, faster: without a rotation the two axes are separate."""
    matrix = _upright_matrix(size, coefficients.shape[0])
    return apply_separable(matrix, coefficients, matrix)


def scene_pairs(tiles: jax.Array, transform: RigidTransform, size: int) -> Pairs:
    """The pairs of N tiles ``(N, S, S, C)`` and N transforms; jittable with ``size`` static."""

    def pair(tile: jax.Array, t: RigidTransform) -> tuple[jax.Array, jax.Array]:
        coefficients = spline_coefficients(tile.astype(jnp.float32))
        return fixed_view(coefficients, size), render_view(coefficients, t, size)

    fixed, moving = jax.vmap(pair)(tiles, transform)
    return Pairs(fixed, moving, transform)


def draw_scene_pairs(
    key: jax.Array, tiles: jax.Array, count: int, size: int, max_shift: float
) -> Pairs:
    """Draw tiles from a stack, with repetition, and a transform for each.

    Args:
      key: a JAX random key; the same key gives the same pairs.
      tiles: ``(N, S, S, C)`` uint8, resident on the device, from `draw_tiles` with the same
        ``size`` and ``max_shift``.
      count: how many pairs.
      size: height and width of the views.
      max_shift: translations are uniform on ``[-max_shift, max_shift]`` pixels.
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
    """Whether the fixed view of a tile, here two by two pixels averaged, shows next to nothing."""
    start = (tile.shape[0] - SCALE * size) // 2
    middle = tile[start : start + SCALE * size, start : start + SCALE * size]
    view = middle.reshape(size, SCALE, size, SCALE, -1).mean((1, 3), dtype=np.float32)
    return bool(grey_deviation(view[None])[0] < MIN_DEVIATION)


def iter_tiles(
    photographs: Mapping[str, np.ndarray], size: int, max_shift: float, seed: int
) -> Iterator[np.ndarray]:
    """Endless tiles, drawn from photographs as in `draw_tiles`; each a view, not a copy."""
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
    """Draw tiles from photographs: each photograph equally often, from anywhere in it.

    A tile whose fixed view has a grey standard deviation under 12 of 255 holds nothing to register
    and is drawn again; photographs too small for a tile are left out. The first tiles of a longer
    draw are those of a shorter one.

    Args:
      photographs: name -> ``(H, W, 3)`` uint8.
      count: how many tiles.
      size: height and width of the views.
      max_shift: largest translation of the pairs, in pixels of the view.
      seed: of NumPy's generator; the same seed gives the same tiles.

    Returns:
      ``(count, S, S, 3)`` uint8, S = ``tile_side(size, max_shift)``.

    Raises:
      ValueError: no photograph is large enough, or none has any texture.
    """
    tiles = list(itertools.islice(iter_tiles(photographs, size, max_shift, seed), count))
    return np.stack(tiles)
