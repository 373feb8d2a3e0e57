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
import numpy as np

from jaxreg.compute.branching import cond_where_any
from jaxreg.compute.products import mean_over_channels, product, separable, times
from jaxreg.direct.border import Border
from jaxreg.direct.intensity import Fit, finest_detail
from jaxreg.direct.kernel_choice import choose
from jaxreg.direct.masking import Pair
from jaxreg.direct.optimum import Optimum, agreement, differentiable, find_optimum
from jaxreg.direct.resampling import flat, sampled
from jaxreg.direct.settings import AUTO
from jaxreg.geometry import RigidTransform, wrap_degrees
from jaxreg.result import inverse_with_covariance

# px: residuals of pixels this far apart count as independent of each other. With 5, 7 and 9 px the
# noise of the estimate grows: error^2 / variance of 512 training pairs with noise 10, the mean of
# tx, ty and theta, is 1.01 with 4, then 1.03, 1.11 and 1.19.
_WINDOW = 4


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
    views = pair.without_rim(), pair.swapped().without_rim()
    starts = t, t.inverse()
    if border is not None:
        counts = _beside(border, *starts)
        views = views[0]._replace(counts=counts[0]), views[1]._replace(counts=counts[1])
    ways = (views[0], starts[0]), (views[1], starts[1])
    choice = choose(*jax.lax.stop_gradient(ways), kernel)
    pick = functools.partial(jax.tree.map, lambda there, back: jnp.where(choice.back, back, there))
    pair, linear = pick(*(pair for pair, _ in ways)), choice.linear
    end = _describe(pair, find_optimum(jax.lax.stop_gradient(pair), choice.start, linear), linear)
    found = end.transform, end.covariance
    t, covariance = pick(found, inverse_with_covariance(*found))
    t = RigidTransform(t.tx, t.ty, wrap_degrees(t.theta))
    return end._replace(transform=t, covariance=covariance)


def _beside(border: Border, there: RigidTransform, back: RigidTransform) -> jax.Array:
    """``(2, P)``: which pixels of the target show the scene in both images, pulled either way."""

    def in_both(clear: jax.Array, *ways: RigidTransform) -> jax.Array:
        pulled = jnp.stack([sampled(clear, t)[0] for t in ways])
        return jnp.where(pulled > 0.999, clear.reshape(1, -1), 0.0)

    def all_seen(clear: jax.Array, *_: RigidTransform) -> jax.Array:
        return jnp.ones_like(clear, shape=(2, clear.size))

    return cond_where_any(border.there, in_both, all_seen, border.clear, there, back)


def _describe(pair: Pair, end: Optimum, linear: jax.Array) -> Finished:
    """Evaluate an optimum; the transform is differentiable with respect to the images."""
    transform = differentiable(pair, end, linear)
    end = end._replace(unknowns=end.unknowns._replace(transform=transform))
    points, value, fit = agreement(pair, end, linear)
    covariance = _covariance(end, fit, pair)
    target = flat(pair.target)
    return Finished(transform, covariance, value, target, points.inside, fit.weight, end.settled)


def _covariance(end: Optimum, fit: Fit, pair: Pair) -> jax.Array:
    """Covariance ``(3, 3)`` of the estimate from the residuals.

    The estimator of Conley (1999, doi:10.1016/S0304-4076(98)00084-0), which is that of Newey and
    West in two dimensions: what the residuals in a window move the estimate by counts as one
    observation, and all windows are averaged. It holds even if residuals are larger at edges, which
    determine most, than between them, if the channels of a pixel share them, and if neighbours do,
    as in smooth noise. No residual counts as smaller than the one due to rounding to grey levels.
    """
    influence = product(end.common, end.system.instruments)
    least = jnp.sqrt(jnp.asarray(pair.grain))
    error = jnp.copysign(jnp.maximum(jnp.abs(fit.residual), least), fit.residual)
    moves = influence * (fit.weight[:, None] * error).reshape(-1)
    moves = mean_over_channels(moves.reshape(3, *fit.residual.shape)) * fit.residual.shape[1]
    height, width = pair.source.shape[:2]
    sums = separable(_windows(height), moves.reshape(3, height, width), _windows(width))
    sums = sums.reshape(3, -1)
    return times(sums, sums)


@functools.cache
def _windows(size: int) -> np.ndarray:
    """``(size + 3, size)``: each row sums a window of pixels, so that all have a norm of one."""
    first = np.arange(1 - _WINDOW, size)[:, None]
    pixel = np.arange(size)
    inside = (pixel >= first) & (pixel < first + _WINDOW)
    return inside.astype(np.float32) * np.float32(_WINDOW**-0.5)
