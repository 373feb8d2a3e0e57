"""The direct method: known answers, accuracy, invariance, honesty, covariance, gradients."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.data import photographs
from jaxreg.direct import DirectOptions, align, coarse_side
from jaxreg.geometry import RigidTransform
from jaxreg.pairs import Pairs
from jaxreg.registration import direct_estimator, register_batch
from jaxreg.scenes import draw_scene_pairs, draw_tiles
from jaxreg.warping import warp
from tests.registration_support import (
    COUNT,
    SIZE,
    are_gross,
    assert_finite,
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

Y, X = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2


@pytest.fixture(scope="module")
def answers():
    """Of the default settings on the protocol's pairs."""
    pairs = photo_pairs()
    return register_batch(pairs.fixed, pairs.moving)


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
    tiles = draw_tiles(photographs("test"), COUNT, SIZE, 5.0, seed=0)
    pairs = draw_scene_pairs(jax.random.key(0), tiles, COUNT, SIZE, 5.0)
    result = register_batch(pairs.fixed, pairs.moving)
    shift, turn = errors(result.transform, pairs.transform)
    assert np.median(shift) < 0.02
    assert np.median(turn) < 0.05
    wrong = are_gross(result.transform, pairs.transform)
    assert wrong.sum() <= 2
    assert not np.any(wrong & np.asarray(result.success))


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
    np.testing.assert_array_equal(result.success, answers.success)


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


# Honesty.


