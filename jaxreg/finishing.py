"""The last stage of a registration: to numerical precision, with its covariance.

Three choices are made from the images alone. Which of the two is pulled onto the other's pixels,
and by which kernel: whichever leaves the smaller residual, counted against the noise that
interpolation averages away (pairs made by bilinear warping are thus recognised and solved exactly,
and swapping the images gives the inverse). Which frequencies to trust: a Wiener filter at the
measured noise, and for a pair not explained exactly a blur against aliasing. Whether the brightness
changed: gain and bias are held at 1 and 0 unless the images clearly say otherwise, for fitting them
costs accuracy.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxreg.denoising import wiener
from jaxreg.geometry import RigidTransform, cos_sin_degrees, wrap_degrees
from jaxreg.interpolation import spline_coefficients
from jaxreg.pyramid import apply_separable, blurring_matrix
from jaxreg.refinement import (
    Fit,
    Samples,
    advance,
    clip_step,
    fit_intensity,
    sample_source,
    solve,
    weigh,
    weighted_sums,
)
from jaxreg.warping import pixel_grid

_HIGHEST = jax.lax.Precision.HIGHEST
# Where neither kernel is exact, aliasing makes the finest detail differ between the views: the
# derivative is taken from an image blurred by this many px, and the source's rim is left out. Both
# chosen on scene pairs of the training photographs.
_ALIASING_BLUR = 0.8
_ALIASING_RIM = 1.0
# Aliasing is no white noise: it makes the estimate's variance this much larger than the residual
# tells. Measured on the same pairs.
_ALIASING_INFLATION = 2.5
# The target's share in the instruments: half, as the noise of both is alike.
_SHARE = 0.5
# Chi-square (1 gain + C biases) from which a brightness change is believed.
_BRIGHTNESS_CHANGED = 30.0


class Finished(NamedTuple):
    """The end of a registration.

    Attributes:
      transform: from fixed to moving.
      covariance: ``(3, 3)`` of ``(tx, ty, theta)``, px and degrees.
      samples: the source on the target's pixels at the end.
      fit: its fit.
      target: ``(P, C)``.
    """

    transform: RigidTransform
    covariance: jax.Array
    samples: Samples
    fit: Fit
    target: jax.Array


class _Direction(NamedTuple):
    """Which image is pulled (`source`), by which kernel, and the transform from it to the other."""

    source: jax.Array
    target: jax.Array
    transform: RigidTransform
    linear: ArrayLike
    swapped: ArrayLike


def _mismatch(source: jax.Array, target: jax.Array, t: RigidTransform, linear: bool) -> jax.Array:
    """Residual variance in units of the noise that the kernel lets through."""
    image = source if linear else spline_coefficients(source)
    samples = sample_source(image, t, linear)
    flat = target.reshape(-1, target.shape[-1])
    fit = fit_intensity(samples, flat, samples.inside)
    return fit.variance / (jnp.square(fit.gain) * samples.noise_gain + 1.0) / fit.gain


def _choose(fixed: jax.Array, moving: jax.Array, t: RigidTransform, kernel: str) -> _Direction:
    inverse = t.inverse()
    kinds = {"linear": (True,), "spline": (False,), "auto": (True, False)}[kernel]
    scores = jnp.stack(
        [_mismatch(fixed, moving, t, kind) for kind in kinds]
        + [_mismatch(moving, fixed, inverse, kind) for kind in kinds]
    )
    best = jnp.argmin(scores)
    swapped = best >= len(kinds)
    linear = kinds[0] if len(kinds) == 1 else best % 2 == 0
    pick = lambda a, b: jnp.where(swapped, a, b)  # noqa: E731
    transform = jax.tree.map(pick, inverse, t)
    return _Direction(pick(moving, fixed), pick(fixed, moving), transform, linear, swapped)


def _slopes(image: jax.Array, dx: jax.Array, dy: jax.Array) -> jax.Array:
    """``(3, P, C)`` derivatives of a target by the ``(tx, ty, theta)`` that moves it."""
    channels = image.shape[-1]
    v, u = (g.reshape(-1, channels) for g in jnp.gradient(image, axis=(0, 1)))
    return jnp.stack([-u, -v, jnp.pi / 180 * (dy[:, None] * u - dx[:, None] * v)])


def _instruments(d: _Direction, first: Samples, fit: Fit) -> tuple[jax.Array, jax.Array]:
    """What the residual is projected on, and the derivatives of the source: both ``(4, P, C)``.

    Both are the mean of source and target, each denoised on its own grid. Each half stays with its
    own noise as the transform moves; averaging the pictures first would tie the estimate to the
    transform at which they were averaged.
    """
    height, width, channels = d.source.shape
    noise = fit.variance / (1.0 + jnp.square(fit.gain) * first.noise_gain)
    # Beyond the overlap the target may be black or something else altogether.
    expected = fit.gain * first.value + fit.bias
    seen = jnp.where(first.inside[:, None] > 0, d.target.reshape(-1, channels), expected)
    source = wiener(d.source, noise / jnp.square(fit.gain), averaged=2.0)
    target = (wiener(seen.reshape(d.target.shape), noise, averaged=2.0) - fit.bias) / fit.gain
    grid = pixel_grid(d.source.shape).reshape(-1, 2)
    dx = grid[:, 0] - (width - 1) / 2 - d.transform.tx
    dy = grid[:, 1] - (height - 1) / 2 - d.transform.ty

    def mean(blur: float) -> jax.Array:
        rows, columns = blurring_matrix(height, blur), blurring_matrix(width, blur)
        a = jnp.where(d.linear, source, spline_coefficients(apply_separable(rows, source, columns)))
        b = jnp.where(d.linear, target, apply_separable(rows, target, columns))
        samples = sample_source(a, d.transform, d.linear)
        slope = (1 - _SHARE) * samples.slope + _SHARE * _slopes(b, dx, dy)
        value = (1 - _SHARE) * samples.value + _SHARE * b.reshape(-1, channels)
        return jnp.concatenate([slope, value[None]])

    return mean(_ALIASING_BLUR), mean(0.0)


class _System(NamedTuple):
    """Instrumental-variable normal equations, with and without gain and bias."""

    projection: jax.Array  # (4, P, C) what the residual is projected on: 3 slopes, the value
    full: jax.Array  # (4, 4) with bias eliminated
    fixed: jax.Array  # (3, 3) without gain and bias
    mean: jax.Array  # (4, C) of the projection


def _system(left: jax.Array, right: jax.Array, gain: jax.Array, weight: jax.Array) -> _System:
    right = jnp.concatenate([gain * right[:3], right[3:]])
    count = jnp.maximum(weight.sum(), 1.0)
    mean_left = weighted_sums(weight, left) / count
    mean_right = weighted_sums(weight, right) / count
    raw = jnp.einsum("apc,p,bpc->ab", left, weight, right, precision=_HIGHEST)
    full = raw - count * jnp.einsum("ac,bc->ab", mean_left, mean_right, precision=_HIGHEST)
    return _System(left, full, raw[:3, :3], mean_left)


def _project(system: _System, fit: Fit) -> tuple[jax.Array, jax.Array]:
    """The residual on the instruments: raw, and with its mean taken out."""
    weighted = fit.weight[:, None] * fit.residual
    raw = jnp.einsum("apc,pc->a", system.projection, weighted, precision=_HIGHEST)
    mean = weighted.sum(0)
    return raw, raw - jnp.einsum("ac,c->a", system.mean, mean, precision=_HIGHEST)


def finish(
    fixed: jax.Array,
    moving: jax.Array,
    transform: RigidTransform,
    kernel: str = "auto",
    iterations: int = 4,
) -> Finished:
    """Refine a close alignment to the end.

    Args:
      fixed: ``(H, W, C)``.
      moving: the same shape.
      transform: within a few tenths of a pixel.
      kernel: ``"auto"``, ``"linear"`` or ``"spline"``.
      iterations: how many steps.
    """
    d = _choose(fixed, moving, transform, kernel)
    image = jnp.where(d.linear, d.source, spline_coefficients(d.source))
    target = d.target.reshape(-1, d.target.shape[-1])
    rim = jnp.where(d.linear, 0.0, _ALIASING_RIM)

    def sampled(t: RigidTransform) -> Samples:
        return sample_source(image, t, d.linear, rim)

    first = sampled(d.transform)
    fit = fit_intensity(first, target, first.inside)
    fit = fit_intensity(first, target, fit.weight)
    system = _system(*_instruments(d, first, fit), fit.gain, fit.weight)
    changed = _brightness_changed(system, first, target, fit)
    gain = jnp.where(changed, fit.gain, 1.0)
    bias = jnp.where(changed, fit.bias, 0.0)

    def step(state: tuple, _: None) -> tuple:
        t, gain, bias = state
        samples = sampled(t)
        fit = weigh(samples, target, gain, bias)
        raw, centred = _project(system, fit)
        with_brightness = solve(system.full, centred)
        alone = solve(system.fixed, raw[:3])
        delta = jnp.where(changed, with_brightness[:3], alone)
        new_gain = jnp.clip(gain + with_brightness[3], 0.1, 10.0)
        count = jnp.maximum(fit.weight.sum(), 1.0)
        value = weighted_sums(fit.weight, samples.value) / count
        new_bias = weighted_sums(fit.weight, target) / count - new_gain * value
        gain = jnp.where(changed, new_gain, gain)
        bias = jnp.where(changed, new_bias, bias)
        return (advance(t, clip_step(delta)), gain, bias), None

    (t, gain, bias), _ = jax.lax.scan(step, (d.transform, gain, bias), None, length=iterations)
    # The optimum as a function of the images: one more step, whose value is dropped, carries the
    # derivative (the implicit function theorem), and the search behind it need not be unrolled. The
    # theorem wants the residual's own derivative, where the steps were content with a smooth one.
    t, gain, bias, system, changed = jax.lax.stop_gradient((t, gain, bias, system, changed))
    samples = sampled(t)
    fit = weigh(samples, target, gain, bias)
    weight = jax.lax.stop_gradient(fit.weight)
    columns = jnp.concatenate([samples.slope, samples.value[None]])
    exact = jax.lax.stop_gradient(_system(system.projection, columns, gain, weight))
    raw, centred = _project(exact, fit._replace(weight=weight))
    delta = jnp.where(changed, solve(exact.full, centred)[:3], solve(exact.fixed, raw[:3]))
    t = advance(t, delta - jax.lax.stop_gradient(delta))
    covariance = _covariance(system, fit, changed)
    covariance *= jnp.where(d.linear, 1.0, _ALIASING_INFLATION)
    back, turned = _unswap(t, covariance)
    pick = lambda a, b: jnp.where(d.swapped, a, b)  # noqa: E731
    t = jax.tree.map(pick, back, t)
    t = RigidTransform(t.tx, t.ty, wrap_degrees(t.theta))
    return Finished(t, pick(turned, covariance), samples, fit, target)


def _brightness_changed(
    system: _System, samples: Samples, target: jax.Array, fit: Fit
) -> jax.Array:
    """Whether gain 1 and bias 0 are out of the question: a likelihood-ratio test.

    The transform is free to make up for what it can, as it would if the test said no.
    """
    residual = target - samples.value
    plain = Fit(jnp.float32(1), jnp.zeros_like(fit.bias), residual, fit.weight, fit.variance)
    raw, _ = _project(system, plain)
    gained = jnp.vdot(raw[:3], solve(system.fixed, raw[:3]))
    weighted = fit.weight[:, None] * residual
    excess = jnp.vdot(weighted, residual) - gained
    unexplained = jnp.vdot(fit.weight[:, None] * fit.residual, fit.residual)
    energy = jnp.vdot(fit.weight[:, None] * target, target)
    noise = jnp.maximum(fit.variance, 1e-7 * energy / jnp.maximum(fit.weight.sum(), 1.0))
    return excess - unexplained > _BRIGHTNESS_CHANGED * noise


def _covariance(system: _System, fit: Fit, changed: jax.Array) -> jax.Array:
    """Of the estimate: ``N^-1 (Z' S Z) N^-T``, S the variance of the residual."""
    left = system.projection
    count = jnp.maximum(fit.weight.sum(), 1.0)
    spread = jnp.einsum("apc,p,bpc->ab", left, fit.weight, left, precision=_HIGHEST)
    centred = spread - count * jnp.einsum("ac,bc->ab", system.mean, system.mean, precision=_HIGHEST)
    padded = jnp.zeros((4, 4)).at[:3, :3].set(system.fixed).at[3, 3].set(system.full[3, 3])
    normal = jnp.where(changed, system.full, padded)
    spread = jnp.where(changed, centred, spread)
    scale = jax.lax.rsqrt(jnp.maximum(jnp.abs(jnp.diagonal(normal)), 1e-12))
    inverse = jnp.linalg.inv(normal * jnp.outer(scale, scale) + 1e-6 * jnp.eye(4))
    inverse *= jnp.outer(scale, scale)
    return fit.variance * (inverse @ spread @ inverse.T)[:3, :3]


def _unswap(t: RigidTransform, covariance: jax.Array) -> tuple[RigidTransform, jax.Array]:
    """The inverse of a transform, and its covariance carried over."""
    inverse = t.inverse()
    cos, sin = cos_sin_degrees(t.theta)
    degree = jnp.pi / 180
    jacobian = jnp.array(
        [
            [-cos, -sin, degree * inverse.ty],
            [sin, -cos, -degree * inverse.tx],
            [0.0, 0.0, -1.0],
        ]
    )
    return inverse, jacobian @ covariance @ jacobian.T
