"""The optimum of an alignment whose direction and kernel are chosen, and its derivative.

Which frequencies to trust: a Wiener filter at the measured noise, and a blur against aliasing where
the residual's colour shows it. Whether the brightness changed: gain and bias are held at 1 and 0
unless the images clearly say otherwise, for fitting them costs accuracy.

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

from jaxreg.branching import run_long_rarely
from jaxreg.denoising import cosine_blur, wiener
from jaxreg.geometry import RigidTransform
from jaxreg.intensity import Fit, fit_intensity, steepness, weigh
from jaxreg.interpolation import spline_gradient
from jaxreg.masking import Masks
from jaxreg.normal_equations import (
    System,
    damped_inverse,
    guarded,
    moments,
    normal_matrix,
    of_model,
    secant,
)
from jaxreg.products import apply_separable, dots, product
from jaxreg.pyramid import blurring_matrix
from jaxreg.refinement import clip_step, scale_by_steepness, solve
from jaxreg.resampling import (
    Points,
    interpolant,
    noise_gain,
    pull,
    slopes,
    slopes_by_gradient,
    source_points,
)

# Where neither kernel is exact, aliasing makes the finest detail differ between the views: the
# derivative is taken from an image blurred by up to this many px, and the source's rim is left out.
# Chosen on scene pairs of the training photographs, as are the two shares below.
_ALIASING_BLUR = 1.5
_ALIASING_RIM = 1.0
# A blur by so many px leaves about 5% of the power of white noise; 2% and less of aliasing's, which
# lies in the finest detail; and more than half of the power of what hides a part of a view.
_SLOW = 1.5
WHITE, _ALIASING = 0.05, 0.02
# Scales from which a residual is an outlier. Near the optimum it has long tails, at just the edges
# that say most: the limit is wider than elsewhere, and where the residual is aliasing wider still.
_TAILS, _TAILS_OF_ALIASING = 5.0, 12.0
_FARTHEST = (3.0, 3.0, 12.0)  # px and degrees: beyond lies another optimum than the start's
_MOST_ARE_DONE = 8  # steps after which few pairs have not converged
_MOST_STEPS = 100
_CONVERGED = 3e-5  # px and degrees: steps below this are not worth another
# Chi-square (1 gain + C biases) from which a brightness change is believed, for up to three
# channels; one more for each further one, as much as it adds by itself.
_BRIGHTNESS_CHANGED = 30.0


class Optimum(NamedTuple):
    """Where a search ended, and what that is an optimum of.

    Attributes:
      transform, gain, bias: the unknowns.
      system: its instruments, and what takes moments to steps.
      slow: scalar, the share of the residual's power that is not fine detail, see `_slow_share`.
      changed: scalar bool, whether gain and bias are unknowns at all.
      settled: scalar bool, False if there was none near the start, which then is the transform.
    """

    transform: RigidTransform
    gain: jax.Array
    bias: jax.Array
    system: System
    slow: jax.Array
    changed: jax.Array
    settled: jax.Array


class _Problem(NamedTuple):
    """What stays as it is from step to step.

    Attributes:
      image: the source, `interpolant`.
      target: ``(P, C)``.
      masks: which pixels count, if not all do.
      system: what takes moments to steps.
      scale: ``(U,)``, what makes steps comparable.
      outlier: scalar, how many scales of the residual are one.
      steep: ``(P,)`` `steepness`, by which that scale grows, or None if it does not.
    """

    image: jax.Array
    target: jax.Array
    masks: Masks | None
    system: System
    scale: jax.Array
    outlier: jax.Array
    steep: jax.Array | None


class _State(NamedTuple):
    """What a step changes: the unknowns, and what the secant learns from.

    Attributes:
      transform, gain, bias: the unknowns.
      inverse: ``(U, U)``, from moments to steps.
      step: ``(U,)``, the last one.
      moments: ``(U,)``, before it.
      moved: px or degrees, the longer of the last step and the plain one.
      taken: steps so far.
    """

    transform: RigidTransform
    gain: jax.Array
    bias: jax.Array
    inverse: jax.Array
    step: jax.Array
    moments: jax.Array
    moved: jax.Array
    taken: jax.Array


def find_optimum(
    source: jax.Array,
    target: jax.Array,
    masks: Masks | None,
    start: RigidTransform,
    gain: jax.Array,
    bias: jax.Array,
    *,
    linear: bool,
) -> Optimum:
    """The optimum near a start; has no derivative of its own, see `differentiable`.

    Args:
      source: ``(H, W, C)``, pulled onto the pixels of
      target: the same shape.
      masks: which pixels count, if not all do.
      start: within a few tenths of a pixel, from source to target.
      gain: where to begin with it.
      bias: ``(C,)``, likewise.
      linear: the kernel, bilinear or cubic spline.
    """
    pixels = flat(target)
    image = interpolant(source, linear)
    points = source_points(source.shape, start, _margin(linear), masks)
    value = pull(image, points, linear, once=True)
    steep = _steepness(value, target, linear)
    fit = fit_intensity(value, pixels, points.inside, gain, bias, steep)
    left, right, slow = _instruments(source, target, points, value, fit, steep, linear)
    normal = normal_matrix(left, of_model(right, fit.gain), fit.weight)
    changed = _brightness_changed(left, normal, value, pixels, fit)
    system = System(left, damped_inverse(normal, changed))
    gain = jnp.where(changed, fit.gain, 1.0)
    bias = jnp.where(changed, fit.bias, 0.0)

    scale = jnp.abs(jnp.diagonal(normal))
    problem = _Problem(image, pixels, masks, system, scale, _outlier(slow), steep)
    nothing = jnp.zeros_like(left[:, 0])
    far, none = jnp.float32(jnp.inf), jnp.int32(0)
    state = _State(start, gain, bias, system.inverse, nothing, nothing, far, none)
    descend = functools.partial(_descend, shape=source.shape, linear=linear)
    unfinished = lambda state: state.moved > _CONVERGED  # noqa: E731
    state = run_long_rarely(descend, unfinished, (_MOST_ARE_DONE, _MOST_STEPS), problem, state)
    settled = _near(state.transform, start)
    t = jax.tree.map(lambda end, begin: jnp.where(settled, end, begin), state.transform, start)
    return Optimum(t, state.gain, state.bias, system, slow, changed, settled)


def agreement(
    source: jax.Array, target: jax.Array, masks: Masks | None, end: Optimum, *, linear: bool
) -> tuple[Points, jax.Array, Fit]:
    """Where an optimum finds the target's pixels, the values there, and how well they fit."""
    points = source_points(source.shape, end.transform, _margin(linear), masks)
    value = pull(interpolant(source, linear), points, linear)
    steep = _steepness(value, target, linear)
    fit = weigh(value, flat(target), points.inside, end.gain, end.bias, _outlier(end.slow), steep)
    return points, value, fit


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def differentiable(
    linear: bool, source: jax.Array, target: jax.Array, masks: Masks | None, end: Optimum
) -> RigidTransform:
    """``end.transform`` as a function of the images, by the implicit function theorem.

    The search behind it need not be unrolled: one more step from there, of value zero, has the
    optimum's derivative. The theorem wants the residual's own derivative by the transform, where
    the search was content with a smooth one.
    """
    del linear, source, target, masks
    return end.transform


