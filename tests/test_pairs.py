"""Pairs drawn for training: how transforms and images are distributed, and what a pair is."""

import cv2
import jax
import numpy as np
import pytest
import scipy.ndimage

from jaxreg.pairs import draw_pairs, draw_transforms
from tests.tolerances import OPENCV_WARP

draw = jax.jit(draw_pairs, static_argnums=2)  # one compilation, not one of every operation
COUNT = 10_000
REACH = np.array([5.0, 5.0, 180.0])
# Of a mean of so many draws in units of their deviation, and of a correlation, it is .01.
FIVE_STANDARD_ERRORS = 0.05


@pytest.fixture(scope="module")
def drawn():
    return np.asarray(draw_transforms(jax.random.key(3), COUNT, 5.0).as_array())


def test_transforms_fill_their_range_evenly(drawn):
    assert drawn.shape == (COUNT, 3)
    place = drawn / REACH
    assert (place >= -1).all()
    assert (place <= 1).all()
    assert (place[:, 2] < 1).all()
    assert (place.min(0) < -0.995).all()
    assert (place.max(0) > 0.995).all()
    deviation = 1 / np.sqrt(3)
    np.testing.assert_allclose(place.mean(0) / deviation, 0, atol=FIVE_STANDARD_ERRORS)
    np.testing.assert_allclose(place.std(0), deviation, rtol=FIVE_STANDARD_ERRORS)
    # A hundred bins of about 100 draws each; chi-square of 99 degrees of freedom.
    for column in place.T:
        counts = np.histogram(column, 100, (-1, 1))[0]
        assert ((counts - 100) ** 2 / 100).sum() < 99 + 5 * np.sqrt(2 * 99)


def test_the_three_parameters_have_nothing_to_do_with_each_other(drawn):
    np.testing.assert_allclose(np.corrcoef(drawn.T), np.eye(3), atol=FIVE_STANDARD_ERRORS)
    magnitudes = np.corrcoef(np.abs(drawn.T))
    np.testing.assert_allclose(magnitudes, np.eye(3), atol=FIVE_STANDARD_ERRORS)


def test_the_range_is_the_one_asked_for():
    small, large = (draw_transforms(jax.random.key(0), 50, reach) for reach in (2.0, 4.0))
    np.testing.assert_allclose(large.tx, 2 * small.tx, rtol=1e-5)
    np.testing.assert_allclose(large.ty, 2 * small.ty, rtol=1e-5)
    np.testing.assert_array_equal(large.theta, small.theta)


def test_which_image_says_nothing_of_the_transform():
    """Images of one pixel that tell their own number."""
    count = 50
    numbered = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (50, 1, 1, 3))
    pairs = draw(jax.random.key(4), numbered, COUNT, 5.0)
    index = np.asarray(pairs.fixed)[:, 0, 0, 0]
    counts = np.bincount(index.astype(int), minlength=count)
    assert ((counts - 200) ** 2 / 200).sum() < 49 + 5 * np.sqrt(2 * 49)
    values = np.asarray(pairs.transform.as_array())
    for parameters in (values, np.abs(values)):
        correlation = np.corrcoef(index, parameters.T)[0, 1:]
        np.testing.assert_allclose(correlation, 0, atol=FIVE_STANDARD_ERRORS)


def test_the_moving_image_is_the_fixed_one_warped_by_the_transform():
    noise = np.random.default_rng(0).uniform(0, 255, (5, 24, 24, 3))
    images = scipy.ndimage.gaussian_filter(noise, (0, 1, 1, 0)).astype(np.uint8)
    pairs = draw(jax.random.key(0), images, 12, 4.0)
    sources = {image.astype(np.float32).tobytes() for image in images}
    matrices = np.asarray(pairs.transform.matrix((24, 24)))
    for k in range(12):
        fixed, moving = (np.asarray(stack[k]) for stack in (pairs.fixed, pairs.moving))
        assert fixed.tobytes() in sources
        expected = cv2.warpAffine(fixed, matrices[k, :2], (24, 24), flags=cv2.INTER_LINEAR)
        np.testing.assert_allclose(moving, expected, atol=OPENCV_WARP)
    assert len(np.unique(matrices, axis=0)) == 12
