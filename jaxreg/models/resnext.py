"""ResNeXt-50_32x4d with the layers of torchvision's implementation.

Saining Xie et al., "Aggregated Residual Transformations for Deep Neural Networks", CVPR 2017.
Modules have torchvision's names (``layer1.0.conv2``), so that a weight's path is its key in a
torch state dict. As in torchvision, padding is explicit, the 3x3 convolution has the stride, and
batch normalisation has eps 1e-5 and keeps 0.9 of its running averages. One difference: running
variances average the batch's variance itself, which torch scales by n / (n - 1) first.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from jaxreg.models.grouped_convolution import convolution, grouped_convolution

GROUPS = 32  # of the 3x3 convolutions: "32x4d"
GROUP_WIDTH = 4  # channels of a group in the first stage
EXPANSION = 4  # channels out of a bottleneck, for each of its planes
BLOCKS = (3, 4, 6, 3)  # bottlenecks in each of the four stages


class Convolution(nnx.Module):
    """A square convolution without bias, padded to keep the size at stride 1."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        stride: int = 1,
        groups: int = 1,
        *,
        rngs: nnx.Rngs,
    ):
        deviation = math.sqrt(2 / (outputs * size**2))  # He's, by fan out, as torchvision's
        shape = (size, size, inputs // groups, outputs)
        self.kernel = nnx.Param(deviation * jax.random.normal(rngs.params(), shape))
        self.stride, self.groups = stride, groups

    def __call__(self, images: jax.Array) -> jax.Array:
        """Map ``(N, H, W, inputs)`` to ``(N, H', W', outputs)``."""
        kernel = self.kernel[...]
        pad = (kernel.shape[0] // 2,) * 2
        if self.groups == 1:
            return convolution(images, kernel, self.stride, (pad, pad))
        return grouped_convolution(images, kernel, self.stride, (pad, pad), self.groups)


def _norm(channels: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(channels, momentum=0.9, epsilon=1e-5, rngs=rngs)


class Bottleneck(nnx.Module):
    """1x1, grouped 3x3 and 1x1 convolutions in parallel with a shortcut.

    Args:
      inputs: number of input channels.
      planes: a quarter of the number of output channels.
      stride: stride of the 3x3 convolution.
      project: whether the shortcut is a 1x1 convolution, as in the first block of a stage.
      rngs: random streams for the weights.
    """

    def __init__(self, inputs: int, planes: int, stride: int, project: bool, *, rngs: nnx.Rngs):
        width = planes * GROUP_WIDTH // 64 * GROUPS
        outputs = planes * EXPANSION
        self.conv1 = Convolution(inputs, width, 1, rngs=rngs)
        self.bn1 = _norm(width, rngs)
        self.conv2 = Convolution(width, width, 3, stride, GROUPS, rngs=rngs)
        self.bn2 = _norm(width, rngs)
        self.conv3 = Convolution(width, outputs, 1, rngs=rngs)
        self.bn3 = _norm(outputs, rngs)
        shortcut = (
            [Convolution(inputs, outputs, 1, stride, rngs=rngs), _norm(outputs, rngs)]
            if project
            else []
        )
        self.downsample = nnx.List(shortcut)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Map ``(N, H, W, inputs)`` to ``(N, H', W', 4 planes)``."""
        shortcut = images
        for layer in self.downsample:
            shortcut = layer(shortcut)
        out = nnx.relu(self.bn1(self.conv1(images)))
        out = nnx.relu(self.bn2(self.conv2(out)))
        return nnx.relu(self.bn3(self.conv3(out)) + shortcut)


class ResNeXt(nnx.Module):
    """ResNeXt-50_32x4d: 25,028,904 parameters with its original 1,000 outputs.

    Like every nnx module it is built in training mode: batch normalisation uses the batch's
    statistics and updates its running averages (`nnx.BatchStat`). ``eval()`` switches to the
    averages.

    Args:
      outputs: number of outputs of the last, fully connected layer.
      blocks: bottlenecks in each of the four stages.
      rngs: random streams for the weights.
    """

    def __init__(self, outputs: int, blocks: tuple[int, int, int, int] = BLOCKS, *, rngs: nnx.Rngs):
        self.conv1 = Convolution(3, 64, 7, 2, rngs=rngs)
        self.bn1 = _norm(64, rngs)
        self.layer1 = _stage(64, 64, blocks[0], 1, rngs)
        self.layer2 = _stage(256, 128, blocks[1], 2, rngs)
        self.layer3 = _stage(512, 256, blocks[2], 2, rngs)
        self.layer4 = _stage(1024, 512, blocks[3], 2, rngs)
        self.fc = nnx.Linear(2048, outputs, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Map images ``(N, H, W, 3)``, normalised as the weights expect, to ``(N, outputs)``."""
        return self.stages(images)["fc"]

    def stages(self, images: jax.Array) -> dict[str, jax.Array]:
        """Return the outputs of the stem, each stage, the pooling and the last layer, by name."""
        x = nnx.relu(self.bn1(self.conv1(images)))
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        found = {"stem": x}
        for name in ("layer1", "layer2", "layer3", "layer4"):
            for block in getattr(self, name):
                x = block(x)
            found[name] = x
        found["pool"] = jnp.mean(x, axis=(1, 2))
        found["fc"] = self.fc(found["pool"])
        return found


def _stage(inputs: int, planes: int, blocks: int, stride: int, rngs: nnx.Rngs) -> nnx.List:
    return nnx.List(
        Bottleneck(
            inputs if i == 0 else planes * EXPANSION,
            planes,
            stride if i == 0 else 1,
            project=i == 0,
            rngs=rngs,
        )
        for i in range(blocks)
    )
