"""Empirical Wiener filter in the cosine domain, for images whose noise level is known.

The finish projects its residual on image gradients, and the noise in these costs accuracy. The
channels are decorrelated first (the noise is independent, the picture is not); then each band of
frequencies is multiplied by the share of its power that is not noise.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.compute.products import mix, product, separable, times
from jaxreg.interpolation import coefficient_matrix, derivative_matrix

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


def _falloff(size: int, sigma: jax.typing.ArrayLike) -> jax.Array:
    """``(size,)``: what a Gaussian blur of ``sigma`` px, which may be traced, leaves of cosines.

    It is the blur of a line that is mirrored at its ends.
    """
    frequency = np.float32(np.pi) * np.arange(size, dtype=np.float32) / size
    return jnp.exp(-0.5 * jnp.square(sigma * frequency))


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


class Spectrum(NamedTuple):
    """An image in the cosine domain.

    What is wanted of a denoised image, its `interpolant` or its gradient, are products with it;
    taken of the spectrum, they include the way back.

    Attributes:
      cosines: ``(C, H, W)``, coefficients of the image without its mean.
      mean: ``(C,)``; apart, so that a flat image stays flat to the last bit.
    """

    cosines: jax.Array
    mean: jax.Array


def wiener(
    image: jax.Array, noise: jax.Array, blur: jax.typing.ArrayLike = 0.0
) -> tuple[Spectrum, jax.Array]:
    """Denoise an image: shrink the bands of frequencies that its white noise dominates.

    Differentiation treats the filter as a constant, because its eigenvectors have no derivative
    where channels have equal power.

    Args:
      image: ``(H, W, C)``.
      noise: ``(C, C)`` covariance of the noise in the channels of a pixel. With zero the image's
        own spectrum is returned, except that bands with about a millionth of the strongest band's
        power are damped.
      blur: standard deviation in px of a Gaussian blur of the result; may be traced.

    Returns:
      The result, whose channel means are the image's; and ``(B,)``, the cross power of the noise
      and the same noise denoised in each band, before the blur: noise variance times gain, summed
      over the channels.
    """
    height, width, channels = image.shape
    bands = _bands(height, width)
    planes = jnp.moveaxis(image, -1, 0).reshape(channels, -1)
    mean = planes.mean(1, keepdims=True)
    centred = planes - mean
    alone = jnp.ones((1, 1), jnp.float32)
    basis = jnp.linalg.eigh(times(centred, centred))[1] if channels > 1 else alone
    basis = jax.lax.stop_gradient(basis)
    shape = (channels, height, width)
    mixed = mix(basis.T, centred).reshape(shape)
    spectrum = separable(_cosines(height), mixed, _cosines(width)).reshape(channels, -1)
    power = times(bands, jnp.square(spectrum)) / np.maximum(bands.sum(1), 1.0)
    own = (basis * product(noise, basis)).sum(0)[:, None]
    signal = jnp.maximum(power - own, 0.0)
    gain = signal / (signal + own + 1e-6 * power.max() + 1e-12)
    blurred = _falloff(height, blur)[:, None] * _falloff(width, blur)
    gain, blurred = jax.lax.stop_gradient((gain, blurred))
    spectrum = mix(basis, spectrum * gain[:, bands.argmax(0)] * blurred.reshape(-1))
    return Spectrum(spectrum.reshape(shape), mean[:, 0]), (own * gain).sum(0)


def interpolant_of(spectrum: Spectrum, linear: bool | jax.Array) -> jax.Array:
    """`jaxreg.direct.resampling.interpolant` of a spectrum's image; the rim may differ."""
    rows, columns = (
        jnp.where(linear, _padded(size), _coefficients(size)) for size in spectrum.cosines.shape[1:]
    )
    planes = separable(rows, spectrum.cosines, columns)
    return jnp.moveaxis(planes, 0, -1) + spectrum.mean


def with_gradient(spectrum: Spectrum) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """A spectrum's image and its `spline_gradient`, ``(down, right)``; each ``(H, W, C)``."""
    channels, height, width = spectrum.cosines.shape
    value, slope = _cosines(height).T, _derivatives(height)
    across = np.concatenate([_cosines(width).T, _derivatives(width)])
    lines = product(spectrum.cosines.reshape(-1, width), across.T)
    lines = lines.reshape(channels, height, 2 * width)
    image, right = jnp.split(jnp.stack([product(value, plane) for plane in lines]), 2, axis=-1)
    down = jnp.stack([product(slope, plane[:, :width]) for plane in lines])
    image, down, right = (jnp.moveaxis(planes, 0, -1) for planes in (image, down, right))
    return image + spectrum.mean, (down, right)


@functools.cache
def _padded(size: int) -> np.ndarray:
    """``(size + 2, size)``: from cosines to pixels with a rim of zeros."""
    return np.pad(_cosines(size).T, ((1, 1), (0, 0)))


@functools.cache
def _coefficients(size: int) -> np.ndarray:
    """``(size + 2, size)``: from cosines to spline coefficients with a rim of one."""
    return (coefficient_matrix(size, 1) @ _cosines(size).T.astype(np.float64)).astype(np.float32)


@functools.cache
def _derivatives(size: int) -> np.ndarray:
    """``(size, size)``: from cosines to derivatives at the pixels."""
    return (derivative_matrix(size) @ _cosines(size).T.astype(np.float64)).astype(np.float32)