@differentiable.defjvp
def _differentiable_jvp(linear: bool, primals: tuple, tangents: tuple) -> tuple:
    source, target, masks, end = primals
    points, value, fit = agreement(source, target, masks, end, linear=linear)
    left, image = end.system.instruments, interpolant(source, linear)
    columns = jnp.concatenate([slopes(image, points, linear), value[None]])
    right = jnp.concatenate([columns.reshape(4, -1), _bias_columns(value)])
    normal = normal_matrix(left, of_model(right, end.gain), fit.weight)
    system = System(left, damped_inverse(normal, end.changed))

    def step(source: jax.Array, target: jax.Array) -> jax.Array:
        value = pull(interpolant(source, linear), points, linear)
        residual = flat(target) - end.gain * value - end.bias
        return product(system.inverse, moments(system.instruments, fit.weight, residual))[:3]

    moved = jax.jvp(step, (source, target), tangents[:2])[1]
    return end.transform, RigidTransform(moved[0], moved[1], moved[2])


def _descend(
    problem: _Problem, state: _State, *, shape: tuple[int, ...], linear: bool, limit: int
) -> _State:
    """Steps until one is too short to be worth another, or ``limit`` of them are taken.

    Args:
      problem: what stays as it is.
      state: where to go on.
      shape: of the source, ``(H, W, C)``.
      linear: the kernel.
      limit: how many steps at most, those before included.
    """
    image, target, masks, system, scale, outlier, steep = problem

    def step(state: _State) -> _State:
        t, gain, bias = state.transform, state.gain, state.bias
        points = source_points(shape, t, _margin(linear), masks)
        value = pull(image, points, linear, once=True)
        fit = weigh(value, target, points.inside, gain, bias, outlier, steep)
        found = moments(system.instruments, fit.weight, fit.residual)
        inverse = secant(state.inverse, scale, state.step, state.moments - found)
        # The plain step tells a secant gone astray: one that leaps, turns back or shrinks.
        plain = jnp.nan_to_num(product(system.inverse, found))
        delta = guarded(jnp.nan_to_num(product(inverse, found)), plain, scale)
        delta = delta.at[:3].set(clip_step(delta[:3]))
        gain = jnp.clip(gain + delta[3], 0.1, 10.0)
        moved = jnp.maximum(jnp.abs(delta[:3]), jnp.abs(plain[:3])).max()
        t, bias = _add(t, delta), bias + delta[4:]
        return _State(t, gain, bias, inverse, delta, found, moved, state.taken + 1)

    moves = lambda state: (state.moved > _CONVERGED) & (state.taken < limit)  # noqa: E731
    return jax.lax.while_loop(moves, step, state)


