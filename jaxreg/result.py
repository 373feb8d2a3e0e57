"""What every method of registration returns."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.compute.products import product
from jaxreg.compute.pytrees import as_one, on_host, part
from jaxreg.geometry import Real, RigidTransform, cos_sin_degrees

_DEGREE = math.pi / 180


class Doubt(enum.IntFlag):
    """Why an answer should not be trusted; the bits of `Registration.doubts`.

    `descriptions` says in words what each bit means.

    >>> Doubt.AMBIGUOUS in Doubt(18), Doubt.NOT_FINITE in Doubt(18)
    (True, False)
    >>> Doubt(18).descriptions
    ['another alignment fits nearly as well, as on a symmetric or periodic image', \
'no optimum was found near where the search ended']
    """

    NOT_FINITE = enum.auto()
    NOT_CONVERGED = enum.auto()
    IMPRECISE = enum.auto()
    DETAIL_MISMATCH = enum.auto()
    AMBIGUOUS = enum.auto()
    APERTURE = enum.auto()
    UNDETERMINED = enum.auto()
    NETWORK_UNSURE = enum.auto()
    CHANCE_MATCH = enum.auto()
    INSUFFICIENT_MARGIN = enum.auto()
    OUT_OF_BOUNDS = enum.auto()

    @property
    def descriptions(self) -> list[str]:
        """What the bits that are set mean, in words, causes before effects."""
        return [words for doubt, words in _DESCRIPTIONS.items() if doubt in self]


_DESCRIPTIONS = {  # causes before effects
    Doubt.NOT_FINITE: "an image holds NaN or infinite values",
    Doubt.OUT_OF_BOUNDS: "the answer lies beyond the largest shift or rotation that was asked for",
    Doubt.UNDETERMINED: "an image leaves a direction open: flat, striped, or a lone edge",
    Doubt.DETAIL_MISMATCH: "the fine detail of the two images does not agree",
    Doubt.CHANCE_MATCH: "the images agree in a few places only, as by chance, and elsewhere do not",
    Doubt.AMBIGUOUS: "another alignment fits nearly as well, as on a symmetric or periodic image",
    Doubt.APERTURE: "shifted by a few pixels it fits nearly as well, as along an edge",
    Doubt.INSUFFICIENT_MARGIN: "it fits little better than other alignments, for such standard "
    "errors",
    Doubt.IMPRECISE: "the standard errors are large: too much noise, or too little to go by",
    Doubt.NOT_CONVERGED: "no optimum was found near where the search ended",
    Doubt.NETWORK_UNSURE: "the network is not sure",
}


def raised(doubt: Doubt, holds: jax.Array) -> jax.Array:
    """The bit of a doubt where ``holds``, else 0; int32."""
    return jnp.where(holds, jnp.int32(doubt), jnp.int32(0))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Registration:
    """The registration of one pair of images, or of a batch of pairs; a pytree.

    The fields of a batch have the batch axis in front; ``rs[i]``, ``rs[mask]`` and iteration select
    pairs. A pair that cannot be registered raises no error: ``success`` is False and all numbers
    are finite. ``==`` and ``hash`` go by identity; to compare values, compare fields.

    Attributes:
      transform: the estimated `RigidTransform` from fixed to moving.
      score: confidence in [-1, 1]; higher is better. It is the normalised cross-correlation of the
        aligned images over their overlap, unless the method documents a measure of its own.
      success: whether the answer should be trusted.
      covariance: ``(3, 3)`` covariance of ``(tx, ty, theta)`` in pixels and degrees, or None for a
        method that does not estimate it.
      found: whether there is an answer at all. A feature method with too few matches has none;
        its transform is then the identity.
      doubts: int32, the `Doubt` bits that speak against the answer, 0 where ``success``; or None
        for a method that does not tell. `reasons` puts them in words.
    """

    transform: RigidTransform
    score: Real
    success: bool | Real
    covariance: jax.Array | None = None
    found: bool | Real = True
    doubts: np.ndarray | jax.Array | None = None

    def __getitem__(self, index: Any) -> Registration:
        """One or several pairs of a batch, by any index that an array takes."""
        len(self)  # TypeError unless it is a batch
        return part(self, index, self.transform.batch_shape)

    def __iter__(self) -> Iterator[Registration]:
        """Iterate over the pairs of a batch, fetched to the host unless it is traced."""
        count = len(self)
        return map(on_host(self).__getitem__, range(count))

    def __len__(self) -> int:
        """The number of pairs in a batch."""
        if not self.transform.batch_shape:
            raise TypeError("the answer to one pair, not to a batch, has no length and no index")
        return len(self.transform)

    def __bool__(self) -> bool:
        """True, even for an empty batch; `success` says whether to trust an answer."""
        return True

    @property
    def standard_errors(self) -> jax.Array | None:
        """``(..., 3)`` standard errors of ``(tx, ty, theta)`` in pixels, pixels and degrees.

        None without a covariance.
        """
        if self.covariance is None:
            return None
        return jnp.sqrt(jnp.diagonal(self.covariance, axis1=-2, axis2=-1))

    @property
    def reasons(self) -> list[str]:
        """What speaks against the answer to one pair, in words; empty if nothing does.

        Raises:
          TypeError: this is a batch, or it is traced and has no values.

        >>> doubts = np.int32(Doubt.UNDETERMINED | Doubt.NOT_FINITE)
        >>> Registration(RigidTransform.identity(), 0.0, False, doubts=doubts).reasons[0]
        'an image holds NaN or infinite values'
        """
        if self.transform.batch_shape or isinstance(self.doubts, jax.core.Tracer):
            raise TypeError(
                "reasons are of one pair, and not under a transformation: rs[i].reasons"
            )
        return [] if self.doubts is None else Doubt(int(self.doubts)).descriptions

    def inverse(self) -> Registration:
        """The registration from moving to fixed, as if the two images were swapped.

        The transform is inverted, and the covariance is carried over to its parameters to first
        order. ``score``, ``success``, ``found`` and ``doubts`` stay as they are. Works on batches
        and under ``jit`` and ``vmap``.

        >>> r = Registration(RigidTransform(2.0, 0.0, 90.0), 0.9, True, jnp.diag(jnp.arange(3.0)))
        >>> back = r.inverse()
        >>> [round(float(v), 2) for v in back.transform.as_array()]
        [0.0, 2.0, -90.0]
        >>> [round(float(v), 2) for v in jnp.diagonal(back.covariance)]
        [1.0, 0.0, 2.0]
        """
        if self.covariance is None:
            return dataclasses.replace(self, transform=self.transform.inverse())
        transform = RigidTransform.from_array(self.transform.as_array())
        transform, covariance = inverse_with_covariance(transform, self.covariance)
        return dataclasses.replace(self, transform=transform, covariance=covariance)


@as_one
def inverse_with_covariance(
    t: RigidTransform, covariance: jax.Array
) -> tuple[RigidTransform, jax.Array]:
    """Invert transforms, and carry the covariance of ``(tx, ty, theta)`` over to first order.

    Args:
      t: one transform or a batch, with float32 fields of one shape.
      covariance: ``batch_shape + (3, 3)``, in pixels and degrees.
    """
    inverse = t.inverse()
    cos, sin = cos_sin_degrees(t.theta)
    zero = jnp.zeros_like(cos)
    rows = (
        [-cos, -sin, _DEGREE * inverse.ty],
        [sin, -cos, -_DEGREE * inverse.tx],
        [zero, zero, zero - 1.0],
    )
    jacobian = jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
    return inverse, product(product(jacobian, covariance), jnp.swapaxes(jacobian, -1, -2))


# A method of registration: a function from batches of fixed and moving images, NumPy or JAX arrays,
# float32 (N, H, W, C) with intensities in 0..255, to the Registration of each pair.
Estimator = Callable[[Any, Any], Registration]
