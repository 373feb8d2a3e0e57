"""Make self-supervised pairs on the device: draw a transform, and warp an image by it.

All randomness comes from an explicit key, so that a training step or an evaluation can be
repeated bit for bit.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxreg.geometry import RigidTransform
from jaxreg.interpolation import Interpolation
from jaxreg.warping import warp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """A batch of image pairs with their true transforms.

    Attributes:
      fixed: ``(N, H, W, C)`` float32, intensities in 0..255.
      moving: the same shape and unit, ``moving = warp(fixed, transform)``.
      transform: N transforms from fixed to moving.
    """

    fixed: jax.Array
    moving: jax.Array
    transform: RigidTransform


def draw_transforms(key: jax.Array, count: int, max_shift: float) -> RigidTransform:
    """Draw transforms, uniform on ``[-max_shift, max_shift]^2`` pixels and [-180, 180) degrees."""
    x_key, y_key, angle_key = jax.random.split(key, 3)
    draw = functools.partial(jax.random.uniform, shape=(count,), dtype=jnp.float32)
    return RigidTransform(
        draw(x_key, minval=-max_shift, maxval=max_shift),
        draw(y_key, minval=-max_shift, maxval=max_shift),
        draw(angle_key, minval=-180.0, maxval=180.0),
    )


def warp_pairs(
    images: jax.Array, transform: RigidTransform, interpolation: Interpolation = "linear"
) -> Pairs:
    """Make pairs of N images ``(N, H, W, C)`` and N transforms; zeros outside, as in the paper."""
    fixed = images.astype(jnp.float32)
    moving = jax.vmap(lambda image, t: warp(image, t, interpolation))(fixed, transform)
    return Pairs(fixed, moving, transform)


def draw_pairs(
    key: jax.Array,
    images: jax.Array,
    count: int,
    max_shift: float,
    interpolation: Interpolation = "linear",
) -> Pairs:
    """Draw images from a set, with replacement, and warp each by a random transform.

    Args:
      key: a JAX random key; the same key gives the same pairs.
      images: ``(N, H, W, C)`` uint8, on the device.
      count: number of pairs.
      max_shift: translations are uniform on ``[-max_shift, max_shift]`` pixels.
      interpolation: kernel with which the moving image is rendered.
    """
    image_key, transform_key = jax.random.split(key)
    index = jax.random.randint(image_key, (count,), 0, images.shape[0])
    transform = draw_transforms(transform_key, count, max_shift)
    return warp_pairs(images[index], transform, interpolation)
