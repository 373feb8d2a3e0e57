"""Sample the source at the pixels of the target: positions, values and derivatives.

This is the counterpart of `jaxreg.warping` for the direct method's inner loops. Points are clipped
into the frame instead of padded with zeros, a weight tells which of them are inside, and
derivatives are computed by separate calls.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jaxreg.compute.branching import apart, cond_where_any
from jaxreg.compute.products import dots, product
from jaxreg.direct.denoising import covariance_at_lags
from jaxreg.direct.masking import Masks
from jaxreg.geometry import RigidTransform, Shape, cos_sin_degrees
from jaxreg.interpolation import spline_coefficients, spline_weights
from jaxreg.warping import pixel_grid

T = TypeVar("T")
DEGREE = jnp.pi / 180
_ON_THE_RIM = 1e-3  # px: tolerance for rounding, so that a point on the rim counts as inside


class Points(NamedTuple):
    """Positions of the target's pixels in the source.

    Attributes:
      x: ``(P,)`` in px, clipped into the frame.
      y: the same.
      inside: ``(P,)`` weight, 0 where the point is outside the source's frame.
      lever: ``(2, P)``, the target's pixels relative to the centre of rotation, in px.
      cos: scalar, of the transform's angle.
      sin: scalar.
    """

    x: jax.Array
    y: jax.Array
    inside: jax.Array
    lever: jax.Array
    cos: jax.Array
    sin: jax.Array


def by_kernel(
    linear: bool | jax.Array,
    bilinear: Callable[..., T],
    spline: Callable[..., T],
    *operands: object,
) -> T:
    """Apply ``bilinear`` or ``spline`` to the operands, depending on the kernel.

    Args:
      linear: whether the kernel is bilinear, else it is the spline: a Python bool, or a traced
        scalar bool.
      bilinear: function of the operands that returns a pytree of arrays; must not close over
        traced values.
      spline: the same, with results of the same shapes and dtypes.
      *operands: pytrees of arrays.
    """
    if isinstance(linear, bool):
        return (bilinear if linear else spline)(*operands)
    return cond_where_any(linear, bilinear, spline, *operands)


def flat(image: jax.Array) -> jax.Array:
    """``(P, C)`` pixels of an image ``(H, W, C)``."""
    return image.reshape(-1, image.shape[-1])


def interpolant(source: jax.Array, linear: bool | jax.Array) -> jax.Array:
    """The array that `pull` samples: the image or its spline coefficients, padded by one pixel.

    Args:
      source: the image ``(H, W, C)``.
      linear: the kernel, see `by_kernel`.
    """
    with_rim = functools.partial(jnp.pad, pad_width=((1, 1), (1, 1), (0, 0)))
    return by_kernel(linear, with_rim, functools.partial(spline_coefficients, rim=1), source)


def source_points(
    shape: Shape,
    transform: RigidTransform,
    margin: float | jax.Array = 0.0,
    masks: Masks | None = None,
    counts: float | jax.Array = 1.0,
) -> Points:
    """Compute the points ``T^-1 p`` for every pixel p of the target.

    Args:
      shape: of both images, starting with ``(H, W)``.
      transform: from source to target.
      margin: width in px of the rim of the source's frame over which `Points.inside` rises from 0
        to 1; with 0 the whole frame has weight 1.
      masks: which pixels count, if not all do. Towards masked pixels of the source the weight falls
        over one pixel, or at once if the margin is 0.
      counts: further weights of the target's pixels, ``(P,)``.
    """
    height, width = shape[:2]
    grid = pixel_grid(shape).reshape(-1, 2)
    cos, sin = cos_sin_degrees(transform.theta)
    dx = grid[:, 0] - (width - 1) / 2 - transform.tx
    dy = grid[:, 1] - (height - 1) / 2 - transform.ty
    x = cos * dx + sin * dy + (width - 1) / 2
    y = cos * dy - sin * dx + (height - 1) / 2
    depth = jnp.minimum(jnp.minimum(x, width - 1 - x), jnp.minimum(y, height - 1 - y))
    inside = jnp.clip((depth + _ON_THE_RIM) / jnp.maximum(margin, 1e-9), 0.0, 1.0) * counts
    x, y = jnp.clip(x, 0.0, width - 1.0), jnp.clip(y, 0.0, height - 1.0)
    points = Points(x, y, inside, jnp.stack([dx, dy]), cos, sin)
    if masks is None:
        return points
    seen = _values(masks.source, points)
    seen = jnp.where(jnp.greater(margin, 0.0), seen, jnp.floor(seen + _ON_THE_RIM))
    return points._replace(inside=inside * seen * masks.target.reshape(-1))


def _linear_taps(u: jax.Array, size: int, slope: bool) -> tuple[jax.Array, list[jax.Array]]:
    """First pixel read, and the weights from it on; those of the derivative if ``slope``."""
    first = jnp.clip(jnp.floor(u), 0.0, max(size - 2.0, 0.0))
    t = u - first
    one = jnp.ones_like(t)
    return first, [-one, one] if slope else [1.0 - t, t]


def _spline_taps(u: jax.Array, size: int, slope: bool) -> tuple[jax.Array, list[jax.Array]]:
    """Do as `_linear_taps` for the cubic B-spline, whose coefficients begin one pixel earlier."""
    first, (s, t) = _linear_taps(u, size, False)
    if slope:
        return first, [-0.5 * s * s, t * (1.5 * t - 2.0), s * (2.0 - 1.5 * s), 0.5 * t * t]
    return first, spline_weights(t)


def pull(
    image: jax.Array,
    points: Points,
    linear: bool | jax.Array,
    along: Literal["", "x", "y"] = "",
) -> jax.Array:
    """Sample a source at P points, or its derivative along one of its axes.

    The result is computed once for all its consumers (`jaxreg.compute.branching.apart`).

    Args:
      image: see `interpolant`; ``(H, W, C)``, or ``(H, W)`` of one channel.
      points: P points.
      linear: the kernel, see `by_kernel`.
      along: the axis of the derivative, if any.

    Returns:
      ``(P, C)``, or ``(P,)``.
    """
    bilinear, spline = (
        functools.partial(_values, linear=kind, along=along, rim=1) for kind in (True, False)
    )
    if isinstance(linear, bool):
        return apart(points.cos > -2.0, bilinear if linear else spline, image, points)
    return by_kernel(linear, bilinear, spline, image, points)


# Under jit, so that all calls with one shape are traced once.
@functools.partial(jax.jit, static_argnames=("linear", "along", "rim"))
def _values(
    image: jax.Array, points: Points, *, linear: bool = True, along: str = "", rim: int = 0
) -> jax.Array:
    """Sample an image, or its coefficients, that is padded by ``rim`` pixels; see `pull`."""
    taps = _linear_taps if linear else _spline_taps
    stride = image.shape[1]
    column, x_weights = taps(points.x, stride - 2 * rim, along == "x")
    row, y_weights = taps(points.y, image.shape[0] - 2 * rim, along == "y")
    # A spline's four taps begin one pixel before the two of the bilinear kernel.
    begin = (rim - (not linear)) * (stride + 1)
    first = (row * stride + column).astype(jnp.int32) + begin
    flat = image.reshape(-1, *image.shape[2:])
    spread = lambda w: w.reshape(-1, *[1] * (image.ndim - 2))  # noqa: E731
    total = jnp.float32(0.0)
    for j, y_weight in enumerate(y_weights):
        line = jnp.float32(0.0)
        for i, x_weight in enumerate(x_weights):
            pixel = flat.at[first + (j * stride + i)].get(mode="promise_in_bounds")
            line += spread(x_weight) * pixel
        total += spread(y_weight) * line
    return total


def sampled(
    source: jax.Array,
    transform: RigidTransform,
    margin: float = 0.0,
    masks: Masks | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Sample a plane ``(H, W)`` at the target's pixels: bilinear values, and `Points.inside`."""
    points = source_points(source.shape, transform, margin, masks)
    return _values(source, points), points.inside


