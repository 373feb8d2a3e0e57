"""A constant border that both images have in the same place, such as letterbox bars.

It stays with the sensor, so an alignment by it says that nothing moved. Content in front of a
constant ground looks alike, but its outline moves with the scene: only a border whose outline is
the same in both images is taken for the sensor's.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.compute.branching import cond_rarely
from jaxreg.direct.masking import eroded, fill

_TOLERANCE = 0.1  # by which pixels of a border may differ, in mean deviations of their image
_TEXTURED = 0.03  # mean deviation of what is beside a border, at least, in that of the whole image
_FEWEST = 16  # px: no border is smaller
_RIM = 1  # px: the outline of a border may be blurred
_REACH = 2  # px: a kernel mixes what is painted over into pixels this far away
# Share of what is seen that is not so close to the border, at least: less is left of the letters of
# a page of text than of a field of view.
_COMPACT = 0.5
_RUN = 4  # px: a border starts in a corner of the frame and runs so far along an edge, at least
# Largest share of its outline's pixels in which a border may differ between the images, for dark
# parts of the scene touch it. In front of a white ground, content that moves by 0.05 and 0.2 px
# differs in 5 and 20%. If it is taken for a border all the same, its own texture remains.
_DIFFERENT = 0.15


class Border(NamedTuple):
    """A border that both images of a pair have alike.

    Attributes:
      there: scalar bool, whether there is one.
      seen: ``(H, W)`` float32, 0 in the border and its rim of one pixel, which are painted over; 1
        elsewhere.
      clear: the same, but 0 as well so close to the border that the painting matters.
    """

    there: jax.Array
    seen: jax.Array
    clear: jax.Array


def without_still_border(pair: jax.Array, deviation: jax.Array) -> tuple[jax.Array, Border]:
    """Images whose common border, with a rim of one pixel, is in-painted from beside it.

    Args:
      pair: ``(2, H, W, C)``, of any unit.
      deviation: ``(2,)``, the mean deviation of each.

    Returns:
      The images, the same where there is no such border, and the border. Gradients pass but there.
    """
    images, deviation = jax.lax.stop_gradient((pair, deviation))

    def none(images: jax.Array, _: jax.Array) -> tuple[Border, jax.Array]:
        # Made of the images: over a mesh, what changes with the pair begins so.
        there = jnp.zeros_like(images[0, 0, 0, 0], bool)
        seen = jnp.ones_like(images[0, :, :, 0])
        return Border(there, seen, seen), images

    may_have = _starts_in_a_corner(images, _TOLERANCE * deviation)
    border, painted = cond_rarely(may_have, _paint, none, images, deviation)
    return jnp.where(border.seen[..., None] > 0.0, pair, painted), border


def _starts_in_a_corner(images: jax.Array, tolerance: jax.Array) -> jax.Array:
    """Whether both images are constant, and the same, along an edge that begins in some corner."""
    flipped = (images, images[:, ::-1], images[:, :, ::-1], images[:, ::-1, ::-1])
    corners = jnp.stack([image[:, :_RUN, :_RUN] for image in flipped])
    alike = _alike(corners, corners[..., :1, :1, :], tolerance)
    run = alike[..., 0, :].all(-1) | alike[..., 0].all(-1)
    return (run.all(1) & _same(corners[:, :, 0, 0], tolerance)).any()


def _alike(image: jax.Array, value: jax.Array, tolerance: jax.Array) -> jax.Array:
    """Which pixels ``(..., 2, H, W)`` of images with channels have a value in all of these."""
    room = tolerance.reshape(*[1] * (image.ndim - 4), 2, 1, 1, 1)
    return (jnp.abs(image - value) <= room).all(-1)


def _same(values: jax.Array, tolerance: jax.Array) -> jax.Array:
    """Whether fixed and moving have the same values ``(K, 2, C)``, for each of K."""
    return (jnp.abs(values[:, 0] - values[:, 1]) <= tolerance.min()).all(-1)


def _paint(images: jax.Array, deviation: jax.Array) -> tuple[Border, jax.Array]:
    """The common border of images, if any, and these without it."""
    tolerance = _TOLERANCE * deviation
    height, width, channels = images.shape[1:]
    corners = images[:, :: height - 1, :: width - 1].reshape(2, 4, channels)
    borders = [
        connected_to_edges(_alike(images, value[:, None, None], tolerance))
        for value in jnp.unstack(corners, axis=1)
    ]
    there = _same(jnp.moveaxis(corners, 0, 1), tolerance) & jnp.stack([*map(_stays, borders)])
    border = (jnp.stack(borders).all(1) & there[:, None, None]).any(0)
    seen = eroded((~border).astype(jnp.float32), _RIM)
    clear = eroded(seen, _REACH)
    # A silhouette has nothing but its outline to register; identical images need no such care.
    there = there.any() & (images[0] != images[1]).any()
    there &= clear.sum() >= _COMPACT * seen.sum()
    there &= (_deviation(images, seen) >= _TEXTURED * deviation).all()
    seen, clear = (jnp.where(there, v, 1.0) for v in (seen, clear))
    return Border(there, seen, clear), fill(images, jnp.stack([seen, seen]))


def _stays(border: jax.Array) -> jax.Array:
    """Whether the border of two images ``(2, H, W)`` is large enough, and has the same outline."""
    both = border.all(0)
    outline = (both[1:] != both[:-1]).sum() + (both[:, 1:] != both[:, :-1]).sum()
    different = (border[0] != border[1]).sum().astype(jnp.float32)
    return (both.sum() >= _FEWEST) & (different <= _DIFFERENT * outline.astype(jnp.float32))


def _deviation(images: jax.Array, seen: jax.Array) -> jax.Array:
    """``(2,)``, the mean deviation of what is seen of both images."""
    weight = seen[None, :, :, None] / jnp.maximum(seen.sum(), 1.0)
    mean = (images * weight).sum((1, 2), keepdims=True)
    return (jnp.abs(images - mean) * weight).sum((1, 2)).mean(-1)


def connected_to_edges(alike: jax.Array) -> jax.Array:
    """Pixels ``(..., H, W)`` bool alike along their row or column up to an edge of the frame."""
    flags = alike.astype(jnp.int32)
    reached = [
        jax.lax.cummin(flags, axis=flags.ndim + axis, reverse=reverse)
        for axis in (-2, -1)
        for reverse in (False, True)
    ]
    return jnp.stack(reached).max(0) > 0
