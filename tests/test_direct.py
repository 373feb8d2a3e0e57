"""The direct method: known answers, accuracy, invariance, settings."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.data import photographs
from jaxreg.direct.align import align
from jaxreg.direct.coarse_to_fine import coarse_side
from jaxreg.direct.settings import DirectOptions, share_of_side
from jaxreg.geometry import RigidTransform
from jaxreg.pairs import draw_transforms
from jaxreg.registration import register_batch
from jaxreg.result import Doubt
from jaxreg.scenes import draw_scene_pairs, draw_tiles, scene_pairs, tile_side
from jaxreg.warping import warp
from tests.compilation_support import quickly_compiled
from tests.registration_support import (
    COUNT,
    FAR_AND_UPRIGHT,
    SIZE,
    are_gross,
    errors,
    photo_pairs,
    register_many,
    repeated,
    texture,
)
from tests.tolerances import (
    REGISTERED,
    REGISTERED_EXACTLY,
    REGISTERED_ROUNDED,
    REGISTERED_UNIT,
)

pytestmark = pytest.mark.usefixtures("batch_program")

Y, X = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2


@pytest.fixture(scope="module")
def answers():
    """Of the default settings on the protocol's pairs."""
    pairs = photo_pairs()
    return register_batch(pairs.fixed, pairs.moving)


def views_of_photographs():
    tiles = draw_tiles(photographs("test"), COUNT, SIZE, 5.0, seed=0)
    draw = jax.jit(lambda key, tiles: draw_scene_pairs(key, tiles, COUNT, SIZE, 5.0))
    return draw(jax.random.key(0), tiles)


def assert_mean_errors(result, truth, tolerance):
    shift, turn = errors(result.transform, truth)
    assert not are_gross(result.transform, truth).any()
    assert shift.mean() <= tolerance[0]
    assert turn.mean() <= tolerance[1]


# Known answers.


@pytest.mark.parametrize(("gain", "bias"), [(1.0, 0.0), (0.7, 20.0), (1.3, -20.0), (1.0, 20.0)])
def test_identical_images_give_zero(gain, bias):
    fixed = photo_pairs().fixed
    result = register_batch(fixed, gain * fixed + bias)
    shift, turn = errors(result.transform, RigidTransform.identity((COUNT,)))
    limit = 0.0 if (gain, bias) == (1.0, 0.0) else 1e-4
    assert max(shift.max(), turn.max()) <= limit
    assert np.asarray(result.success).all()
    np.testing.assert_allclose(result.score, 1.0, atol=1e-4)


def test_identical_views_of_scenes_give_zero():
    """Smooth ones, too, whose optimum is flat."""
    pairs = views_of_photographs()
    for images in (pairs.fixed, pairs.moving):
        np.testing.assert_array_equal(register_batch(images, images).transform.as_array(), 0.0)


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_quarter_turns(quarter):
    fixed = np.asarray(photo_pairs().fixed)
    result = register_batch(fixed, np.rot90(fixed, -quarter, axes=(1, 2)))
    shift, turn = errors(result.transform, repeated(0.0, 0.0, 90.0 * quarter))
    assert max(shift.max(), turn.max()) < 1e-4
    assert np.asarray(result.success).all()


def test_whole_pixel_shifts_find_new_scene():
    """Both images are windows of a larger one: nothing is black, nothing interpolated."""
    large = [texture((48, 48, 3), seed=s) for s in range(8)]
    shifts = [(3, -2), (-5, 5), (0, 4), (7, 0), (-1, -6), (2, 2), (0, 0), (-8, 3)]
    window = slice(8, 40)
    pairs = [
        (image[window, window], np.roll(image, (dy, dx), (0, 1))[window, window])
        for image, (dx, dy) in zip(large, shifts, strict=True)
    ]
    for (dx, dy), result in zip(shifts, register_many(pairs), strict=True):
        shift, turn = errors(result.transform, RigidTransform(dx, dy, 0.0))
        assert max(shift, turn) < REGISTERED_UNIT
        assert result.success


# Accuracy.


