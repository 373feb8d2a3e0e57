"""A trained network as a method of registration."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from jaxreg.compute.batching import map_batches
from jaxreg.compute.pytrees import allow_rank_promotion
from jaxreg.geometry import RigidTransform
from jaxreg.images import check_grey_levels, check_pair, check_stacks
from jaxreg.models.network import Network, NetworkConfig, Tree
from jaxreg.result import Registration


def network_transform(
    structure: nnx.GraphDef, weights: Tree, statistics: Tree, fixed: jax.Array, moving: jax.Array
) -> RigidTransform:
    """Estimate the transforms of N pairs by a network in evaluation mode; pure, to be jitted."""
    network: Network = nnx.merge(structure, weights, statistics)
    network.eval()
    return network(fixed, moving)


# One program for all networks of a structure. The weights are an argument: a closure would copy
# them into the compiled program.
@functools.partial(jax.jit, static_argnums=0)
@allow_rank_promotion
def _registration(
    structure: nnx.GraphDef, arrays: tuple[Tree, ...], fixed: jax.Array, moving: jax.Array
) -> Registration:
    network: Network = nnx.merge(structure, *arrays)
    network.eval()
    return network.estimate(*(jnp.broadcast_to(i, (*i.shape[:3], 3)) for i in (fixed, moving)))


class TrainedNetwork:
    """A network with its trained weights, ready to register pairs.

    Attributes:
      network: settings of the network.
      config: configuration of the run that trained it: a `jaxreg.training.configs.TrainConfig` if
        `jaxreg.load` made this, else as `jaxreg.models.weights.read_weights` was told.
      step: number of training steps.
      image_size: height and width of the images that it takes, in pixels.
      arrays: weights and statistics, nested dictionaries of arrays.
      training_seconds: duration of the training, or None if it was not recorded.
    """

    def __init__(
        self,
        network: NetworkConfig,
        parts: tuple[nnx.GraphDef, Tree, Tree],
        config: Any,
        step: int,
        training_seconds: float | None = None,
    ):
        self.network = network
        self.config = config
        self.step = step
        self.training_seconds = training_seconds
        self.image_size = network.image_size
        self._structure, *arrays = parts
        self.arrays = tuple(arrays)

    def __repr__(self) -> str:
        return f"TrainedNetwork({self.network}, step={self.step})"

    @property
    def parameter_count(self) -> int:
        """The number of trained weights."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.arrays[0]))

    def estimate(self, fixed: jax.Array, moving: jax.Array) -> Registration:
        """Register N pairs; a `jaxreg.result.Estimator`.

        Args:
          fixed: ``(N, image_size, image_size, C)`` float32, C 1 or 3, intensities in 0..255.
          moving: the same shape.

        Raises:
          ValueError: the images have another size or number of channels.
        """
        size = self.image_size
        if fixed.shape[1:] not in ((size, size, 1), (size, size, 3)):
            raise ValueError(
                f"fixed and moving must be {size}x{size} with 1 or 3 channels for this network, "
                f"got images of shape {fixed.shape[1:]}; resize them, or train a network with "
                "--network.image_size"
            )
        return _registration(self._structure, self.arrays, fixed, moving)

    def register(self, fixed: ArrayLike, moving: ArrayLike) -> Registration:
        """Register one pair of images ``(H, W)`` or ``(H, W, C)``, see `register_batch`."""
        stacks = (image[None] for image in check_pair(fixed, moving))
        return self.register_batch(*stacks)[0]

    def register_batch(self, fixed: ArrayLike, moving: ArrayLike) -> Registration:
        """Register N pairs of images.

        Args:
          fixed: ``(N, H, W)`` or ``(N, H, W, C)`` with H = W = ``image_size`` and C 1 or 3; any
            real dtype, intensities in 0..255.
          moving: the same shape. Either may be a single image without N, which is then paired with
            each image of the other.

        Returns:
          The transforms from fixed to moving, in pixels and degrees, and their reliability as the
          network estimates it (`jaxreg.models.Network.estimate`).

        Raises:
          ValueError: the images have another size, number of channels or unit, or hold NaN.
        """
        fixed, moving = check_stacks(fixed, moving)
        check_grey_levels(fixed, moving, "this network")
        return map_batches(self.estimate, fixed, moving)
