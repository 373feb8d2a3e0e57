"""Naive implementations, with which speed is compared."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
from flax import nnx

from jaxreg.data.photos import LUMA
from jaxreg.models.lstm import LSTMNetwork, TwoStepLSTMLayer


def sweep(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """Register a pair by the paper's FFT approach in a Python loop, with SciPy and NumPy.

    Gives the same answers as `baselines.phase_correlation.fft` with its defaults.

    Args:
      fixed: ``(H, W, 3)``.
      moving: the same shape.

    Returns:
      ``(tx, ty, theta)``.
    """
    a, b = (np.asarray(image, np.float64) @ np.asarray(LUMA) for image in (fixed, moving))
    best, highest = np.zeros(3), -np.inf
    for theta in range(-180, 180):
        surface = _phase_surface(_turned(a, theta), b)
        y, x = np.unravel_index(surface.argmax(), surface.shape)
        if surface[y, x] > highest:
            highest = surface[y, x]
            best = np.array([_signed(x, a.shape[1]), _signed(y, a.shape[0]), theta])
    return best


def _turned(image: np.ndarray, theta: float) -> np.ndarray:
    """Rotate the image about its centre, bilinear, zeros outside."""
    cos, sin = np.cos(np.deg2rad(theta)), np.sin(np.deg2rad(theta))
    back = np.array([[cos, -sin], [sin, cos]])  # on (row, column)
    centre = (np.array(image.shape) - 1) / 2
    return scipy.ndimage.affine_transform(
        image, back, centre - back @ centre, order=1, mode="grid-constant"
    )


def _phase_surface(copy: np.ndarray, moving: np.ndarray) -> np.ndarray:
    power = np.fft.fft2(moving) * np.fft.fft2(copy).conj()
    size = np.abs(power)
    empty = size <= 1e-12 * size.max()
    return np.fft.ifft2(np.where(empty, 0.0, power / np.where(empty, 1.0, size))).real


def _signed(cell: int | np.integer, size: int) -> int:
    return int(cell - size if 2 * cell >= size else cell)


class ScannedLSTM(nnx.Module):
    """The LSTM network's layers as flax's cells, each scanned over the two time steps.

    It is made from a network and has its weights, so both give the same outputs.
    """

    def __init__(self, network: LSTMNetwork):
        self.layers = nnx.List([_scanned(layer) for layer in network.lstm.layers])
        self.kernel, self.bias = network.lstm.kernel, network.lstm.bias

    def __call__(self, first: jax.Array, second: jax.Array) -> jax.Array:
        """Map the inputs of two steps, each ``(N, inputs)``, to three outputs ``(N, 3)``."""
        steps = jnp.stack([first, second], axis=1)
        for layer in self.layers:
            steps = layer(steps)
        return steps[:, 1] @ self.kernel[...].T + self.bias[...]


def _scanned(layer: TwoStepLSTMLayer) -> nnx.RNN:
    hidden, inputs = layer.hidden_kernel.shape[1], layer.input_kernel.shape[1]
    cell = nnx.eval_shape(lambda: nnx.OptimizedLSTMCell(inputs, hidden, rngs=nnx.Rngs(0)))
    cell.dense_i.kernel = nnx.Param(layer.input_kernel[...].T)
    cell.dense_h.kernel = nnx.Param(layer.hidden_kernel[...].T)
    cell.dense_h.bias = nnx.Param(layer.bias[...])
    return nnx.RNN(cell, rngs=nnx.Rngs(0))
