"""Feature baselines: known answers, the rigid fit, failure as data, counts."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines import features
from baselines.features import consensus, count_keypoints, detect_mahotas_surf, fit_rigid, match
from baselines.loop import from_matrix, register_each, to_matrix
from jaxreg.geometry import RigidTransform
from jaxreg.pairs import warp_pairs
from tests.tolerances import (
    CONSENSUS,
    ENLARGED_FEATURES,
    ENLARGED_KEYPOINTS,
    NATIVE_FEATURES,
)

NATIVE = ("sift", "surf", "orb", "akaze")
ENLARGED = ("sift_x4", "surf_x4", "orb_x4", "akaze_x4")


def picture(size, seed=0, sigma=1.5):
    noise = np.random.default_rng(seed).normal(0, 1, (size, size, 3))
    smooth = scipy.ndimage.gaussian_filter(noise, (sigma, sigma, 0), mode="reflect")
    return np.clip(128 + 50 * smooth / smooth.std(), 0, 255).astype(np.float32)


def pairs_of(images, transforms):
    return warp_pairs(
        jnp.asarray(images), RigidTransform.from_array(jnp.asarray(transforms, jnp.float32))
    )


TRANSFORMS = [(3, -2, 0), (0, 0, 90), (1.5, 2.5, 30), (-2, 1, -120)]


@pytest.mark.parametrize("name", ENLARGED)
def test_enlarged_methods_register_small_images(name):
    pairs = pairs_of([picture(32, s) for s in range(4)], TRANSFORMS)
    result = getattr(features, name)(pairs.fixed, pairs.moving)
    trusted = np.asarray(result.success)
    # mahotas' SURF keeps few points, so that its answers are sometimes missing or wrong.
    assert trusted.sum() >= (2 if name == "surf_x4" else 4)
    errors = np.abs(np.asarray(result.transform.as_array()) - np.asarray(TRANSFORMS))[trusted]
    assert errors[:, :2].max() < ENLARGED_FEATURES[0]
    assert errors[:, 2].max() < ENLARGED_FEATURES[1]


@pytest.mark.parametrize("name", ["sift", "orb", "akaze"])
def test_native_methods_register_larger_images(name):
    pairs = pairs_of([picture(128, s, 3.0) for s in range(2)], [(6, -4, 10), (-3, 8, -75)])
    result = getattr(features, name)(pairs.fixed, pairs.moving)
    errors = np.abs(
        np.asarray(result.transform.as_array()) - np.asarray(pairs.transform.as_array())
    )
    assert np.all(np.asarray(result.found))
    assert errors[:, :2].max() < NATIVE_FEATURES[0]
    assert errors[:, 2].max() < NATIVE_FEATURES[1]


@pytest.mark.parametrize("name", ["sift", "orb", "akaze"])
def test_the_papers_setting_is_opencvs_default(name):
    image = picture(128, 0, 3.0)
    grey = np.rint(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)).astype(np.uint8)
    create = f"{name.upper()}_create"
    default = getattr(cv2 if hasattr(cv2, create) else cv2.xfeatures2d, create)()
    expected, descriptors = default.detectAndCompute(grey, None)
    found = getattr(features, name).keypoints(image)
    assert len(expected) > 10
    np.testing.assert_allclose(found[0], [point.pt for point in expected], atol=1e-9)
    np.testing.assert_array_equal(found[1], descriptors)


@pytest.mark.parametrize("name", NATIVE + ENLARGED)
def test_no_texture_no_answer(name):
    flat = jnp.full((2, 32, 32, 3), 90.0)
    result = getattr(features, name)(flat, flat)
    assert not np.any(np.asarray(result.found))
    assert not np.any(np.asarray(result.success))
    np.testing.assert_array_equal(result.transform.as_array(), 0)
    np.testing.assert_array_equal(result.score, 0)


@pytest.mark.parametrize("name", ["orb", "akaze", "surf"])
def test_the_papers_setting_finds_nothing_at_32(name):
    images = [picture(32, s) for s in range(3)]
    np.testing.assert_array_equal(count_keypoints(getattr(features, name), images), 0)


def test_enlarging_and_low_thresholds_bring_keypoints():
    images = [picture(32, s) for s in range(3)]
    for name in NATIVE:
        native = count_keypoints(getattr(features, name), images)
        enlarged = count_keypoints(getattr(features, name + "_x4"), images)
        assert np.all(enlarged > native + 5)


@pytest.mark.parametrize("name", ENLARGED)
def test_the_same_call_gives_the_same_answer(name):
    pairs = pairs_of([picture(32, 5)], [(2, 1, 50)])
    method = getattr(features, name)
    first = method(pairs.fixed, pairs.moving)
    cv2.setRNGSeed(1234)
    again = method(pairs.fixed, pairs.moving)
    np.testing.assert_array_equal(first.transform.as_array(), again.transform.as_array())


@pytest.mark.parametrize("name", ["sift_x4", "orb_x4", "akaze_x4"])
def test_enlarged_keypoints_have_no_offset(name):
    """Points of the picture turned by 180 degrees mirror its own about the centre."""
    image = picture(32, 2)
    method = getattr(features, name)
    points, descriptors = method.keypoints(image)
    turned, turned_descriptors = method.keypoints(image[::-1, ::-1])
    pairs = match(descriptors, turned_descriptors, method.norm, 0.8)
    assert len(pairs) > 10
    difference = np.median(31.0 - turned[pairs[:, 1]] - points[pairs[:, 0]], axis=0)
    assert np.abs(difference).max() < ENLARGED_KEYPOINTS


def test_mahotas_surf_sees_a_blob_where_it_is():
    y, x = np.mgrid[:96, :96]
    blob = 200 * np.exp(-((x - 60) ** 2 + (y - 40) ** 2) / (2 * 3.0**2))
    points, descriptors = detect_mahotas_surf(blob.astype(np.uint8), threshold=0.01)
    assert descriptors.shape == (len(points), 64)
    assert np.linalg.norm(points - [60, 40], axis=1).min() < 1.0


def test_mahotas_surf_keeps_points_near_the_rim_with_a_mirrored_one():
    image = features.to_grey(picture(64, 1)).astype(np.uint8)
    plain, _ = detect_mahotas_surf(image, threshold=1e-4)
    points, _ = detect_mahotas_surf(image, threshold=1e-4, rim=24)
    assert len(points) > len(plain)
    assert points.min() >= 0
    assert points.max() <= 63


def test_surf_is_there_on_every_build():
    assert len(count_keypoints(features.surf_x4, [picture(64, 0)])) == 1
    assert count_keypoints(features.surf_x4, [picture(64, 0)])[0] > 0


@settings(deadline=None, max_examples=30)
@given(
    st.floats(-20, 20), st.floats(-20, 20), st.floats(-179, 179), st.integers(0, 10), st.booleans()
)
def test_consensus_recovers_the_truth_among_outliers(tx, ty, theta, seed, oblong):
    shape = (60, 90) if oblong else (60, 60)
    rng = np.random.default_rng(seed)
    fixed = rng.uniform(0, 60, (40, 2))
    matrix = to_matrix(np.array([tx, ty, theta]), shape)
    moving = fixed @ matrix[:2, :2].T + matrix[:2, 2]
    moving[:15] = rng.uniform(0, 60, (15, 2))
    found = consensus(fixed, moving, shape, threshold=0.5, least=3)
    assert found is not None
    np.testing.assert_allclose(found, (tx, ty, theta), atol=CONSENSUS)


def test_the_fit_has_no_scale():
    fixed = np.random.default_rng(0).uniform(0, 30, (20, 2))
    rotation, shift = fit_rigid(fixed, 1.1 * fixed @ np.array([[0.0, 1.0], [-1.0, 0.0]]))
    np.testing.assert_allclose(rotation, [[0, -1], [1, 0]], atol=1e-9)
    np.testing.assert_allclose(
        shift, 1.1 * rotation @ fixed.mean(0) - rotation @ fixed.mean(0), atol=1e-9
    )


def test_too_few_points_no_consensus():
    points = np.random.default_rng(0).uniform(0, 30, (2, 2))
    assert consensus(points, points, (32, 32), threshold=1.0, least=3) is None
    assert consensus(points[:0], points[:0], (32, 32), threshold=1.0, least=3) is None


def test_a_match_needs_a_second_best():
    descriptors = np.eye(4, dtype=np.float32)
    assert match(descriptors, descriptors[:1], cv2.NORM_L2, 0.75).shape == (0, 2)
    assert match(descriptors[:0], descriptors, cv2.NORM_L2, 0.75).shape == (0, 2)
    np.testing.assert_array_equal(
        match(descriptors, descriptors, cv2.NORM_L2, 0.75), np.stack([range(4)] * 2, 1)
    )


@pytest.mark.parametrize("shape", [(32, 32), (20, 48)])
def test_matrices_agree_with_the_library(shape):
    values = np.array([3.25, -1.5, 123.0])
    expected = np.asarray(RigidTransform(*values.tolist()).matrix(shape))
    np.testing.assert_allclose(to_matrix(values, shape), expected, atol=1e-4)
    np.testing.assert_allclose(from_matrix(to_matrix(values, shape), shape), values, atol=1e-9)
    assert from_matrix(to_matrix(np.array([0.0, 0.0, 180.0]), shape), shape)[2] == -180.0


def test_grey_images_and_empty_batches():
    pairs = pairs_of([picture(32)[..., :1]], [(2, 0, 0)])
    assert bool(features.orb_x4(pairs.fixed, pairs.moving).found[0])
    empty = jnp.zeros((0, 32, 32, 3))
    assert features.orb_x4(empty, empty).transform.tx.shape == (0,)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="batches"):
        features.orb(jnp.zeros((32, 32, 3)), jnp.zeros((32, 32, 3)))
    with pytest.raises(ValueError, match=r"\(H, W, 3\), got shape \(32, 32, 2\)"):
        features.orb(jnp.zeros((1, 32, 32, 2)), jnp.zeros((1, 32, 32, 2)))


def test_a_method_of_the_host_cannot_be_traced():
    images = jnp.zeros((2, 16, 16, 1))
    with pytest.raises(ValueError, match="call it outside of jit"):
        jax.jit(features.orb)(images, images)


def test_answers_that_are_not_finite_are_none():
    images = jnp.asarray(np.stack([picture(16, s) for s in range(2)]))
    result = register_each(lambda f, m: np.array([np.nan, 0.0, 0.0]), images, images)
    assert not np.any(np.asarray(result.found))
    assert np.isfinite(np.asarray(result.transform.as_array())).all()
