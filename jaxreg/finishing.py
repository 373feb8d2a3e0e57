"""The last stage of a registration: to numerical precision, with its covariance.

Three choices are made from the images alone. Which of the two is pulled onto the other's pixels,
and by which kernel: whichever leaves the smaller residual, counted against the noise that
interpolation averages away (pairs made by bilinear warping are thus recognised and solved exactly,
and swapping the images gives the inverse). Which frequencies to trust: a Wiener filter at the
measured noise, and for a pair not explained exactly a blur against aliasing. Whether the brightness
changed: gain and bias are held at 1 and 0 unless the images clearly say otherwise, for fitting them
costs accuracy.

The normal equations are those of instrumental variables: the residual
``target - gain * source(T^-1 p) - bias`` is projected on the derivative of a *denoised* image
instead of the noisy one's. At low noise that is Gauss-Newton; at high noise it keeps the estimate
near the Cramér-Rao bound, from which the noise in the derivative would otherwise carry it away.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.denoising import wiener
from jaxreg.geometry import RigidTransform, cos_sin_degrees, wrap_degrees
from jaxreg.intensity import Fit, fit_intensity, weigh
from jaxreg.interpolation import spline_gradient
from jaxreg.normal_equations import System, damped_inverse, guarded, normal_matrix, of_model, secant
from jaxreg.products import apply_separable, dots, over_channels, product
from jaxreg.pyramid import blurring_matrix
from jaxreg.refinement import clip_step, solve
from jaxreg.resampling import (
    DEGREE,
    Points,
    moved_by,
    noise_gain,
    prepared,
    pull,
    slopes,
    source_points,
)

# Where neither kernel is exact, aliasing makes the finest detail differ between the views: the
# derivative is taken from an image blurred by this many px, and the source's rim is left out. Both
# chosen on scene pairs of the training photographs.
_ALIASING_BLUR = 0.8
_ALIASING_RIM = 1.0
# Near the optimum the residual has long tails, at just the edges that say most: fewer are outliers.
_TAILS = 5.0
# Aliasing is no white noise: it makes the estimate's variance this much larger than the residual
# tells. Measured on the same pairs.
_ALIASING_INFLATION = 2.5
_FEW_PIXELS = 1024  # below this, none is spared in choosing direction and kernel
# Mean square of a residual, in units of the pair's spread, that leaves a kernel nothing to explain.
_EXACT = 1e-9
_FARTHEST = (3.0, 3.0, 12.0)  # px and degrees: beyond lies another optimum than the start's
_CONVERGED = 3e-5  # px and degrees: steps below this are not worth another
# Chi-square (1 gain + C biases) from which a brightness change is believed.
_BRIGHTNESS_CHANGED = 30.0


class Finished(NamedTuple):
    """The end of a registration.

    Attributes:
      transform: from fixed to moving.
      covariance: ``(3, 3)`` of ``(tx, ty, theta)``, px and degrees.
      value: ``(P, C)``, the source on the target's pixels at the end.
      target: ``(P, C)``.
      inside: ``(P,)`` weight of the overlap.
      weight: ``(P,)``, of the overlap, less where the residual is an outlier.
      settled: scalar bool, False if no optimum was found near the start, which then is the answer.
    """

    transform: RigidTransform
    covariance: jax.Array
    value: jax.Array
    target: jax.Array
    inside: jax.Array
    weight: jax.Array
    settled: jax.Array


def finish(
    fixed: jax.Array,
    moving: jax.Array,
    transform: RigidTransform,
    kernel: str = "auto",
    iterations: int = 100,
) -> Finished:
    """Refine a close alignment to the end.

    The transform is differentiable with respect to the images, through the optimum it is.

    Args:
      fixed: ``(H, W, C)``.
      moving: the same shape.
      transform: within a few tenths of a pixel.
      kernel: ``"auto"``, ``"linear"`` or ``"spline"``.
      iterations: how many steps at most.
    """
    both, t = jax.lax.stop_gradient(((fixed, moving), transform))
    inverse = t.inverse()
    # The direction is told apart by the kernel that is not the same in both: the bilinear one.
    ways = jax.tree.map(lambda *v: jnp.stack(v), (*both, t), (*both[::-1], inverse))
    bilinear, *brightness = jax.lax.map(lambda way: _mismatch(*way, linear=True), ways)
    swapped = bilinear[1] < bilinear[0]
    pick = lambda a, b: jnp.where(swapped, a, b)  # noqa: E731
    start = jax.tree.map(pick, inverse, t)
    pair = pick(moving, fixed), pick(fixed, moving)
    begin = start, *(pick(both_ways[1], both_ways[0]) for both_ways in brightness)
    finishes = {
        linear: functools.partial(_finish, linear=linear, iterations=iterations)
        for linear in (True, False)
    }
    if kernel == "auto":
        least = bilinear.min()
        # One pair alone takes only its own way; a vmapped batch takes both and keeps one.
        spline = jax.lax.cond(
            least < _EXACT,
            lambda *_: jnp.float32(jnp.inf),
            lambda *way: _mismatch(*way, linear=False)[0],
            *jax.lax.stop_gradient(pair),
            start,
        )
        end = jax.lax.cond(least <= spline, finishes[True], finishes[False], *pair, *begin)
    else:
        end = finishes[kernel == "linear"](*pair, *begin)
    back, turned = _unswap(end.transform, end.covariance)
    t = jax.tree.map(pick, back, end.transform)
    t = RigidTransform(t.tx, t.ty, wrap_degrees(t.theta))
    return end._replace(transform=t, covariance=pick(turned, end.covariance))


@functools.cache
def _slanted_lines(height: int, width: int) -> np.ndarray | slice:
    """Indices of every third pixel, but all of a small image: enough to tell the kernel by."""
    y, x = np.mgrid[:height, :width]
    return np.flatnonzero((y + x) % 3 == 0) if y.size > _FEW_PIXELS else slice(None)


def _mismatch(
    source: jax.Array, target: jax.Array, t: RigidTransform, *, linear: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Residual variance in units of the noise that the kernel lets through, gain and bias.

    What a small move would take away does not count: the start is not the optimum yet.
    """
    points, some = source_points(source.shape, t), _slanted_lines(*source.shape[:2])
    v, u = (_flat(g)[some] for g in jnp.gradient(target, axis=(0, 1)))
    slope = moved_by(u, v, points.lever[:, some]).reshape(3, -1)
    points = points._replace(x=points.x[some], y=points.y[some], inside=points.inside[some])
    value = pull(prepared(source, linear), points, linear)
    fit = fit_intensity(value, _flat(target)[some], points.inside)
    system = System(slope, normal_matrix(slope, slope, fit.weight))
    moments = system.moments(fit.weight, fit.residual)
    moved = jnp.vdot(moments, solve(system.inverse, moments)) / value.shape[-1]
    variance = fit.variance - moved / jnp.maximum(fit.weight.sum(), 1.0)
    variance = jnp.maximum(variance, 1e-3 * fit.variance)
    kept = jnp.square(fit.gain) * noise_gain(points, linear)
    return variance / (kept + 1.0) / fit.gain, fit.gain, fit.bias


