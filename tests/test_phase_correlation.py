"""The FFT sweep: exact answers, conventions, options, and the paper's figures on random images."""

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from baselines.phase_correlation import fft, phase_correlation
from jaxreg.geometry import RigidTransform
from jaxreg.metrics import rotation_error, translation_error
from jaxreg.pairs import Pairs, draw_pairs, warp_pairs
from tests.compilation_support import quickly_compiled

quick = jax.jit(
    functools.partial(phase_correlation, angles=24),
    static_argnames=("channels", "remove_mean", "window", "padding", "peak"),
)


@pytest.fixture(autouse=True)
def _quickly_compiled():
    with quickly_compiled():
        yield


def noise(shape=(24, 24, 3), seed=0, sigma=0.0):
    values = np.random.default_rng(seed).uniform(0, 255, shape)
    return scipy.ndimage.gaussian_filter(values, (sigma, sigma, 0)).astype(np.float32)


def pairs_of(image, *transforms) -> Pairs:
    images = jnp.asarray(np.stack([image] * len(transforms)))
    return warp_pairs(images, RigidTransform.from_array(jnp.asarray(transforms, jnp.float32)))


def parameters(transform):
    return np.asarray(transform.as_array())


@pytest.mark.parametrize("theta", [-180.0, -90.0, -45.0, 0.0, 30.0, 135.0])
@pytest.mark.parametrize("shift", [(0, 0), (3, -2), (-5, 4)])
def test_whole_pixels_and_grid_angles_are_exact(theta, shift):
    pair = pairs_of(noise(), (*shift, theta))
    found = quick(pair.fixed[0], pair.moving[0])
    np.testing.assert_array_equal(parameters(found), (*shift, theta))


@pytest.mark.parametrize("shape", [(16, 24, 3), (21, 16, 1), (17, 19, 3)])
def test_takes_oblong_and_odd_shapes(shape):
    pair = pairs_of(noise(shape), (-2, 3, 15))
    np.testing.assert_array_equal(parameters(quick(pair.fixed[0], pair.moving[0])), (-2, 3, 15))


@pytest.mark.parametrize("size", [16, 17])
def test_shifts_are_resolved_to_half_the_size(size):
    image = noise((size, size, 3))
    sweep = jax.jit(functools.partial(phase_correlation, angles=2))
    for shift in range(size):
        found = sweep(image, np.roll(image, shift, axis=1))
        expected = shift if shift < size / 2 else shift - size
        np.testing.assert_array_equal(parameters(found), (expected, 0, 0))


def test_padding_resolves_shifts_beyond_half_the_size():
    pair = pairs_of(noise(), (0, 15, 45))
    found = quick(pair.fixed[0], pair.moving[0], padding=12)
    np.testing.assert_array_equal(parameters(found), (0, 15, 45))
    aliased = quick(pair.fixed[0], pair.moving[0])
    assert -12 <= float(aliased.ty) < 12


@pytest.mark.parametrize(
    "options",
    [
        {"remove_mean": True},
        {"window": True},
        {"channels": "all"},
        {"peak": "ncc"},
        {"peak": "ncc", "padding": 4, "remove_mean": True, "channels": "all"},
    ],
)
def test_every_option_finds_the_plain_case(options):
    pair = pairs_of(noise(), (2, -3, -60))
    found = quick(pair.fixed[0], pair.moving[0], **options)
    np.testing.assert_array_equal(parameters(found), (2, -3, -60))


def swept(fixed, moving, angles):
    """The plain sweep in NumPy: grey as cv2 makes it, the mean left in."""
    a, b = (cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2GRAY) for image in (fixed, moving))
    size = len(a)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    best = (-np.inf,)
    for theta in np.arange(angles) * 360 / angles - 180:
        cos, sin = np.cos(np.deg2rad(theta)), np.sin(np.deg2rad(theta))
        before = np.stack([cos * y - sin * x, sin * y + cos * x]) + (size - 1) / 2
        copy = scipy.ndimage.map_coordinates(a, before, order=1, mode="grid-constant")
        power = np.fft.fft2(b) * np.fft.fft2(copy).conj()
        surface = np.fft.ifft2(power / np.abs(power)).real
        ty, tx = np.unravel_index(surface.argmax(), surface.shape)
        wrap = [v - size if 2 * v >= size else v for v in (tx, ty)]
        best = max(best, (surface.max(), *wrap, theta))
    return best[1:]


