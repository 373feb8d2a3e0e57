"""The paper's extractor networks (section 3.2.2): one ResNeXt-50 for both images, and a head."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx

from jaxreg.geometry import RigidTransform
from jaxreg.models.lstm import TwoStepLSTM
from jaxreg.models.network import Network, check_images, resize, transform_from_outputs
from jaxreg.models.resnext import BLOCKS, ResNeXt

Head = Literal["fc", "lstm"]

FEATURES = 3072  # outputs of the extractor for one image
SMALLEST_INPUT = 64  # smaller images are enlarged to 64x64
# Of red, green and blue in [0, 1], as torchvision normalises images for the published weights.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class ResNeXtConfig:
    """Settings of the ResNeXt-50 networks; the defaults are the paper's, with the FC head.

    Attributes:
      head: ``"fc"``, one fully connected layer on the features of both images, or ``"lstm"``, an
        LSTM with the features of the two images as its two steps.
      image_size: height and width of the images in pixels. Images below 64 are enlarged to 64x64,
        others are not resized; translations stay in pixels of the images given.
      output_scale: factors of the three outputs ``(tx, ty, theta)``, see `LSTMConfig`.
      hidden: units in each layer of the LSTM head.
      layers: layers of the LSTM head.
      blocks: bottlenecks in each of the extractor's four stages. ImageNet weights fit (3, 4, 6, 3).
    """

    head: Head = "fc"
    image_size: int = 32
    output_scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    hidden: int = 3000
    layers: int = 3
    blocks: tuple[int, int, int, int] = BLOCKS

    def __post_init__(self) -> None:
        if self.head not in get_args(Head):
            raise ValueError(f"head must be one of {', '.join(get_args(Head))}, got {self.head!r}")
        for name in ("hidden", "layers", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if len(self.blocks) != 4 or min(self.blocks) < 1:
            raise ValueError(f"blocks must be four positive numbers, got {self.blocks}")

    def build(self, rngs: nnx.Rngs) -> ResNeXtNetwork:
        """A fresh network; its weights are drawn from ``rngs.params``."""
        return ResNeXtNetwork(self, rngs=rngs)


class ConcatenationHead(nnx.Module):
    """One fully connected layer on the concatenated features of both images."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.fc = nnx.Linear(2 * features, 3, rngs=rngs)

    def __call__(self, first: jax.Array, second: jax.Array) -> jax.Array:
        """Map the features of two images, each ``(N, features)``, to three outputs ``(N, 3)``."""
        return self.fc(jnp.concatenate([first, second], axis=-1))


class ResNeXtNetwork(Network):
    """Features of both images by one ResNeXt-50, then a fully connected or an LSTM head.

    The images of N pairs pass through the extractor as one batch of 2N. In training mode batch
    normalisation therefore takes its statistics over fixed and moving images together: both get
    the same normalisation, and a batch of one pair still has two images. (Two passes would
    normalise each set by its own statistics, and hide from the head how the sets differ.) In
    evaluation mode it makes no difference. Intensities 0..255 are normalised by ImageNet's mean and
    deviation, as the published weights expect.
    """

    def __init__(self, config: ResNeXtConfig, *, rngs: nnx.Rngs):
        self.image_size = config.image_size
        self.output_scale = config.output_scale
        self.extractor = ResNeXt(FEATURES, config.blocks, rngs=rngs)
        self.head = (
            ConcatenationHead(FEATURES, rngs=rngs)
            if config.head == "fc"
            else TwoStepLSTM(FEATURES, config.hidden, config.layers, rngs=rngs)
        )

    def __call__(self, fixed: jax.Array, moving: jax.Array) -> RigidTransform:
        """The transforms of N pairs ``(N, image_size, image_size, 3)``, see `Network`."""
        check_images(fixed, moving, self.image_size)
        features = self.extractor(enlarge_and_normalise(jnp.concatenate([fixed, moving])))
        first, second = jnp.split(features, 2)
        return transform_from_outputs(self.head(first, second), self.output_scale)


def enlarge_and_normalise(images: jax.Array) -> jax.Array:
    """Prepare images ``(N, S, S, 3)``, intensities 0..255, for the extractor.

    Those below 64x64 are enlarged to it; all are normalised by ImageNet's mean and deviation.
    """
    large = resize(images.astype(jnp.float32), max(images.shape[1], SMALLEST_INPUT))
    return (large / 255 - jnp.asarray(IMAGENET_MEAN)) / jnp.asarray(IMAGENET_DEVIATION)
