"""Last stage of a registration: refine to numerical precision and estimate the covariance.

The images alone decide which of them is pulled onto the other's pixels, and by which kernel
(`jaxreg.direct.kernel_choice`), so that swapping them gives the inverse. `jaxreg.direct.optimum`
then finds the optimum.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.compute.branching import cond_where_any
from jaxreg.compute.products import mean_over_channels, product, times
from jaxreg.direct.border import Border
from jaxreg.direct.instruments import WHITE
from jaxreg.direct.intensity import Fit, finest_detail
from jaxreg.direct.kernel_choice import choose
from jaxreg.direct.masking import Pair
from jaxreg.direct.optimum import Optimum, agreement, differentiable, find_optimum, flat
from jaxreg.direct.resampling import sampled
from jaxreg.direct.settings import AUTO
from jaxreg.geometry import RigidTransform, wrap_degrees
from jaxreg.result import inverse_with_covariance

# A residual that no kernel explains need not be white, and then a sum over single pixels misjudges
# the variance. It is multiplied by the residual's slow share over that of white noise, within these
# bounds, which were measured on scenes of the training photographs.
_INFLATION = 0.4, 2.5


class Finished(NamedTuple):
    """A finished registration.

    Attributes:
      transform: from fixed to moving.
      covariance: ``(3, 3)`` of ``(tx, ty, theta)``, px and degrees.
      value: ``(P, C)``, the source at the target's pixels.
      target: ``(P, C)``.
      inside: ``(P,)`` weight of the overlap.
      weight: ``(P,)``, weight of the overlap times robust weight.
      settled: scalar bool; False if no optimum was found near the start, which then is the answer.
    """

    transform: RigidTransform
    covariance: jax.Array
    value: jax.Array
    target: jax.Array
    inside: jax.Array
    weight: jax.Array
    settled: jax.Array


def finish(
    pair: Pair,
    transform: RigidTransform,
    kernel: jax.typing.ArrayLike = AUTO,
    border: Border | None = None,
) -> Finished:
    """Refine a close alignment to numerical precision.

    The transform is differentiable with respect to the images, by the implicit function theorem.

    Args:
      pair: fixed (the source) and moving ``(H, W, C)``; `Pair.detail_ratio` is set here.
      transform: from fixed to moving, within a few tenths of a pixel.
      kernel: `LINEAR` or `SPLINE`; `AUTO` chooses one by the residual.
      border: what to leave out of both images, if anything.
    """
    ratio = finest_detail(pair.target) / finest_detail(pair.source)
    pair = pair._replace(detail_ratio=ratio)
    t = jax.lax.stop_gradient(transform)
    there = pair.without_rim(), t
    back = pair.swapped().without_rim(), t.inverse()
    if border is not None:
        there, back = (_without_border(border, *way) for way in (there, back))
    ways = there, back
    choice = choose(*jax.lax.stop_gradient(ways), kernel)
    pick = functools.partial(jax.tree.map, lambda there, back: jnp.where(choice.back, back, there))
    pair, linear = pick(*(pair for pair, _ in ways)), choice.linear
    end = _describe(pair, find_optimum(jax.lax.stop_gradient(pair), choice.start, linear), linear)
    found = end.transform, end.covariance
    t, covariance = pick(found, inverse_with_covariance(*found))
    t = RigidTransform(t.tx, t.ty, wrap_degrees(t.theta))
    return end._replace(transform=t, covariance=covariance)


def _without_border(border: Border, pair: Pair, t: RigidTransform) -> tuple[Pair, RigidTransform]:
    """A pair and its alignment, where only pixels count that show the scene in both images."""

    def in_both(seen: jax.Array, t: RigidTransform) -> jax.Array:
        return jnp.where(sampled(seen, t)[0] > 0.999, seen.reshape(-1), 0.0)

    usual = lambda seen, _: seen.reshape(-1)  # noqa: E731
    counts = cond_where_any(border.there, in_both, usual, border.seen, t)
    return pair._replace(counts=counts), t


def _describe(pair: Pair, end: Optimum, linear: jax.Array) -> Finished:
    """Evaluate an optimum; the transform is differentiable with respect to the images."""
    transform = differentiable(pair, end, linear)
    end = end._replace(unknowns=end.unknowns._replace(transform=transform))
    points, value, fit = agreement(pair, end, linear)
    covariance = _covariance(end, fit, pair.grain) * jnp.clip(end.slow / WHITE, *_INFLATION)
    target = flat(pair.target)
    return Finished(transform, covariance, value, target, points.inside, fit.weight, end.settled)


def _covariance(end: Optimum, fit: Fit, grain: float | jax.Array) -> jax.Array:
    """Covariance ``(3, 3)`` of the estimate from the residuals of single pixels.

    White's estimator (1980, doi:10.2307/1912934) holds even if residuals are larger at edges, which
    determine most, than between them, and if the channels of a pixel share them. No residual counts
    as smaller than the one due to rounding to grey levels.
    """
    influence = product(end.common, end.system.instruments)
    least = jnp.sqrt(jnp.asarray(grain))
    error = jnp.copysign(jnp.maximum(jnp.abs(fit.residual), least), fit.residual)
    moves = influence * (fit.weight[:, None] * error).reshape(-1)
    moves = mean_over_channels(moves.reshape(3, *fit.residual.shape)) * fit.residual.shape[1]
    return times(moves, moves)
