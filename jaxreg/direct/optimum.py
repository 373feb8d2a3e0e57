"""Find the optimum of an alignment whose direction and kernel are chosen, and its derivative.

The normal equations are those of instrumental variables: the residual
``target - gain * source(T^-1 p) - bias`` is projected on the derivative of a *denoised* image
instead of the noisy one's. At low noise that is Gauss-Newton; at high noise it keeps the estimate
near the Cramér-Rao bound, which it would miss with the noise in the derivative.

Gain and bias are held at 1 and 0 unless the images clearly show a change of brightness, because
fitting them costs accuracy.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.compute.branching import run_long_rarely
from jaxreg.compute.products import dots, mean_once, product
from jaxreg.compute.pytrees import allow_rank_promotion
from jaxreg.compute.small_systems import solve, swept_inverse
from jaxreg.direct.instruments import aliased, instruments
from jaxreg.direct.intensity import Fit, fit_intensity, gradient_magnitude, weigh
from jaxreg.direct.masking import Masks, Pair
from jaxreg.direct.normal_equations import (
    System,
    Unknowns,
    damped_inverse,
    design_matrix,
    guarded,
    model_jacobian,
    normal_matrix,
    projections,
    secant,
)
from jaxreg.direct.refinement import clip_step
from jaxreg.direct.resampling import (
    Points,
    by_kernel,
    flat,
    interpolant,
    pull,
    slopes,
    source_points,
)
from jaxreg.geometry import RigidTransform

# px: width of the source's rim over which weights fall to zero, except with the bilinear kernel.
_ALIASING_RIM = 1.0
# Scales from which a residual is an outlier. Near the optimum residuals have long tails at edges,
# which determine most, so the limit is wider than elsewhere; it is wider still for aliasing.
_TAILS, _TAILS_OF_ALIASING = 5.0, 12.0
_FARTHEST = (3.0, 3.0, 12.0)  # px and degrees: an optimum farther from the start is another one
_MOST_ARE_DONE = 8  # steps within which most pairs converge
_MOST_STEPS = 100
_CONVERGED = 3e-5  # px and degrees: the iteration ends with a step shorter than this
# Chi-square (1 gain + C biases) from which a brightness change is accepted, for up to three
# channels; plus 1, the expected increase, for each further channel.
_BRIGHTNESS_CHANGED = 30.0


class Optimum(NamedTuple):
    """The end of the iteration, and the equations that it solves.

    Attributes:
      unknowns: at the optimum.
      system: the normal equations.
      common: ``(3, U)``, from projections to the transform, by the signal that the images share.
      slow: scalar, the residual's slow share, see `slow_share`.
      changed: scalar bool, whether gain and bias are unknowns; else they are held.
      settled: scalar bool; False if no optimum was near the start, which then is the transform.
    """

    unknowns: Unknowns
    system: System
    common: jax.Array
    slow: jax.Array
    changed: jax.Array
    settled: jax.Array


class _Problem(NamedTuple):
    """The constants of the iteration.

    Attributes:
      image: the source, see `interpolant`.
      target: ``(P, C)``.
      masks: which pixels count, if not all do.
      counts: further weights, see `Pair`.
      system: the normal equations.
      outlier: scalar, number of scales from which a residual is an outlier.
      steep: ``(P,)``, gradient magnitude with which the scale grows, see `_steepness`.
      grain: scalar, see `Pair`.
      linear: the kernel, see `by_kernel`.
    """

    image: jax.Array
    target: jax.Array
    masks: Masks | None
    counts: jax.Array
    system: System
    outlier: jax.Array
    steep: jax.Array
    grain: jax.Array
    linear: jax.Array


class _State(NamedTuple):
    """The variables of the iteration.

    Attributes:
      unknowns: the current estimate.
      inverse: ``(U, U)``, from projections to steps, updated by `secant`.
      step: ``(U,)``, the last step.
      moments: ``(U,)``, the projections before it.
      moved: px or degrees, the longer of the last step and its plain version.
      taken: number of steps.
    """

    unknowns: Unknowns
    inverse: jax.Array
    step: jax.Array
    moments: jax.Array
    moved: jax.Array
    taken: jax.Array


def find_optimum(pair: Pair, start: Unknowns, linear: jax.Array) -> Optimum:
    """Find the optimum near a start; `differentiable` gives its derivative.

    Args:
      pair: images ``(H, W, C)``.
      start: within a few tenths of a pixel.
      linear: the kernel, see `by_kernel`.
    """
    pixels = flat(pair.target)
    image = interpolant(pair.source, linear)
    points = _points(pair, start.transform, linear)
    value = pull(image, points, linear)
    steep = _steepness(value, pair.target, linear)
    fit = fit_intensity(value, pixels, points.inside, start.gain, start.bias, steep, pair.grain)
    found = instruments(pair, points, value, fit, steep, linear)
    left, right = found.columns, model_jacobian(found.model, fit.gain)
    products = normal_matrix(jnp.concatenate([left, found.source]), right, fit.weight)
    normal, common = products[:-3], products[-3:, :3]
    changed = _brightness_changed(left, normal, value, pixels, fit)
    noise = jnp.pad(found.noise_alone, (0, len(left) - 3))
    system = System(left, damped_inverse(normal, changed), jnp.abs(jnp.diagonal(normal)), noise)
    common = _by_what_is_common(system.inverse, normal, common)

    gain, bias = jnp.where(changed, fit.gain, 1.0), jnp.where(changed, fit.bias, 0.0)
    outlier, grain = _outlier(found.slow), jnp.asarray(pair.grain)
    counts = jnp.asarray(pair.counts)
    problem = _Problem(image, pixels, pair.masks, counts, system, outlier, steep, grain, linear)
    nothing = jnp.zeros_like(left[:, 0])
    far, none = jnp.full_like(gain, jnp.inf), jnp.zeros_like(gain, jnp.int32)
    begin = Unknowns(start.transform, gain, bias)
    state = _State(begin, system.inverse, nothing, nothing, far, none)
    descend = functools.partial(_descend, shape=pair.source.shape)
    unfinished = lambda state: state.moved > _CONVERGED  # noqa: E731
    state = run_long_rarely(descend, unfinished, (_MOST_ARE_DONE, _MOST_STEPS), problem, state)
    end = state.unknowns
    settled = _near(end.transform, start.transform)
    keep = lambda end, begin: jnp.where(settled, end, begin)  # noqa: E731
    end = end._replace(transform=jax.tree.map(keep, end.transform, start.transform))
    return Optimum(end, system, common, found.slow, changed, settled)


def agreement(pair: Pair, end: Optimum, linear: jax.Array) -> tuple[Points, jax.Array, Fit]:
    """Evaluate an optimum: points in the source, its values there, and the fit of the target."""
    transform, gain, bias = end.unknowns
    points = _points(pair, transform, linear)
    value = pull(interpolant(pair.source, linear), points, linear)
    steep = _steepness(value, pair.target, linear)
    outlier, pixels = _outlier(end.slow), flat(pair.target)
    fit = weigh(value, pixels, points.inside, gain, bias, outlier, steep, pair.grain)
    return points, value, fit


@jax.custom_jvp
def differentiable(pair: Pair, end: Optimum, linear: jax.Array) -> RigidTransform:
    """The transform of an optimum as a function of the images, by the implicit function theorem.

    The iteration is not unrolled: one more step from the optimum, of value zero, has the optimum's
    derivative. The theorem needs the residual's own derivative by the transform, where the
    iteration uses that of a denoised image.

    If no optimum was near the start, the transform is the start, and its derivative is zero.

    Only first derivatives are right. Weights, filters and the positions of the points are constants
    to them, so that a second derivative is finite but not the curvature.
    """
    del pair, linear
    return end.unknowns.transform


# Rules are traced after the function that they belong to, and after the settings around it.
@differentiable.defjvp
@allow_rank_promotion
def _differentiable_jvp(primals: tuple, tangents: tuple) -> tuple:
    pair, end, linear = primals
    found = end.unknowns
    # Where the iteration did not settle, gain and bias may have diverged.
    gain, bias = jnp.where(end.settled, found.gain, 1.0), jnp.where(end.settled, found.bias, 0.0)
    end = end._replace(unknowns=Unknowns(found.transform, gain, bias))
    points, value, fit = agreement(pair, end, linear)
    right = design_matrix(slopes(interpolant(pair.source, linear), points, linear), value)
    normal = normal_matrix(end.system.instruments, model_jacobian(right, gain), fit.weight)
    inverse = jnp.where(end.settled, damped_inverse(normal, end.changed), 0.0)
    steep = _steepness(value, pair.target, linear)

    def step(source: jax.Array, target: jax.Array) -> jax.Array:
        value = pull(interpolant(source, linear), points, linear)
        residual = flat(target) - gain * value - bias
        changed = pair._replace(source=source, target=target)
        left = instruments(changed, points, value, fit, steep, linear).columns
        return product(inverse, projections(left, fit.weight, residual))[:3]

    moved = jax.jvp(step, pair[:2], tangents[0][:2])[1]
    return found.transform, RigidTransform(moved[0], moved[1], moved[2])


def _descend(problem: _Problem, state: _State, *, shape: tuple[int, ...], limit: int) -> _State:
    """Iterate until a step is short enough, or ``limit`` steps are taken.

    Args:
      problem: the constants.
      state: the variables to start from.
      shape: of the source, ``(H, W, C)``.
      limit: largest number of steps, including earlier ones.
    """
    image, target, masks, counts, system, outlier, steep, grain, linear = problem

    def step(state: _State) -> _State:
        transform, gain, bias = state.unknowns
        points = source_points(shape, transform, _margin(linear), masks, counts)
        value = pull(image, points, linear)
        fit = weigh(value, target, points.inside, gain, bias, outlier, steep, grain)
        found = projections(system.instruments, fit.weight, fit.residual) - system.noise
        inverse = secant(state.inverse, system.scale, state.step, state.moments - found)
        # The plain step shows a secant that went wrong: a step too long, backwards or too short.
        plain = jnp.nan_to_num(product(system.inverse, found))
        delta = guarded(jnp.nan_to_num(product(inverse, found)), plain, system.scale)
        delta = delta.at[:3].set(clip_step(delta[:3]))
        moved = jnp.maximum(jnp.abs(delta[:3]), jnp.abs(plain[:3])).max()
        there = state.unknowns.moved(delta)
        return _State(there, inverse, delta, found, moved, state.taken + 1)

    moves = lambda state: (state.moved > _CONVERGED) & (state.taken < limit)  # noqa: E731
    return jax.lax.while_loop(moves, step, state)


def _points(pair: Pair, transform: RigidTransform, linear: jax.Array) -> Points:
    points = source_points(pair.source.shape, transform, _margin(linear), pair.masks, pair.counts)
    return points._replace(lever=pair.turn * points.lever)


def _steepness(value: jax.Array, target: jax.Array, linear: jax.Array) -> jax.Array:
    """`gradient_magnitude` of the source's values ``(P, C)`` and the target, or zero.

    It is zero for the bilinear kernel: in pairs made by it residuals do not grow with the gradient.
    """
    level = lambda value, _: jnp.zeros_like(value[..., 0].reshape(-1))  # noqa: E731
    return by_kernel(linear, level, gradient_magnitude, value.reshape(target.shape), target)


def _margin(linear: jax.Array) -> jax.Array:
    """Distance in px from the source's frame at which a point has full weight."""
    return jnp.where(linear, 0.0, _ALIASING_RIM)


