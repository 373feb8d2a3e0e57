"""Empirical Wiener filter in the cosine domain, for images whose noise level is known.

The finish projects its residual on image gradients, and the noise in these costs accuracy. The
channels are decorrelated first (the noise is independent, the picture is not); then each band of
frequencies is multiplied by the share of its power that is not noise.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.compute.products import mix, product, separable, times

# Radial bands of frequencies, each with one gain: few enough for a stable estimate of the power in
# each of them on a 32x32 image. No comparison of values is on record.
_BANDS = 12


@functools.cache
def _cosines(size: int) -> np.ndarray:
    """``(size, size)``: orthonormal DCT-II, whose mirrored border rings less than an FFT's wrap."""
    k, n = np.mgrid[:size, :size]
    matrix = np.sqrt(2 / size) * np.cos(np.pi * (n + 0.5) * k / size)
    matrix[0] /= np.sqrt(2)
    return matrix.astype(np.float32)


@functools.lru_cache(maxsize=8)  # 200 MB each at the largest
def _bands(height: int, width: int) -> np.ndarray:
    """``(B, H W)``: one-hot radial band of each cosine, without the constant one."""
    radius = np.hypot(np.arange(height)[:, None] / height, np.arange(width) / width)
    band = np.minimum((radius * _BANDS).astype(int), _BANDS - 1)
    one_hot = np.eye(_BANDS, dtype=np.float32)[band]
    one_hot[0, 0] = 0.0
    return np.ascontiguousarray(one_hot.reshape(-1, _BANDS).T)


def cosine_blur(size: int, sigma: jax.typing.ArrayLike) -> jax.Array:
    """``(size, size)``: Gaussian blur of a line that is mirrored at its ends.

    Args:
      size: pixels of the line.
      sigma: standard deviation in px; may be traced.

    >>> bool(jnp.allclose(cosine_blur(8, 0.0), jnp.eye(8), atol=1e-6))
    True
    """
    cosines = _cosines(size)
    kept = jnp.exp(
        -0.5 * jnp.square(sigma * np.float32(np.pi) * np.arange(size, dtype=np.float32) / size)
    )
    return product(cosines.T * kept, cosines)


@functools.lru_cache(maxsize=16)
def _waves(height: int, width: int, spline: bool) -> np.ndarray:
    """``(L, L, B)``: contribution of white noise in each band to `covariance_at_lags`."""

    def waves(size: int) -> np.ndarray:
        frequency = np.pi * np.arange(size) / size
        lags = np.cos(np.arange(4 if spline else 2)[:, None] * frequency)
        return lags / ((2 + np.cos(frequency)) / 3) ** 2 if spline else lags

    both = np.einsum("ik,jl->ijkl", waves(height), waves(width))
    both = both.reshape(*both.shape[:2], -1) @ _bands(height, width).T
    return (both / (height * width)).astype(np.float32)


def covariance_at_lags(cross_power: jax.Array, shape: tuple[int, ...], spline: bool) -> jax.Array:
    """Covariance of white noise and the same noise denoised, at lags of whole pixels.

    Args:
      cross_power: ``(B,)`` of the two in each band, see `wiener`.
      shape: of the image, starting with ``(H, W)``.
      spline: whether both are converted to coefficients of the cubic spline.

    Returns:
      ``(L, L)``, for 0 to 1 pixels down and to the right, or 0 to 3 for coefficients.
    """
    waves = _waves(*shape[:2], spline)
    return product(waves.reshape(-1, _BANDS), cross_power).reshape(waves.shape[:2])


def wiener(image: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Denoise an image: shrink the bands of frequencies that its white noise dominates.

    Differentiation treats the filter as a constant, because its eigenvectors have no derivative
    where channels have equal power.

    Args:
      image: ``(H, W, C)``.
      noise: ``(C, C)`` covariance of the noise in the channels of a pixel. With zero the image is
        returned, except that bands with about a millionth of the strongest band's power are damped.

    Returns:
      ``(H, W, C)``, with the channel means unchanged; and ``(B,)``, the cross power of the noise
      and the same noise denoised in each band: noise variance times gain, summed over the channels.
    """
    height, width, channels = image.shape
    rows, columns, bands = _cosines(height), _cosines(width), _bands(height, width)
    planes = jnp.moveaxis(image, -1, 0).reshape(channels, -1)
    mean = planes.mean(1, keepdims=True)
    centred = planes - mean
    alone = jnp.ones((1, 1), jnp.float32)
    basis = jnp.linalg.eigh(times(centred, centred))[1] if channels > 1 else alone
    basis = jax.lax.stop_gradient(basis)
    shape = (channels, height, width)
    spectrum = separable(rows, mix(basis.T, centred).reshape(shape), columns)
    spectrum = spectrum.reshape(channels, -1)
    power = times(bands, jnp.square(spectrum)) / np.maximum(bands.sum(1), 1.0)
    own = (basis * product(noise, basis)).sum(0)[:, None]
    signal = jnp.maximum(power - own, 0.0)
    gain = jax.lax.stop_gradient(signal / (signal + own + 1e-6 * power.max() + 1e-12))
    spectrum = mix(basis, spectrum * gain[:, bands.argmax(0)]).reshape(shape)
    planes = separable(rows.T, spectrum, columns.T) + mean[..., None]
    return jnp.moveaxis(planes, 0, -1), (own * gain).sum(0)
