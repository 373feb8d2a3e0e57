"""Sample images at points, and warp them by rigid transforms.

`warp` pulls: the output pixel p' takes the value of the input at ``T^-1(p')``. Content therefore
moves by ``T``, and ``warp(fixed, T)`` is the moving image of the pair whose transform is ``T``.
Outside the image the value is zero, or another that the caller gives, and pixels half outside blend
with it, as in ``cv2.warpAffine``. All functions work under ``jit`` and ``vmap`` and are
differentiable with respect to image and transform.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxreg.compute.pytrees import allow_rank_promotion
from jaxreg.geometry import (
    MOST_CHANNELS,
    RigidTransform,
    Shape,
    as_points,
    check_transform,
    image_centre,
)
from jaxreg.images import real_array
from jaxreg.interpolation import Interpolation, check_interpolation, spline_coefficients, taps

_PAD = 2  # rim of zeros around the image, so that taps outside read zero without a test for each
_ROUNDING = 1e-5  # of the sum of a kernel's weights, which is 1


def pixel_grid(shape: Shape) -> jax.Array:
    """``(H, W, 2)`` float32 array of the pixel centres ``(x, y)`` of an image."""
    y, x = jnp.meshgrid(
        jnp.arange(shape[0], dtype=jnp.float32),
        jnp.arange(shape[1], dtype=jnp.float32),
        indexing="ij",
    )
    return jnp.stack([x, y], axis=-1)


def sample(
    image: ArrayLike, points: ArrayLike, interpolation: Interpolation = "linear"
) -> jax.Array:
    """Interpolate an image at points; zero outside the image.

    Args:
      image: ``(H, W)`` or ``(H, W, C)``, any real dtype.
      points: ``(..., 2)`` array of ``(x, y)`` in pixels.
      interpolation: ``"nearest"``, ``"linear"``, ``"cubic"`` or ``"spline"`` (see
        `jaxreg.interpolation`).

    Returns:
      ``(...,)`` or ``(..., C)`` float32.

    Raises:
      ValueError: ``image`` or ``points`` has another shape, ``image`` holds no real numbers or is a
        masked array, or the interpolation is unknown.

    >>> ramp = jnp.arange(16.0).reshape(4, 4)
    >>> float(sample(ramp, jnp.array([1.5, 2.0])))
    9.5
    """
    check_interpolation(interpolation)
    image = jnp.asarray(real_array(image, "image"), jnp.float32)
    if image.ndim not in (2, 3):
        raise ValueError(f"image must be (H, W) or (H, W, C), got shape {image.shape}")
    return _sampled(image, as_points(points), interpolation)


# Jitted also outside a caller's program: operation by operation it takes 100 times as long.
@functools.partial(jax.jit, static_argnums=2, inline=True)
@allow_rank_promotion
def _sampled(image: jax.Array, points: jax.Array, interpolation: Interpolation) -> jax.Array:
    if image.ndim == 2:
        return _sampled(image[..., None], points, interpolation)[..., 0]
    height, width, channels = image.shape
    if interpolation == "spline":
        # The spline continues mirrored outside. So it is held at the rim, and faded to blend with
        # zeros.
        image, pad = spline_coefficients(image, rim=1), _PAD - 1
        inside = jnp.clip(points, 0.0, jnp.float32([width - 1, height - 1]))
        beyond = jnp.abs(points - inside)
        points, shown = inside, jnp.prod(jnp.maximum(1.0 - beyond, 0.0), axis=-1)
    else:
        pad, shown = _PAD, jnp.float32(1.0)
        # From farther outside no kernel reaches the image, and infinity has no fractional part.
        points = jnp.clip(points, -2.0, jnp.float32([width + 1, height + 1]))
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0))).reshape(-1, channels)
    x0, x_weights = taps(points[..., 0], interpolation)
    y0, y_weights = taps(points[..., 1], interpolation)
    stride = width + 2 * _PAD

    def column(k: int) -> jax.Array:
        return jnp.clip(x0 + (k + _PAD), 0, stride - 1).astype(jnp.int32)

    def row(k: int) -> jax.Array:
        return jnp.clip(y0 + (k + _PAD), 0, height + 2 * _PAD - 1).astype(jnp.int32)

    columns = [column(k) for k in range(len(x_weights))]
    total = jnp.zeros((*points.shape[:-1], channels), jnp.float32)
    for j, y_weight in enumerate(y_weights):
        offset = row(j) * stride
        for i, x_weight in enumerate(x_weights):
            value = padded.at[offset + columns[i]].get(mode="promise_in_bounds")
            total += (x_weight * y_weight)[..., None] * value
    return shown[..., None] * total


def warp(
    image: ArrayLike,
    transform: RigidTransform,
    interpolation: Interpolation = "linear",
    fill: ArrayLike = 0.0,
) -> jax.Array:
    """Move the content of an image, or of each image of a stack, by a rigid transform.

    Args:
      image: ``(H, W)`` or ``(H, W, C)``, any real dtype; a stack of N images for N transforms. With
        one transform, a stack of grey images up to 16 wide is taken for one image with channels.
      transform: one transform, or a batch of N (`jaxreg.geometry`: about the image centre, in
        pixels and degrees, positive clockwise).
      interpolation: ``"linear"`` (default), ``"cubic"``, ``"spline"``, or ``"nearest"`` for label
        images.
      fill: value outside the image. Pixels half outside blend with it; with NaN, all pixels that
        are not wholly inside become NaN.

    Returns:
      float32 array of the shape of ``image``, ``fill`` where no part of the image falls.

    Raises:
      ValueError: ``image`` has another shape, holds no real numbers or is a masked array, the
        interpolation is unknown, ``fill`` is not one number, or ``transform`` is no transform.

    >>> image = jnp.arange(9.0).reshape(3, 3)
    >>> warp(image, RigidTransform(1.0, 0.0, 0.0)).tolist()  # one pixel to the right
    [[0.0, 0.0, 1.0], [0.0, 3.0, 4.0], [0.0, 6.0, 7.0]]
    >>> warp(image, RigidTransform(1.0, 0.0, 0.0), fill=jnp.nan)[0].tolist()
    [nan, 0.0, 1.0]
    """
    check_transform(transform, "transform")
    image = jnp.asarray(real_array(image, "image"), jnp.float32)
    batch = transform.batch_shape
    if len(batch) > 1:
        raise ValueError(f"transform must be one or N of them, got a batch of shape {batch}")
    if batch:
        if image.ndim not in (3, 4) or image.shape[:1] != batch:
            raise ValueError(
                f"image must be (N, H, W) or (N, H, W, C) for N = {batch[0]} transforms, "
                f"got shape {image.shape}"
            )
    elif image.ndim not in (2, 3) or max(image.shape[2:], default=1) > MOST_CHANNELS:
        raise ValueError(
            f"image must be (H, W) or (H, W, C), at most {MOST_CHANNELS} channels last, got shape "
            f"{image.shape}; a stack takes as many transforms, or jax.vmap(warp, (0, None))"
        )
    check_interpolation(interpolation)
    if isinstance(fill, int | float) and fill == 0:
        return _warped(image, transform.as_array(), None, interpolation)
    fill = jnp.asarray(real_array(fill, "fill"), jnp.float32)
    if fill.ndim:
        raise ValueError(f"fill must be one number, got an array of shape {fill.shape}")
    return _warped(image, transform.as_array(), fill, interpolation)


# Jitted also outside a caller's program: operation by operation it takes 50 times as long.
@functools.partial(jax.jit, static_argnums=3, inline=True)
@allow_rank_promotion
def _warped(
    image: jax.Array, transform: jax.Array, fill: jax.Array | None, interpolation: Interpolation
) -> jax.Array:
    """`warp`; a ``fill`` of None stands for zeros."""
    if transform.ndim > 1:
        return jax.vmap(lambda image, t: _warped(image, t, fill, interpolation))(image, transform)
    points = _points_before(image.shape, transform)
    moved = sample(image, points, interpolation)
    if fill is None:
        return moved
    outside = 1.0 - sample(jnp.ones(image.shape[:2]), points, interpolation)
    outside = outside.reshape(*image.shape[:2], *(1,) * (image.ndim - 2))
    # Otherwise a fill of NaN would make the transform's derivative NaN, even where a loss leaves
    # out the NaN pixels: zero times NaN is NaN.
    outside = jnp.where(jnp.isfinite(fill), outside, jax.lax.stop_gradient(outside))
    return jnp.where(jnp.abs(outside) < _ROUNDING, moved, moved + outside * fill)


def _points_before(shape: Shape, transform: jax.Array) -> jax.Array:
    """``(H, W, 2)``: where each pixel comes from under a transform ``(3,)``."""
    return RigidTransform.from_array(transform).inverse().apply(pixel_grid(shape), shape)


def overlap(shape: Shape, transform: RigidTransform) -> jax.Array:
    """Compute which pixels of the moving image show a part of the fixed image.

    A point on the rim counts as inside, with a tolerance of 1e-3 px for rounding.

    Args:
      shape: ``(H, W)`` or ``(H, W, C)`` of one image.
      transform: one transform from fixed to moving, or a batch of N.

    Returns:
      ``(H, W)`` bool, or ``(N, H, W)`` for a batch.

    Raises:
      ValueError: ``shape`` is not of one image, or ``transform`` is no transform.

    >>> overlap((2, 3), RigidTransform(1.0, 0.0, 0.0)).tolist()
    [[False, True, True], [False, True, True]]
    """
    check_transform(transform, "transform")
    image_centre(shape)  # ValueError unless it is the shape of an image
    return _overlap(tuple(shape), transform.as_array())


@functools.partial(jax.jit, static_argnums=0, inline=True)
@allow_rank_promotion
def _overlap(shape: Shape, transform: jax.Array) -> jax.Array:
    if transform.ndim > 1:
        return jax.vmap(lambda t: _overlap(shape, t))(transform)
    points = _points_before(shape, transform)
    limit = jnp.asarray([shape[1] - 1, shape[0] - 1], jnp.float32)
    return jnp.all((points >= -1e-3) & (points <= limit + 1e-3), axis=-1)
