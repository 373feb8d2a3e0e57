"""The levels of the pyramid share their centre, and their pixels are as large as they say."""

import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.ndimage

from jaxreg.compute.products import apply_separable
from jaxreg.direct.pyramid import blurring_matrix, downsample, level_factors
from tests.registration_support import texture
from tests.tolerances import FLOAT32_INTENSITY


@hypothesis.given(st.integers(8, 512), st.integers(8, 512), st.integers(8, 32))
@hypothesis.settings(deadline=None, derandomize=True)
def test_levels_end_at_full_size_in_bounded_steps(height, width, coarsest):
    factors = level_factors((height, width, 3), coarsest, 2.5)
    assert factors[-1] == 1.0
    assert factors[0] == pytest.approx(max(min(height, width) / coarsest, 1.0))
    for coarse, fine in itertools.pairwise(factors):
        assert 1.0 < coarse / fine <= 2.5 + 1e-4


@pytest.mark.parametrize("shape", [(32, 32, 1), (33, 48, 1), (37, 41, 1)])
@pytest.mark.parametrize("factor", [1.0, 2.0, 2.37])
def test_a_ramp_about_the_centre_stays_one(shape, factor):
    """``(x - cx)`` of the image is ``factor (x - cx)`` of the level: no shift, no scale."""
    y, x = (np.mgrid[: shape[0], : shape[1]].T - (np.array(shape[1::-1])[::-1] - 1) / 2).T
    level = np.asarray(downsample((3 * x - 2 * y).astype(np.float32), factor))
    v, u = (np.mgrid[: level.shape[0], : level.shape[1]].T - (np.array(level.shape) - 1) / 2).T
    expected = factor * (3 * u - 2 * v)
    inner = slice(2, -2)  # at the rim the blur is one-sided
    np.testing.assert_allclose(
        level[inner, inner], expected[inner, inner], atol=0.01 * factor + FLOAT32_INTENSITY
    )


def test_a_constant_stays_one_to_the_rim():
    np.testing.assert_allclose(
        downsample(np.full((20, 31), 200.0, np.float32), 1.7), 200.0, atol=FLOAT32_INTENSITY
    )


def test_blur_agrees_with_scipy_inside():
    image = texture((32, 32, 1), sigma=0)
    rows = blurring_matrix(32, 1.3)
    expected = scipy.ndimage.gaussian_filter(image[..., 0], 1.3, truncate=8)
    blurred = np.asarray(apply_separable(rows, image, rows))[..., 0]
    np.testing.assert_allclose(blurred[9:-9, 9:-9], expected[9:-9, 9:-9], atol=FLOAT32_INTENSITY)
