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
from jaxreg.intensity import Fit, fit_intensity, steepness
from jaxreg.masking import Masks
from jaxreg.normal_equations import System, moments, normal_matrix
from jaxreg.optimum import WHITE, Optimum, agreement, differentiable, find_optimum, flat
from jaxreg.products import dots, product
from jaxreg.refinement import solve
from jaxreg.resampling import (
    DEGREE,
    interpolant,
    noise_gain,
    pull,
    slopes_by_gradient,
    source_points,
)

T = TypeVar("T")

# A residual that no kernel explains need not be white, and then the estimate's variance is larger
# than it tells: by as much as neighbours share, within these bounds. Measured on scenes of the
# training photographs.
_INFLATION = 1.0, 2.5
# Likewise by the bilinear kernel: from where neighbours are more alike than it makes white noise,
# how fast, and from where on they are what hides a part of a view, which the weights deal with.
# Measured on training images: blurred, as JPEG files, partly hidden.
_LIKE_NOISE, _PER_LIKENESS, _HIDDEN = 0.25, 6.0, 1.4
_MANY_PIXELS = 3072  # from here on a third is enough to choose direction and kernel by
# The share of the spline's residual that the bilinear kernel may leave if that looks like aliasing.
# Measured on pairs of training images (up to .01) and scenes of the training photographs (from .3).
_OF_ALIASING = 0.1
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
    masks: Masks | None = None,
) -> Finished:
    """Refine a close alignment to the end.

    The transform is differentiable with respect to the images, through the optimum it is.

    Args:
      fixed: ``(H, W, C)``.
      moving: the same shape.
      transform: within a few tenths of a pixel.
      kernel: ``"auto"``, ``"linear"`` or ``"spline"``.
      masks: which pixels of fixed (the source) and moving count, if not all.
    """
    both, t = jax.lax.stop_gradient(((fixed, moving), transform))
    inverse = t.inverse()
    own = masks and masks.without_rim()
    others = masks and masks.swapped().without_rim()
    # The direction is told apart by the kernel that is not the same in both: the bilinear one.
    ways = jax.tree.map(lambda *v: jnp.stack(v), (*both, own, t), (*both[::-1], others, inverse))
    bilinear = jax.lax.map(lambda way: _trial(*way, linear=True), ways)
    swapped = bilinear.mismatch[1] < bilinear.mismatch[0]
    pick = lambda a, b: jnp.where(swapped, a, b)  # noqa: E731
    start = jax.tree.map(pick, inverse, t)
    pair = pick(moving, fixed), pick(fixed, moving), jax.tree.map(pick, others, own)
    begin = start, pick(*bilinear.gain[::-1]), pick(*bilinear.bias[::-1])
    if kernel == "auto":
        least = bilinear.mismatch.min()
        # A pair that the bilinear kernel explains to rounding needs no trial of the spline.
        linear = cond_where_any(
            least < _EXACT,
            lambda *_: jnp.bool_(True),
            _bilinear_explains_more,
            *(least, *jax.lax.stop_gradient(pair), start),
        )
        end = _solve(linear, *pair, *begin)
    else:
        end = _solve_by(*pair, *begin, linear=kernel == "linear")
    back, turned = _unswap(end.transform, end.covariance)
    t = jax.tree.map(pick, back, end.transform)
    t = RigidTransform(t.tx, t.ty, wrap_degrees(t.theta))
    return end._replace(transform=t, covariance=pick(turned, end.covariance))


def _solve_by(
    source: jax.Array,
    target: jax.Array,
    masks: Masks | None,
    *begin: Any,
    linear: bool,
) -> Finished:
    """`find_optimum` described, of the same arguments; differentiable by the images."""
    still = jax.lax.stop_gradient((source, target))
    optimum = find_optimum(*still, masks, *begin, linear=linear)
    return _describe(source, target, masks, optimum, linear=linear)


@jax.custom_jvp
def _solve(linear: jax.Array, *arguments: Any) -> Finished:
    """`_solve_by` the kernel chosen; a batch that chose but one runs but one."""
    return cond_where_any(linear, *_by_either_kernel(_solve_by), *arguments)


@_solve.defjvp
def _solve_jvp(primals: tuple, tangents: tuple) -> tuple:
    # `cond_where_any` has no derivative, but the optimum needs none.
    linear, source, target, masks, *begin = primals
    still = jax.lax.stop_gradient((source, target, masks, *begin))
    optimum = cond_where_any(linear, *_by_either_kernel(find_optimum), *still)

    def describe(*pair: jax.Array) -> Finished:
        return jax.lax.cond(linear, *_by_either_kernel(_describe), *pair, masks, optimum)

    return jax.jvp(describe, (source, target), tangents[1:3])


def _by_either_kernel(stage: Callable[..., T]) -> list[Callable[..., T]]:
    return [functools.partial(stage, linear=linear) for linear in (True, False)]