def _near(t: RigidTransform, start: RigidTransform) -> jax.Array:
    """Return whether a transform is so near the start that it belongs to the same optimum."""
    moved = jnp.abs(t.as_array() - start.as_array())
    return (moved < jnp.asarray(_FARTHEST, jnp.float32)).all()


def _outlier(slow: jax.Array) -> jax.Array:
    """Number of scales from which a residual with this slow share is an outlier."""
    return _TAILS + (_TAILS_OF_ALIASING - _TAILS) * aliased(slow)


def _by_what_is_common(inverse: jax.Array, normal: jax.Array, common: jax.Array) -> jax.Array:
    """The first rows ``(3, U)`` of an inverse for another ``(3, 3)`` block of the normal matrix.

    The block is that of the source's instruments alone. The noise of the two images is independent,
    so only the signal that they share is left in it, which determines the transform.
    """
    change = product(inverse[:3, :3], common - normal[:3, :3])
    return product(swept_inverse(jnp.eye(3, dtype=jnp.float32) + change), inverse[:3])


def _brightness_changed(
    left: jax.Array, normal: jax.Array, value: jax.Array, target: jax.Array, fit: Fit
) -> jax.Array:
    """Test by likelihood ratio whether gain 1 and bias 0 are to be rejected.

    The part of the residual that a small move would explain does not count, because the transform
    is free to explain it if gain and bias are held.
    """
    residual = target - value
    drop = projections(left[:3], fit.weight, residual)
    gained = product(drop, solve(normal[:3, :3], drop))
    energy = lambda v: dots(fit.weight, mean_once(jnp.square(v)) * v.shape[1])  # noqa: E731
    excess = energy(residual) - gained - energy(fit.residual)
    floor = 1e-7 * energy(target) / jnp.maximum(fit.weight.sum(), 1.0)
    unlikely = _BRIGHTNESS_CHANGED + max(value.shape[-1] - 3, 0)
    # Channels with correlated noise count as fewer channels.
    shared = fit.covariance()
    repeated = jnp.square(shared).sum() / jnp.maximum(jnp.trace(shared) * fit.variance, 1e-30)
    return excess > unlikely * jnp.maximum(repeated * fit.variance, floor)
