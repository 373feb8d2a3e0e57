"""The direct method on what cannot be told, and how sure it says it is."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from jaxreg.direct.trust import _conditioning, bounded
from jaxreg.geometry import RigidTransform
from jaxreg.pairs import Pairs
from jaxreg.registration import direct_estimator, register_batch
from jaxreg.result import Doubt, Registration
from jaxreg.warping import warp
from tests.compilation_support import quickly_compiled
from tests.registration_support import (
    COUNT,
    FAR_AND_UPRIGHT,
    SIZE,
    are_gross,
    assert_finite,
    errors,
    photo_pairs,
    register_many,
    repeated,
    texture,
)
from tests.tolerances import CALIBRATED, REGISTERED, REGISTERED_UNIT, SAME_UNDER_NOISE

pytestmark = pytest.mark.usefixtures("batch_program")

Y, X = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2


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


def spots_in_noise(seed):
    """One round spot in the middle, which any turn leaves as it is, twice with noise of its own."""
    spot = 200.0 * np.exp(-0.5 * (X**2 + Y**2) / 0.7**2)
    return tuple(spot + np.random.default_rng(seed).normal(50, 2, (2, SIZE, SIZE)))


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
    **{f"spot in noise {seed}": spots_in_noise(seed) for seed in range(8)},
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
    assert (np.asarray(result.standard_errors) > 0.0).all()
    assert not result.success
    if Doubt.UNDETERMINED in Doubt(int(result.doubts)):  # whatever its residual, nobody knows
        assert result.standard_errors.min() > 100.0
    assert -1.0 - 1e-4 <= result.score <= 1.0 + 1e-4
    assert result.reasons


@pytest.mark.parametrize(
    ("name", "doubt"),
    [
        ("zeros", Doubt.UNDETERMINED),
        ("edge", Doubt.UNDETERMINED),
        ("stripes 8", Doubt.UNDETERMINED),
        ("noise pair", Doubt.DETAIL_MISMATCH),
        ("different textures", Doubt.DETAIL_MISMATCH),
        ("two-fold", Doubt.AMBIGUOUS),
        ("square", Doubt.AMBIGUOUS),
        ("disc", Doubt.AMBIGUOUS | Doubt.IMPRECISE),
    ],
)
def test_the_reason_is_told(untrusted, name, doubt):
    assert Doubt(int(untrusted[name].doubts)) & doubt


@pytest.mark.usefixtures("far_and_upright_program")
@quickly_compiled()
def test_a_small_rotation_resolves_a_symmetry():
    image, truth = symmetric(4), RigidTransform(1.5, -2.0, 7.0)
    pair = image, np.asarray(warp(image, truth, "spline"))
    (open_,), (limited,) = register_many([pair]), register_many([pair], **FAR_AND_UPRIGHT)
    assert not open_.success
    assert limited.success
    shift, turn = errors(limited.transform, truth)
    assert max(shift, turn) < REGISTERED_UNIT


@pytest.mark.parametrize(("spread", "beyond"), [((2.0, 0.1, 0.1), False), ((0.1, 2.0, 2.0), True)])
@pytest.mark.parametrize("axis", range(3))
def test_an_answer_is_beyond_the_limits_where_three_standard_errors_are(axis, spread, beyond):
    """One parameter is 3 beyond its limit, which its own standard error alone excuses."""
    limits, answer = np.float32([10, 10, 30]), np.zeros(3, np.float32)
    answer[axis] = -limits[axis] - 3
    covariance = np.diag(np.square(np.roll(spread, axis)))
    given = Registration(
        RigidTransform.from_array(answer), 1.0, True, covariance, doubts=np.int32(0)
    )
    told = bounded(given, limits)
    assert Doubt(int(told.doubts)) == (Doubt.OUT_OF_BOUNDS if beyond else Doubt(0))
    assert bool(told.success) == (not beyond)


def test_few_details_are_enough():
    """Two stars of different brightness, and an edge with something along it."""
    stars = bright_pixel(10, 19) + 0.8 * bright_pixel(20, 7)
    edge = np.where(X > 2, 200.0, 0.0) + 0.2 * texture((SIZE, SIZE))
    for result in register_many([(i, np.rot90(i, -1)) for i in (stars, edge)]):
        shift, turn = errors(result.transform, RigidTransform(0.0, 0.0, 90.0))
        assert max(shift, turn) < REGISTERED_UNIT
        assert result.success


def spots(seed, transform=None):
    """A field of some twelve spots, of which a few outshine the rest."""
    rng = np.random.default_rng(seed)
    places, brightness = rng.uniform(-16, 48, (48, 2)), rng.exponential(400, 48)
    if transform is not None:
        places = np.asarray(transform.apply(places.astype(np.float32), (SIZE, SIZE)))
    x, y = np.arange(SIZE), np.arange(SIZE)[:, None]
    field = sum(
        b * np.exp(-(np.hypot(x - u, y - v) ** 2) / 1.28)
        for (u, v), b in zip(places, brightness, strict=True)
    )
    return field + np.random.default_rng(seed + 1000 * (transform is not None)).normal(
        100, 3, field.shape
    )


def test_two_spots_that_lie_alike_are_no_proof():
    """Fields of spots, related and not: of the latter chance makes one in twenty fit."""
    count = COUNT // 2
    related = [(spots(seed), spots(seed, TILTED)) for seed in range(count)]
    unrelated = [(spots(seed), spots(seed + 7000)) for seed in range(count)]
    for result in (results := register_many(related + unrelated))[:count]:
        shift, turn = errors(result.transform, TILTED)
        assert max(shift, turn) < 0.2
    assert sum(result.success for result in results[:count]) > 0.95 * count
    assert sum(result.success for result in results[count:]) <= 1


def stars(seed, tx=0.0, noise_seed=0):
    """A field of some six stars, of which the brightest may be a hundred times the faintest."""
    rng = np.random.default_rng(seed)
    places, brightness = rng.uniform(-10, SIZE + 10, (16, 2)), 10 ** rng.uniform(1.2, 3.2, 16)
    x, y = np.arange(SIZE), np.arange(SIZE)[:, None]
    field = sum(
        b * np.exp(-(np.hypot(x - u - tx, y - v) ** 2) / 2)
        for (u, v), b in zip(places, brightness, strict=True)
    )
    return field + np.random.default_rng(noise_seed).normal(100, 6, field.shape)


def test_one_star_on_another_is_no_proof_of_a_shift():
    """With the angle held it is all that it takes, unless what is left unexplained counts."""
    count = COUNT // 2
    related = [(stars(seed), stars(seed, tx=2.5, noise_seed=1)) for seed in range(count)]
    unrelated = [(stars(seed), stars(seed + 7000, noise_seed=1)) for seed in range(64, 64 + count)]
    results = register_many(related + unrelated, max_rotation=0)
    for result in results[:count]:
        assert not result.success or abs(result.transform.tx - 2.5) < 0.2
    assert sum(result.success for result in results[:count]) > 0.9 * count
    assert sum(result.success for result in results[count:]) <= 1


def tiles(seed, transform=None):
    """A motif that repeats every 5 to 10 px, at some angle, as a camera sees it in noise."""
    rng = np.random.default_rng(seed)
    period, turn = rng.uniform(5, 10), rng.uniform(0, 2 * np.pi)
    waves = rng.integers(-2, 3, (8, 2)) @ [1.0, 1j] * np.exp(1j * turn) * 2 * np.pi / period
    heights, phases = rng.normal(0, 25, 8), rng.uniform(0, 2 * np.pi, 8)
    fine = (np.arange(4 * SIZE) + 0.5) / 4 - 0.5  # 4 x 4 to a pixel
    points = np.stack(np.meshgrid(fine, fine), -1).reshape(-1, 2).astype(np.float32)
    if transform is not None:
        points = np.asarray(transform.inverse().apply(points, (SIZE, SIZE)))
    phase = points @ np.stack([waves.real, waves.imag]) + phases
    image = (heights * np.cos(phase)).sum(-1).reshape(SIZE, 4, SIZE, 4).mean((1, 3))
    return image + np.random.default_rng(seed + 1000 * (transform is not None)).normal(
        120, 1, image.shape
    )


def test_what_fits_as_well_on_less_of_the_frame_is_a_rival():
    """Of a pattern that repeats, one period on shows less, yet each pixel of it agrees as well.

    Told by evidence alone, 10 of these 64 are another repeat and believed.
    """
    rng = np.random.default_rng(0)
    truths = [RigidTransform(*rng.uniform((-5, -5, -180), (5, 5, 180))) for _ in range(COUNT)]
    results = register_many([(tiles(seed), tiles(seed, t)) for seed, t in enumerate(truths)])
    wrong = [
        bool(r.success) and max(errors(r.transform, t)) > 2.0
        for r, t in zip(results, truths, strict=True)
    ]
    assert sum(wrong) <= 3


def test_unrelated_photographs_are_rejected():
    fixed = np.asarray(photo_pairs(1).fixed)
    moving = np.asarray(photo_pairs(2).moving)
    result = register_batch(fixed, moving)
    assert_finite(result)
    assert np.asarray(result.success).sum() <= 1  # two crops may be of the same place


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_hostile_values_under_jit_are_data(value):
    """At the boundary NaN raises; inside a transformation only ``success`` can tell."""
    pairs = photo_pairs()
    answers = direct_estimator(pairs.fixed, pairs.moving)
    fixed = pairs.fixed.at[0, 3, 4, 1].set(value)
    result = direct_estimator(fixed, pairs.moving)
    assert_finite(result)
    assert not result.success[0]
    assert Doubt(int(result.doubts[0])) & Doubt.NOT_FINITE
    np.testing.assert_array_equal(result.success[1:], answers.success[1:])


@pytest.mark.parametrize("value", [4e3, 65535.0, -65535.0, 3e38])
def test_a_lone_pixel_far_beyond_the_others_does_not_matter(value):
    """A hot or dead one, or a cosmic ray, at another place in either image; two, side by side."""
    pairs = photo_pairs()
    fixed, moving = with_noise(pairs, 2.0, 0)
    answers = register_batch(fixed, moving)
    y, x = np.random.default_rng(0).integers(0, SIZE, (2, COUNT))
    fixed, moving = (np.array(image) for image in (fixed, moving))
    fixed[np.arange(COUNT), y, x] = moving[np.arange(COUNT), x, y] = value
    moving[np.arange(COUNT), x, y - 1] = value
    result = register_batch(fixed, moving)
    assert_finite(result)
    both = np.asarray(result.success & answers.success)
    assert both.sum() >= np.asarray(answers.success).sum() - 4
    shift, turn = errors(result.transform, pairs.transform)
    assert shift[both].mean() < REGISTERED[0]
    assert turn[both].mean() < REGISTERED[1]


# Covariance.


def with_noise(pairs, sigma, seed):
    keys = jax.random.split(jax.random.key(seed))
    return tuple(
        image + sigma * jax.random.normal(key, image.shape)
        for image, key in zip((pairs.fixed, pairs.moving), keys, strict=True)
    )


@pytest.mark.parametrize("shape", [(32, 32), (16, 400), (8, 2048), (300, 20)])
def test_a_texture_leaves_no_direction_open_however_long_the_image(shape):
    texture_ = jnp.asarray(np.random.default_rng(0).normal(size=(*shape, 1)), jnp.float32)
    assert 0.5 < _conditioning(texture_, None, 1.0) < 1.5


_warp_all = jax.jit(jax.vmap(warp))


def noisy_textures(seed, reach, sigma, seen=1.0):
    """Images, of which a part may be all that is seen, moved by up to a reach; with the truth."""
    images = [texture((SIZE, SIZE, 3), seed=100 * seed + s) - 128 for s in range(COUNT)]
    images = jnp.asarray(128 + seen * np.stack(images), jnp.float32)
    truth = np.random.default_rng(seed).uniform(np.negative(reach), reach, (COUNT, 3))
    truth = RigidTransform.from_array(truth)
    return *with_noise(Pairs(images, _warp_all(images, truth), truth), sigma, seed), truth


def test_the_covariance_of_whatever_fails_is_one():
    """Of some unrelated pairs it is larger than any that is told, in some direction."""
    result = register_batch(*np.random.default_rng(4).uniform(0, 255, (2, COUNT, SIZE, SIZE, 3)))
    variances = np.diagonal(result.covariance, axis1=1, axis2=2).astype(np.float64)
    unit = 1 / np.sqrt(variances)
    correlations = result.covariance * unit[:, :, None] * unit[:, None]
    assert variances.max() == pytest.approx(1e6)
    assert np.linalg.eigvalsh(correlations).min() > -1e-5


def signed_errors(result, truth):
    difference = np.array(result.transform.as_array() - truth.as_array())
    difference[:, 2] = (difference[:, 2] + 180) % 360 - 180
    return difference


@pytest.mark.parametrize("grey", [False, True])
def test_covariance_is_calibrated_under_noise(grey):
    """Mean of error^2 / variance near 1 on textured images; 128 pairs tell it to some 15%.

    Also of a grey picture in three channels, which say no more than one.
    """
    ratios = []
    for seed in range(2):
        *pairs, truth = noisy_textures(seed, (5, 5, 180), 10.0)
        if grey:
            pairs = [jnp.tile(image[..., :1], 3) for image in pairs]
        result = register_batch(*pairs)
        assert np.asarray(result.success).all()
        covariance = np.asarray(result.covariance)
        np.testing.assert_allclose(covariance, covariance.swapaxes(1, 2), rtol=1e-3, atol=1e-6)
        assert np.linalg.eigvalsh(covariance).min() > 0
        np.testing.assert_allclose(
            result.standard_errors, np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)), rtol=1e-5
        )
        difference = signed_errors(result, truth)
        ratios.append(np.square(difference) / np.diagonal(covariance, axis1=1, axis2=2))
    mean = np.concatenate(ratios).mean(0)
    assert (mean > CALIBRATED[0]).all()
    assert (mean < CALIBRATED[1]).all()


def test_the_whole_covariance_is_calibrated_where_a_turn_looks_like_a_shift():
    """On one side of the frame. Errors it whitens are 1 large on average, whatever their mix.

    So that error^T covariance^-1 error is 3.
    """
    one_side = np.exp(-((X - 9) ** 2 + Y**2) / 72)[..., None]
    white = []
    for seed in range(2):
        *pairs, truth = noisy_textures(seed, (2, 2, 30), 3.0, one_side)
        result = register_batch(*pairs)
        root = np.linalg.cholesky(np.asarray(result.covariance))
        white.append(np.linalg.solve(root, signed_errors(result, truth)[..., None])[..., 0])
    white = np.concatenate(white)
    sizes = np.linalg.eigvalsh(white.T @ white / len(white))
    assert sizes.min() > CALIBRATED[0]
    assert sizes.max() < CALIBRATED[1]


@pytest.mark.parametrize("levels", [2, 4, 8, 16])
def test_few_grey_levels_may_hide_a_move(levels):
    """Most pixels are the same to the last bit, and those that differ are no outliers."""
    images = np.stack([texture((SIZE, SIZE, 3), seed=s) for s in range(COUNT)])
    truth = repeated(0.1, -0.05, 0.0)
    step = 255.0 / (levels - 1)
    pair = (step * np.rint(image / step) for image in (images, warp(images, truth, "spline")))
    result = register_batch(*map(np.float32, pair))
    sure = np.asarray(result.success)
    assert sure.mean() > 0.7
    off = np.asarray(result.transform.as_array() - truth.as_array())[sure]
    assert np.abs(off / np.asarray(result.standard_errors)[sure]).max() < 5.0
    assert np.median(np.abs(off[:, :2])) < 0.03


@pytest.fixture(scope="module")
def noisy():
    """The protocol's pairs with noise, and their answers."""
    fixed, moving = with_noise(photo_pairs(), 10.0, 0)
    return fixed, moving, register_batch(fixed, moving)


