"""The interface of the registration networks: two images in, a rigid transform out."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from jaxreg.geometry import RigidTransform, wrap_degrees
from jaxreg.metrics import LAMBDA, AngleLoss, paper_loss
from jaxreg.pairs import Pairs
from jaxreg.result import Registration
from jaxreg.similarity import judge

Tree = Any  # nested dictionaries of arrays


class Network(nnx.Module):
    """A network that estimates the transform of image pairs.

    Networks are nnx modules, built in training mode; call ``eval()`` before estimating with one.
    Weights are `nnx.Param`. A network with batch normalisation also has `nnx.BatchStat`, which a
    call in training mode updates. A pure training step (`jaxreg.training.step`) merges plain
    arrays into a network with variables of its own, and returns the new statistics::

        structure, weights, statistics = split_network(network)

        def loss(weights, statistics, pairs):
            merged = nnx.merge(structure, weights, statistics)
            value, estimate = merged.loss(pairs)
            return value, (estimate, split_network(merged)[2])

    Attributes:
      image_size: height and width of the images that it takes.
    """

    image_size: int

    def __call__(self, fixed: jax.Array, moving: jax.Array) -> RigidTransform:
        """Estimate the transforms of N pairs.

        Args:
          fixed: ``(N, image_size, image_size, 3)`` float32, intensities in 0..255.
          moving: the same.

        Returns:
          N transforms, pixels of the images given and degrees in [-180, 180).
        """
        raise NotImplementedError

    def estimate(self, fixed: jax.Array, moving: jax.Array) -> Registration:
        """Estimate the transforms of N pairs and their reliability.

        By default `jaxreg.similarity.judge` judges the transforms. A network that estimates its own
        confidence overrides this.

        Args:
          fixed: ``(N, image_size, image_size, 3)`` float32, intensities in 0..255.
          moving: the same.
        """
        return judge(fixed, moving, self(fixed, moving))

    def loss(
        self,
        pairs: Pairs,
        translation_weight: float = LAMBDA,
        angle_loss: AngleLoss = "arc",
    ) -> tuple[jax.Array, RigidTransform]:
        """Compute the training loss of a batch (the paper's Eq. 5) and the estimates behind it."""
        estimate = self(pairs.fixed, pairs.moving)
        return paper_loss(estimate, pairs.transform, translation_weight, angle_loss), estimate


class NetworkConfig(Protocol):
    """The settings that a network is built from: a frozen dataclass with JSON-able fields."""

    @property
    def image_size(self) -> int:
        """Height and width of the images that the network takes."""
        ...

    def build(self, rngs: nnx.Rngs) -> Network:
        """A fresh network; its weights are drawn from ``rngs.params``."""
        ...


def split_network(network: nnx.Module) -> tuple[nnx.GraphDef, Tree, Tree]:
    """Split a network into its structure, its weights and its other arrays."""
    parts: tuple[Any, ...] = nnx.split(network, nnx.Param, ...)
    structure, weights, rest = parts
    return structure, nnx.to_pure_dict(weights), nnx.to_pure_dict(rest)


def network_structure(config: NetworkConfig) -> tuple[nnx.GraphDef, Tree, Tree]:
    """Return `split_network` of the configured network, with shapes instead of arrays."""
    with jax.enable_x64(False):  # float32, whatever the program's default
        return split_network(nnx.eval_shape(lambda: config.build(nnx.Rngs(0))))


def check_images(fixed: jax.Array, moving: jax.Array, image_size: int) -> None:
    """Raise ValueError unless both are ``(N, image_size, image_size, 3)`` with one N."""
    for name, images in (("fixed", fixed), ("moving", moving)):
        if images.ndim != 4 or images.shape[1:] != (image_size, image_size, 3):
            raise ValueError(
                f"{name} must be (N, {image_size}, {image_size}, 3) for this network, "
                f"got shape {images.shape}"
            )
    if fixed.shape != moving.shape:
        raise ValueError(
            f"fixed and moving must hold as many images, got {fixed.shape[0]} and {moving.shape[0]}"
        )


def resize(images: jax.Array, size: int) -> jax.Array:
    """Resize square images ``(N, S, S, C)`` to ``(N, size, size, C)``.

    Shrinking by a whole factor takes means over blocks. Any other size is interpolated linearly,
    with antialiasing when it shrinks. Pixel centres are aligned as in torch's
    ``interpolate(align_corners=False)``.
    """
    n, side, _, channels = images.shape
    if side == size:
        return images
    if side % size == 0:
        factor = side // size
        return images.reshape(n, size, factor, size, factor, channels).mean((2, 4))
    return jax.image.resize(images, (n, size, size, channels), "linear", antialias=True)


def transform_from_outputs(outputs: jax.Array, scale: tuple[float, float, float]) -> RigidTransform:
    """Convert outputs ``(N, 3)`` of ``(tx, ty, theta)``, times ``scale``, to N transforms."""
    scaled = outputs * jnp.asarray(scale, outputs.dtype)
    return RigidTransform(scaled[:, 0], scaled[:, 1], wrap_degrees(scaled[:, 2]))
