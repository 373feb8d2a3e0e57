"""What the direct method does with two images before it registers them.

It leaves values that are not finite out, finds what is mere padding, brings both images into
common units, and tells which mix of channels says most.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.products import times

# Spreads that differ by less than this factor, and means by less than so many spreads, are left for
# the refinement to follow, whose gain may be up to 10.
_ALIKE = 8.0
# Share of an image's largest value below which all channels of a pixel are as good as black, for
# JPEG leaves no zeros; and the shares of such pixels up to which an image has none, and from which
# it may be padded.
_BLACK = 0.02
_NONE, _SOME = 0.005, 0.02
_RIM = 2  # px: a warp blends in a pixel's breadth, which at 45 degrees reaches over two
_FAR = 3.0  # spreads


class Prepared(NamedTuple):
    """A pair, ready to be registered.

    Attributes:
      fixed: ``(H, W, C)`` in common units.
      moving: likewise.
      axis: ``(C, 1)``, the mix of channels that varies most in both.
      padding: ``(2, H, W)`` bool, what of fixed and moving is padding, with a rim.
      more_in_fixed: scalar bool, whether the fixed image has more black pixels than the other.
      finite: scalar bool; if False, both images are zero.
    """

    fixed: jax.Array
    moving: jax.Array
    axis: jax.Array
    padding: jax.Array
    more_in_fixed: jax.Array
    finite: jax.Array


def prepare(fixed: jax.Array, moving: jax.Array) -> Prepared:
    """Prepare images ``(H, W, C)``, float32 of any unit.

    Gradients pass through fixed and moving; units and axis count as constants.
    """
    finite = jnp.isfinite(fixed).all() & jnp.isfinite(moving).all()
    fixed, moving = jnp.where(finite, fixed, 0.0), jnp.where(finite, moving, 0.0)
    images = jax.lax.stop_gradient(jnp.stack([fixed, moving]))
    images /= jnp.maximum(jnp.abs(images).max((1, 2, 3), keepdims=True), 1e-30)
    black = jax.vmap(_black)(images)
    share = black.mean((1, 2))
    padding = _padding(images, black, share)
    fixed, moving = _in_common_units(fixed, moving, padding)
    axis = principal_axis(*jax.lax.stop_gradient((fixed, moving)))
    return Prepared(fixed, moving, axis, padding, share[0] > share[1] + _SOME, finite)


def _black(image: jax.Array) -> jax.Array:
    """``(H, W)`` bool: which pixels of an image, in units of its largest value, are near black.

    None if there are values below zero: then zero is a value like any other.
    """
    return (image.max(-1) <= _BLACK) & (image.min() >= 0.0)


def _padding(images: jax.Array, black: jax.Array, share: jax.Array) -> jax.Array:
    """``(2, H, W)`` bool: black pixels that a warp left around a faint picture on a bright ground.

    They, and what blends into them, would outweigh all else. Black that the other image has as
    well, that reaches no corner of the frame, or that is not far below the rest, is content.

    Args:
      images: ``(2, H, W, C)``, fixed and moving in units of their largest value.
      black: ``(2, H, W)``, see `_black`.
      share: ``(2,)``, of black pixels.
    """
    cornered = black[:, :: black.shape[1] - 1, :: black.shape[2] - 1].any((1, 2))
    padded = cornered & (share > _SOME) & (share[::-1] < _NONE)
    around = black & padded[:, None, None]
    for axis in (1, 2):
        window, pads = [1, 1, 1], [(0, 0)] * 3
        window[axis], pads[axis] = 2 * _RIM + 1, (_RIM, _RIM)
        around = jax.lax.reduce_window(around, False, jax.lax.bitwise_or, window, (1, 1, 1), pads)
    grey = images.mean(-1)
    count = jnp.maximum((~around).sum((1, 2), keepdims=True), 1.0)
    mean = jnp.where(around, 0.0, grey).sum((1, 2), keepdims=True) / count
    energy = jnp.where(around, 0.0, jnp.square(grey - mean)).sum((1, 2), keepdims=True)
    return around & (grey < mean - _FAR * jnp.sqrt(energy / count))


def without_padding(plane: jax.Array, padding: jax.Array) -> jax.Array:
    """A plane ``(H, W)`` with the mean of the rest for its padding."""
    kept = ~padding
    mean = (plane * kept).sum() / jnp.maximum(kept.sum(), 1.0)
    return jnp.where(padding, mean, plane)


def _in_common_units(
    fixed: jax.Array, moving: jax.Array, padding: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Both images about zero and of a spread near 1, whatever their unit and offset.

    Float32 then resolves a faint texture on a bright background, and thresholds mean the same for
    any unit. Both are treated alike, so that a small change of brightness between them is left for
    the refinement to judge, unless they differ beyond what it can follow (uint8 against [0, 1]).
    """

    def describe(image: jax.Array, pad: jax.Array) -> tuple[jax.Array, jax.Array]:
        largest = jnp.maximum(jnp.abs(image).max(), 1e-30)
        unit = image / largest
        kept = ~pad[..., None]
        count = jnp.maximum(kept.sum(), 1.0)
        mean = (unit * kept).sum((0, 1)) / count
        square = (jnp.square(unit - mean) * kept).sum() / (count * image.shape[-1])
        # Texture below the rounding of float32 is not blown up.
        return mean * largest, jnp.maximum(jnp.sqrt(square), 1e-6) * largest

    (mean_f, spread_f), (mean_m, spread_m) = jax.lax.stop_gradient(
        (describe(fixed, padding[0]), describe(moving, padding[1]))
    )
    larger = jnp.maximum(spread_f, spread_m)
    alike = (larger < _ALIKE * jnp.minimum(spread_f, spread_m)) & (
        jnp.abs(mean_f - mean_m).max() < _ALIKE * larger
    )
    middle = 0.5 * mean_f + 0.5 * mean_m
    own = lambda image, mean, spread: (  # noqa: E731
        (image - jnp.where(alike, middle, mean)) / jnp.where(alike, larger, spread)
    )
    return own(fixed, mean_f, spread_f), own(moving, mean_m, spread_m)


def principal_axis(fixed: jax.Array, moving: jax.Array) -> jax.Array:
    """The mix of channels ``(C, 1)`` in which two images ``(H, W, C)`` both vary most.

    Both, for black corners vary in grey alone, where the other image may be constant: hence the
    parallel sum of the two covariances, which is large only where both are.
    """
    channels = fixed.shape[-1]
    if channels == 1:
        return jnp.ones((1, 1), jnp.float32)

    def inverse_spread(image: jax.Array) -> jax.Array:
        centred = (image - image.mean((0, 1))).reshape(-1, channels).T
        spread = times(centred, centred)
        ridge = 1e-4 * jnp.trace(spread) / channels + 1e-12
        return jnp.linalg.inv(spread + ridge * jnp.eye(channels, dtype=jnp.float32))

    return jnp.linalg.eigh(inverse_spread(fixed) + inverse_spread(moving))[1][:, :1]
