"""Eqs. 2 to 5 of the paper, worked out by hand for two pairs."""

import math

import numpy as np
import pytest

from jaxreg.geometry import RigidTransform
from jaxreg.metrics import LAMBDA, chord, paper_loss, rotation_error, translation_error

# Pair 1: |1 - 3| + |-2 - (-2.5)| = 2.5 px and |30 - 10| = 20 degrees.
# Pair 2: |0 - (-1)| + |4 - 4| = 1 px and |170 - (-150)| = 320, the other way round 40 degrees.
ESTIMATE = RigidTransform(*np.float32([[1, 0], [-2, 4], [30, 170]]))
TRUTH = RigidTransform(*np.float32([[3, -1], [-2.5, 4], [10, -150]]))


def test_translation_is_the_sum_of_both_axes():
    np.testing.assert_allclose(translation_error(ESTIMATE, TRUTH), [2.5, 1.0], rtol=1e-6)


def test_rotation_is_the_shorter_way_round():
    np.testing.assert_allclose(rotation_error(ESTIMATE.theta, TRUTH.theta), [20.0, 40.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("estimate", "truth", "error"),
    [
        (0.0, 0.0, 0.0),
        (180.0, -180.0, 0.0),
        (179.0, -179.0, 2.0),
        (0.0, 180.0, 180.0),
        (-90.0, 90.5, 179.5),
        (370.0, 0.0, 10.0),  # an answer of several turns
        (-710.0, 20.0, 10.0),
    ],
)
def test_angles_wrap_around(estimate, truth, error):
    for a, b in ((estimate, truth), (truth, estimate)):
        np.testing.assert_allclose(rotation_error(a, b), error, atol=1e-4)


@pytest.mark.parametrize(
    ("weight", "loss"),
    [
        (17.0, 59.75),  # ((17 * 2.5 + 20) + (17 * 1 + 40)) / 2
        (3.0, 35.25),
        (0.0, 30.0),
    ],
)
def test_loss(weight, loss):
    np.testing.assert_allclose(paper_loss(ESTIMATE, TRUTH, weight), loss, rtol=1e-6)


def test_the_papers_weight_is_the_default():
    assert LAMBDA == 17.0
    np.testing.assert_allclose(paper_loss(ESTIMATE, TRUTH), 59.75, rtol=1e-6)


def test_chord_in_place_of_the_angle():
    # Twice the sine of half the angle, in degrees.
    chords = [math.degrees(2 * math.sin(math.radians(half))) for half in (10.0, 20.0)]
    np.testing.assert_allclose(chord(np.float32([20.0, 40.0])), chords, rtol=1e-5)
    expected = (3.0 * 2.5 + chords[0] + 3.0 * 1.0 + chords[1]) / 2
    np.testing.assert_allclose(paper_loss(ESTIMATE, TRUTH, 3.0, "chord"), expected, rtol=1e-5)
