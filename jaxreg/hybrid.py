"""The compact network as the search, followed by the direct method's exact finish."""

from __future__ import annotations

import dataclasses

import jax

from jaxreg.compute.batching import each_pair
from jaxreg.compute.pytrees import allow_rank_promotion
from jaxreg.direct.align import align_from
from jaxreg.learned import compact
from jaxreg.result import Doubt, Registration, raised


@jax.jit
@allow_rank_promotion
def compact_refine(fixed: jax.Array, moving: jax.Array) -> Registration:
    """Register N pairs by the compact network, and finish by the direct method.

    ``score`` is the network's confidence, as from `jaxreg.learned.compact`. It takes the place of
    the direct method's lead over the closest rival: ``success`` requires the network's own, and all
    other tests of the direct method. The covariance is the direct method's, and so is the
    derivative of the transform with respect to the images.

    Args:
      fixed: ``(N, S, S, C)`` float32 of any unit, S 32 or 96, C 1 or 3.
      moving: the same shape.

    Raises:
      ValueError: the images have another size or number of channels.
    """
    start = compact(*jax.lax.stop_gradient((fixed, moving)))
    result = each_pair(align_from, fixed, moving, start.transform)
    doubts = result.doubts | raised(Doubt.NETWORK_UNSURE, ~start.success)
    return dataclasses.replace(result, score=start.score, success=doubts == 0, doubts=doubts)
