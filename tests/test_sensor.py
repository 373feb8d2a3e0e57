"""What stays with the sensor, against SciPy's labelling and by hand."""

import jax
import numpy as np
import pytest
import scipy.ndimage

from jaxreg.sensor import scene_mask
from tests.registration_support import texture

SHAPE = (40, 33)
Y, X = np.mgrid[: SHAPE[0], : SHAPE[1]] - (np.array(SHAPE)[:, None, None] - 1) / 2
BORDERS = {
    "bars": np.abs(Y) > 14,
    "side bar": X < -12,
    "frame": (np.abs(Y) > 17) | (np.abs(X) > 14),
    "round": np.hypot(X, Y) > 15,
}


def frames(count=3, channels=(), noise=2.0):
    rng = np.random.default_rng(0)
    stack = np.stack([texture((*SHAPE, *channels), seed=seed) for seed in range(count)])
    return stack + rng.normal(0, noise, stack.shape)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("value", [0, 255, "noisy"])
def test_a_constant_border_is_left_out_with_its_rim(border, value):
    stack, there = frames(), BORDERS[border]
    noise = np.random.default_rng(1).normal(0, 1, stack.shape)
    stack = np.where(there, 10 + noise if value == "noisy" else value, stack)
    expected = ~scipy.ndimage.binary_dilation(there, np.ones((3, 3)))
    mask = np.asarray(scene_mask(stack))
    np.testing.assert_array_equal(mask[expected], True)
    assert (mask & ~expected).sum() <= (there.sum() // 20 if value == "noisy" else 0)


def test_the_scene_is_left_in():
    assert np.asarray(scene_mask(frames())).mean() > 0.99
    inner = np.hypot(X, Y) < 5  # constant, but no border
    assert np.asarray(scene_mask(np.where(inner, 0, frames())))[inner].all()
    stack = frames()
    stack[0] = np.where(BORDERS["round"], 0, stack[0])  # of one frame alone
    assert np.asarray(scene_mask(stack)).mean() > 0.99


@pytest.mark.parametrize("channels", [(), (3,)])
def test_hot_and_dead_pixels_are_left_out(channels):
    stack = frames(channels=channels)
    hot = np.random.default_rng(2).random(SHAPE) < 0.01
    hot[0, 0] = hot[-1, 7] = True
    hot &= ~scipy.ndimage.binary_dilation(hot, [[0, 0, 0], [0, 0, 1], [1, 1, 1]])  # one by one
    sign = np.where(np.arange(SHAPE[1]) % 2, -300, 300)
    lit = stack + (hot * sign).reshape(*SHAPE, *(1,) * len(channels))
    np.testing.assert_array_equal(scene_mask(lit), ~hot & np.asarray(scene_mask(stack)))
    moved = np.stack([np.roll(frame, 3 * k, 1) for k, frame in enumerate(lit)])
    assert np.asarray(scene_mask(moved)).mean() > 0.99


def test_part_of_a_program_and_of_any_dtype():
    stack = np.where(BORDERS["bars"], 0, np.clip(frames(noise=0.0), 1, 255)).astype(np.uint8)
    mask = scene_mask(stack)
    np.testing.assert_array_equal(jax.jit(scene_mask)(stack), mask)
    np.testing.assert_array_equal(scene_mask(list(stack * np.float64(1e6))), mask)
    np.testing.assert_array_equal(scene_mask(stack[..., None]), mask)
    for unfit in (stack[0], stack[:1]):
        with pytest.raises(ValueError, match="frames must be two or more"):
            scene_mask(unfit)
    with pytest.raises(ValueError, match="frames must hold real numbers"):
        scene_mask("movie.tif")


def test_the_tolerance_is_checked():
    stack = np.where(BORDERS["bars"], 0, frames())
    for unfit in (-0.01, np.nan, np.inf, [0.02, 0.02], None, "wide"):
        with pytest.raises(ValueError, match="tolerance must"):
            scene_mask(stack, unfit)
    traced = jax.jit(scene_mask)(stack, 0.02)  # a traced number has no value to check
    np.testing.assert_array_equal(traced, scene_mask(stack, np.float64(0.02)))


@pytest.mark.parametrize("channels", [(), (3,)])
@pytest.mark.parametrize("border", [None, "bars"])
def test_pixels_that_are_not_finite_are_left_out(border, channels):
    """As in frames that are warped onto each other and filled with NaN."""
    stack = frames(channels=channels)
    if border:
        stack[:, BORDERS[border]] = 0
    stack[:, 20, 15] += 300  # hot
    expected = np.array(scene_mask(stack))
    assert not expected[20, 15]
    stack[0, :, :3] = np.nan
    stack[1, 5, 7], stack[2, 30, 25] = np.inf, -np.inf
    unseen = ~np.isfinite(stack).reshape(*stack.shape[:3], -1).all((0, 3))
    expected &= ~unseen
    np.testing.assert_array_equal(scene_mask(stack), expected)
    assert not np.asarray(scene_mask(stack * np.nan)).any()