def slopes(image: jax.Array, points: Points, linear: bool | jax.Array) -> jax.Array:
    """``(3, P, C)``: derivatives of `pull`'s values by ``(tx, ty, theta)``, theta in degrees."""
    along = jnp.stack([pull(image, points, linear, "x"), pull(image, points, linear, "y")])
    return _slopes_along_target(along, points)


def _slopes_along_target(along: jax.Array, points: Points) -> jax.Array:
    """Compute `slopes` from derivatives ``(2, P, C)`` along the source's axes x and y."""
    # Rotate the gradient to the target's axes. XLA computes a product once, but would recompute a
    # plain sum for each of its three uses.
    turn = jnp.stack([points.cos, -points.sin, points.sin, points.cos]).reshape(2, 2)
    u, v = product(turn, along.reshape(2, -1)).reshape(along.shape)
    return slopes_by_gradient(u, v, points.lever)


def slopes_by_gradient(u: jax.Array, v: jax.Array, lever: jax.Array) -> jax.Array:
    """``(3, P, C)``: derivatives of values by ``(tx, ty, theta)``, from their gradient.

    Moving the transform one way moves the source the other way under the grid, hence the signs.

    Args:
      u: ``(P, C)``, derivative to the right.
      v: ``(P, C)``, derivative down.
      lever: ``(2, P)``, pixels relative to the centre of rotation.
    """
    dx, dy = lever[..., None]
    return jnp.stack([-u, -v, DEGREE * (dy * u - dx * v)])