def test_the_plain_sweep_is_numpys():
    """Also where it is wrong: on smooth pictures, whose black corners and colours decide."""
    images = jnp.asarray(np.stack([noise((16, 16, 3), s, sigma=1.0) for s in range(5)]))
    pairs = draw_pairs(jax.random.key(1), images, 5, 2.0)
    found = fft(pairs.fixed, pairs.moving, pairs_at_once=1, angles=36).transform
    expected = [swept(*pair, 36) for pair in zip(pairs.fixed, pairs.moving, strict=True)]
    np.testing.assert_array_equal(parameters(found), expected)


def test_subpixel_is_closer():
    images = jnp.asarray(np.stack([noise((32, 32, 3), s, sigma=0.7) for s in range(16)]))
    pairs = draw_pairs(jax.random.key(0), images, 16, 4.0)
    whole, fine = (
        fft(pairs.fixed, pairs.moving, angles=180, subpixel=subpixel).transform
        for subpixel in (False, True)
    )
    pixels = [jnp.median(translation_error(t, pairs.transform)) for t in (whole, fine)]
    degrees = [jnp.median(rotation_error(t.theta, pairs.transform.theta)) for t in (whole, fine)]
    assert pixels[1] < 0.7 * pixels[0]
    assert degrees[1] < 0.9 * degrees[0]


def test_the_papers_figures_on_random_images():
    """0.50 px is the rounding error of two whole pixels; Table 2 has 0.36 degrees."""
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    pairs = draw_pairs(jax.random.key(1), jnp.asarray(images), 120, 5.0)
    found = fft(pairs.fixed, pairs.moving)
    values = parameters(found.transform)
    np.testing.assert_array_equal(values, np.round(values))
    # Standard errors of the means of 120 pairs: 0.019 px and 0.025 degrees; three of them.
    assert abs(float(translation_error(found.transform, pairs.transform).mean()) - 0.50) < 0.057
    error = rotation_error(found.transform.theta, pairs.transform.theta)
    assert 0.30 < float(error.mean()) < 0.46
    assert np.all(np.asarray(found.success))


def test_works_under_jit_and_vmap():
    pairs = pairs_of(noise(), (1, 2, 15), (0, -3, 90), (4, 0, -135))
    together = jax.jit(jax.vmap(quick))(pairs.fixed, pairs.moving)
    np.testing.assert_array_equal(parameters(together), parameters(pairs.transform))


def test_the_estimator_does_not_depend_on_how_many_go_together():
    images = jnp.asarray(np.stack([noise((16, 16, 3), s) for s in range(5)]))
    pairs = draw_pairs(jax.random.key(0), images, 5, 2.0)
    answers = [
        parameters(fft(pairs.fixed, pairs.moving, pairs_at_once=n, angles=36).transform)
        for n in (1, 2, 8)
    ]
    np.testing.assert_array_equal(answers[0], answers[1])
    np.testing.assert_array_equal(answers[0], answers[2])


@pytest.mark.parametrize("peak", ["phase", "ncc"])
@pytest.mark.parametrize("value", [0.0, 77.0])
def test_constant_images_give_finite_numbers_and_no_success(peak, value):
    flat = jnp.full((2, 16, 16, 3), value)
    result = fft(flat, flat, peak=peak, subpixel=True, angles=24)
    assert np.isfinite(parameters(result.transform)).all()
    assert not np.any(np.asarray(result.success))


def test_bad_input_is_named():
    image = jnp.asarray(noise())
    with pytest.raises(ValueError, match=r"\(H, W, C\) of one shape.*vmap"):
        phase_correlation(image[None], image[None])
    with pytest.raises(ValueError, match="batches"):
        fft(image, image)
    with pytest.raises(ValueError, match="'grey' or 'all', got 'red'"):
        phase_correlation(image, image, channels="red")
    with pytest.raises(ValueError, match="'phase' or 'ncc', got 'height'"):
        phase_correlation(image, image, peak="height")
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        phase_correlation(image[..., :2], image[..., :2])
    with pytest.raises(ValueError, match="angles must be at least 1"):
        phase_correlation(image, image, angles=0)
    large = np.zeros((1024, 1024, 1), np.float32)
    with pytest.raises(ValueError, match=r"360 angles of 1024 x 1024 pixels.*downsample"):
        phase_correlation(large, large)
