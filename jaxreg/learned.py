"""The networks of the package as methods of registration; they work under ``jit`` and ``vmap``."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxreg.compute.pytrees import allow_rank_promotion
from jaxreg.models.trained import TrainedNetwork
from jaxreg.models.weights import read_weights
from jaxreg.network_files import SHIPPED, SUFFIX
from jaxreg.result import Doubt, Registration, raised

_BY_SIDE = {32: "compact32", 96: "compact96"}  # by height and width of the images


@jax.jit
@allow_rank_promotion
def compact(fixed: jax.Array, moving: jax.Array) -> Registration:
    """Register N pairs with the package's compact network for their size, in one forward pass.

    The networks are trained for shifts up to 5 pixels at 32x32 and 15 at 96x96, and for all angles.
    ``score`` is the network's confidence, see `jaxreg.models.compact.Compact.estimate`.

    Args:
      fixed: ``(N, S, S, C)`` float32 of any unit and offset, S 32 or 96, C 1 or 3.
      moving: the same shape.

    Raises:
      ValueError: the images have another size or number of channels.
    """
    network = _network(fixed.shape)
    finite = jnp.isfinite(fixed).all((1, 2, 3)) & jnp.isfinite(moving).all((1, 2, 3))
    keep = finite[:, None, None, None]
    fixed, moving = (jnp.where(keep, images, 0.0) for images in (fixed, moving))
    # `_grey_levels` has no derivative at a flat image, nor has the answer to such a pair.
    flat = (_is_flat(fixed) | _is_flat(moving))[:, None, None, None]
    fixed, moving = (jnp.where(flat, jax.lax.stop_gradient(i), i) for i in (fixed, moving))
    answer = network.estimate(_grey_levels(fixed), _grey_levels(moving))
    doubts = raised(Doubt.NOT_FINITE, ~finite) | raised(
        Doubt.NETWORK_UNSURE, jnp.logical_not(answer.success)
    )
    return dataclasses.replace(answer, success=doubts == 0, doubts=doubts)


def _network(shape: tuple[int, ...]) -> TrainedNetwork:
    """The package's network for images ``(N, H, W, C)``; ValueError if there is none."""
    height, width, channels = shape[-3:]
    if height != width or height not in _BY_SIDE:
        raise ValueError(
            f"fixed and moving must be {' or '.join(f'{s}x{s}' for s in _BY_SIDE)} for method "
            f"'compact', got {height}x{width}; method 'direct' takes any size"
        )
    if channels not in (1, 3):
        raise ValueError(
            f"fixed and moving must have 1 or 3 channels for method 'compact', got {channels}; "
            "method 'direct' takes any number"
        )
    return _shipped(_BY_SIDE[height])


@functools.cache
def _shipped(name: str) -> TrainedNetwork:
    return read_weights(SHIPPED / f"{name}{SUFFIX}")


def _is_flat(images: jax.Array) -> jax.Array:
    """``(N,)`` bool, whether all values of an image are equal."""
    return images.max((1, 2, 3)) == images.min((1, 2, 3))


def _grey_levels(images: jax.Array) -> jax.Array:
    """Convert images of any unit to three channels of about 0..255, as in the network's training.

    The network removes gain and bias itself, but treats an image that varies by less than a tenth
    of a grey level as flat.
    """
    images = jnp.broadcast_to(images, (*images.shape[:3], 3))
    largest = jnp.maximum(jnp.abs(images).max((1, 2, 3), keepdims=True), 1e-30)
    unit = images / largest
    unit = unit - unit.mean((1, 2, 3), keepdims=True)
    # The bound keeps texture below the rounding of float32 from being amplified.
    spread = jnp.sqrt(jnp.square(unit).mean((1, 2, 3), keepdims=True))
    return 128.0 + 50.0 * unit / jnp.maximum(spread, 1e-6)
