"""The compact network in place of the direct method's search, with its exact end."""

from __future__ import annotations

import dataclasses

import jax

from jaxreg.compute.batching import each_pair
from jaxreg.compute.pytrees import of_any_rank
from jaxreg.direct.align import align_from
from jaxreg.learned import compact
from jaxreg.result import Doubt, Registration, raised


@jax.jit
@of_any_rank
def compact_refine(fixed: jax.Array, moving: jax.Array) -> Registration:
    """Register N pairs.

    Sizes and channels are those of `jaxreg.learned.compact`, and so is ``score``: how sure the
    network is. It stands for the lead over the closest rival, so ``success`` needs the network's
    and all else that the direct method asks for. The covariance is that of the direct method, and
    the transform is differentiable with respect to the images like its.

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
