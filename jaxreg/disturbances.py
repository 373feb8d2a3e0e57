"""Disturb pairs as between two real exposures: occlusion, blur, light and noise.

The order is a camera's: an object hides a part of the moving image, the moving image is blurred,
its light changes, and noise is added to both images. Intensities are neither clipped nor rounded
afterwards: either would make the noise depend on the picture, and the bound on accuracy under noise
(`jaxreg.evaluation.bound`) holds for plain Gaussian noise.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxreg.pairs import Pairs

_BLUR_REACH = 4.0  # standard deviations at which the Gaussian is cut off


@dataclasses.dataclass(frozen=True)
class Disturbance:
    """Strengths of the disturbances of a pair; zero switches one off.

    Attributes:
      noise: standard deviation of Gaussian noise in both images, independent in every pixel and
        channel, in grey levels of 255.
      gain: the moving image is multiplied by a factor uniform on ``[1 - gain, 1 + gain]``.
      bias: an offset uniform on ``[-bias, bias]`` grey levels is added to the moving image.
      blur: standard deviation, in pixels, of a Gaussian blur of the moving image.
      occlusion: share of the moving image's area, in [0, 1], that a square of one random colour
        hides. The square lies at a random place wholly inside the image.

    Raises:
      ValueError: a strength is negative or not finite, or the occlusion exceeds 1.
    """

    noise: float = 0.0
    gain: float = 0.0
    bias: float = 0.0
    blur: float = 0.0
    occlusion: float = 0.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 0.0 <= value < math.inf:
                raise ValueError(f"{field.name} must be zero or more, got {value}")
        if self.occlusion > 1.0:
            raise ValueError(
                f"occlusion must be a part of the area in [0, 1], got {self.occlusion}"
            )


UNDISTURBED = Disturbance()


def _occlude(key: jax.Array, image: jax.Array, area: jax.Array) -> jax.Array:
    """Fill a square with one random colour; ``area`` is its share of the image's area."""
    height, width, channels = image.shape
    side = jnp.minimum(jnp.round(jnp.sqrt(area * height * width)), min(height, width))
    place_key, colour_key = jax.random.split(key)
    room = jnp.stack([height - side, width - side]) + 1.0
    top, left = jnp.floor(jax.random.uniform(place_key, (2,)) * room)
    y, x = jnp.arange(height)[:, None], jnp.arange(width)
    inside = (y >= top) & (y < top + side) & (x >= left) & (x < left + side)
    colour = jax.random.uniform(colour_key, (channels,), maxval=255.0)
    return jnp.where(inside[..., None], colour, image)


def _blur(image: jax.Array, sigma: jax.Array, radius: int) -> jax.Array:
    """Blur by a Gaussian, the image mirrored at its borders (``scipy.ndimage``'s "reflect")."""
    distance = jnp.arange(-radius, radius + 1)
    # With sigma = 0 only the middle weight remains, without a division by zero.
    kernel = jnp.exp(-0.5 * (distance / jnp.maximum(sigma, 1e-3)) ** 2)
    kernel = kernel / kernel.sum()
    for axis in (0, 1):
        length = image.shape[axis]
        pad = [(radius, radius) if a == axis else (0, 0) for a in range(3)]
        padded = jnp.pad(image, pad, mode="symmetric")
        image = jnp.zeros_like(image)
        for k in range(2 * radius + 1):
            image += kernel[k] * jax.lax.slice_in_dim(padded, k, k + length, axis=axis)
    return image


def disturb_pair(
    key: jax.Array,
    fixed: jax.Array,
    moving: jax.Array,
    disturbance: Disturbance,
    random_strength: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Disturb one pair of images ``(H, W, C)``; see `disturb`."""
    occlusion_key, light_key, fixed_key, moving_key, strength_key = jax.random.split(key, 5)
    strength = jnp.ones(5)
    if random_strength:
        strength = jax.random.uniform(strength_key, (5,))
    d = disturbance
    if d.occlusion:
        moving = _occlude(occlusion_key, moving, d.occlusion * strength[0])
    if d.blur:
        moving = _blur(moving, d.blur * strength[1], math.ceil(_BLUR_REACH * d.blur))
    if d.gain or d.bias:
        gain, bias = jax.random.uniform(light_key, (2,), minval=-1.0, maxval=1.0)
        moving = (1.0 + d.gain * strength[2] * gain) * moving + d.bias * strength[3] * bias
    if d.noise:
        sigma = d.noise * strength[4]
        fixed = fixed + sigma * jax.random.normal(fixed_key, fixed.shape)
        moving = moving + sigma * jax.random.normal(moving_key, moving.shape)
    return fixed, moving


def disturb(
    key: jax.Array, pairs: Pairs, disturbance: Disturbance, random_strength: bool = False
) -> Pairs:
    """Disturb each pair independently; jittable with static ``disturbance``.

    Args:
      key: a JAX random key; the same key gives the same disturbances.
      pairs: N pairs, float32 intensities in 0..255.
      disturbance: the strengths.
      random_strength: scale each strength of each pair by a factor of its own, uniform on [0, 1],
        as for training. Without it, noise, blur and hidden area are exactly as given. Gain and
        bias are drawn from their ranges in either case.

    Returns:
      The disturbed pairs; their intensities may leave 0..255.
    """
    keys = jax.random.split(key, pairs.fixed.shape[0])
    fixed, moving = jax.vmap(lambda k, f, m: disturb_pair(k, f, m, disturbance, random_strength))(
        keys, pairs.fixed, pairs.moving
    )
    return Pairs(fixed, moving, pairs.transform)
