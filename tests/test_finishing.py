"""The exact end on its own: brightness under an occlusion, choice of kernel, convergence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxreg.compute.small_systems import swept_inverse
from jaxreg.direct.finishing import finish
from jaxreg.direct.instruments import aliased, precision, slow_share
from jaxreg.direct.intensity import fit_intensity, gradient_magnitude
from jaxreg.direct.kernel_choice import bilinear_explains_more, trial
from jaxreg.direct.masking import Pair
from jaxreg.direct.normal_equations import guarded
from jaxreg.direct.optimum import _outlier
from jaxreg.geometry import RigidTransform
from jaxreg.warping import warp
from tests.compilation_support import quickly_compiled
from tests.registration_support import errors, texture
from tests.tolerances import (
    FLOAT32_INVERSE,
    REGISTERED_EXACTLY,
    REGISTERED_ROUNDED,
    SAME_COVARIANCE,
)

TRUTH = RigidTransform(1.7, -2.4, 33.0)
START = RigidTransform.from_array([1.8, -2.3, 33.5])
# One of each, so that a shape is compiled once.
solve = jax.jit(lambda fixed, moving, start: finish(Pair(fixed, moving), start))
explain = jax.jit(trial, static_argnames="linear")


@pytest.fixture(autouse=True)
def _quickly_compiled():
    with quickly_compiled():
        yield


def test_gain_and_bias_are_found_despite_an_occlusion():
    value = jnp.asarray(texture((24, 20, 2))).reshape(-1, 2)
    target = np.array(0.8 * value + jnp.array([10.0, -5.0])).reshape(24, 20, 2)
    target[4:8, 4:8] = 255
    flat, inside = jnp.asarray(target.reshape(-1, 2)), jnp.ones(480)
    rough = fit_intensity(value, flat, inside)
    fit = fit_intensity(value, flat, inside, rough.gain, rough.bias)
    assert float(fit.gain) == pytest.approx(0.8, abs=0.01)
    np.testing.assert_allclose(fit.bias, [10.0, -5.0], atol=1.0)
    assert np.asarray(fit.weight).reshape(24, 20)[4:8, 4:8].max() < 0.2


def test_what_hides_a_fifth_of_the_view_does_not_move_the_answer():
    """Neither through the brightness, fitted to what agrees alone, nor through the residuals."""
    fixed = jnp.asarray(texture((32, 32, 3)) / 60)
    moving = warp(fixed, TRUTH).at[3:17, 12:26].set(jnp.array([2.0, -1.0, 3.0]))
    end = solve(fixed, moving, START)
    shift, turn = errors(end.transform, TRUTH)
    assert shift < REGISTERED_ROUNDED[0]
    assert turn < REGISTERED_ROUNDED[1]


@pytest.mark.parametrize(("gain", "bias"), [(1.0, 0.0), (0.7, 20.0)])
def test_either_kernel_is_recognised_and_solved_exactly(gain, bias):
    """As is either direction: nothing tells `finish` how the pair was made."""
    fixed = jnp.asarray(texture((32, 32, 3)) / 60)
    for kernel in ("linear", "spline"):
        moving = gain * warp(fixed, TRUTH, kernel) + bias / 60
        for images, start, truth in [
            ((fixed, moving), START, TRUTH),
            ((moving, fixed), START.inverse(), TRUTH.inverse()),
        ]:
            end = solve(*images, start)
            shift, turn = errors(end.transform, truth)
            # `warp` has zeros beyond the frame, which a spline feels two pixels further in.
            limits = REGISTERED_EXACTLY if kernel == "linear" else REGISTERED_ROUNDED
            assert shift < limits[0]
            assert turn < limits[1]
            assert np.isfinite(np.asarray(end.covariance)).all()


def test_the_covariance_is_swapped_with_the_images():
    """It is carried over by the derivative of the inverse, here by finite differences."""
    rng = np.random.default_rng(0)
    fixed = texture((32, 32, 3)) / 60
    noise = 0.1 * rng.normal(size=(2, *fixed.shape)).astype(np.float32)
    fixed, moving = jnp.stack([fixed, warp(fixed, TRUTH)]) + noise
    there, back = solve(fixed, moving, START), solve(moving, fixed, START.inverse())
    answer = there.transform.as_array()
    inverse = lambda p: np.asarray(RigidTransform.from_array(p).inverse().as_array())  # noqa: E731
    jacobian = np.stack([inverse(answer + h) - inverse(answer - h) for h in np.eye(3) / 2], 1)
    expected = jacobian @ there.covariance @ jacobian.T
    spread = np.sqrt(np.diag(expected))
    difference = (back.covariance - expected) / np.outer(spread, spread)
    np.testing.assert_allclose(difference, 0.0, atol=SAME_COVARIANCE)


@pytest.mark.parametrize("shape", [(32, 32, 3), (96, 64, 1)])
def test_aliasing_is_no_sign_of_the_bilinear_kernel(shape):
    """Though that kernel leaves less of it than the spline, unlike where it made the pair."""
    rng = np.random.default_rng(0)

    def judge(least, pair, t):
        return bilinear_explains_more(least, explain(pair, t, linear=False))

    fine = jnp.asarray(texture((2 * shape[0], 2 * shape[1], shape[2]), sigma=0.9) / 60)
    coarse, half_a_pixel = (
        Pair(fine[::2, ::2], fine[1::2, 1::2], None),
        RigidTransform(-0.5, -0.5, 0.0),
    )
    left = explain(coarse, half_a_pixel, linear=False).mismatch
    assert not judge(0.5 * left, coarse, half_a_pixel)
    assert judge(0.01 * left, coarse, half_a_pixel)  # that is no aliasing after all
    images = fine[: shape[0], : shape[1]], warp(fine[: shape[0], : shape[1]], TRUTH)
    noisy = (image + 0.1 * rng.normal(size=shape).astype(np.float32) for image in images)
    pair = Pair(*noisy, None)
    bilinear = explain(pair, TRUTH, linear=True)
    assert judge(bilinear.mismatch, pair, TRUTH)
    assert not judge(2.0 * bilinear.mismatch, pair, TRUTH)


@pytest.mark.parametrize("shape", [(32, 32, 3), (96, 64, 1)])
def test_the_colour_of_a_residual_tells_aliasing_from_noise_and_from_what_hides_a_part(shape):
    noise = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    fine = noise - scipy.ndimage.gaussian_filter(noise, (1.0, 1.0, 0.0))
    hidden = 0.3 * fine
    hidden[: shape[0] // 2, : shape[1] // 2] += 2.0
    fine, white, slow = (slow_share(jnp.asarray(residual)) for residual in (fine, noise, hidden))
    assert aliased(fine) == 1.0
    assert aliased(white) < 0.5  # the share of one draw scatters
    assert aliased(slow) == 0.0
    assert _outlier(slow) < _outlier(white) + 1e-6 < _outlier(fine)


def test_where_no_optimum_is_near_the_start_is_the_answer_and_says_so():
    fixed = jnp.asarray(texture((32, 32, 3)) / 60)
    moving = warp(fixed, TRUTH)
    assert bool(solve(fixed, moving, START).settled)
    flat = 1e-6 * jnp.asarray(texture((32, 32, 3), seed=3))
    lost = RigidTransform.from_array([-6.0, 6.0, 200.0])
    ends = [solve(*pair, lost) for pair in [(fixed, moving), (fixed, flat)]]
    away = [np.abs(np.asarray(e.transform.as_array()) - [-6.0, 6.0, -160.0]) for e in ends]
    assert (np.stack(away) <= [3.0, 3.0, 12.0]).all()
    assert not ends[0].settled
    assert away[0].max() < 1e-4


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999), size=st.integers(1, 9))
def test_the_inverse_is_numpys(seed, size):
    rows = np.random.default_rng(seed).normal(size=(size, 40)).astype(np.float32)
    matrix = rows @ (rows + 0.1 * rows[::-1]).T / 40  # not symmetric, as instruments make it
    np.testing.assert_allclose(
        swept_inverse(jnp.asarray(matrix)) @ matrix, np.eye(size), atol=FLOAT32_INVERSE
    )


def test_a_secant_that_leaps_is_shortened_and_one_that_turns_back_is_not_followed():
    scale, plain = jnp.array([1.0, 2.0, 0.5]), jnp.array([0.1, -0.2, 0.3])
    np.testing.assert_allclose(guarded(1.5 * plain, plain, scale), 1.5 * plain)
    np.testing.assert_allclose(guarded(50.0 * plain, plain, scale), 3.0 * plain, rtol=1e-5)
    for astray in (-plain, 0.01 * plain, jnp.zeros(3)):
        np.testing.assert_allclose(guarded(astray, plain, scale), 0.5 * plain)


def test_second_derivatives_exist():
    fixed = jnp.asarray(texture((16, 16, 1)) / 60)
    bump, moving = jnp.asarray(texture((16, 16, 1), seed=5) / 60), warp(fixed, TRUTH)
    shift = lambda s: finish(Pair(fixed + s * bump, moving), START).transform.tx  # noqa: E731
    first = lambda s: jax.jvp(shift, (s,), (1.0,))  # noqa: E731
    (_, slope), (_, bend) = jax.jit(lambda s: jax.jvp(first, (s,), (1.0,)))(0.0)
    assert np.isfinite([slope, bend]).all()
    assert slope != 0.0
    jax.make_jaxpr(jax.grad(jax.grad(shift)))(0.0)


def test_a_batch_has_gradients():
    images = jnp.zeros((2, 16, 16, 1))
    turn = lambda f, m: finish(Pair(f, m), START).transform.theta  # noqa: E731
    batch = lambda f, m: jax.vmap(turn)(f, m).sum()  # noqa: E731
    assert jax.eval_shape(jax.grad(batch), images, images).shape == images.shape


@pytest.mark.parametrize("gain", [0.5, 2.0])
def test_the_fainter_image_is_no_better_source_than_the_brighter_one(gain):
    """With as much noise in both, either direction explains a pair as well, whatever its gain."""
    rng = np.random.default_rng(0)
    fixed = texture((32, 32, 3), sigma=3.0) / 60
    moving = gain * fixed + 0.1 * rng.normal(size=fixed.shape)
    fixed = fixed + 0.1 * rng.normal(size=fixed.shape)
    pair, still = Pair(jnp.float32(fixed), jnp.float32(moving), None), RigidTransform.identity()
    ways = [explain(way, still, linear=True) for way in (pair, pair.swapped())]
    assert float(ways[0].mismatch) == pytest.approx(float(ways[1].mismatch), rel=0.15)


def test_gradient_magnitude_is_that_of_the_least_steep_image():
    ramp = jnp.broadcast_to(3.0 * jnp.arange(12.0)[:, None, None], (12, 10, 2))
    np.testing.assert_allclose(gradient_magnitude(ramp, 2 * ramp), 3.0)
    np.testing.assert_allclose(gradient_magnitude(ramp, jnp.zeros_like(ramp)), 0.0)
    bands = gradient_magnitude(ramp.reshape(6, 2, 10, 2))
    np.testing.assert_allclose(bands, 3.0)


def test_under_aliasing_steep_pixels_say_less():
    steep = jnp.asarray(np.where(np.arange(400) < 300, 0.1, 2.0), jnp.float32)
    size, weight = 0.3 * steep, jnp.ones(400)
    np.testing.assert_allclose(precision(size, weight, steep, jnp.float32(0.0)), 1.0, rtol=1e-5)
    np.testing.assert_allclose(precision(0 * size, weight, steep, jnp.float32(1.0)), 1.0)
    trust = precision(size, weight, steep, jnp.float32(1.0))
    np.testing.assert_allclose(trust, 2 * size.mean() / (size.mean() + size), rtol=1e-4)
