"""The paper's LSTM registration network (section 3.2.1): two images, two time steps.

There are only two steps, and the state starts at zero. So the input products of both steps are one
matrix product, the first step needs no recurrent product, and each weight is read once. Reading the
217 million weights is most of the work for a single pair, and bounds its time from below. Kernels
are stored ``(out, in)``: a row then holds all weights of one output, and a product with a few
vectors reads the kernel in memory order.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from jaxreg.geometry import RigidTransform
from jaxreg.models.network import Network, check_images, resize, transform_from_outputs

_FEW = 8  # a CPU multiplies up to this many vectors faster as columns, right of the kernel
INPUT_SIZE = 32  # images are resized to 32x32 first: 3,072 inputs


def uniform_kernel(key: jax.Array, outputs: int, inputs: int) -> jax.Array:
    """Draw a kernel ``(outputs, inputs)``, uniform with variance 1 / inputs."""
    limit = math.sqrt(3 / inputs)
    return jax.random.uniform(key, (outputs, inputs), minval=-limit, maxval=limit)


class TwoStepLSTMLayer(nnx.Module):
    """One LSTM layer run for two steps from a zero state.

    Gates are ordered i, f, g, o as in torch, with one bias for each (torch has two and adds them).
    The bias of the forget gate is 1 at first, so that an untrained layer remembers the first step.
    """

    def __init__(self, inputs: int, hidden: int, *, rngs: nnx.Rngs):
        self.input_kernel = nnx.Param(uniform_kernel(rngs.params(), 4 * hidden, inputs))
        self.hidden_kernel = nnx.Param(uniform_kernel(rngs.params(), 4 * hidden, hidden))
        self.bias = nnx.Param(jnp.zeros(4 * hidden).at[hidden : 2 * hidden].set(1.0))

    def __call__(self, steps: jax.Array) -> jax.Array:
        """Map the inputs ``(2, N, inputs)`` of both steps to hidden states ``(2, N, hidden)``."""
        both = _product(self.input_kernel[...], steps) + self.bias[...]
        i, _, g, o = jnp.split(both[0], 4, axis=-1)
        cell = jax.nn.sigmoid(i) * jnp.tanh(g)
        first = jax.nn.sigmoid(o) * jnp.tanh(cell)
        gates = both[1] + _product(self.hidden_kernel[...], first)
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jnp.stack([first, jax.nn.sigmoid(o) * jnp.tanh(cell)])


def _product(kernel: jax.Array, vectors: jax.Array) -> jax.Array:
    """Multiply a kernel ``(out, in)`` and vectors ``(..., in)`` to ``(..., out)``."""
    if 1 < math.prod(vectors.shape[:-1]) <= _FEW:
        columns = jax.lax.dot_general(kernel, vectors, (((1,), (vectors.ndim - 1,)), ((), ())))
        return jnp.moveaxis(columns, 0, -1)
    return jax.lax.dot_general(vectors, kernel, (((vectors.ndim - 1,), (1,)), ((), ())))


class TwoStepLSTM(nnx.Module):
    """A stack of LSTM layers over two steps, and a linear layer on the last hidden state."""

    def __init__(self, inputs: int, hidden: int, layers: int, *, rngs: nnx.Rngs):
        sizes = [inputs] + [hidden] * (layers - 1)
        self.layers = nnx.List([TwoStepLSTMLayer(size, hidden, rngs=rngs) for size in sizes])
        self.kernel = nnx.Param(uniform_kernel(rngs.params(), 3, hidden))
        self.bias = nnx.Param(jnp.zeros(3))

    def __call__(self, first: jax.Array, second: jax.Array) -> jax.Array:
        """Map the inputs of two steps, each ``(N, inputs)``, to three outputs ``(N, 3)``."""
        steps = jnp.stack([first, second])
        for layer in self.layers:
            steps = layer(steps)
        return _product(self.kernel[...], steps[1]) + self.bias[...]


@dataclasses.dataclass(frozen=True)
class LSTMConfig:
    """Settings of the LSTM network; the defaults are the paper's (216.9 million parameters).

    Attributes:
      hidden: units in each layer.
      layers: number of LSTM layers.
      image_size: height and width of the images in pixels. Sizes other than 32 are resized to 32x32
        first (96 by means over 3x3 blocks); translations stay in pixels of the images given.
      output_scale: factors of the three outputs ``(tx, ty, theta)``. The paper has none; outputs
        of order 1 train better, so give the ranges in pixels and degrees.
    """

    hidden: int = 3000
    layers: int = 3
    image_size: int = 32
    output_scale: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        for name in ("hidden", "layers", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def build(self, rngs: nnx.Rngs) -> LSTMNetwork:
        """A fresh network; its weights are drawn from ``rngs.params``."""
        return LSTMNetwork(self, rngs=rngs)


def as_vectors(images: jax.Array) -> jax.Array:
    """Convert images ``(N, S, S, 3)`` to the LSTM's inputs ``(N, 3072)``: row, column, channel.

    Intensities 0..255 are mapped to [-2, 2], which gives photographs about unit variance.
    """
    small = resize(images.astype(jnp.float32), INPUT_SIZE)
    return (small.reshape(small.shape[0], -1) - 127.5) / 63.75


class LSTMNetwork(Network):
    """An LSTM with the fixed and the moving image as its two steps, and three outputs."""

    def __init__(self, config: LSTMConfig, *, rngs: nnx.Rngs):
        self.image_size = config.image_size
        self.output_scale = config.output_scale
        self.lstm = TwoStepLSTM(INPUT_SIZE**2 * 3, config.hidden, config.layers, rngs=rngs)

    def __call__(self, fixed: jax.Array, moving: jax.Array) -> RigidTransform:
        """The transforms of N pairs ``(N, image_size, image_size, 3)``, see `Network`."""
        check_images(fixed, moving, self.image_size)
        outputs = self.lstm(as_vectors(fixed), as_vectors(moving))
        return transform_from_outputs(outputs, self.output_scale)
