"""What every registration network is: two images in, a rigid transform out."""

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
    Weights are `nnx.Param`; a network with batch normalisation also has `nnx.BatchStat`, which a
    call in training mode updates. A pure training step merges plain arrays, of which the merged
    network makes variables of its own, and hands the new statistics on
    (`jaxreg.training.step`)::

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
        """The transforms of N pairs with what the network can say of their worth.

        By default that is what `jaxreg.similarity.judge` says; a network that knows how sure it is
        overrides this.

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
        """Training loss of a batch (the paper's Eq. 5) and the estimates that it judges."""
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
    """A network as its structure, its weights and its other arrays."""
    parts: tuple[Any, ...] = nnx.split(network, nnx.Param, ...)
    structure, weights, rest = parts
    return structure, nnx.to_pure_dict(weights), nnx.to_pure_dict(rest)


def network_structure(config: NetworkConfig) -> tuple[nnx.GraphDef, Tree, Tree]:
    """`split_network` of the configured network with shapes in place of arrays: no memory."""
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
    """Square images ``(N, S, S, C)`` to ``(N, size, size, C)``.

    Shrinking by a whole factor takes the mean over blocks; any other size is bilinear, with
    antialiasing when it shrinks. Pixel centres are aligned as in torch's
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
    """N transforms from a network's ``(N, 3)`` outputs ``(tx, ty, theta)`` times ``scale``."""
    scaled = outputs * jnp.asarray(scale, outputs.dtype)
    return RigidTransform(scaled[:, 0], scaled[:, 1], wrap_degrees(scaled[:, 2]))
