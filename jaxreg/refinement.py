"""Gauss-Newton refinement of a rigid alignment on the overlap of two images.

One image, the *source*, is pulled onto the pixels of the other, the *target*; the residual there is
``target - gain * source(T^-1 p) - bias``, one gain and a bias for each channel. Pixels whose
residual is out of line (an occlusion) lose their weight.

The normal equations are those of instrumental variables: the residual is projected on the
derivative of a *denoised* image instead of the noisy one's. At low noise that is Gauss-Newton; at
high noise it keeps the estimate near the Cramér-Rao bound, from which the noise in the derivative
would otherwise carry it away.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxreg.geometry import RigidTransform, cos_sin_degrees
from jaxreg.warping import pixel_grid

_DEGREE = jnp.pi / 180
_HIGHEST = jax.lax.Precision.HIGHEST
# Residuals beyond this many standard deviations count as outliers: far enough out to leave Gaussian
# noise alone, near enough that an occlusion weighs little.
_OUTLIER = 3.0
# px, px, degrees: the farthest that one step may go, about the reach of a linear model.
_MAX_STEP = (1.0, 1.0, 6.0)


class Samples(NamedTuple):
    """The source image at the pixels of the target.

    Attributes:
      value: ``(P, C)``.
      slope: ``(3, P, C)`` derivatives by ``(tx, ty, theta)``, theta in degrees.
      inside: ``(P,)`` weight, 0 where the point lies outside the source's frame.
      noise_gain: scalar, the share of white noise that interpolation lets through.
    """

    value: jax.Array
    slope: jax.Array
    inside: jax.Array
    noise_gain: jax.Array


class Fit(NamedTuple):
    """How well the source explains the target at some transform.

    Attributes:
      gain: scalar, grey values of the target for one of the source.
      bias: ``(C,)``.
      residual: ``(P, C)``, raw.
      weight: ``(P,)``, of the overlap, less where the residual is an outlier.
      variance: scalar, the weighted mean square of the residual.
    """

    gain: jax.Array
    bias: jax.Array
    residual: jax.Array
    weight: jax.Array
    variance: jax.Array


def _linear_taps(u: jax.Array, size: int) -> tuple[jax.Array, list[jax.Array], list[jax.Array]]:
    base = jnp.clip(jnp.floor(u), 0.0, max(size - 2.0, 0.0))
    t = u - base
    one = jnp.ones_like(t)
    return base, [1.0 - t, t], [-one, one]


def _spline_taps(
    u: jax.Array, size: int, linear: ArrayLike
) -> tuple[jax.Array, list[jax.Array], list[jax.Array]]:
    """Four taps of the cubic B-spline, or where ``linear`` the two linear ones between zeros."""
    base, low, low_slope = _linear_taps(u, size)
    t = u - base
    s = 1.0 - t
    zero = jnp.zeros_like(t)
    weights = [
        s * s * s / 6.0,
        (4.0 - 3.0 * t * t * (2.0 - t)) / 6.0,
        (4.0 - 3.0 * s * s * (2.0 - s)) / 6.0,
        t * t * t / 6.0,
    ]
    slopes = [-0.5 * s * s, t * (1.5 * t - 2.0), s * (2.0 - 1.5 * s), 0.5 * t * t]
    mix = lambda a, b: [jnp.where(linear, p, q) for p, q in zip(a, b, strict=True)]  # noqa: E731
    return (
        base - 1.0,
        mix([zero, *low, zero], weights),
        mix([zero, *low_slope, zero], slopes),
    )


def _noise_gain(t: jax.Array, linear: ArrayLike) -> jax.Array:
    """Sum of squared weights of the samples, for a fraction ``t``; cubic spline to 1%."""
    dip = 4.0 * t * (1.0 - t)
    return jnp.where(linear, 1.0 - 0.5 * dip, 1.0 - dip * (0.284 * dip - 0.04))


def sample_source(
    source: jax.Array,
    transform: RigidTransform,
    linear: ArrayLike = True,
    margin: ArrayLike = 0.0,
) -> Samples:
    """The source at ``T^-1 p`` for every pixel p of the target, with derivatives by T.

    Args:
      source: ``(H, W, C)`` samples; B-spline coefficients where not ``linear``.
      transform: from source to target.
      linear: bilinear, else cubic B-spline. A Python bool is cheaper than a traced one.
      margin: width in px of the rim of the source's frame over which `inside` rises from 0 to 1;
        0 counts the whole frame.
    """
    height, width, channels = source.shape
    grid = pixel_grid(source.shape).reshape(-1, 2)
    cos, sin = cos_sin_degrees(transform.theta)
    dx = grid[:, 0] - (width - 1) / 2 - transform.tx
    dy = grid[:, 1] - (height - 1) / 2 - transform.ty
    x = cos * dx + sin * dy + (width - 1) / 2
    y = cos * dy - sin * dx + (height - 1) / 2
    depth = jnp.minimum(jnp.minimum(x, width - 1 - x), jnp.minimum(y, height - 1 - y))
    inside = jnp.clip(depth / jnp.maximum(margin, 1e-3) + 1e-3, 0.0, 1.0)
    inside = jnp.where(jnp.asarray(margin) > 0, inside, depth >= -1e-3)

    x, y = jnp.clip(x, 0.0, width - 1.0), jnp.clip(y, 0.0, height - 1.0)
    if isinstance(linear, bool) and linear:
        first_x, wx, sx = _linear_taps(x, width)
        first_y, wy, sy = _linear_taps(y, height)
    else:
        first_x, wx, sx = _spline_taps(x, width, linear)
        first_y, wy, sy = _spline_taps(y, height, linear)

    def mirrored(first: jax.Array, k: int, size: int) -> jax.Array:
        index = jnp.abs(first + k)
        return jnp.where(index > size - 1, 2 * (size - 1) - index, index).astype(jnp.int32)

    flat = source.reshape(-1, channels)
    columns = [mirrored(first_x, i, width) for i in range(len(wx))]
    value = along_x = along_y = jnp.zeros((x.size, channels), jnp.float32)
    for j in range(len(wy)):
        row = mirrored(first_y, j, height) * width
        row_value = row_slope = jnp.zeros((x.size, channels), jnp.float32)
        for i, column in enumerate(columns):
            pixel = flat.at[row + column].get(mode="promise_in_bounds")
            row_value += wx[i][:, None] * pixel
            row_slope += sx[i][:, None] * pixel
        value += wy[j][:, None] * row_value
        along_x += wy[j][:, None] * row_slope
        along_y += sy[j][:, None] * row_value
    # Along the target's axes. Moving T one way moves the source the other way under the grid.
    u = cos * along_x - sin * along_y
    v = sin * along_x + cos * along_y
    slope = jnp.stack([-u, -v, _DEGREE * (dy[:, None] * u - dx[:, None] * v)])
    share = _noise_gain(x - jnp.floor(x), linear) * _noise_gain(y - jnp.floor(y), linear)
    noise_gain = (share * inside).sum() / jnp.maximum(inside.sum(), 1.0)
    return Samples(value, slope, inside, noise_gain)


def weighted_sums(weight: jax.Array, values: jax.Array) -> jax.Array:
    """Sum ``(..., P, C)`` values over the pixels with weights ``(P,)``."""
    return jnp.einsum("p,...pc->...c", weight, values, precision=_HIGHEST)


def fit_intensity(samples: Samples, target: jax.Array, weight: jax.Array) -> Fit:
    """Fit gain and bias on weighted pixels, then weigh the residuals.

    Args:
      samples: of the source.
      target: ``(P, C)``.
      weight: ``(P,)`` for this fit: of an earlier residual, or `Samples.inside`.
    """
    count = jnp.maximum(weight.sum(), 1.0)
    mean_source = weighted_sums(weight, samples.value) / count
    mean_target = weighted_sums(weight, target) / count
    source, centred = samples.value - mean_source, target - mean_target
    energy = (weighted_sums(weight, source * source)).sum()
    gain = weighted_sums(weight, source * centred).sum() / jnp.maximum(energy, 1e-12)
    # A gain near or below zero means that the images are not aligned: hold it where the residual
    # still says which way to go.
    gain = jnp.clip(gain, 0.1, 10.0)
    bias = mean_target - gain * mean_source
    return weigh(samples, target, gain, bias)


def weigh(samples: Samples, target: jax.Array, gain: jax.Array, bias: jax.Array) -> Fit:
    """Residuals for a given gain and bias, and their robust weights."""
    residual = target - gain * samples.value - bias
    square = jnp.square(residual).mean(-1)
    count = jnp.maximum(samples.inside.sum(), 1.0)
    # The mean absolute residual is nearly blind to a few large ones.
    scale = (samples.inside * jnp.sqrt(square)).sum() / count
    limit = jnp.square(_OUTLIER * scale) + 1e-12
    weight = samples.inside * jnp.square(jnp.minimum(1.0, limit / (square + 1e-12)))
    variance = (weight * square).sum() / jnp.maximum(weight.sum(), 1.0)
    return Fit(gain, bias, residual, weight, variance)


def clip_step(step: jax.Array) -> jax.Array:
    """Shorten a step, without turning it, so that no component passes its limit."""
    return step / jnp.maximum(1.0, jnp.max(jnp.abs(step) / jnp.asarray(_MAX_STEP)))


def solve(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    """Solve small normal equations, scaled to unit diagonal and faintly damped."""
    scale = jax.lax.rsqrt(jnp.maximum(jnp.abs(jnp.diagonal(matrix)), 1e-12))
    damped = matrix * jnp.outer(scale, scale) + 1e-6 * jnp.eye(len(vector))
    return scale * jnp.linalg.solve(damped, scale * vector)


def advance(t: RigidTransform, step: jax.Array) -> RigidTransform:
    """Add a step ``(3,)`` to the parameters."""
    return RigidTransform(t.tx + step[0], t.ty + step[1], t.theta + step[2])


def gauss_newton(
    source: jax.Array, target: jax.Array, transform: RigidTransform, iterations: int
) -> tuple[RigidTransform, Fit]:
    """Plain robust Gauss-Newton with bilinear interpolation: from near to close.

    Gain and bias are fitted along, so a brightness change does not pull the estimate.

    Args:
      source: ``(H, W, C)``.
      target: the same shape.
      transform: where to start, within about a pixel.
      iterations: how many steps.

    Returns:
      The refined transform and the fit before its last step.
    """
    flat = target.reshape(-1, target.shape[-1])

    def step(state: tuple[RigidTransform, jax.Array], _: None) -> tuple:
        transform, weight = state
        samples = sample_source(source, transform)
        fit = fit_intensity(samples, flat, weight * samples.inside)
        columns = jnp.concatenate([samples.slope, samples.value[None]])
        count = jnp.maximum(fit.weight.sum(), 1.0)
        centred = columns - (weighted_sums(fit.weight, columns) / count)[:, None]
        weighted = centred * fit.weight[:, None]
        normal = jnp.einsum("apc,bpc->ab", weighted, centred, precision=_HIGHEST)
        moment = jnp.einsum("apc,pc->a", weighted, fit.residual, precision=_HIGHEST)
        delta = solve(normal, moment)[:3] / fit.gain
        # Pixels outside now may be inside later: they start unprejudiced.
        robust = jnp.where(samples.inside > 0, fit.weight, 1.0)
        return (advance(transform, clip_step(delta)), robust), fit

    start = (transform, jnp.ones(flat.shape[0], jnp.float32))
    fits: Fit
    (transform, _), fits = jax.lax.scan(step, start, None, length=iterations)
    return transform, jax.tree.map(lambda v: v[-1], fits)
