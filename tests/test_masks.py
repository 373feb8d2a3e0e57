"""Masks: what does not count has no say, whatever it holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.data import load_images
from jaxreg.direct.masking import Masks, fill
from jaxreg.geometry import RigidTransform
from jaxreg.registration import register, register_batch
from jaxreg.sensor import scene_mask
from jaxreg.warping import warp
from tests.compilation_support import quickly_compiled
from tests.registration_support import (
    COUNT,
    SIZE,
    are_gross,
    assert_finite,
    errors,
    photo_pairs,
    texture,
)
from tests.tolerances import REGISTERED, REGISTERED_UNIT

pytestmark = pytest.mark.usefixtures("batch_program")

Y, X = np.mgrid[:SIZE, :SIZE]
# Dust on the sensor: at one place whatever the scene does.
CLEAN = (np.hypot(Y - 14, X - 17) >= 5) & ~((Y // 3 == 1) & (X > 1) & (X < 12))


def dusty(value):
    pairs = photo_pairs()
    return [np.where(CLEAN[..., None], images, value) for images in (pairs.fixed, pairs.moving)]


@pytest.fixture(scope="module")
@quickly_compiled()
def masked():
    return register_batch(*dusty(10.0), fixed_mask=CLEAN, moving_mask=CLEAN)


def test_dust_misleads_no_more(masked):
    truth = photo_pairs().transform
    assert are_gross(register_batch(*dusty(10.0)).transform, truth).mean() > 0.1
    shift, turn = errors(masked.transform, truth)
    assert shift.mean() < REGISTERED[0]
    assert turn.mean() < REGISTERED[1]
    assert np.asarray(masked.success).all()


@pytest.mark.parametrize("value", [200.0, np.nan, np.inf])
def test_what_does_not_count_may_be_anything(masked, value):
    result = register_batch(*dusty(value), fixed_mask=CLEAN, moving_mask=CLEAN)
    jax.tree.map(np.testing.assert_array_equal, result, masked)


def test_a_mask_each_and_numbers_for_masks(masked):
    each = np.broadcast_to(255 * CLEAN.astype(np.uint8), (COUNT, SIZE, SIZE))
    result = register_batch(*dusty(0.0), fixed_mask=each, moving_mask=each)
    jax.tree.map(np.testing.assert_array_equal, result, masked)


def test_where_all_counts_a_mask_changes_nothing():
    pairs = photo_pairs()
    noise = 10 * np.random.default_rng(0).normal(size=(2, *pairs.fixed.shape))
    fixed, moving = pairs.fixed + noise[0], pairs.moving + noise[1]
    plain = register_batch(fixed, moving)
    result = register_batch(fixed, moving, moving_mask=np.ones((SIZE, SIZE), bool))
    shift, turn = errors(result.transform, plain.transform)
    assert max(shift.max(), turn.max()) < REGISTERED_UNIT
    np.testing.assert_array_equal(result.success, plain.success)


def test_dead_pixels():
    pairs = photo_pairs()
    alive = np.random.default_rng(0).uniform(size=(2, *pairs.fixed.shape[:3])) > 0.05
    fixed, moving = (
        np.where(mask[..., None], images, 255.0)
        for mask, images in zip(alive, (pairs.fixed, pairs.moving), strict=True)
    )
    result = register_batch(fixed, moving, fixed_mask=alive[0], moving_mask=alive[1])
    shift, turn = errors(result.transform, pairs.transform)
    assert shift.mean() < REGISTERED[0]
    assert turn.mean() < REGISTERED[1]
    assert np.asarray(result.success).all()


def test_where_nothing_counts_nothing_is_claimed():
    pairs = photo_pairs()
    result = register_batch(pairs.fixed, pairs.moving, fixed_mask=np.zeros((SIZE, SIZE)))
    assert_finite(result)
    assert not np.asarray(result.success).any()


@pytest.mark.parametrize("picture", [X * 9.0, np.where(X > 20, 200.0, 0.0), (X // 2) % 2 * 200.0])
def test_a_mask_does_not_make_up_what_an_image_lacks(picture):
    """Of a ramp, an edge or stripes the rim of a disc taken out would tell the place of."""
    disc = np.hypot(Y - 14, X - 17) >= 5
    stack = np.broadcast_to(picture[..., None], (COUNT, SIZE, SIZE, 3))
    result = register_batch(stack, stack, fixed_mask=disc, moving_mask=disc)
    assert not np.asarray(result.success).any()
    assert "an image leaves a direction open" in " ".join(result[0].reasons)


def test_a_round_field_of_view_is_found_and_left_out(masked):
    """Drifting scenes behind a round aperture, which could register the aperture onto itself."""
    images = jnp.asarray(load_images("photos", "test", 2 * SIZE))
    rng = np.random.default_rng(0)
    truth = RigidTransform.from_array(rng.uniform(-1.0, 1.0, (COUNT, 3)))
    scenes = images[:COUNT].astype(jnp.float32)
    views = [v[:, 16:-16, 16:-16] for v in (scenes, warp(scenes, truth, "spline"))]
    dark = np.hypot(Y - 15.5, X - 15.5)[..., None] > 13
    noise = rng.normal(0, 1, (2, *views[0].shape))
    fixed, moving = np.where(dark, 0, np.clip(np.stack(views) + noise, 1, 255).round())
    result = register_batch(fixed, moving)
    deviation = errors(result.transform, truth)[0]
    assert not (np.asarray(result.success) & (deviation > 0.5)).any()
    masks = np.stack([scene_mask([f, m]) for f, m in zip(fixed, moving, strict=True)])
    assert masks[:, 16, 16].all()
    assert not masks[:, :3, :3].any()
    result = register_batch(fixed, moving, fixed_mask=masks, moving_mask=masks)
    deviation = errors(result.transform, truth)[0]
    assert not (np.asarray(result.success) & (deviation > 0.5)).any()
    assert np.median(deviation) < REGISTERED[0]


def test_masks_are_traced_like_images():
    image, mask = (jax.ShapeDtypeStruct((SIZE, SIZE), dtype) for dtype in ("float32", "bool"))
    call = lambda f, m, mask: register(f, m, moving_mask=mask)  # noqa: E731
    assert jax.eval_shape(call, image, image, mask).covariance.shape == (3, 3)
    known = jnp.asarray(CLEAN)
    call = lambda f: register(f, f, fixed_mask=known)  # noqa: E731
    assert jax.eval_shape(call, image).covariance.shape == (3, 3)
    spoilt = np.where(CLEAN, 1.0, np.nan)
    call = lambda mask: register(spoilt, spoilt, fixed_mask=mask, moving_mask=CLEAN)  # noqa: E731
    assert jax.eval_shape(call, mask).covariance.shape == (3, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda i, m: register(i, i, fixed_mask=m[1:]),
            r"fixed_mask must .*\(16, 16\), got \(15, 16",
        ),
        (lambda i, m: register(i, i, moving_mask=i), r"moving_mask must have the shape .* without"),
        (lambda i, m: register_batch([i], [i], moving_mask=[m, m]), r"one for all, \(16, 16\)"),
        (lambda i, m: register(i, i, method="constant", fixed_mask=m), "masks are for .*'direct'"),
        (lambda i, m: register(i, i, fixed_mask=m.astype(str)), "fixed_mask must hold real"),
        (lambda i, m: register(i * np.nan, i, moving_mask=m), "fixed must be finite"),
    ],
)
def test_unfit_masks_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(texture((16, 16, 3)), np.ones((16, 16), bool))


def test_pixels_are_filled_from_their_surroundings():
    flat, hole = np.full((2, 12, 14, 1), 7.0, np.float32), np.ones((2, 12, 14), np.float32)
    hole[1, 3:9, 4:8] = 0
    flat[1, 5, 5] = np.nan
    np.testing.assert_allclose(fill(flat, hole), 7.0, rtol=1e-5)
    ramp = np.broadcast_to(np.float32(np.mgrid[:12, :14][1])[..., None], (2, 12, 14, 1))
    filled = np.asarray(fill(ramp, hole))
    np.testing.assert_array_equal(filled[0], ramp[0])
    assert np.abs(filled - ramp).max() < 1.5
    assert np.isfinite(fill(flat, 0 * hole)).all()


def test_coarser_masks_and_rims():
    mask = np.ones((8, 8), np.float32)
    mask[:, :4] = 0
    masks = Masks(mask, np.ones_like(mask))
    np.testing.assert_array_equal(masks.coarser(2.0).source, mask[::2, ::2])
    np.testing.assert_array_equal(masks.without_rim().source[0], [0, 0, 0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(masks.without_rim().target, 1.0)
    assert masks.swapped() == (masks.target, masks.source)