def test_protocol_pairs_with_the_kernel_known_are_exact():
    pairs = photo_pairs()
    result = register_batch(pairs.fixed, pairs.moving, interpolation="linear")
    assert_mean_errors(result, pairs.transform, REGISTERED_EXACTLY)
    # Nor does it claim what float32 coordinates do not hold.
    shift = np.asarray(result.transform.as_array() - pairs.transform.as_array())[:, :2]
    ratio = np.abs(shift / result.standard_errors[:, :2])
    assert np.quantile(ratio, 0.95) < 4.0


def test_protocol_pairs_by_default(answers):
    assert_mean_errors(answers, photo_pairs().transform, REGISTERED)
    assert np.asarray(answers.success).mean() >= 0.98


@pytest.mark.parametrize("rounded", [False, True])
def test_pairs_rendered_by_opencv(rounded):
    pairs = photo_pairs()
    moving = [
        cv2.warpAffine(image, matrix[:2], (SIZE, SIZE))
        for image, matrix in zip(
            np.asarray(pairs.fixed),
            np.asarray(pairs.transform.matrix((SIZE, SIZE))),
            strict=True,
        )
    ]
    moving = np.stack(moving)
    if rounded:
        moving = np.clip(np.round(moving), 0, 255).astype(np.uint8)
    result = register_batch(pairs.fixed, moving)
    # OpenCV 4 rounds coordinates to 1/32 px, OpenCV 5 does not.
    assert_mean_errors(result, pairs.transform, REGISTERED_ROUNDED)


def test_scene_pairs():
    pairs = views_of_photographs()
    result = register_batch(pairs.fixed, pairs.moving)
    shift, turn = errors(result.transform, pairs.transform)
    assert np.median(shift) < 0.02
    assert np.median(turn) < 0.05
    wrong = are_gross(result.transform, pairs.transform)
    assert wrong.sum() <= 2
    assert not np.any(wrong & np.asarray(result.success))


