"""What every method of registration returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxreg.geometry import RigidTransform


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Registration:
    """The answer to one pair of images, or to a batch of them; a pytree.

    For a batch every field has the batch's axis in front. Failure is data: nothing is raised for a
    pair that cannot be registered, ``success`` is False and all numbers stay finite.

    Attributes:
      transform: the estimated `RigidTransform` from fixed to moving.
      score: the higher, the more likely the answer is right, in [-1, 1]: the normalised
        cross-correlation of the two images over their overlap after alignment, unless a method
        knows something better and says so.
      success: whether the answer should be trusted.
      covariance: ``(3, 3)`` covariance of ``(tx, ty, theta)`` in px and degrees, or None for a
        method that does not estimate it.
      found: whether there is an answer at all. A feature method with too few matches has none;
        its transform is then the identity.
    """

    transform: RigidTransform
    score: ArrayLike
    success: ArrayLike
    covariance: jax.Array | None = None
    found: ArrayLike = True

    def __getitem__(self, index: Any) -> Registration:
        """Some pairs of a batch, or one of them: whatever indexes an array."""
        if not jnp.ndim(self.transform.tx):
            raise TypeError("the answer to one pair, not to a batch, cannot be indexed")
        # A scalar, such as `found`, is that of all.
        return jax.tree.map(lambda v: jnp.asarray(v)[index] if jnp.ndim(v) else v, self)

    def __iter__(self) -> Iterator[Registration]:
        """The pairs of a batch, one after the other."""
        return (self[i] for i in range(len(self.transform.as_array())))

    @property
    def standard_errors(self) -> jax.Array | None:
        """``(..., 3)`` standard errors of ``(tx, ty, theta)``, or None without a covariance."""
        if self.covariance is None:
            return None
        return jnp.sqrt(jnp.diagonal(self.covariance, axis1=-2, axis2=-1))


# What the evaluation harness measures: a function from batches of fixed and moving images, float32
# (N, H, W, C) with intensities in 0..255, to the Registration of each pair.
Estimator = Callable[[jax.Array, jax.Array], Registration]
