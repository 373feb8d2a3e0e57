"""Disturbances against SciPy and their own definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from jaxreg.disturbances import UNDISTURBED, Disturbance, disturb
from jaxreg.geometry import RigidTransform
from jaxreg.pairs import Pairs
from tests.tolerances import FLOAT32_INTENSITY

KEY = jax.random.key(7)
run = jax.jit(disturb, static_argnums=(2, 3))


def pairs(count=16, size=32):
    images = np.random.default_rng(0).uniform(0, 255, (2, count, size, size, 3))
    fixed, moving = images.astype(np.float32)
    return Pairs(jnp.asarray(fixed), jnp.asarray(moving), RigidTransform.identity((count,)))


def test_nothing_changes_nothing():
    p = pairs()
    q = run(KEY, p, UNDISTURBED, True)
    np.testing.assert_array_equal(q.fixed, p.fixed)
    np.testing.assert_array_equal(q.moving, p.moving)


def test_noise_is_gaussian_independent_and_in_both():
    p = pairs()
    q = run(KEY, p, Disturbance(noise=10.0), False)
    a, b = np.asarray(q.fixed - p.fixed).ravel(), np.asarray(q.moving - p.moving).ravel()
    # 49,152 draws: the standard error of a standard deviation is 0.3%, of a mean 0.045.
    for noise in (a, b):
        np.testing.assert_allclose([noise.mean(), noise.std()], [0, 10], atol=0.2)
        assert abs(np.mean(np.abs(noise) < 10) - 0.6827) < 0.01
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.02
    assert float(q.fixed.min()) < 0  # not clipped


def test_gain_and_bias_are_one_line_for_each_pair():
    p = pairs(200, 8)
    q = run(KEY, p, Disturbance(gain=0.3, bias=20.0), False)
    np.testing.assert_array_equal(q.fixed, p.fixed)
    lines = []
    for before, after in zip(np.asarray(p.moving), np.asarray(q.moving), strict=True):
        lines.append(np.polyfit(before.ravel(), after.ravel(), 1))
        np.testing.assert_allclose(
            np.polyval(lines[-1], before), after, atol=10 * FLOAT32_INTENSITY
        )
    gain, bias = np.transpose(lines)
    assert 0.7 < gain.min() < 0.72
    assert 1.28 < gain.max() < 1.3
    assert -20 < bias.min() < -19
    assert 19 < bias.max() < 20
    assert abs(np.corrcoef(gain, bias)[0, 1]) < 0.2


def test_blur_agrees_with_scipy():
    p = pairs(2)
    q = run(KEY, p, Disturbance(blur=0.7), False)
    expected = scipy.ndimage.gaussian_filter(np.asarray(p.moving), (0, 0.7, 0.7, 0))
    np.testing.assert_allclose(q.moving, expected, atol=0.2)  # the tail is cut at 4.3, not 4 sigma
    np.testing.assert_array_equal(q.fixed, p.fixed)


def test_occlusion_is_a_square_of_one_colour():
    p = pairs(100)
    q = run(KEY, p, Disturbance(occlusion=0.2), False)
    changed = np.any(np.asarray(q.moving != p.moving), -1)
    corners = set()
    for mask, image in zip(changed, np.asarray(q.moving), strict=True):
        y, x = np.nonzero(mask)
        assert np.ptp(y) + 1 == np.ptp(x) + 1 == 14  # 14^2 / 32^2 = 0.19
        assert mask.sum() == 14 * 14
        assert (image[mask] == image[mask][0]).all()
        corners.add((y.min(), x.min()))
    assert len(corners) > 50
    assert {0, 18} <= {y for y, _ in corners}  # reaches both borders
    np.testing.assert_array_equal(q.fixed, p.fixed)


def test_occlusion_can_hide_all():
    q = run(KEY, pairs(3), Disturbance(occlusion=1.0), False)
    assert float(jnp.ptp(q.moving, axis=(1, 2)).max()) == 0


def test_random_strength_differs_between_pairs():
    p = pairs(300, 8)
    q = run(KEY, p, Disturbance(noise=10.0), True)
    sigma = np.asarray(q.moving - p.moving).reshape(300, -1).std(1)
    assert sigma.min() < 0.5
    assert 9 < sigma.max() < 11.5
    np.testing.assert_allclose(sigma.mean(), 5, atol=0.6)
    area = np.mean(np.any(np.asarray(run(KEY, p, Disturbance(occlusion=0.5), True).moving)
                          != np.asarray(p.moving), axis=-1), axis=(1, 2))  # fmt: skip
    assert area.min() < 0.03
    assert 0.4 < area.max() <= 0.6


def test_keys_repeat():
    everything = Disturbance(noise=2.0, gain=0.1, bias=5.0, blur=0.7, occlusion=0.1)
    a, b = run(KEY, pairs(), everything, True), run(KEY, pairs(), everything, True)
    np.testing.assert_array_equal(a.moving, b.moving)
    assert np.isfinite(a.moving).all()


def test_wrong_strengths_are_named():
    with pytest.raises(ValueError, match=r"noise must be zero or more, got -1\.0"):
        Disturbance(noise=-1.0)
    with pytest.raises(ValueError, match="occlusion must be a part"):
        Disturbance(occlusion=20.0)
