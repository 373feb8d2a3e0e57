"""A trained network as a method of registration."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike

from jaxreg.geometry import RigidTransform
from jaxreg.models import Network
from jaxreg.result import Registration
from jaxreg.training.configs import TrainConfig


def network_transform(
    structure: nnx.GraphDef, weights: Any, statistics: Any, fixed: jax.Array, moving: jax.Array
) -> RigidTransform:
    """What a network in evaluation mode makes of N pairs; pure, to be jitted."""
    network: Network = nnx.merge(structure, weights, statistics)
    network.eval()
    return network(fixed, moving)


class TrainedNetwork:
    """A network with its trained weights, ready to register pairs.

    Attributes:
      config: the configuration of the run that trained it.
      step: after how many steps of training.
      image_size: height and width of the images that it takes.
      arrays: weights and statistics, nested dictionaries of arrays.
      seconds: what the training took, or None where nobody noted it.
    """

    def __init__(
        self,
        config: TrainConfig,
        step: int,
        structure: nnx.GraphDef,
        weights: Any,
        statistics: Any,
        seconds: float | None = None,
    ):
        self.config = config
        self.step = step
        self.seconds = seconds
        self.image_size = config.image_size
        self.arrays = (weights, statistics)

        def transform(arrays: tuple, fixed: jax.Array, moving: jax.Array) -> RigidTransform:
            weights, statistics = arrays
            return network_transform(structure, weights, statistics, fixed, moving)

        def registration(arrays: tuple, fixed: jax.Array, moving: jax.Array) -> Registration:
            network: Network = nnx.merge(structure, *arrays)
            network.eval()
            return network.estimate(fixed, moving)

        # The weights are an argument: closed over, they would be copied into the program.
        self._transform = jax.jit(transform)
        self._registration = jax.jit(registration)

    def __repr__(self) -> str:
        return f"TrainedNetwork({self.config.network}, step={self.step})"

    @property
    def parameter_count(self) -> int:
        """How many trained numbers the network has."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.arrays[0]))

    def transform(self, fixed: jax.Array, moving: jax.Array) -> RigidTransform:
        """The bare transforms of N pairs, as `estimate` without its score."""
        return self._transform(self.arrays, fixed, moving)

    def estimate(self, fixed: jax.Array, moving: jax.Array) -> Registration:
        """Register N pairs; an `jaxreg.result.Estimator`.

        Args:
          fixed: ``(N, image_size, image_size, 3)`` float32, intensities in 0..255.
          moving: the same.
        """
        return self._registration(self.arrays, fixed, moving)

    def register(self, fixed: ArrayLike, moving: ArrayLike) -> Registration:
        """Register one pair of images ``(H, W)`` or ``(H, W, C)``, see `register_batch`."""
        answer = self.register_batch(_batch_of_one(fixed), _batch_of_one(moving))
        return jax.tree.map(lambda x: x[0], answer)

    def register_batch(self, fixed: ArrayLike, moving: ArrayLike) -> Registration:
        """Register N pairs of images.

        Args:
          fixed: ``(N, H, W)`` or ``(N, H, W, C)`` with H = W = ``image_size`` and C 1 or 3; any
            real dtype, intensities in 0..255.
          moving: the same shape.

        Returns:
          The transforms from fixed to moving, in pixels and degrees, with what the network says of
          their worth (`jaxreg.models.Network.estimate`).

        Raises:
          ValueError: the images have another size or number of channels, or hold NaN.
        """
        first = self._images("fixed", fixed)
        second = self._images("moving", moving)
        if first.shape != second.shape:
            raise ValueError(
                f"fixed and moving must have one shape, got {first.shape} and {second.shape}"
            )
        return self.estimate(first, second)

    def _images(self, name: str, images: ArrayLike) -> jax.Array:
        array = np.asarray(images)
        if array.ndim == 3:
            array = array[..., None]
        size = self.image_size
        if array.ndim != 4 or array.shape[1:3] != (size, size) or array.shape[3] not in (1, 3):
            raise ValueError(
                f"{name} must be {size}x{size} with 1 or 3 channels for this network, "
                f"got an image of shape {np.shape(images)[1:]}; resize it, or train a network "
                "with --network.image_size"
            )
        if array.dtype.kind not in "buif" or not np.isfinite(array).all():
            raise ValueError(f"{name} must hold finite real numbers")
        return jnp.asarray(np.broadcast_to(array, (*array.shape[:3], 3)), jnp.float32)


def _batch_of_one(image: ArrayLike) -> np.ndarray:
    array = np.asarray(image)
    if array.ndim not in (2, 3):
        raise ValueError(f"an image must be (H, W) or (H, W, C), got shape {array.shape}")
    return array[None]
