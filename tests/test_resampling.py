"""The source at the target's pixels against `warp` and its derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.direct.denoising import _bands, _cosines
from jaxreg.direct.masking import Masks
from jaxreg.direct.resampling import (
    interpolant,
    noise_gain,
    noise_slopes,
    pull,
    slopes,
    source_points,
)
from jaxreg.geometry import RigidTransform
from jaxreg.warping import overlap, warp
from tests.compilation_support import quickly_compiled
from tests.registration_support import texture
from tests.tolerances import FLOAT32_INTENSITY

SHAPE = (24, 20, 2)
T = RigidTransform(1.7, -2.4, 33.0)


def interior(transform):
    """Where the kernel touches no pixel beyond the frame, for there the borders differ."""
    white = np.ones(SHAPE[:2], np.float32)
    white[:3] = white[-3:] = white[:, :3] = white[:, -3:] = 0
    return np.asarray(warp(white, transform)).ravel() > 0.999


@pytest.mark.parametrize("kernel", ["linear", "spline"])
def test_values_agree_with_warp(kernel):
    image, linear = jnp.asarray(texture(SHAPE)), kernel == "linear"
    points = jax.jit(source_points, static_argnums=0)(SHAPE, T)
    source = jax.jit(interpolant, static_argnums=1)(image, linear)
    value, one = jax.jit(lambda *of: [pull(v, points, linear) for v in of])(source, source[..., 1])
    inside = interior(T)
    expected = np.asarray(warp(image, T, kernel)).reshape(-1, 2)
    assert inside.sum() > 100
    np.testing.assert_allclose(np.asarray(value)[inside], expected[inside], atol=FLOAT32_INTENSITY)
    np.testing.assert_array_equal(np.asarray(points.inside) > 0, overlap(SHAPE, T).ravel())
    np.testing.assert_allclose(one, value[:, 1], atol=FLOAT32_INTENSITY)


@pytest.mark.parametrize("kernel", ["linear", "spline"])
def test_slopes_are_the_derivative_of_warp(kernel):
    image, linear = jnp.asarray(texture(SHAPE)), kernel == "linear"
    slope = jax.jit(lambda t: slopes(interpolant(image, linear), source_points(SHAPE, t), linear))(
        T
    )
    moved = lambda p: warp(image, RigidTransform.from_array(p), kernel)  # noqa: E731
    jacobian = jax.jit(jax.jacfwd(moved))(T.as_array())
    inside = interior(T)
    expected = np.moveaxis(np.asarray(jacobian), -1, 0).reshape(3, -1, 2)
    np.testing.assert_allclose(
        np.asarray(slope)[:, inside], expected[:, inside], atol=5 * FLOAT32_INTENSITY
    )


@pytest.mark.parametrize("function", [pull, slopes])
@quickly_compiled()
def test_a_kernel_that_the_images_decide_is_the_same_as_one_known(function):
    """Values and derivatives, of a batch of which each has a kernel of its own as well."""
    image = jnp.asarray(texture((9, 12, 2)))
    points = source_points(image.shape, RigidTransform(1.3, -0.7, 30.0))

    def run(linear, image):
        def total(image):
            value = function(interpolant(image, linear), points, linear)
            return jnp.sin(value).sum(), value

        slope, value = jax.grad(total, has_aux=True)(image)
        return value, slope

    kinds = jnp.array([True, False])
    known = jax.jit(lambda image: [run(kind, image) for kind in (True, False)])(image)
    one, batch = jax.jit(run), jax.jit(jax.vmap(run, (0, None)))
    for answers in ([one(kind, image) for kind in kinds], zip(*batch(kinds, image), strict=True)):
        for answer, expected in zip(answers, known, strict=True):
            for a, b in zip(answer, expected, strict=True):
                np.testing.assert_allclose(a, b, atol=FLOAT32_INTENSITY)
    value = jax.jit(lambda kind: function(interpolant(image, kind), points, kind))
    for kind, (expected, _) in zip(kinds, known, strict=True):  # that is a branch, without slopes
        np.testing.assert_allclose(value(kind), expected, atol=FLOAT32_INTENSITY)
    assert np.abs(known[0][1] - known[1][1]).max() > 0.1


def test_the_rim_counts_less_with_a_margin():
    inside = np.asarray(source_points(SHAPE, RigidTransform.identity(), 2.0).inside)
    np.testing.assert_allclose(inside.reshape(24, 20)[12, :4], [0.0, 0.5, 1.0, 1.0], atol=2e-3)


def test_what_a_mask_takes_out_does_not_count():
    """Of the source, what a kernel mixes in counts as well; with a margin, by its share of it."""
    source = jnp.ones((24, 20)).at[10, 8].set(0)
    target = jnp.ones((24, 20)).at[3, 4].set(0)
    t = RigidTransform(0.25, 0.0, 0.0)
    hard, soft, none = (
        np.asarray(source_points(SHAPE, t, *how).inside).reshape(24, 20)
        for how in ((0.0, Masks(source, target)), (0.5, Masks(source, target)), (0.0, None))
    )
    np.testing.assert_array_equal(np.argwhere(hard != none), [[3, 4], [10, 8], [10, 9]])
    np.testing.assert_allclose(soft[10, 7:11], [1.0, 0.25, 0.75, 1.0], atol=1e-5)


@pytest.mark.parametrize("linear", [True, False])
def test_noise_gain_is_what_white_noise_keeps(linear):
    noise = jnp.asarray(np.random.default_rng(0).normal(size=(64, 64, 8)), jnp.float32)
    points = source_points(noise.shape, RigidTransform(0.4, 0.3, 20.0))
    value = np.asarray(pull(interpolant(noise, linear), points, linear))
    kept = np.square(value[np.asarray(points.inside) > 0]).mean()
    assert float(noise_gain(points, linear)) == pytest.approx(kept, rel=0.04)


@quickly_compiled()
@pytest.mark.parametrize("linear", [True, False])
def test_noise_is_like_its_own_slope_between_pixels(linear):
    """Against the mean of 500 noise images, their fine detail damped; at the rim it is more."""
    shape, kept = (40, 36, 1), jnp.linspace(1.0, 0.2, 12)  # of each band
    rows, columns, bands = _cosines(40), _cosines(36), _bands(40, 36)
    points = source_points(shape, RigidTransform(0.3, 0.8, 0.0))

    def products(key):
        noise = jax.random.normal(key, shape)
        spectrum = (rows @ noise[..., 0] @ columns.T) * (kept @ bands).reshape(shape[:2])
        denoised = (rows.T @ spectrum @ columns)[..., None]
        value = pull(interpolant(noise, linear), points, linear)
        found = slopes(interpolant(denoised, linear), points, linear) * value
        return (found[..., 0] * points.inside).sum(1)

    found = jax.jit(jax.vmap(products))(jax.random.split(jax.random.key(0), 500)).mean(0)
    expected = (noise_slopes(points, shape, kept, linear) * points.inside).sum(1)
    np.testing.assert_allclose(expected[:2], found[:2], rtol=0.1)
    assert np.abs(found[:2]).min() > 100.0
