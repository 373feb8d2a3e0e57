"""What stays with the sensor and not with the scene, and would be registered onto itself."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxreg.compute.pytrees import allow_rank_promotion
from jaxreg.images import real_array

_FEWEST = 16  # px: a border has no fewer
# By how many standard deviations of the noise a hot pixel exceeds all its neighbours, and by which
# share of its height above their median: the peak of a spot that optics blur does not.
_SIGMAS, _STEEP = 5.0, 0.5


def scene_mask(frames: ArrayLike, tolerance: float = 0.02) -> jax.Array:
    """Which pixels show the scene: a mask for `jaxreg.register` and `jaxreg.register_batch`.

    Left out are a constant border that all frames have alike, such as letterbox bars or the dark
    around a round field of view, with a rim of one pixel; and hot and dead pixels, which stand out
    from all their neighbours in every frame.

    An object on a black ground that hardly moves looks like a border, and a star sharper than a
    pixel like a hot one: then either is left out with the sensor's, and answers are less precise.

    Args:
      frames: ``(N, H, W)`` or ``(N, H, W, C)``, two at least, any real dtype: a movie, or both
        images of a pair.
      tolerance: by how much a border may vary, as a share of the range that 90% of a
        frame's values lie in, for noise and JPEG.

    Returns:
      ``(H, W)`` bool, True where a pixel counts.

    Raises:
      ValueError: frames is no such stack.

    >>> moving = jnp.zeros((2, 32, 32)).at[:, 8:-8].set(jax.random.uniform(jax.random.key(0), 32))
    >>> scene_mask(moving)[:, 0].sum().item()  # without bars of 8 lines and their rims of 1
    14
    """
    frames = jnp.asarray(real_array(frames, "frames"), jnp.float32)
    if frames.ndim not in (3, 4) or len(frames) < 2:
        raise ValueError(
            f"frames must be two or more, (N, H, W) or (N, H, W, C), got shape {frames.shape}"
        )
    return _scene_mask(frames if frames.ndim == 4 else frames[..., None], jnp.float32(tolerance))


@jax.jit
@allow_rank_promotion
def _scene_mask(frames: jax.Array, tolerance: jax.Array) -> jax.Array:
    frames, lone = _without_lone_pixels(frames)
    # Not of what few pixels are: beside bright stars all of the sky is alike.
    low, high = jnp.quantile(frames, jnp.array([0.05, 0.95]), axis=(1, 2, 3), keepdims=True)
    room = tolerance * (high - low)

    def border(corner: tuple[int, int]) -> jax.Array:
        seed = jnp.zeros(frames.shape[1:3], bool).at[corner].set(True)
        value = frames[:, corner[0], corner[1]][:, None, None]
        region = _connected(seed, (jnp.abs(frames - value) <= room).all((0, 3)))
        return region & (region.sum() >= _FEWEST)

    corners = map(border, [(0, 0), (0, -1), (-1, 0), (-1, -1)])
    borders = functools.reduce(jnp.logical_or, corners)
    return ~(borders | _neighbours(borders).any(0) | lone)


def _connected(region: jax.Array, alike: jax.Array) -> jax.Array:
    """A region ``(H, W)`` grown over all pixels alike that it reaches by their sides."""

    def grown(region: jax.Array) -> jax.Array:
        up, left, right, down = _neighbours(region)[jnp.array([1, 3, 4, 6])]
        return (region | up | left | right | down) & alike

    def grow(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return state[1], grown(state[1])

    grows = lambda state: (state[0] != state[1]).any()  # noqa: E731
    return jax.lax.while_loop(grows, grow, (region, grown(region)))[1]


def _without_lone_pixels(frames: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Frames less pixels that are brighter, or darker, than all around in each; and these pixels.

    Args:
      frames: ``(N, H, W, C)``.

    Returns:
      The frames with their neighbours' median for such pixels, ``(H, W)`` bool.
    """

    def look(frame: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        planes = jnp.moveaxis(frame, -1, 0)
        mirrored = jnp.pad(planes, ((0, 0), (1, 1), (1, 1)), "reflect")
        around = _neighbours(mirrored)[..., 1:-1, 1:-1]
        median = jnp.median(around, axis=0)
        height = planes - median
        noise = 1.4826 * jnp.median(jnp.abs(height), axis=(1, 2), keepdims=True)
        least = jnp.maximum(_SIGMAS * noise, _STEEP * jnp.abs(height))
        hot, dead = planes - around.max(0) > least, around.min(0) - planes > least
        return jnp.moveaxis(median, 0, -1), hot, dead

    # One by one: all neighbours of all frames would be eight movies.
    median, hot, dead = jax.lax.map(look, frames)
    lone = (hot.all(0) | dead.all(0)).any(0)
    return jnp.where(lone[..., None], median, frames), lone


def _neighbours(image: jax.Array) -> jax.Array:
    """``(8, ..., H, W)``: the values around each pixel, row by row; zeros outside."""
    height, width = image.shape[-2:]
    padded = jnp.pad(image, [(0, 0)] * (image.ndim - 2) + [(1, 1)] * 2)
    places = [(i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)]
    return jnp.stack([padded[..., i : i + height, j : j + width] for i, j in places])