@pytest.mark.parametrize("gain", [1.5, 3.0, 7.0])
def test_the_unit_of_a_noisy_image_does_not_matter(noisy, gain):
    """What is multiplied with its noise says as much as before, and is no better source."""
    fixed, moving, answers = noisy
    result = register_batch(fixed, gain * moving)
    assert np.asarray(result.success).sum() >= np.asarray(answers.success).sum() - 2
    trusted = np.asarray(result.success & answers.success)
    shift, turn = errors(result.transform, answers.transform)
    assert shift[trusted].mean() <= SAME_UNDER_NOISE[0]
    assert turn[trusted].mean() <= SAME_UNDER_NOISE[1]
    ratio = np.asarray(result.standard_errors) / np.asarray(answers.standard_errors)
    assert np.median(np.abs(np.log(ratio))) <= 0.02


def through_jpeg(stack):
    bytes_ = np.clip(np.rint(stack), 0, 255).astype(np.uint8)
    files = [cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 75])[1] for image in bytes_]
    return np.float32([cv2.imdecode(file, cv2.IMREAD_UNCHANGED) for file in files])


@pytest.mark.parametrize("how", ["blurred", "compressed"])
def test_residuals_alike_nearby_make_larger_standard_errors(how):
    """As many pixels as there are would tell less than white noise's; chi-square's median: .45."""
    pairs = photo_pairs()
    fixed, moving = np.asarray(pairs.fixed), np.asarray(pairs.moving)
    if how == "blurred":
        moving = scipy.ndimage.gaussian_filter(moving, (0, 0.7, 0.7, 0))
    else:
        fixed, moving = through_jpeg(fixed), through_jpeg(moving)
    result = register_batch(fixed, moving)
    shift = np.asarray(result.transform.as_array() - pairs.transform.as_array())[:, :2]
    ratio = np.square(shift / result.standard_errors[:, :2])
    assert 0.15 < np.median(ratio) < 0.9


def test_photographs_with_noise_are_never_confidently_wrong():
    pairs = photo_pairs()
    result = register_batch(*with_noise(pairs, 10.0, 10))
    wrong = are_gross(result.transform, pairs.transform)
    assert not np.any(wrong & np.asarray(result.success))
    assert wrong.mean() < 0.05
    assert np.asarray(result.success).mean() > 0.85
