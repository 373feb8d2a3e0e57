"""Borders that stay with the sensor: found where there are, and not to be registered."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from jaxreg.direct.border import connected_to_edges, without_still_border
from jaxreg.registration import register_batch
from jaxreg.warping import warp
from tests.registration_support import COUNT, SIZE, are_gross, errors, repeated, texture
from tests.tolerances import CALIBRATED

Y, X = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
BORDERS = {
    "bars": np.abs(Y) > 11,
    "status line": Y > 12,
    "frame": np.maximum(np.abs(X), np.abs(Y)) > 13,
    "round field": np.hypot(X, Y) > 14.5,
}


def mean_deviation(pair):
    centred = pair - pair.mean((1, 2, 3), keepdims=True)
    return jnp.asarray(np.abs(centred).mean((1, 2, 3)))


def found(fixed, moving):
    """The images that are searched, and where a border was found."""
    pair = np.stack([fixed, moving]).astype(np.float32).reshape(2, *fixed.shape[:2], -1)
    images, border = without_still_border(jnp.asarray(pair), mean_deviation(pair))
    np.testing.assert_array_equal(border.there, np.asarray(border.seen).min() == 0.0)
    return np.asarray(images), np.asarray(border.seen) == 0.0


def views(count, shift, turn, seed=0):
    """Views of smooth noise: fixed and moving ``(count, SIZE, SIZE)``, and the transforms."""
    rng = np.random.default_rng(seed)
    truth = np.float32(rng.uniform(-1, 1, (count, 3)) * [shift, shift, turn])
    t = repeated(0, 0, 0, count).from_array(truth)
    wide = np.stack([texture((2 * SIZE, 2 * SIZE), seed=seed + k) for k in range(count)])
    moved = np.asarray(warp(wide[..., None], t, "spline"))[..., 0]
    inner = slice(SIZE // 2, -SIZE // 2)
    noise = rng.normal(0, 2, (2, count, SIZE, SIZE))
    return *(np.clip(np.stack([wide, moved])[..., inner, inner] + noise, 30, 225)), t


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("border", BORDERS)
def test_a_border_is_found_with_its_rim_and_painted_over(border, value):
    there = BORDERS[border]
    (fixed,), (moving,), _ = views(1, 2.0, 3.0)
    images, out = found(np.where(there, value, fixed), np.where(there, value, moving))
    np.testing.assert_array_equal(out, scipy.ndimage.binary_dilation(there, np.ones((3, 3))))
    np.testing.assert_array_equal(images[0, ..., 0][~out], np.float32(fixed)[~out])
    assert images[..., 0][:, out].min() >= 30
    assert images[..., 0][:, out].max() <= 225


def test_what_moves_with_the_scene_is_no_border():
    (fixed,), (moving,), _ = views(1, 2.0, 3.0)
    there = BORDERS["round field"]
    disc = np.where(there, 255, fixed)
    for other in (
        np.where(np.roll(there, 1, 0), 255, moving),  # a textured disc on white paper
        np.where(there, 200, moving),
        moving,
    ):
        assert not found(disc, other)[1].any()
    silhouette = np.where(there, 255.0, 40.0)
    nearly = np.where(scipy.ndimage.binary_erosion(there), 255.0, silhouette + 1.0)
    assert not found(silhouette, nearly)[1].any()
    assert not found(disc, disc)[1].any()  # of two images that are the same
    assert not found(fixed, moving)[1].any()


def test_connected_to_edges():
    alike = np.ones((5, 6), bool)
    alike[1:4, 1:5] = False
    alike[2, 2:4] = True  # inside: no border
    expected = alike.copy()
    expected[2, 2:4] = False
    np.testing.assert_array_equal(connected_to_edges(jnp.asarray(alike)), expected)
    np.testing.assert_array_equal(connected_to_edges(jnp.asarray([alike, ~alike]))[0], expected)


@pytest.mark.parametrize(("shift", "turn"), [(0.2, 0.2), (1.5, 2.0), (4.0, 20.0)])
def test_the_scene_is_registered_and_not_the_border(shift, turn):
    fixed, moving, truth = views(COUNT, shift, turn)
    borders = np.stack(list(BORDERS.values()))[np.arange(COUNT) % len(BORDERS)]
    value = np.where(np.arange(COUNT) % 8 < 4, 0, 255)[:, None, None]
    stacks = (np.repeat(np.where(borders, value, v)[..., None], 3, -1) for v in (fixed, moving))
    result = register_batch(*(np.float32(v) for v in stacks))
    trusted = np.asarray(result.success)
    assert trusted.mean() > 0.9
    assert not (trusted & are_gross(result.transform, truth)).any()
    assert np.median(errors(result.transform, truth)[0]) < 0.02  # px; by the border .1 and more
    difference = np.asarray(result.transform.as_array()) - np.asarray(truth.as_array())
    ratio = np.square(difference) / np.asarray(result.covariance).diagonal(axis1=1, axis2=2)
    assert np.median(ratio[trusted]) < 0.455 * CALIBRATED[1]  # of chi-square with one of freedom


def test_gradients_pass_beside_a_border():
    (fixed,), (moving,), _ = views(1, 2.0, 3.0)
    there = BORDERS["bars"]
    pair = np.stack([np.where(there, 0, fixed), np.where(there, 0, moving)])[..., None]
    pair = jnp.asarray(pair, jnp.float32)
    deviation = mean_deviation(pair)
    total = lambda pair: without_still_border(pair, deviation)[0].sum()  # noqa: E731
    slope = np.asarray(jax.grad(total)(pair))[..., 0]
    out = scipy.ndimage.binary_dilation(there, np.ones((3, 3)))
    np.testing.assert_array_equal(slope, np.broadcast_to(~out, slope.shape).astype(np.float32))
