"""What every method of registration returns."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.compute.pytrees import on_host, part
from jaxreg.geometry import Real, RigidTransform


class Doubt(enum.IntFlag):
    """Why an answer should not be trusted; the bits of `Registration.doubts`.

    Attributes:
      NOT_FINITE: an image holds NaN or infinite values.
      LOST: no optimum was found near where the search ended.
      IMPRECISE: the standard errors are large.
      DISAGREEING: the fine detail of the two images does not agree.
      AMBIGUOUS: another alignment fits nearly as well.
      SLIPPERY: shifted by a few pixels it fits nearly as well.
      FEATURELESS: an image leaves a direction open.
      UNSURE: the network is not sure.
      COINCIDENT: the images agree in a few places only, as by chance.
      INCONCLUSIVE: the lead over other alignments is slight for such standard errors.
      BEYOND_LIMITS: the shift or rotation exceeds the limits given.

    >>> Doubt.LOST in Doubt(6), Doubt.NOT_FINITE in Doubt(6)
    (True, False)
    """

    NOT_FINITE = enum.auto()
    LOST = enum.auto()
    IMPRECISE = enum.auto()
    DISAGREEING = enum.auto()
    AMBIGUOUS = enum.auto()
    SLIPPERY = enum.auto()
    FEATURELESS = enum.auto()
    UNSURE = enum.auto()
    COINCIDENT = enum.auto()
    INCONCLUSIVE = enum.auto()
    BEYOND_LIMITS = enum.auto()


_IN_WORDS = {  # causes before effects
    Doubt.NOT_FINITE: "an image holds NaN or infinite values",
    Doubt.BEYOND_LIMITS: "the answer lies beyond the largest shift or rotation that was asked for",
    Doubt.FEATURELESS: "an image leaves a direction open: flat, striped, or a lone edge",
    Doubt.DISAGREEING: "the fine detail of the two images does not agree",
    Doubt.COINCIDENT: "the images agree in a few places only, as by chance, and elsewhere do not",
    Doubt.AMBIGUOUS: "another alignment fits nearly as well, as on a symmetric or periodic image",
    Doubt.SLIPPERY: "shifted by a few pixels it fits nearly as well, as along an edge",
    Doubt.INCONCLUSIVE: "it fits little better than other alignments, for such standard errors",
    Doubt.IMPRECISE: "the standard errors are large: too much noise, or too little to go by",
    Doubt.LOST: "no optimum was found near where the search ended",
    Doubt.UNSURE: "the network is not sure",
}


def raised(doubt: Doubt, holds: jax.Array) -> jax.Array:
    """The bit of a doubt where it holds, else 0; int32."""
    return jnp.where(holds, jnp.int32(doubt), jnp.int32(0))


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
      doubts: int32, the `Doubt` bits that speak against the answer, none where ``success``; or None
        for a method that does not say. See `reasons`.
    """

    transform: RigidTransform
    score: Real
    success: bool | Real
    covariance: jax.Array | None = None
    found: bool | Real = True
    doubts: np.ndarray | jax.Array | None = None

    def __getitem__(self, index: Any) -> Registration:
        """Some pairs of a batch, or one of them: whatever indexes an array."""
        len(self)  # refuses what is no batch
        return part(self, index, self.transform.batch_shape)

    def __iter__(self) -> Iterator[Registration]:
        """The pairs of a batch, one after the other; on the host, unless it is traced."""
        count = len(self)
        return map(on_host(self).__getitem__, range(count))

    def __len__(self) -> int:
        """How many pairs a batch holds."""
        if not self.transform.batch_shape:
            raise TypeError("the answer to one pair, not to a batch, has no length and no index")
        return len(self.transform)

    def __bool__(self) -> bool:
        """True, whatever the length: whether to trust an answer is `success`."""
        return True

    @property
    def standard_errors(self) -> jax.Array | None:
        """``(..., 3)`` standard errors of ``(tx, ty, theta)``, or None without a covariance."""
        if self.covariance is None:
            return None
        return jnp.sqrt(jnp.diagonal(self.covariance, axis1=-2, axis2=-1))

    @property
    def reasons(self) -> list[str]:
        """What speaks against the answer to one pair, in words; not under a transformation.

        Raises:
          TypeError: it is a batch, or has no values to look at.

        >>> doubts = np.int32(Doubt.FEATURELESS | Doubt.NOT_FINITE)
        >>> Registration(RigidTransform.identity(), 0.0, False, doubts=doubts).reasons[0]
        'an image holds NaN or infinite values'
        """
        if self.transform.batch_shape or isinstance(self.doubts, jax.core.Tracer):
            raise TypeError(
                "reasons are of one pair, and not under a transformation: rs[i].reasons"
            )
        doubts = Doubt(int(self.doubts) if self.doubts is not None else 0)
        return [words for doubt, words in _IN_WORDS.items() if doubt in doubts]


# What the evaluation harness measures: a function from batches of fixed and moving images, NumPy or
# JAX arrays, float32 (N, H, W, C) with intensities in 0..255, to the Registration of each pair.
Estimator = Callable[[Any, Any], Registration]
