"""The compact network in place of the direct method's search, with its exact end."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxreg.direct import _in_common_units, _without_rounding, principal_axis
from jaxreg.finishing import finish
from jaxreg.geometry import RigidTransform
from jaxreg.learned import compact
from jaxreg.result import Registration
from jaxreg.trust import correlation, trusted

_CLEAR, _NO_EVIDENCE = 1.0, 0.0  # a lead over the closest rival that nothing objects to


@jax.jit
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
    result = jax.vmap(_finished)(fixed, moving, start.transform)
    success = result.success & start.success
    return dataclasses.replace(result, score=start.score, success=success)


def _finished(fixed: jax.Array, moving: jax.Array, start: RigidTransform) -> Registration:
    """One pair ``(H, W, C)`` from a close start to the end, as `jaxreg.direct.align` does it."""
    finite = jnp.isfinite(fixed).all() & jnp.isfinite(moving).all()
    fixed, moving = _in_common_units(jnp.where(finite, fixed, 0.0), jnp.where(finite, moving, 0.0))
    axis = principal_axis(*jax.lax.stop_gradient((fixed, moving)))
    end = finish(fixed, moving, start, "auto")
    lead, evidence = jnp.float32(_CLEAR), jnp.float32(_NO_EVIDENCE)
    good = finite & trusted(end, fixed, moving, axis, lead, evidence)
    transform = jax.tree.map(_without_rounding, end.transform)
    covariance = jnp.nan_to_num(jnp.clip(end.covariance, -1e6, 1e6), nan=1e6)
    return Registration(transform, correlation(end, fixed.shape), good, covariance, jnp.bool_(True))