def flat(image: jax.Array) -> jax.Array:
    """``(P, C)`` pixels of an image ``(H, W, C)``."""
    return image.reshape(-1, image.shape[-1])


def _steepness(value: jax.Array, target: jax.Array, linear: bool) -> jax.Array | None:
    """`steepness` of the source's values ``(P, C)`` and the target, where residuals grow with it.

    Where the bilinear kernel is the pair's own they do not.
    """
    return None if linear else steepness(value.reshape(target.shape), target)


def _margin(linear: bool) -> float:
    """How far inside the source's frame a point counts in full."""
    return 0.0 if linear else _ALIASING_RIM


def _near(t: RigidTransform, start: RigidTransform) -> jax.Array:
    """Whether a transform is one that the start can have meant."""
    moved = jnp.abs(t.as_array() - start.as_array())
    return (moved < jnp.asarray(_FARTHEST, jnp.float32)).all()


def _add(t: RigidTransform, step: jax.Array) -> RigidTransform:
    return RigidTransform(t.tx + step[0], t.ty + step[1], t.theta + step[2])


def _instruments(
    source: jax.Array,
    target: jax.Array,
    points: Points,
    value: jax.Array,
    fit: Fit,
    steep: jax.Array | None,
    linear: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What the residual is projected on, the model's derivatives, and how slow the residual is.

    The former two are ``(4 + C, P * C)``, the latter is `_slow_share`, as of white noise where the
    kernel is the bilinear one.

    The unknowns are ``(tx, ty, theta)``, the gain, and each channel's bias. The former are the mean
    of source and target, each denoised on its own grid. Each half stays with its own noise as the
    transform moves; averaging the pictures first would tie the estimate to the transform at which
    they were averaged.
    """
    height, width, channels = source.shape
    noise = fit.variance / (1.0 + jnp.square(fit.gain) * noise_gain(points, linear))
    # Beyond the overlap the target may be black or something else altogether.
    expected = fit.gain * value + fit.bias
    seen = jnp.where(points.inside[:, None] > 0, flat(target), expected)
    seen = (seen.reshape(target.shape) - fit.bias) / fit.gain
    noise_of_both = noise / jnp.square(fit.gain)
    smooth_source, smooth_target = (wiener(image, noise_of_both) for image in (source, seen))
    biases = _bias_columns(value)

    def columns(a: jax.Array, b: jax.Array) -> jax.Array:
        image = interpolant(a, linear)
        v, u = (flat(g) for g in spline_gradient(b))
        slope = 0.5 * (
            slopes(image, points, linear, once=True) + slopes_by_gradient(u, v, points.lever)
        )
        level = 0.5 * (pull(image, points, linear, once=True) + flat(b))
        return jnp.concatenate([jnp.concatenate([slope, level[None]]).reshape(4, -1), biases])

    smooth = columns(smooth_source, smooth_target)
    if steep is None:
        return smooth, smooth, jnp.float32(WHITE)
    # What a small move would take away is no property of the optimum.
    normal = normal_matrix(smooth[:3], smooth[:3], fit.weight)
    step = solve(normal, moments(smooth[:3], fit.weight, fit.residual))
    rest = fit.residual - product(step, smooth[:3]).reshape(fit.residual.shape)
    slow = _slow_share((points.inside[:, None] * rest).reshape(source.shape))
    sigma = _ALIASING_BLUR * _aliased(slow)
    rows, across = (cosine_blur(size, sigma) for size in (height, width))
    blurred = (apply_separable(rows, image, across) for image in (smooth_source, smooth_target))
    trust = _precision(jnp.sqrt(jnp.square(rest).mean(-1)), fit.weight, steep, _aliased(slow))
    return columns(*blurred) * jnp.repeat(trust, channels), smooth, slow


def _bias_columns(value: jax.Array) -> jax.Array:
    """``(C, P * C)``: how values ``(P, C)`` change with the bias of each channel."""
    pixels, channels = value.shape
    return jnp.tile(jnp.eye(channels, dtype=jnp.float32), (1, pixels))


def _precision(
    size: jax.Array, weight: jax.Array, steep: jax.Array, aliased: jax.Array
) -> jax.Array:
    """How much each pixel is to say, ``(P,)``: the less, the larger a residual is expected there.

    Half way to weights by that expectation, and only as far as the residual is aliasing: what tells
    a straight edge's place along itself is the faint rest of the picture.

    Args:
      size: ``(P,)`` of the residuals.
      weight: ``(P,)``.
      steep: ``(P,)`` `steepness`.
      aliased: scalar, see `_aliased`.
    """
    mean = dots(weight, size) / jnp.maximum(weight.sum(), 1.0)
    expected = mean + aliased * (scale_by_steepness(size, weight, steep) - mean)
    return (2.0 * mean + 1e-12) / (mean + expected + 1e-12)


def _slow_share(residual: jax.Array) -> jax.Array:
    """How much of the power of a residual ``(H, W, C)`` survives a blur: its colour, a scalar."""
    rows, across = (blurring_matrix(size, _SLOW) for size in residual.shape[:2])
    slow = jnp.square(apply_separable(rows, residual, across)).sum()
    return slow / jnp.maximum(jnp.square(residual).sum(), 1e-20)


def _aliased(slow: jax.Array) -> jax.Array:
    """Whether a residual of this colour is aliasing, 0 to 1; 0 for white noise and what is slower.

    Noise wants the sharpest derivative there is; what hides a part of a view, to be an outlier.
    """
    return jnp.clip((WHITE - slow) / (WHITE - _ALIASING), 0.0, 1.0)


def _outlier(slow: jax.Array) -> jax.Array:
    """How many scales of a residual of this colour are an outlier."""
    return _TAILS + (_TAILS_OF_ALIASING - _TAILS) * _aliased(slow)


def _brightness_changed(
    left: jax.Array, normal: jax.Array, value: jax.Array, target: jax.Array, fit: Fit
) -> jax.Array:
    """Whether gain 1 and bias 0 are out of the question: a likelihood-ratio test.

    The transform is free to make up for what it can, as it would if the test said no.
    """
    residual = target - value
    drop = moments(left[:3], fit.weight, residual)
    gained = product(drop, solve(normal[:3, :3], drop))
    energy = lambda v: dots(fit.weight, jnp.square(v).sum(-1))  # noqa: E731
    excess = energy(residual) - gained - energy(fit.residual)
    floor = 1e-7 * energy(target) / jnp.maximum(fit.weight.sum(), 1.0)
    unlikely = _BRIGHTNESS_CHANGED + max(value.shape[-1] - 3, 0)
    return excess > unlikely * jnp.maximum(fit.variance, floor)