def tiles_of_shapes(count):
    """Tiles of scenes that are flat but for a few sharp discs, strokes and triangles."""
    rng, side = np.random.default_rng(5), tile_side(SIZE, 5.0)
    tiles = np.empty((count, side, side, 3), np.uint8)
    for tile in tiles:
        tile[:] = rng.integers(40, 220, 3)
        for k in range(30):
            colour = tuple(map(int, rng.integers(0, 255, 3)))
            at, size = rng.integers(0, side, 2), int(rng.integers(4, 12))
            if k % 3 == 0:
                cv2.circle(tile, tuple(map(int, at)), size, colour, -1, cv2.LINE_AA)
            elif k % 3 == 1:
                end = tuple(map(int, at + rng.integers(-30, 30, 2)))
                cv2.line(tile, tuple(map(int, at)), end, colour, size // 3, cv2.LINE_AA)
            else:
                corners = np.int32(at + rng.integers(-15, 15, (3, 2)))
                cv2.fillConvexPoly(tile, corners, colour, cv2.LINE_AA)
    return tiles


def test_sharp_edges_on_flat_ground():
    """They leave the largest residuals, by aliasing, and say all there is: they are no outliers."""
    truth = draw_transforms(jax.random.key(1), COUNT, 5.0)
    pairs = jax.jit(scene_pairs, static_argnums=2)(tiles_of_shapes(COUNT), truth, SIZE)
    result = register_batch(pairs.fixed, pairs.moving)
    shift, turn = errors(result.transform, truth)
    assert np.median(shift) < 0.02
    assert np.median(turn) < 0.05
    trusted = np.asarray(result.success) & ~are_gross(result.transform, truth)
    assert trusted.mean() > 0.7
    deviation = np.abs(result.transform.as_array() - truth.as_array())[:, :2]
    assert (deviation / result.standard_errors[:, :2])[trusted].max() < 5.0


# Symmetry and invariance.


def test_swapping_the_images_inverts(answers):
    pairs = photo_pairs()
    swapped = register_batch(pairs.moving, pairs.fixed)
    both = np.asarray(swapped.success) & np.asarray(answers.success)
    assert both.mean() > 0.9
    # Black corners are now in the fixed image: where little texture is left, they cost accuracy.
    shift, turn = errors(swapped.transform, answers.transform.inverse())
    assert np.quantile(shift[both], 0.9) < REGISTERED[0]
    assert np.quantile(turn[both], 0.9) < REGISTERED[1]
    assert not are_gross(swapped.transform, answers.transform.inverse())[both].any()


@pytest.mark.parametrize("max_shift", [0.2 * SIZE, SIZE / 3])
def test_limits_are_those_of_the_answer_whichever_image_is_padded(max_shift):
    """Half way between the axes the inverse of such a shift is 1.4 times as long along one."""
    rng = np.random.default_rng(0)
    fixed = np.stack([texture((SIZE, SIZE, 3), sigma=0.5, seed=i) for i in range(COUNT)])
    along = rng.uniform(0.85, 0.99, (2, COUNT)) * rng.choice([-1, 1], (2, COUNT))
    tx, ty = along * max_shift
    turn = 45.0 + 90.0 * rng.integers(0, 4, COUNT)
    truth = RigidTransform(*(np.float32(v) for v in (tx, ty, turn)))
    pulled = register_batch(fixed, warp(fixed, truth), max_shift=max_shift)
    pushed = register_batch(warp(fixed, truth.inverse()), fixed, max_shift=max_shift)
    for result in (pulled, pushed):
        assert not are_gross(result.transform, truth).any()
        assert np.asarray(result.success).mean() > 0.95


def test_turning_the_fixed_image_composes(answers):
    pairs = photo_pairs()
    turned = np.rot90(np.asarray(pairs.fixed), -1, axes=(1, 2))
    result = register_batch(turned, pairs.moving)
    quarter = repeated(0.0, 0.0, 90.0)
    shift, turn = errors(result.transform.compose(quarter), answers.transform)
    assert max(shift.max(), turn.max()) < REGISTERED_UNIT


@pytest.mark.parametrize(
    ("scale", "offset"),
    [(1 / 255, 0.0), (100.0, 0.0), (0.1, 1000.0), (1.0, -5000.0), (1e30, 0.0), (1e-30, 0.0)],
)
def test_the_unit_does_not_matter(answers, scale, offset):
    """A faint picture on a bright background (16-bit sensors) is resolved like any other."""
    pairs = photo_pairs()
    fixed, moving = (
        np.float32(scale) * v + np.float32(offset) for v in (pairs.fixed, pairs.moving)
    )
    result = register_batch(fixed, moving)
    shift, turn = errors(result.transform, answers.transform)
    assert max(shift.max(), turn.max()) < REGISTERED_UNIT
    # Where an offset hides that the corners are padding, a straight edge on faint paper may lead by
    # a hair less than it should, and be refused; no other answer, and in no other unit.
    assert not (result.success & ~answers.success).any()
    refused = [one for one, was in zip(result, answers, strict=True) if was.success > one.success]
    assert len(refused) <= (offset != 0.0)
    assert all(int(one.doubts) == Doubt.AMBIGUOUS for one in refused)


@pytest.mark.parametrize(("gain", "bias"), [(0.7, 20.0), (1.3, -20.0), (0.7, 0.0), (3.0, 7.0)])
def test_gain_and_bias_do_not_matter(answers, gain, bias):
    pairs = photo_pairs()
    result = register_batch(pairs.fixed, gain * pairs.moving + bias)
    shift, turn = errors(result.transform, answers.transform)
    assert max(shift.max(), turn.max()) < REGISTERED_UNIT


@pytest.mark.parametrize("gain", [1 / 255, 1 / 65535, 1 / 12, 12.0, 300.0])
def test_images_of_different_units(answers, gain):
    """As when one is uint8 and the other [0, 1]."""
    pairs = photo_pairs()
    result = register_batch(pairs.fixed, gain * pairs.moving)
    wrong = are_gross(result.transform, pairs.transform)
    assert wrong.sum() <= 2
    assert not np.any(wrong & np.asarray(result.success))
    assert np.asarray(result.success).sum() >= np.asarray(answers.success).sum() - 2


@pytest.mark.parametrize("contrast", [0.2, 0.05])
def test_black_corners_of_a_faint_picture_on_a_bright_ground_are_no_content(contrast):
    """As of a scanned page or an X-ray that a warp has turned."""
    pairs = photo_pairs()
    fixed = 200 + contrast * (pairs.fixed - pairs.fixed.mean((1, 2), keepdims=True))
    moving = jax.jit(jax.vmap(warp))(fixed, pairs.transform)
    for first, second, truth in (
        (fixed, moving, pairs.transform),
        (moving, fixed, pairs.transform.inverse()),
    ):
        result = register_batch(first, second)
        wrong = are_gross(result.transform, truth)
        assert wrong.sum() <= 1
        assert not np.any(wrong & np.asarray(result.success))
        assert np.asarray(result.success).mean() > 0.9


def test_colour_alone_is_enough():
    """Red rises where green falls: the grey mean is constant."""
    truth = RigidTransform(2.3, -1.4, 67.0)
    pairs = []
    for seed in range(4):
        pattern = texture((SIZE, SIZE), seed=seed)
        fixed = np.stack([pattern, 255 - pattern, np.full_like(pattern, 127.5)], -1)
        pairs.append((fixed, warp(fixed, truth)))
    for result in register_many(pairs):
        shift, turn = errors(result.transform, truth)
        assert shift < REGISTERED[0]
        assert turn < REGISTERED[1]
        assert result.success


def test_a_hidden_part_is_no_harm():
    """A grey square over 10% of the moving image loses its weight; answers lost are owned up."""
    pairs = photo_pairs()
    moving = np.array(pairs.moving)
    moving[:, 12:22, 11:21] = 128
    result = register_batch(pairs.fixed, moving)
    wrong = are_gross(result.transform, pairs.transform)
    assert wrong.mean() <= 0.15
    assert not np.any(wrong & np.asarray(result.success))


@pytest.mark.usefixtures("far_and_upright_program")
@quickly_compiled()
def test_settings_change_what_is_found():
    """A shift beyond the default's reach, rendered by the cubic spline."""
    truth = RigidTransform(15.4, -2.3, 20.0)
    fixed = [texture((SIZE, SIZE, 3), seed=s) for s in range(4)]
    pairs = [(image, warp(image, truth, "spline")) for image in fixed]
    for near in register_many(pairs):
        assert abs(near.transform.tx) < 14.0
        assert not near.success
    for found in register_many(pairs, **FAR_AND_UPRIGHT):
        shift, turn = errors(found.transform, truth)
        assert shift < REGISTERED[0]
        assert turn < REGISTERED[1]


def test_numbers_stay_of_32_bits_where_jax_defaults_to_float64():
    with jax.enable_x64(True):
        image = jax.ShapeDtypeStruct((24, 24, 3), jnp.float32)
        result = jax.eval_shape(align, image, image)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(result)} == {"float32", "bool", "int32"}


@pytest.mark.parametrize("as_given", [float, np.float32, str])
def test_limits_in_pixels_are_shares_of_the_shorter_side(as_given):
    for side in range(8, 600):
        shape = (side, side + 3, 3)
        assert share_of_side(as_given(side / 3), shape) == DirectOptions().max_shift
        assert share_of_side(as_given(side / 2), shape[1::-1]) == 0.5
        assert share_of_side(as_given(side / 4), shape) == 0.25
        assert not DirectOptions(share_of_side(as_given(side / 3), shape)).bounds_search
        assert DirectOptions(share_of_side(as_given(side / 3 + 0.01), shape)).far


def test_settings_are_checked():
    with pytest.raises(ValueError, match=r"max_shift must be in \(0, 0.5\].*got 0.7"):
        DirectOptions(max_shift=0.7)
    with pytest.raises(ValueError, match="interpolation must be auto, linear or spline"):
        DirectOptions(interpolation="cubic")
    assert [coarse_side(s) for s in (8, 64, 80, 512)] == [16, 16, 20, 32]