def noise_slopes(
    points: Points, shape: Shape, left: jax.Array, linear: bool | jax.Array
) -> jax.Array:
    """``(3, P)``: expected products of interpolated noise and `slopes` of the same noise denoised.

    Interpolation lets less noise through between pixels than at them, so that interpolated noise
    correlates with its own slope.

    Args:
      points: P points.
      shape: of the image, starting with ``(H, W)``.
      left: ``(B,)``, cross power of the noise and its denoised version in each band, see
        `jaxreg.direct.denoising.wiener`.
      linear: the kernel, see `by_kernel`.
    """

    def along(taps: Callable, x: jax.Array, y: jax.Array, left: jax.Array) -> jax.Array:
        (even_x, odd_x), (even_y, odd_y) = (
            _lag_products(*(taps(u, size, slope)[1] for slope in (False, True)))
            for u, size in ((x, shape[1]), (y, shape[0]))
        )
        lags = covariance_at_lags(left, shape, spline=taps is _spline_taps)
        to_the_right = (even_y * product(lags, odd_x)).sum(0)
        return jnp.stack([to_the_right, (odd_y * product(lags, even_x)).sum(0)])

    bilinear, spline = (functools.partial(along, taps) for taps in (_linear_taps, _spline_taps))
    both = by_kernel(linear, bilinear, spline, points.x, points.y, left)
    return _slopes_along_target(both[..., None], points)[..., 0]


def _lag_products(weights: list[jax.Array], slopes: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """``(L, P)``: sums of products of weights, and of weights and slopes, at each lag."""
    count = len(weights)
    even, odd = [], []
    for lag in range(count):
        pairs = [(k, k + lag) for k in range(count - lag)]
        even.append(sum(weights[a] * weights[b] for a, b in pairs) * (1 + (lag > 0)))
        crossed = sum(slopes[a] * weights[b] + slopes[b] * weights[a] for a, b in pairs)
        odd.append(crossed if lag else 0.5 * crossed)
    return jnp.stack(even), jnp.stack(odd)


def noise_gain(points: Points, linear: bool | jax.Array) -> jax.Array:
    """Share of white noise's power that interpolation keeps, a scalar; for the spline to 1%."""

    def share(u: jax.Array) -> jax.Array:
        t = u - jnp.floor(u)
        dip = 4.0 * t * (1.0 - t)
        return 1.0 - dip * jnp.where(linear, 0.5, 0.284 * dip - 0.04)

    kept = dots(share(points.x) * share(points.y), points.inside)
    return kept / jnp.maximum(points.inside.sum(), 1.0)
