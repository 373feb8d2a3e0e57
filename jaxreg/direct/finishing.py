"""The last stage of a registration: to numerical precision, with its covariance.

Which of the two images is pulled onto the other's pixels, and by which kernel, is decided by the
images alone (`jaxreg.direct.kernel_choice`), so that swapping them gives the inverse. The rest is
`jaxreg.direct.optimum`'s.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.compute.products import mean_over_channels, product, times
from jaxreg.direct.instruments import WHITE
from jaxreg.direct.intensity import Fit, finest_detail
from jaxreg.direct.kernel_choice import choose
from jaxreg.direct.masking import Pair
from jaxreg.direct.optimum import Optimum, agreement, differentiable, find_optimum, flat
from jaxreg.direct.settings import AUTO
from jaxreg.geometry import RigidTransform, wrap_degrees
from jaxreg.result import inverse_with_covariance

# A residual that no kernel explains need not be white, and then single pixels misjudge the
# estimate's variance: it is scaled by the slow share of the residual over that of white noise,
# within these bounds. Measured on scenes of the training photographs.
_INFLATION = 0.4, 2.5


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


def finish(pair: Pair, transform: RigidTransform, kernel: jax.typing.ArrayLike = AUTO) -> Finished:
    """Refine a close alignment to the end.

    The transform is differentiable with respect to the images, through the optimum it is.

    Args:
      pair: fixed and moving ``(H, W, C)``, and what is asked and known of them.
      transform: within a few tenths of a pixel.
      kernel: that of the answer, `LINEAR` or `SPLINE`; `AUTO` chooses it by the residual.
    """
    ratio = finest_detail(pair.target) / finest_detail(pair.source)
    pair = pair._replace(detail_ratio=ratio)
    t = jax.lax.stop_gradient(transform)
    ways = (pair.without_rim(), t), (pair.swapped().without_rim(), t.inverse())
    choice = choose(*jax.lax.stop_gradient(ways), kernel)
    pick = functools.partial(jax.tree.map, lambda there, back: jnp.where(choice.back, back, there))
    pair, linear = pick(*(pair for pair, _ in ways)), choice.linear
    end = _describe(pair, find_optimum(jax.lax.stop_gradient(pair), choice.start, linear), linear)
    there = end.transform, end.covariance
    t, covariance = pick(there, inverse_with_covariance(*there))
    t = RigidTransform(t.tx, t.ty, wrap_degrees(t.theta))
    return end._replace(transform=t, covariance=covariance)


def _describe(pair: Pair, end: Optimum, linear: jax.Array) -> Finished:
    """What is said of an optimum; differentiable with respect to the images."""
    transform = differentiable(pair, end, linear)
    end = end._replace(unknowns=end.unknowns._replace(transform=transform))
    points, value, fit = agreement(pair, end, linear)
    covariance = _covariance(end, fit, pair.grain) * jnp.clip(end.slow / WHITE, *_INFLATION)
    target = flat(pair.target)
    return Finished(transform, covariance, value, target, points.inside, fit.weight, end.settled)


def _covariance(end: Optimum, fit: Fit, grain: float | jax.Array) -> jax.Array:
    """Of the estimate, by each pixel's own residuals.

    White (1980, doi:10.2307/1912934): right also where residuals are larger at the edges, which say
    most, than on the ground between them, and where a pixel's channels share them. No residual
    counts as smaller than rounding to grey levels would leave it.
    """
    influence = product(end.common, end.system.instruments)
    least = jnp.sqrt(jnp.asarray(grain))
    error = jnp.copysign(jnp.maximum(jnp.abs(fit.residual), least), fit.residual)
    moves = influence * (fit.weight[:, None] * error).reshape(-1)
    moves = mean_over_channels(moves.reshape(3, *fit.residual.shape)) * fit.residual.shape[1]
    return times(moves, moves)