def stripes(period):
    return np.broadcast_to((np.arange(SIZE) // (period // 2)) % 2 * 200.0, (SIZE, SIZE))


def symmetric(folds, seed=0):
    noise = texture((SIZE, SIZE), seed=seed)
    return sum(np.rot90(noise, k * 4 // folds) for k in range(folds)) / folds


def square():
    image = np.zeros((SIZE, SIZE))
    image[10:22, 10:22] = 200.0
    return image


def bright_pixel(y, x):
    image = np.zeros((SIZE, SIZE))
    image[y, x] = 255.0
    return image


DISC = np.clip(10 - np.hypot(X, Y), 0, 1) * 200
TILTED = RigidTransform(1.3, 2.0, 30.0)
NOISE = np.random.default_rng(0).uniform(0, 255, (2, SIZE, SIZE, 3))
UNTRUSTWORTHY = {
    "zeros": (np.zeros_like(X), np.zeros_like(X)),
    "one constant": (np.full_like(X, 7.0), np.full_like(X, 7.0)),
    "two constants": (np.full_like(X, 7.0), np.full_like(X, 90.0)),
    "constant and texture": (np.full_like(X, 9.0), symmetric(1)),
    "texture and constant": (symmetric(1), np.full_like(X, 9.0)),
    "rounding for texture": tuple(100 + 1e-5 * NOISE[..., 0] / 255),
    "noise pair": tuple(NOISE),
    "different textures": (texture((SIZE, SIZE), seed=1), texture((SIZE, SIZE), seed=2)),
    "negative": (symmetric(2), 255 - symmetric(2)),
    "disc": (DISC, DISC),
    "disc shifted": (DISC, np.roll(DISC, 3, 1)),
    "rings": (100 + 100 * np.cos(np.hypot(X, Y)),) * 2,
    "square": (square(), square()),
    "square shifted": (square(), np.roll(square(), 3, 1)),
    "four-fold": (symmetric(4), symmetric(4)),
    "two-fold": (symmetric(2), symmetric(2)),
    "edge": (np.where(X > 2, 200.0, 0.0), np.where(X > 2, 200.0, 0.0)),
    "ramp": (3 * X + 100, 3 * X + 100),
    "ramp turned": (3 * X + 100, np.rot90(3 * X + 100)),
    "pixel": (bright_pixel(12, 17), bright_pixel(12, 17)),
    "pixel shifted": (bright_pixel(12, 17), bright_pixel(15, 17)),
    "waves": (100 * np.sin(X) * np.sin(Y), 100 * np.sin(X) * np.sin(Y)),
    **{f"stripes {p}": (stripes(p), stripes(p)) for p in (2, 4, 8)},
    **{f"tilted stripes {p}": (stripes(p), warp(stripes(p), TILTED)) for p in (2, 4, 8)},
    **{
        f"checkerboard {p}": ((stripes(p) + stripes(p).T) % 400, (stripes(p) + stripes(p).T) % 400)
        for p in (2, 4, 8)
    },
}


@pytest.fixture(scope="module")
def untrusted():
    return dict(zip(UNTRUSTWORTHY, register_many(list(UNTRUSTWORTHY.values())), strict=True))


@pytest.mark.parametrize("name", UNTRUSTWORTHY)
def test_what_cannot_be_told_is_not_claimed(untrusted, name):
    result = untrusted[name]
    assert_finite(result)
    assert not result.success
    assert -1.0 - 1e-4 <= result.score <= 1.0 + 1e-4


def test_few_details_are_enough():
    """Two stars of different brightness, and an edge with something along it."""
    stars = bright_pixel(10, 19) + 0.8 * bright_pixel(20, 7)
    edge = np.where(X > 2, 200.0, 0.0) + 0.2 * texture((SIZE, SIZE))
    for result in register_many([(i, np.rot90(i, -1)) for i in (stars, edge)]):
        shift, turn = errors(result.transform, RigidTransform(0.0, 0.0, 90.0))
        assert max(shift, turn) < REGISTERED_UNIT
        assert result.success


def test_unrelated_photographs_are_rejected():
    fixed = np.asarray(photo_pairs(1).fixed)
    moving = np.asarray(photo_pairs(2).moving)
    result = register_batch(fixed, moving)
    assert_finite(result)
    assert np.asarray(result.success).sum() <= 1  # two crops may be of the same place


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_hostile_values_under_jit_are_data(answers, value):
    """At the boundary NaN raises; inside a transformation only ``success`` can tell."""
    pairs = photo_pairs()
    options = DirectOptions()
    fixed = pairs.fixed.at[0, 3, 4, 1].set(value)
    result = direct_estimator(fixed, pairs.moving, options)
    assert_finite(result)
    assert not result.success[0]
    np.testing.assert_array_equal(result.success[1:], answers.success[1:])


# Covariance.


def with_noise(pairs, sigma, seed):
    keys = jax.random.split(jax.random.key(seed))
    return tuple(
        image + sigma * jax.random.normal(key, image.shape)
        for image, key in zip((pairs.fixed, pairs.moving), keys, strict=True)
    )


def test_covariance_is_calibrated_under_noise():
    """Mean of error^2 / variance near 1 on textured images; 128 pairs tell it to some 15%."""
    ratios = []
    for seed in range(2):
        images = np.stack([texture((SIZE, SIZE, 3), seed=100 * seed + s) for s in range(COUNT)])
        truth = RigidTransform.from_array(
            np.random.default_rng(seed).uniform((-5, -5, -180), (5, 5, 180), (COUNT, 3))
        )
        moving = jax.jit(jax.vmap(warp))(images, truth)
        result = register_batch(*with_noise(Pairs(jnp.asarray(images), moving, truth), 10.0, seed))
        assert np.asarray(result.success).all()
        covariance = np.asarray(result.covariance)
        np.testing.assert_allclose(covariance, covariance.swapaxes(1, 2), rtol=1e-3, atol=1e-6)
        assert np.linalg.eigvalsh(covariance).min() > 0
        np.testing.assert_allclose(
            result.standard_errors, np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)), rtol=1e-5
        )
        difference = np.array(result.transform.as_array() - truth.as_array())
        difference[:, 2] = (difference[:, 2] + 180) % 360 - 180
        ratios.append(np.square(difference) / np.diagonal(covariance, axis1=1, axis2=2))
    mean = np.concatenate(ratios).mean(0)
    assert (mean > 0.6).all()
    assert (mean < 1.6).all()


def test_photographs_with_noise_are_never_confidently_wrong():
    pairs = photo_pairs()
    result = register_batch(*with_noise(pairs, 10.0, 10))
    wrong = are_gross(result.transform, pairs.transform)
    assert not np.any(wrong & np.asarray(result.success))
    assert wrong.mean() < 0.05
    assert np.asarray(result.success).mean() > 0.85


# Gradients.


@jax.jit
def jacobian(fixed, moving):
    """Derivatives by both images of ``(tx, ty, theta)``, score and variances; and the former."""

    def parameters(fixed, moving):
        found = align(fixed, moving)
        numbers = [found.transform.as_array(), found.score[None], jnp.diagonal(found.covariance)]
        return jnp.concatenate(numbers), found.transform.as_array()

    return jax.jacrev(parameters, argnums=(0, 1), has_aux=True)(fixed, moving)


def test_gradients_agree_with_registering_again():
    """By the implicit function theorem, against differences of whole registrations.

    The answer is smooth in the images as long as no decision changes: a picture that fades out
    before the rim, so that no pixel that enters or leaves the overlap counts, and noise so short of
    tails that no residual is an outlier.
    """
    shape = (24, 24, 1)
    fade = np.clip((10 - np.hypot(*(np.mgrid[:24, :24] - 11.5))) / 4, 0, 1)[..., None]
    picture = fade**2 * (3 - 2 * fade) * (texture(shape, sigma=1.5, seed=5) - 128)
    noise = np.random.default_rng(0).uniform(-1, 1, shape)
    moving = warp(picture, RigidTransform(1.4, -0.7, 25.0)) + noise
    images = [np.float32(128 + picture), np.float32(128 + moving)]
    by_image, _ = jacobian(*images)
    step = 1e-3
    for which in range(2):
        assert np.isfinite(np.asarray(by_image[which])).all()
        bump = texture(shape, sigma=2.5, seed=7 + which) - 128
        ends = []
        for change in (step * bump, -step * bump):
            changed = [image + change * (i == which) for i, image in enumerate(images)]
            ends.append(np.asarray(jacobian(*changed)[1]))
        numeric = (ends[0] - ends[1]) / (2 * step)
        analytic = np.einsum("khwc,hwc->k", np.asarray(by_image[which][:3]), bump)
        # The denoised derivative is held fixed, which is of second order in the noise; the
        # differences carry rounding of 1e-6 px over twice the step.
        np.testing.assert_allclose(analytic, numeric, rtol=0.05, atol=5e-3)


def test_gradients_of_hopeless_pairs_are_finite():
    flat = np.full((24, 24, 1), 9.0, np.float32)
    spoilt = flat.copy()
    spoilt[3, 4] = np.nan
    picture = texture((24, 24, 1))
    for pair in [(flat, flat), (flat, spoilt), (flat, 2 * flat), (picture, picture)]:
        for gradient in jacobian(*pair)[0]:
            assert np.isfinite(np.asarray(gradient)).all()


def test_settings_change_what_is_found():
    """A shift beyond the default's reach, rendered by the cubic spline."""
    truth = RigidTransform(15.4, -2.3, 40.0)
    fixed = [texture((SIZE, SIZE, 3), seed=s) for s in range(4)]
    pairs = [(image, warp(image, truth, "spline")) for image in fixed]
    for near in register_many(pairs):
        assert abs(near.transform.tx) < 14.0
        assert not near.success
    for found in register_many(pairs, max_shift=0.5, interpolation="spline"):
        shift, turn = errors(found.transform, truth)
        assert shift < REGISTERED[0]
        assert turn < REGISTERED[1]


def test_numbers_stay_float32_where_jax_defaults_to_float64():
    with jax.enable_x64(True):
        image = jax.ShapeDtypeStruct((24, 24, 3), jnp.float32)
        result = jax.eval_shape(align, image, image)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(result)} == {"float32", "bool"}


def test_settings_are_checked():
    with pytest.raises(ValueError, match=r"max_shift must be in \(0, 0.5\].*got 0.7"):
        DirectOptions(max_shift=0.7)
    with pytest.raises(ValueError, match="interpolation must be auto, linear or spline"):
        DirectOptions(interpolation="cubic")
    assert [coarse_side(s) for s in (8, 64, 80, 512)] == [16, 16, 20, 32]
