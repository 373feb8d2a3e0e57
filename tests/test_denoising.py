"""The Wiener filter against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.ndimage

from jaxreg.direct.denoising import _cosines, interpolant_of, wiener, with_gradient
from jaxreg.direct.resampling import interpolant
from jaxreg.interpolation import spline_gradient
from tests.registration_support import texture
from tests.tolerances import FLOAT32_INTENSITY


@jax.jit  # compiled as one, not operation by operation
def denoise(image, covariance, blur=0.0):
    return with_gradient(wiener(image, covariance, blur)[0])[0]


def noise(shape, sigma, seed=0):
    return np.random.default_rng(seed).normal(128, sigma, shape).astype(np.float32)


@pytest.mark.parametrize("size", [8, 17])
def test_cosines_are_the_orthonormal_dct(size):
    expected = scipy.fft.dct(np.eye(size), axis=0, norm="ortho")
    np.testing.assert_allclose(_cosines(size), expected, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.8, 1.2, 3.0])
def test_the_blur_is_scipys(sigma):
    image = np.zeros((24, 33, 1), np.float32)
    image[[0, 12, 20], [1, 16, 32]] = 1.0  # at the border and away from it
    expected = scipy.ndimage.gaussian_filter(image, (sigma, sigma, 0), truncate=8.0)
    # scipy samples the kernel where this one has its spectrum.
    tolerance = 1e-6 + 2.5 * np.exp(-0.5 * (np.pi * sigma) ** 2)
    blurred = denoise(image, jnp.zeros((1, 1)), sigma)
    np.testing.assert_allclose(blurred, expected, atol=tolerance)


@pytest.mark.parametrize("linear", [False, True])
def test_what_is_made_of_a_spectrum_is_what_is_made_of_its_image(linear):
    spectrum, _ = wiener(texture((24, 33, 2)), 25.0 * jnp.eye(2))
    image, gradient = with_gradient(spectrum)
    found, expected = (
        np.asarray(v)[1:-1, 1:-1] if linear else v  # no bilinear kernel reads the rim
        for v in (interpolant_of(spectrum, linear), interpolant(image, linear))
    )
    np.testing.assert_allclose(found, expected, atol=FLOAT32_INTENSITY)
    for found, expected in zip(gradient, spline_gradient(image), strict=True):
        np.testing.assert_allclose(found, expected, atol=FLOAT32_INTENSITY)


@pytest.mark.parametrize("shape", [(32, 32, 3), (24, 33, 1)])
def test_no_noise_returns_the_image(shape):
    image = texture(shape)
    # Bands of a millionth of the strongest one's power are taken for rounding.
    change = np.asarray(denoise(image, jnp.zeros((shape[2], shape[2])))) - image
    assert np.sqrt(np.square(change).mean()) < 2e-3 * image.std()


def test_noise_alone_is_shrunk_to_the_mean():
    image = noise((32, 32, 3), 10.0)
    smooth = np.asarray(denoise(image, 100.0 * jnp.eye(3)))
    np.testing.assert_allclose(smooth.mean((0, 1)), image.mean((0, 1)), atol=FLOAT32_INTENSITY)
    assert smooth.std() < 0.35 * image.std()


@pytest.mark.parametrize("sigma", [5.0, 20.0])
def test_it_takes_out_more_noise_than_picture(sigma):
    clean = texture((32, 32, 3), sigma=2.0)
    noisy = clean + noise(clean.shape, sigma) - 128
    left = np.square(np.asarray(denoise(noisy, sigma**2 * jnp.eye(3))) - clean).mean()
    assert left < 0.5 * sigma**2


def test_noise_that_channels_share_is_taken_out_as_from_one():
    """A grey picture stored as three equal channels."""
    clean = texture((32, 32, 1), sigma=2.0)
    grey = jnp.asarray(clean + noise(clean.shape, 20.0) - 128)
    alone = denoise(grey, jnp.full((1, 1), 400.0))
    three = denoise(jnp.tile(grey, 3), jnp.full((3, 3), 400.0))
    np.testing.assert_allclose(three, jnp.tile(alone, 3), atol=FLOAT32_INTENSITY)
