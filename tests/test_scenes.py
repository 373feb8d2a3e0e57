"""Scene pairs against SciPy, and the tiles they come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from jaxreg.geometry import RigidTransform
from jaxreg.interpolation import spline_coefficients
from jaxreg.scenes import (
    draw_scene_pairs,
    draw_tiles,
    fixed_view,
    render_view,
    scene_pairs,
    tile_side,
)
from jaxreg.warping import overlap, warp
from tests.tolerances import FLOAT32_INTENSITY

# One of each, so that a size is compiled once.
render = jax.jit(render_view, static_argnums=2)
make_pairs = jax.jit(scene_pairs, static_argnums=2)
SIZE = 16
SHIFT = 2.5
SIDE = tile_side(SIZE, SHIFT)


def photograph(shape=(SIDE, SIDE, 3), sigma=1.0, seed=0):
    noise = np.random.default_rng(seed).uniform(0, 255, shape)
    smooth = scipy.ndimage.gaussian_filter(noise, (sigma, sigma, 0))
    return np.clip(128 + 3 * (smooth - 128), 0, 255).astype(np.uint8)


def scipy_view(tile, tx, ty, theta, size=SIZE):
    """The view point by point: 4 x 4 points a pixel, each through SciPy's cubic spline."""
    steps = (np.arange(4 * size) + 0.5) / 4 - 0.5
    x, y = np.meshgrid(steps, steps)
    middle = (size - 1) / 2
    x, y = x - middle - tx, y - middle - ty
    cos, sin = np.cos(np.deg2rad(theta)), np.sin(np.deg2rad(theta))
    scene_x, scene_y = cos * x + sin * y, -sin * x + cos * y
    at = [2 * scene_y + (tile.shape[0] - 1) / 2, 2 * scene_x + (tile.shape[1] - 1) / 2]
    channels = [
        scipy.ndimage.map_coordinates(tile[..., c].astype(float), at, order=3, mode="mirror")
        for c in range(tile.shape[2])
    ]
    return np.stack(channels, -1).reshape(size, 4, size, 4, -1).mean((1, 3))


@pytest.mark.parametrize("parameters", [(0, 0, 0), (2.5, -2.5, 45.0), (-1.3, 0.4, -170.0)])
def test_both_views_agree_with_scipy(parameters):
    tile = photograph()
    t = RigidTransform.from_array(np.float32([parameters]))
    pairs = make_pairs(tile[None], t, SIZE)
    np.testing.assert_allclose(pairs.fixed[0], scipy_view(tile, 0, 0, 0), atol=FLOAT32_INTENSITY)
    np.testing.assert_allclose(
        pairs.moving[0], scipy_view(tile, *parameters), atol=FLOAT32_INTENSITY
    )


@pytest.mark.parametrize("size", [15, 16])
def test_quarter_turns_and_whole_pixels_move_pixels_onto_pixels(size):
    coefficients = spline_coefficients(jnp.asarray(photograph(), jnp.float32))
    fixed = render(coefficients, RigidTransform.identity(), size)
    np.testing.assert_allclose(fixed_view(coefficients, size), fixed, atol=FLOAT32_INTENSITY)
    turned = render(coefficients, RigidTransform.from_array([0.0, 0.0, 90.0]), size)
    np.testing.assert_allclose(turned, np.rot90(fixed, -1), atol=FLOAT32_INTENSITY)
    # Content moves by T: two right and one up; new scene enters at the left and below.
    shifted = render(coefficients, RigidTransform.from_array([2.0, -1.0, 0.0]), size)
    np.testing.assert_allclose(shifted[:-1, 2:], fixed[1:, :-2], atol=FLOAT32_INTENSITY)
    assert float(shifted[:, :2].min()) > 0


def test_a_pair_obeys_its_transform():
    """On a smooth scene, the moving view is the fixed one warped by T where both see it."""
    t = RigidTransform.from_array(np.float32([[1.7, -0.6, 33.0], [-2.4, 2.1, -120.0]]))
    pairs = make_pairs(np.stack([photograph(sigma=8.0)] * 2), t, SIZE)
    warped = warp(pairs.fixed, t)
    shared = np.asarray(jax.vmap(lambda t: overlap((SIZE, SIZE), t))(t))
    difference = np.abs(np.asarray(warped - pairs.moving))[shared]
    contrast = np.asarray(pairs.moving)[shared].std()
    assert difference.mean() < 0.02 * contrast


def test_a_tile_holds_every_view():
    """What lies beyond the tile's spline support must not matter: change it and compare."""
    tile = photograph()
    wide = np.pad(tile, ((40, 40), (40, 40), (0, 0)), mode="edge")
    corners = RigidTransform(*np.float32([[-2.5, 2.5, 2.5], [2.5, 2.5, -2.5], [45, -45, 135]]))
    # Coefficients made once, from the wide photograph, then cut: only the reads can differ.
    coefficients = spline_coefficients(jnp.asarray(wide, jnp.float32))
    views = jax.jit(jax.vmap(render_view, in_axes=(None, 0, None)), static_argnums=2)
    cut = views(coefficients[40:-40, 40:-40], corners, SIZE)
    np.testing.assert_allclose(cut, views(coefficients, corners, SIZE), atol=FLOAT32_INTENSITY)


def test_drawn_pairs_repeat_with_their_key_and_work_under_jit():
    tiles = np.stack([photograph(seed=s) for s in range(3)])
    draw = jax.jit(lambda key: draw_scene_pairs(key, tiles, 5, SIZE, SHIFT))
    a, b = draw(jax.random.key(1)), draw(jax.random.key(1))
    assert a.fixed.shape == a.moving.shape == (5, SIZE, SIZE, 3)
    np.testing.assert_array_equal(a.moving, b.moving)
    assert float(jnp.abs(a.transform.tx).max()) <= SHIFT
    with pytest.raises(ValueError, match="views of size 16 shifted by up to 9"):
        draw_scene_pairs(jax.random.key(1), tiles, 5, SIZE, 9.0)
    with pytest.raises(ValueError, match="need at least"):
        render_view(jnp.zeros((20, 20, 3)), RigidTransform.identity(), SIZE)


def test_tiles_have_texture_and_repeat_with_their_seed():
    half_flat = photograph((120, 300, 3), sigma=0.7)
    half_flat[:, 100:] = 77
    photographs = {"half": half_flat, "small": photograph((20, 20, 3))}
    tiles = draw_tiles(photographs, 20, SIZE, SHIFT, seed=3)
    assert tiles.shape == (20, SIDE, SIDE, 3)
    assert tiles.dtype == np.uint8
    grey = [scipy_view(tile, 0, 0, 0).mean(-1).std() for tile in tiles]
    assert min(grey) > 10  # the rule's 12, measured a little differently here
    np.testing.assert_array_equal(tiles[:7], draw_tiles(photographs, 7, SIZE, SHIFT, seed=3))
    assert not np.array_equal(tiles[:7], draw_tiles(photographs, 7, SIZE, SHIFT, seed=4))


def test_useless_photographs_are_refused():
    with pytest.raises(ValueError, match=r"at least 66x66.*small 30x20"):
        draw_tiles({"small": photograph((20, 30, 3))}, 1, SIZE, SHIFT, 0)
    with pytest.raises(ValueError, match="no texture"):
        draw_tiles({"flat": np.full((90, 90, 3), 9, np.uint8)}, 1, SIZE, SHIFT, 0)