def _flat(image: jax.Array) -> jax.Array:
    return image.reshape(-1, image.shape[-1])


def _finish(
    source: jax.Array,
    target: jax.Array,
    start: RigidTransform,
    gain: jax.Array,
    bias: jax.Array,
    *,
    linear: bool,
    iterations: int,
) -> Finished:
    """`finish` with the choices made: ``source`` is pulled onto the pixels of ``target``."""
    images = (source, target)
    source, target = jax.lax.stop_gradient(images)
    shape, flat = source.shape, _flat(target)
    image = prepared(source, linear)
    margin = 0.0 if linear else _ALIASING_RIM

    points = source_points(shape, start, margin)
    value = pull(image, points, linear)
    fit = fit_intensity(value, flat, points.inside, gain, bias)
    left, right = _instruments(source, target, points, value, fit, linear)
    normal = normal_matrix(left, of_model(right, fit.gain), fit.weight)
    changed = _brightness_changed(left, normal, value, flat, fit)
    system = System(left, damped_inverse(normal, changed))

    def step(state: tuple) -> tuple:
        t, gain, bias, inverse, last, last_moments, _, left_over = state
        points = source_points(shape, t, margin)
        fit = weigh(pull(image, points, linear), flat, points.inside, gain, bias, _TAILS)
        moments = system.moments(fit.weight, fit.residual)
        inverse = secant(inverse, scale, last, last_moments - moments)
        # The plain step tells a secant gone astray: one that leaps, turns back or shrinks.
        plain = jnp.nan_to_num(product(system.inverse, moments))
        delta = guarded(jnp.nan_to_num(product(inverse, moments)), plain, scale)
        delta = delta.at[:3].set(clip_step(delta[:3]))
        gain = jnp.clip(gain + delta[3], 0.1, 10.0)
        moved = jnp.maximum(jnp.abs(delta[:3]), jnp.abs(plain[:3])).max()
        t, bias = _add(t, delta), bias + delta[4:]
        return t, gain, bias, inverse, delta, moments, moved, left_over - 1

    def moves(state: tuple) -> jax.Array:
        *_, moved, left_over = state
        return (moved > _CONVERGED) & (left_over > 0)

    gain = jnp.where(changed, fit.gain, 1.0)
    bias = jnp.where(changed, fit.bias, 0.0)
    nothing = jnp.zeros_like(left[:, 0])
    scale = jnp.abs(jnp.diagonal(normal))
    far, limit = jnp.float32(jnp.inf), jnp.int32(iterations)
    state = (start, gain, bias, system.inverse, nothing, nothing, far, limit)
    t, gain, bias, *_ = jax.lax.while_loop(moves, step, state)
    settled = _near(t, start)
    t = jax.tree.map(lambda end, begin: jnp.where(settled, end, begin), t, start)
    t = _optimum(linear, *images, _Optimum(t, gain, bias, left, changed))
    points = source_points(shape, t, margin)
    value = pull(prepared(images[0], linear), points, linear)
    fit = weigh(value, _flat(images[1]), points.inside, gain, bias, _TAILS)
    covariance = _covariance(system, fit) * (1.0 if linear else _ALIASING_INFLATION)
    return Finished(t, covariance, value, _flat(images[1]), points.inside, fit.weight, settled)


