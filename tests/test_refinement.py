"""Samples and slopes against `warp` and its derivative; Gauss-Newton on its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.geometry import RigidTransform
from jaxreg.interpolation import spline_coefficients
from jaxreg.refinement import clip_step, fit_intensity, gauss_newton, sample_source, solve
from jaxreg.warping import overlap, warp
from tests.registration_support import errors, texture
from tests.tolerances import FLOAT32_INTENSITY, REGISTERED_EXACTLY

SHAPE = (24, 20, 2)
T = RigidTransform(1.7, -2.4, 33.0)


def interior(transform, kernel):
    """Where the kernel touches no pixel beyond the frame, for there the borders differ."""
    white = np.ones(SHAPE[:2], np.float32)
    white[:3] = white[-3:] = white[:, :3] = white[:, -3:] = 0
    return np.asarray(warp(white, transform)).ravel() > 0.999


@pytest.mark.parametrize("kernel", ["linear", "spline"])
@pytest.mark.parametrize("traced", [False, True])
def test_samples_agree_with_warp(kernel, traced):
    image = texture(SHAPE)
    source = image if kernel == "linear" else spline_coefficients(image)
    linear = kernel == "linear"
    samples = sample_source(jnp.asarray(source), T, jnp.asarray(linear) if traced else linear)
    inside = interior(T, kernel)
    expected = np.asarray(warp(image, T, kernel)).reshape(-1, 2)
    assert inside.sum() > 100
    np.testing.assert_allclose(
        np.asarray(samples.value)[inside], expected[inside], atol=FLOAT32_INTENSITY
    )
    np.testing.assert_array_equal(
        np.asarray(samples.inside) > 0, np.asarray(overlap(SHAPE, T)).ravel()
    )


@pytest.mark.parametrize("kernel", ["linear", "spline"])
def test_slopes_are_the_derivative_of_warp(kernel):
    image = texture(SHAPE)
    source = image if kernel == "linear" else spline_coefficients(image)
    slope = sample_source(jnp.asarray(source), T, kernel == "linear").slope
    jacobian = jax.jacfwd(lambda p: warp(image, RigidTransform.from_array(p), kernel))(T.as_array())
    inside = interior(T, kernel)
    expected = np.moveaxis(np.asarray(jacobian), -1, 0).reshape(3, -1, 2)
    np.testing.assert_allclose(
        np.asarray(slope)[:, inside], expected[:, inside], atol=5 * FLOAT32_INTENSITY
    )


def test_the_rim_counts_less_with_a_margin():
    inside = np.asarray(
        sample_source(jnp.asarray(texture(SHAPE)), RigidTransform.identity(), True, 2.0).inside
    ).reshape(SHAPE[:2])
    np.testing.assert_allclose(inside[12, :4], [0.0, 0.5, 1.0, 1.0], atol=2e-3)


@pytest.mark.parametrize("linear", [True, False])
def test_noise_gain_is_what_white_noise_keeps(linear):
    noise = jnp.asarray(np.random.default_rng(0).normal(size=(64, 64, 8)), jnp.float32)
    source = noise if linear else spline_coefficients(noise)
    samples = sample_source(source, RigidTransform(0.4, 0.3, 20.0), linear)
    inside = np.asarray(samples.inside) > 0
    kept = np.square(np.asarray(samples.value)[inside]).mean()
    assert float(samples.noise_gain) == pytest.approx(kept, rel=0.04)


def test_gain_and_bias_are_found_despite_an_occlusion():
    image = jnp.asarray(texture(SHAPE))
    samples = sample_source(image, RigidTransform.identity())
    target = np.array(0.8 * image + jnp.array([10.0, -5.0]))
    target[4:8, 4:8] = 255
    flat = jnp.asarray(target.reshape(-1, 2))
    weight = samples.inside
    for _ in range(6):
        fit = fit_intensity(samples, flat, weight)
        weight = fit.weight
    assert float(fit.gain) == pytest.approx(0.8, abs=0.01)
    np.testing.assert_allclose(fit.bias, [10.0, -5.0], atol=1.0)
    assert np.asarray(fit.weight).reshape(SHAPE[:2])[4:8, 4:8].max() < 0.2


def test_gauss_newton_closes_in():
    image = texture((32, 32, 2), sigma=1.5)
    truth = RigidTransform(1.7, -2.4, 33.0)
    moving = 0.7 * warp(image, truth) + 20.0
    start = RigidTransform(jnp.float32(2.4), jnp.float32(-1.9), jnp.float32(36.0))
    end, fit = jax.jit(gauss_newton, static_argnums=3)(jnp.asarray(image), moving, start, 10)
    shift, turn = errors(end, truth)
    assert shift < REGISTERED_EXACTLY[0]
    assert turn < REGISTERED_EXACTLY[1]
    assert float(fit.gain) == pytest.approx(0.7, abs=1e-3)


def test_steps_are_shortened_not_turned():
    np.testing.assert_allclose(clip_step(jnp.array([4.0, 2.0, 3.0])), [1.0, 0.5, 0.75])
    np.testing.assert_allclose(clip_step(jnp.array([0.5, 0.1, -12.0])), [0.25, 0.05, -6.0])
    np.testing.assert_allclose(clip_step(jnp.array([0.5, 0.1, 1.0])), [0.5, 0.1, 1.0])


def test_solve_survives_a_singular_matrix():
    matrix = jnp.array([[4.0, 2.0, 0.0], [2.0, 300.0, 1.0], [0.0, 1.0, 5e4]])
    np.testing.assert_allclose(
        solve(matrix, jnp.ones(3)), np.linalg.solve(matrix, np.ones(3)), rtol=1e-4, atol=1e-7
    )
    assert np.isfinite(np.asarray(solve(jnp.zeros((3, 3)), jnp.ones(3)))).all()
    assert np.isfinite(np.asarray(solve(jnp.ones((3, 3)), jnp.ones(3)))).all()
