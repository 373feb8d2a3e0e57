"""Gauss-Newton from many starts on its own, and its small linear algebra."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.compute.small_systems import solve
from jaxreg.direct import ranking, refinement
from jaxreg.direct.masking import Pair
from jaxreg.direct.refinement import clip_step
from jaxreg.direct.robust import robust_weight, scale_of
from jaxreg.geometry import RigidTransform
from jaxreg.warping import warp
from tests.registration_support import errors, texture

# Each compiled as one: they are dozens of operations.
gauss_newton = jax.jit(refinement.gauss_newton, static_argnames="iterations")
local_evidence = jax.jit(ranking.local_evidence, static_argnames="sigma")


def test_gauss_newton_closes_in_from_every_side():
    image = jnp.asarray(texture((32, 32), sigma=1.5) / 50)
    truth = RigidTransform(1.7, -2.4, 33.0)
    pair = Pair(image, 0.7 * warp(image, truth) + 0.3)
    starts = np.float32([[2.4, -1.9, 36.0], [1.2, -3.0, 30.0], [1.7, -2.4, 33.0]])
    start = RigidTransform.from_array(starts)
    end = gauss_newton(pair, start, 12)
    shift, turn = errors(end, RigidTransform.from_array(np.tile(truth.as_array(), (3, 1))))
    # Its gradient is the target's, black corners and all: near is all that is asked of it.
    assert shift.max() < 0.02
    assert turn.max() < 0.05
    far = RigidTransform.from_array(np.float32([[-4.0, 4.0, 200.0]]))
    lost = local_evidence(pair, gauss_newton(pair, far, 5), 3.0).score
    assert lost[0] < 0.5 * local_evidence(pair, end, 3.0).score.min()


def test_near_starts_are_not_moved_by_what_hides_a_part():
    image = jnp.asarray(texture((32, 32), sigma=1.5) / 50)
    truth = RigidTransform(1.7, -2.4, 33.0)
    hidden = warp(image, truth).at[8:20, 10:22].set(4.0)
    start = RigidTransform.from_array(np.float32([[2.0, -2.1, 34.0]] * 2))
    end = gauss_newton(Pair(image, hidden), start, 2, near=np.array([True, False]))
    shift, _ = errors(end, RigidTransform.from_array(np.tile(truth.as_array(), (2, 1))))
    assert shift[0] < 0.1 < shift[1]


def test_flat_images_have_finite_answers():
    flat = jnp.ones((16, 16))
    start = RigidTransform.identity((2,))
    for pair in [(flat, flat), (flat, jnp.asarray(texture((16, 16))))]:
        end = gauss_newton(Pair(*pair), start, 3)
        assert np.isfinite(np.asarray(end.as_array())).all()
        assert np.abs(local_evidence(Pair(*pair), end, 1.5).score).max() < 0.1


def test_outliers_lose_their_weight():
    residual = np.random.default_rng(0).normal(size=(2, 400)).astype(np.float32)
    residual[0, :40] = 20.0
    scale = scale_of(jnp.abs(residual))(jnp.ones((2, 400)))
    weight = np.asarray(robust_weight(jnp.square(residual), scale))
    assert weight[0, :40].max() < 0.2
    assert weight[:, 40:].mean() > 0.98


def test_outliers_are_told_by_how_steep_the_images_are():
    """What grows with it is none; what lies where both are flat is, as without."""
    rng = np.random.default_rng(0)
    steep = jnp.asarray(np.where(np.arange(400) < 20, 2.0, 0.01), jnp.float32)
    residual = 0.1 * np.asarray(steep) * rng.normal(size=400)

    def weight(residual, steep=None, **limit):
        residual = jnp.abs(jnp.float32(residual))
        return robust_weight(
            jnp.square(residual), scale_of(residual, steep)(jnp.ones(400)), **limit
        )

    assert weight(residual, steep)[:20].mean() > 0.95
    assert weight(residual)[:20].mean() < 0.2
    residual[100:140] = 3.0
    np.testing.assert_allclose(weight(residual, steep), weight(residual), rtol=1e-5)
    assert weight(residual, steep, outlier=1.0)[100:140].max() < 0.1


def test_steps_are_shortened_not_turned():
    np.testing.assert_allclose(clip_step(jnp.array([4.0, 2.0, 3.0])), [1.0, 0.5, 0.75])
    steps = clip_step(jnp.array([[0.5, 0.1, -12.0], [0.5, 0.1, 1.0]]))
    np.testing.assert_allclose(steps, [[0.25, 0.05, -6.0], [0.5, 0.1, 1.0]])


def test_solve_survives_a_singular_matrix():
    matrix = jnp.array([[4.0, 2.0, 0.0], [2.0, 300.0, 1.0], [0.0, 1.0, 5e4]])
    np.testing.assert_allclose(
        solve(matrix, jnp.ones(3)), np.linalg.solve(matrix, np.ones(3)), rtol=1e-4, atol=1e-7
    )
    turned = jnp.array([[2.0, 1.0, 0.3], [-0.5, 1.5, 0.2], [0.1, -0.4, 1.0]])
    np.testing.assert_allclose(
        solve(turned, jnp.arange(3.0)), np.linalg.solve(turned, np.arange(3.0)), rtol=1e-4
    )
    for singular in (jnp.zeros((3, 3)), jnp.ones((3, 3))):
        assert np.isfinite(np.asarray(solve(singular, jnp.ones(3)))).all()