def _near(t: RigidTransform, start: RigidTransform) -> jax.Array:
    """Whether a transform is one that the start can have meant."""
    moved = jnp.abs(t.as_array() - start.as_array())
    return (moved < jnp.asarray(_FARTHEST, jnp.float32)).all()


def _add(t: RigidTransform, step: jax.Array) -> RigidTransform:
    return RigidTransform(t.tx + step[0], t.ty + step[1], t.theta + step[2])


def _instruments(
    source: jax.Array, target: jax.Array, points: Points, value: jax.Array, fit: Fit, linear: bool
) -> tuple[jax.Array, jax.Array]:
    """What the residual is projected on, and the model's derivatives: both ``(4 + C, P * C)``.

    The unknowns are ``(tx, ty, theta)``, the gain, and each channel's bias. The former are the mean
    of source and target, each denoised on its own grid. Each half stays with its own noise as the
    transform moves; averaging the pictures first would tie the estimate to the transform at which
    they were averaged.
    """
    height, width, channels = source.shape
    noise = fit.variance / (1.0 + jnp.square(fit.gain) * noise_gain(points, linear))
    # Beyond the overlap the target may be black or something else altogether.
    expected = fit.gain * value + fit.bias
    seen = jnp.where(points.inside[:, None] > 0, _flat(target), expected)
    seen = (seen.reshape(target.shape) - fit.bias) / fit.gain
    noise_of_both = noise / jnp.square(fit.gain)
    smooth_source, smooth_target = (wiener(image, noise_of_both) for image in (source, seen))
    biases = jnp.tile(jnp.eye(channels, dtype=jnp.float32), (1, height * width))

    def columns(a: jax.Array, b: jax.Array) -> jax.Array:
        image = prepared(a, linear)
        v, u = (_flat(g) for g in spline_gradient(b))
        slope = 0.5 * (slopes(image, points, linear) + moved_by(u, v, points.lever))
        level = 0.5 * (pull(image, points, linear) + _flat(b))
        return jnp.concatenate([jnp.concatenate([slope, level[None]]).reshape(4, -1), biases])

    smooth = columns(smooth_source, smooth_target)
    if linear:
        return smooth, smooth
    rows, across = (blurring_matrix(size, _ALIASING_BLUR) for size in (height, width))
    blurred = (apply_separable(rows, image, across) for image in (smooth_source, smooth_target))
    return columns(*blurred), smooth


