"""Find pixels that stay with the sensor, not the scene, and would register onto themselves."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxreg.compute.pytrees import allow_rank_promotion
from jaxreg.images import are_traced, real_array

_FEWEST = 16  # px: the smallest border
# A hot pixel exceeds all its neighbours by so many standard deviations of the noise, and by this
# share of its height above their median. The peak of a spot blurred by optics does not.
_SIGMAS, _STEEP = 5.0, 0.5


def scene_mask(frames: ArrayLike, tolerance: float = 0.02) -> jax.Array:
    """Find the pixels that show the scene: a mask for `jaxreg.register` and `register_batch`.

    The mask leaves out a constant border that all frames share, such as letterbox bars or the dark
    surround of a round field of view, with a rim of one pixel; and hot and dead pixels, which stand
    out from all their neighbours in every frame. It also leaves out pixels that are NaN or infinite
    in any frame, such as those that `jaxreg.warp` filled with NaN.

    `jaxreg.register` leaves out a border without noise by itself; a mask is more reliable.

    The black background around an object that hardly moves looks like a border, and a star sharper
    than a pixel looks like a hot pixel. They are left out too, and answers are then less precise.

    Args:
      frames: ``(N, H, W)`` or ``(N, H, W, C)``, at least two, any real dtype: a movie, or both
        images of a pair.
      tolerance: how much a border may vary, to allow for noise and JPEG, as a share of the range
        that holds the middle 90% of a frame's values; one finite number of at least 0.

    Returns:
      ``(H, W)`` bool, True where a pixel counts.

    Raises:
      ValueError: ``frames`` is no such stack, or ``tolerance`` no such number.

    >>> moving = jnp.zeros((2, 32, 32)).at[:, 8:-8].set(jax.random.uniform(jax.random.key(0), 32))
    >>> scene_mask(moving)[:, 0].sum().item()  # without bars of 8 lines and their rims of 1
    14
    """
    frames = jnp.asarray(real_array(frames, "frames"), jnp.float32)
    if frames.ndim not in (3, 4) or len(frames) < 2:
        raise ValueError(
            f"frames must be two or more, (N, H, W) or (N, H, W, C), got shape {frames.shape}"
        )
    room = real_array(tolerance, "tolerance")
    if room.ndim or not (are_traced(room) or 0.0 <= room < np.inf):
        raise ValueError(f"tolerance must be one finite number of at least 0, got {tolerance}")
    return _scene_mask(frames if frames.ndim == 4 else frames[..., None], jnp.float32(room))


@jax.jit
@allow_rank_promotion
def _scene_mask(frames: jax.Array, tolerance: jax.Array) -> jax.Array:
    finite = jnp.isfinite(frames).all((0, 3))
    frames, lone = _without_lone_pixels(jnp.where(finite[..., None], frames, jnp.nan))
    # Without the extremes: compared to a few bright stars, all of the sky would be constant.
    low, high = jnp.nanquantile(frames, jnp.array([0.05, 0.95]), axis=(1, 2, 3), keepdims=True)
    room = tolerance * (high - low)

    def border(corner: tuple[int, int]) -> jax.Array:
        seed = jnp.zeros(frames.shape[1:3], bool).at[corner].set(True)
        value = frames[:, corner[0], corner[1]][:, None, None]
        region = _connected(seed, (jnp.abs(frames - value) <= room).all((0, 3)))
        return region & (region.sum() >= _FEWEST)

    corners = map(border, [(0, 0), (0, -1), (-1, 0), (-1, -1)])
    borders = functools.reduce(jnp.logical_or, corners)
    return finite & ~(borders | _neighbours(borders).any(0) | lone)


def _connected(region: jax.Array, alike: jax.Array) -> jax.Array:
    """Grow a region ``(H, W)`` over all ``alike`` pixels that it reaches through shared sides."""

    def grown(region: jax.Array) -> jax.Array:
        up, left, right, down = _neighbours(region)[jnp.array([1, 3, 4, 6])]
        return (region | up | left | right | down) & alike

    def grow(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return state[1], grown(state[1])

    grows = lambda state: (state[0] != state[1]).any()  # noqa: E731
    return jax.lax.while_loop(grows, grow, (region, grown(region)))[1]


def _without_lone_pixels(frames: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Replace pixels that are brighter, or darker, than all their neighbours in every frame.

    Args:
      frames: ``(N, H, W, C)``; pixels that are NaN are nobody's neighbours.

    Returns:
      The frames, with the median of the neighbours at such pixels; and ``(H, W)`` bool, these
      pixels.
    """

    def look(frame: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        planes = jnp.moveaxis(frame, -1, 0)
        mirrored = jnp.pad(planes, ((0, 0), (1, 1), (1, 1)), "reflect")
        around = _neighbours(mirrored)[..., 1:-1, 1:-1]
        median = jnp.nanmedian(around, axis=0)
        height = planes - median
        noise = 1.4826 * jnp.nanmedian(jnp.abs(height), axis=(1, 2), keepdims=True)
        least = jnp.maximum(_SIGMAS * noise, _STEEP * jnp.abs(height))
        hot = planes - jnp.nanmax(around, axis=0) > least
        dead = jnp.nanmin(around, axis=0) - planes > least
        return jnp.moveaxis(median, 0, -1), hot, dead

    # Frame by frame: the neighbours of all frames take eight times the memory of the movie.
    median, hot, dead = jax.lax.map(look, frames)
    lone = (hot.all(0) | dead.all(0)).any(0)
    return jnp.where(lone[..., None], median, frames), lone


def _neighbours(image: jax.Array) -> jax.Array:
    """``(8, ..., H, W)``: the values of each pixel's neighbours, row by row; zeros outside."""
    height, width = image.shape[-2:]
    padded = jnp.pad(image, [(0, 0)] * (image.ndim - 2) + [(1, 1)] * 2)
    places = [(i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)]
    return jnp.stack([padded[..., i : i + height, j : j + width] for i, j in places])