def _bilinear_explains_more(
    least: jax.Array, source: jax.Array, target: jax.Array, masks: Masks | None, t: RigidTransform
) -> jax.Array:
    """Whether the bilinear kernel, with its `_Trial.mismatch`, is the pair's own.

    What it smoothed away is slow beside the pair's noise, so if it made the pair the neighbours in
    the spline's residual are alike. Aliasing makes them opposite, and little of it passes the
    bilinear kernel: there a somewhat smaller residual is no sign.
    """
    spline = _trial(source, target, masks, t, linear=False)
    most = jnp.where(spline.alike > 0.0, 1.0, _OF_ALIASING)
    return least <= most * spline.mismatch


class _Trial(NamedTuple):
    """How well a kernel explains a pair at its start.

    Attributes:
      mismatch: variance of the residual, in units of the noise that the kernel lets through.
      alike: by how much neighbours in the residual are, see `_alike`.
      gain: of the brightness.
      bias: ``(C,)``, likewise.
    """

    mismatch: jax.Array
    alike: jax.Array
    gain: jax.Array
    bias: jax.Array


@functools.cache
def _some_rows(height: int, width: int) -> np.ndarray | slice:
    """Every third pair of rows, or all rows of a small image: enough to tell the kernel by."""
    if height * width < _MANY_PIXELS:
        return slice(None)
    return (np.arange(0, height - 1, 6)[:, None] + np.arange(2)).reshape(-1)


def _trial(
    source: jax.Array, target: jax.Array, masks: Masks | None, t: RigidTransform, *, linear: bool
) -> _Trial:
    """How well a kernel explains a pair.

    What a small move would take away does not count: the start is not the optimum yet.
    """
    height, width, channels = source.shape
    rows = _some_rows(height, width)
    some = lambda v, *last: v.reshape(height, width, *last)[rows].reshape(-1, *last)  # noqa: E731
    points = source_points(source.shape, t, masks=masks)
    lever = jnp.stack([some(v) for v in points.lever])
    points = points._replace(x=some(points.x), y=some(points.y), inside=some(points.inside))
    v, u = (some(g, channels) for g in jnp.gradient(target, axis=(0, 1)))
    slope = slopes_by_gradient(u, v, lever).reshape(3, -1)
    value = pull(interpolant(source, linear), points, linear, once=True)
    bands = -1, height if isinstance(rows, slice) else 2, width, channels
    steep = steepness(value.reshape(bands), target[rows].reshape(bands))
    fit = fit_intensity(value, some(target, channels), points.inside, steep=steep)
    normal = normal_matrix(slope, slope, fit.weight)
    drop = moments(slope, fit.weight, fit.residual)
    step = solve(normal, drop)
    moved = product(drop, step) / channels
    variance = fit.variance - moved / jnp.maximum(fit.weight.sum(), 1.0)
    variance = jnp.maximum(variance, 1e-3 * fit.variance)
    kept = jnp.square(fit.gain) * noise_gain(points, linear)
    rest = fit.weight[:, None] * (fit.residual - product(step, slope).reshape(value.shape))
    alike = _alike(rest.reshape(bands))
    return _Trial(variance / (kept + 1.0), alike, fit.gain, fit.bias)


def _alike(bands: jax.Array) -> jax.Array:
    """Correlation of neighbours, below plus beside, in bands of rows ``(B, R, W, C)``; -2 to 2."""

    def mean(a: jax.Array, b: jax.Array) -> jax.Array:
        return dots(a.reshape(-1), b.reshape(-1)) / a.size

    below = mean(bands[:, 1:], bands[:, :-1])
    beside = mean(bands[:, :, 1:], bands[:, :, :-1])
    return (below + beside) / jnp.maximum(mean(bands, bands), 1e-30)


def _describe(
    source: jax.Array, target: jax.Array, masks: Masks | None, end: Optimum, *, linear: bool
) -> Finished:
    """What is said of an optimum; differentiable with respect to the images."""
    end = end._replace(transform=differentiable(linear, source, target, masks, end))
    points, value, fit = agreement(source, target, masks, end, linear=linear)
    if linear:
        rest = jax.lax.stop_gradient(fit.weight[:, None] * fit.residual)
        alike = _alike(rest.reshape(1, *source.shape))
        above = jnp.minimum(alike - _LIKE_NOISE, _HIDDEN - alike)
        inflation = jnp.clip(1.0 + _PER_LIKENESS * above, 1.0, 3.0)
    else:
        inflation = jnp.clip(end.slow / WHITE, *_INFLATION)
    covariance = _covariance(end.system, fit) * inflation
    return Finished(
        end.transform, covariance, value, flat(target), points.inside, fit.weight, end.settled
    )


def _covariance(system: System, fit: Fit) -> jax.Array:
    """Of the estimate: ``N^-1 (Z' S Z) N^-T``, S each pixel's own squared residual.

    White (1980, doi:10.2307/1912934): right also where residuals are larger at the edges, which say
    most, than on the ground between them.
    """
    influence = product(system.inverse[:3], system.instruments)
    own = jnp.square(fit.weight) * jnp.square(fit.residual).mean(-1)
    return normal_matrix(influence, influence, own)


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