def _brightness_changed(
    left: jax.Array, normal: jax.Array, value: jax.Array, target: jax.Array, fit: Fit
) -> jax.Array:
    """Whether gain 1 and bias 0 are out of the question: a likelihood-ratio test.

    The transform is free to make up for what it can, as it would if the test said no.
    """
    residual = target - value
    moments = System(left[:3], normal[:3, :3]).moments(fit.weight, residual)
    gained = jnp.vdot(moments, solve(normal[:3, :3], moments))
    energy = lambda v: dots(fit.weight, over_channels(jnp.square(v))) * v.shape[-1]  # noqa: E731
    excess = energy(residual) - gained - energy(fit.residual)
    floor = 1e-7 * energy(target) / jnp.maximum(fit.weight.sum(), 1.0)
    return excess > _BRIGHTNESS_CHANGED * jnp.maximum(fit.variance, floor)


def _covariance(system: System, fit: Fit) -> jax.Array:
    """Of the estimate: ``N^-1 (Z' S Z) N^-T``, S the variance of the residual."""
    influence = product(system.inverse[:3], system.instruments)
    return fit.variance * normal_matrix(influence, influence, fit.weight)


class _Optimum(NamedTuple):
    """Where the search ended, and what its optimum is an optimum of."""

    transform: RigidTransform
    gain: jax.Array
    bias: jax.Array
    instruments: jax.Array
    changed: jax.Array


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _optimum(linear: bool, source: jax.Array, target: jax.Array, end: _Optimum) -> RigidTransform:
    """``end.transform`` as a function of the images, by the implicit function theorem.

    The search behind it need not be unrolled: one more step from there, of value zero, has the
    optimum's derivative. The theorem wants the residual's own derivative by the transform, where
    the search was content with a smooth one.
    """
    del linear, source, target
    return end.transform


@_optimum.defjvp
def _optimum_jvp(linear: bool, primals: tuple, tangents: tuple) -> tuple:
    source, target, end = primals
    margin = 0.0 if linear else _ALIASING_RIM
    points = source_points(source.shape, end.transform, margin)
    image = prepared(source, linear)
    value = pull(image, points, linear)
    fit = weigh(value, _flat(target), points.inside, end.gain, end.bias, _TAILS)
    columns = jnp.concatenate([slopes(image, points, linear), value[None]])
    right = jnp.concatenate([columns.reshape(4, -1), end.instruments[4:]])
    normal = normal_matrix(end.instruments, of_model(right, end.gain), fit.weight)
    system = System(end.instruments, damped_inverse(normal, end.changed))

    def step(source: jax.Array, target: jax.Array) -> jax.Array:
        value = pull(prepared(source, linear), points, linear)
        residual = _flat(target) - end.gain * value - end.bias
        return product(system.inverse, system.moments(fit.weight, residual))[:3]

    moved = jax.jvp(step, (source, target), tangents[:2])[1]
    return end.transform, RigidTransform(moved[0], moved[1], moved[2])


def _unswap(t: RigidTransform, covariance: jax.Array) -> tuple[RigidTransform, jax.Array]:
    """The inverse of a transform, and its covariance carried over."""
    inverse = t.inverse()
    cos, sin = cos_sin_degrees(t.theta)
    jacobian = jnp.array(
        [
            [-cos, -sin, DEGREE * inverse.ty],
            [sin, -cos, -DEGREE * inverse.tx],
            [0.0, 0.0, -1.0],
        ]
    )
    return inverse, product(product(jacobian, covariance), jacobian.T)
