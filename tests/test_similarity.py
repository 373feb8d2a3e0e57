"""The normalised cross-correlation over a mask, against NumPy."""

import jax
import numpy as np
import pytest

from jaxreg.geometry import RigidTransform
from jaxreg.similarity import judge, masked_ncc
from jaxreg.warping import warp
from tests.tolerances import FLOAT32_CORRELATION


def images(seed=0):
    return np.random.default_rng(seed).uniform(0, 1, (2, 16, 16, 3)).astype(np.float32)


def test_is_numpys_correlation_of_what_the_mask_shows():
    a, b = images()
    mask = np.zeros((16, 16), bool)
    mask[3:12, 5:] = True
    left, right = (x[mask] - x[mask].mean(0) for x in (a, b))
    expected = (left * right).sum() / np.sqrt((left**2).sum() * (right**2).sum())
    np.testing.assert_allclose(masked_ncc(a, b, mask), expected, atol=FLOAT32_CORRELATION)


@pytest.mark.parametrize("unit", [1e-4, 1.0, 65535.0])
def test_does_not_depend_on_the_unit(unit):
    a, b = images()
    mask = np.ones((16, 16), bool)
    same = masked_ncc(a * np.float32(unit), b * np.float32(unit), mask)
    np.testing.assert_allclose(same, masked_ncc(a, b, mask), atol=FLOAT32_CORRELATION)


def test_stays_within_its_range():
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (200, 9, 7, 3)).astype(np.float32)
    same = jax.vmap(masked_ncc, (0, 0, None))(images, images, np.ones((9, 7), np.float32))
    assert (same <= 1.0).all()
    np.testing.assert_allclose(same, 1.0, atol=FLOAT32_CORRELATION)


@pytest.mark.parametrize("level", [0.0, 0.1, 255.0])
def test_a_flat_image_correlates_with_nothing(level):
    a, _ = images()
    assert masked_ncc(a, np.full_like(a, level), np.ones((16, 16), bool)) == 0


def test_judge_trusts_the_truth_and_not_its_opposite():
    fixed = images()[:1] * 255
    truth = RigidTransform(np.float32([2.5]), np.float32([-1.0]), np.float32([40.0]))
    moving = warp(fixed[0], RigidTransform(2.5, -1.0, 40.0))[None]
    right, wrong = judge(fixed, moving, truth), judge(fixed, moving, truth.inverse())
    assert bool(right.success[0])
    assert right.score[0] > 0.999
    assert not bool(wrong.success[0])
