"""The last stage of a registration: to numerical precision, with its covariance.

Which of the two images is pulled onto the other's pixels, and by which kernel, is decided by the
images alone: whichever leaves the smaller residual, counted against the noise that interpolation
averages away. Pairs made by bilinear warping are thus recognised and solved exactly, and swapping
the images gives the inverse. The rest is `jaxreg.optimum`'s.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.branching import cond_where_any
from jaxreg.geometry import RigidTransform, cos_sin_degrees, wrap_degrees
from jaxreg.intensity import Fit, fit_intensity
from jaxreg.masking import Counts
from jaxreg.normal_equations import System, moments, normal_matrix
from jaxreg.optimum import WHITE, Optimum, agreement, differentiable, find_optimum, flat
from jaxreg.products import product
from jaxreg.refinement import solve
from jaxreg.resampling import DEGREE, interpolant, moved_by, noise_gain, pull, source_points

T = TypeVar("T")

# A residual that no kernel explains is no white noise, and the estimate's variance larger than it
# tells: by as much as neighbours share, within these bounds. Measured on scenes of the training
# photographs.
_INFLATION = 1.5, 2.5
_MANY_PIXELS = 3072  # from here on a third is enough to choose direction and kernel by
# Mean square of a residual, in units of the pair's spread, that leaves a kernel nothing to explain.
_EXACT = 1e-9


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
    counts: Counts | None = None,
) -> Finished:
    """Refine a close alignment to the end.

    The transform is differentiable with respect to the images, through the optimum it is.

    Args:
      fixed: ``(H, W, C)``.
      moving: the same shape.
      transform: within a few tenths of a pixel.
      kernel: ``"auto"``, ``"linear"`` or ``"spline"``.
      iterations: how many steps at most.
      counts: which pixels of fixed (the source) and moving do, if not all.
    """
    both, t = jax.lax.stop_gradient(((fixed, moving), transform))
    inverse = t.inverse()
    own = counts and counts.without_rim()
    others = counts and counts.swapped().without_rim()
    # The direction is told apart by the kernel that is not the same in both: the bilinear one.
    ways = jax.tree.map(lambda *v: jnp.stack(v), (*both, own, t), (*both[::-1], others, inverse))
    bilinear, *brightness = jax.lax.map(lambda way: _mismatch(*way, linear=True), ways)
    swapped = bilinear[1] < bilinear[0]
    pick = lambda a, b: jnp.where(swapped, a, b)  # noqa: E731
    start = jax.tree.map(pick, inverse, t)
    pair = pick(moving, fixed), pick(fixed, moving), jax.tree.map(pick, others, own)
    begin = start, *(pick(both_ways[1], both_ways[0]) for both_ways in brightness)
    if kernel == "auto":
        least = bilinear.min()
        # A pair that the bilinear kernel explains to rounding needs no trial of the spline.
        spline = cond_where_any(
            least < _EXACT,
            lambda *_: jnp.float32(jnp.inf),
            lambda *way: _mismatch(*way, linear=False)[0],
            *(*jax.lax.stop_gradient(pair), start),
        )
        end = _solve(iterations, least <= spline, *pair, *begin)
    else:
        end = _solve_by(*pair, *begin, linear=kernel == "linear", iterations=iterations)
    back, turned = _unswap(end.transform, end.covariance)
    t = jax.tree.map(pick, back, end.transform)
    t = RigidTransform(t.tx, t.ty, wrap_degrees(t.theta))
    return end._replace(transform=t, covariance=pick(turned, end.covariance))


def _solve_by(
    source: jax.Array,
    target: jax.Array,
    counts: Counts | None,
    *begin: Any,
    linear: bool,
    iterations: int,
) -> Finished:
    """`find_optimum` described, of the same arguments; differentiable by the images."""
    still = jax.lax.stop_gradient((source, target))
    optimum = find_optimum(*still, counts, *begin, linear=linear, iterations=iterations)
    return _describe(source, target, counts, optimum, linear=linear)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _solve(iterations: int, linear: jax.Array, *arguments: Any) -> Finished:
    """`_solve_by` the kernel chosen; a batch that chose but one runs but one."""
    solve = functools.partial(_solve_by, iterations=iterations)
    return cond_where_any(linear, *_by_either_kernel(solve), *arguments)


@_solve.defjvp
def _solve_jvp(iterations: int, primals: tuple, tangents: tuple) -> tuple:
    # `cond_where_any` has no derivative, but the optimum needs none.
    linear, source, target, counts, *begin = primals
    find = functools.partial(find_optimum, iterations=iterations)
    still = jax.lax.stop_gradient((source, target, counts, *begin))
    optimum = cond_where_any(linear, *_by_either_kernel(find), *still)

    def describe(*pair: jax.Array) -> Finished:
        return jax.lax.cond(linear, *_by_either_kernel(_describe), *pair, counts, optimum)

    return jax.jvp(describe, (source, target), tangents[1:3])


def _by_either_kernel(stage: Callable[..., T]) -> list[Callable[..., T]]:
    return [functools.partial(stage, linear=linear) for linear in (True, False)]


@functools.cache
def _slanted_lines(height: int, width: int) -> np.ndarray | slice:
    """Indices of every third pixel, or of all of a small image: enough to tell the kernel by."""
    y, x = np.mgrid[:height, :width]
    return np.flatnonzero((y + x) % 3 == 0) if y.size >= _MANY_PIXELS else slice(None)


def _mismatch(
    source: jax.Array, target: jax.Array, counts: Counts | None, t: RigidTransform, *, linear: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Residual variance in units of the noise that the kernel lets through, gain and bias.

    What a small move would take away does not count: the start is not the optimum yet.
    """
    points = source_points(source.shape, t, counts=counts)
    some = _slanted_lines(*source.shape[:2])
    v, u = (flat(g)[some] for g in jnp.gradient(target, axis=(0, 1)))
    slope = moved_by(u, v, points.lever[:, some]).reshape(3, -1)
    points = points._replace(x=points.x[some], y=points.y[some], inside=points.inside[some])
    value = pull(interpolant(source, linear), points, linear)
    fit = fit_intensity(value, flat(target)[some], points.inside)
    normal = normal_matrix(slope, slope, fit.weight)
    drop = moments(slope, fit.weight, fit.residual)
    moved = product(drop, solve(normal, drop)) / value.shape[-1]
    variance = fit.variance - moved / jnp.maximum(fit.weight.sum(), 1.0)
    variance = jnp.maximum(variance, 1e-3 * fit.variance)
    kept = jnp.square(fit.gain) * noise_gain(points, linear)
    return variance / (kept + 1.0) / fit.gain, fit.gain, fit.bias


def _describe(
    source: jax.Array, target: jax.Array, counts: Counts | None, end: Optimum, *, linear: bool
) -> Finished:
    """What is said of an optimum; differentiable with respect to the images."""
    end = end._replace(transform=differentiable(linear, source, target, counts, end))
    points, value, fit = agreement(source, target, counts, end, linear=linear)
    inflation = 1.0 if linear else jnp.clip(end.slow / WHITE, *_INFLATION)
    covariance = _covariance(end.system, fit) * inflation
    return Finished(
        end.transform, covariance, value, flat(target), points.inside, fit.weight, end.settled
    )


def _covariance(system: System, fit: Fit) -> jax.Array:
    """Of the estimate: ``N^-1 (Z' S Z) N^-T``, S the variance of the residual."""
    influence = product(system.inverse[:3], system.instruments)
    return fit.variance * normal_matrix(influence, influence, fit.weight)


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
