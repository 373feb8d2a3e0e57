"""Other libraries as estimators: conventions, known answers, failure as data."""

import importlib.metadata
import importlib.util
import sys

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from baselines import peers
from baselines.peers import overlap_correlation
from jaxreg.geometry import RigidTransform
from jaxreg.methods import find_method
from jaxreg.pairs import warp_pairs
from jaxreg.warping import warp
from tests.tolerances import PEER_WITHOUT_BLACK

PACKAGE = {"simpleitk": "SimpleITK", "pystackreg": "pystackreg"}
PEERS = ("simpleitk", "ecc", "pystackreg", "skimage_polar")
# What each must reach on three smooth 32x32 pictures, in px and degrees.
REACH = {
    "simpleitk": (0.2, 0.4),
    "ecc": (0.2, 0.8),
    "pystackreg": (0.2, 0.6),
    "skimage_polar": (0.6, 1.5),
}


def estimator(name):
    if name in PACKAGE:
        pytest.importorskip(PACKAGE[name], reason="pip install 'jaxreg[peers]' brings it")
    return getattr(peers, name)


def picture(size=32, seed=0, sigma=2.0):
    noise = np.random.default_rng(seed).normal(0, 1, (size, size, 3))
    smooth = scipy.ndimage.gaussian_filter(noise, (sigma, sigma, 0), mode="reflect")
    return np.clip(128 + 50 * smooth / smooth.std(), 0, 255).astype(np.float32)


@pytest.mark.parametrize("name", PEERS)
def test_finds_known_transforms_all_around(name):
    truth = jnp.asarray([(3, -2, 0), (0.4, 1.3, 100), (-2.5, 2, -158)], jnp.float32)
    images = jnp.asarray(np.stack([picture(seed=s) for s in range(3)]))
    pairs = warp_pairs(images, RigidTransform.from_array(truth))
    result = estimator(name)(pairs.fixed, pairs.moving)
    assert np.all(np.asarray(result.found))
    assert np.all(np.asarray(result.success))
    errors = np.abs(np.asarray(result.transform.as_array()) - np.asarray(truth))
    pixels, degrees = REACH[name]
    assert errors[:, :2].max() < pixels
    assert errors[:, 2].max() < degrees


@pytest.mark.parametrize("name", ["simpleitk", "ecc", "pystackreg"])
def test_black_corners_do_not_pull(name):
    truth = jnp.asarray([(4, -3, 30), (-4, 3.5, 135)], jnp.float32)
    images = jnp.asarray(np.stack([picture(seed=s) for s in range(2)]))
    pairs = warp_pairs(images, RigidTransform.from_array(truth))
    found = estimator(name)(pairs.fixed, pairs.moving).transform
    errors = np.abs(np.asarray(found.as_array()) - np.asarray(truth))
    pixels, degrees = PEER_WITHOUT_BLACK
    assert errors[:, :2].max() < pixels
    # Without the mask, too, ECC turns smooth pictures less precisely than the others.
    assert errors[:, 2].max() < (REACH[name][1] if name == "ecc" else degrees)


def test_pystackreg_starts_from_shifts_too():
    truth = jnp.asarray([(14, 14, 172), (-14, -14, 20)], jnp.float32)
    images = jnp.asarray(np.stack([picture(96, seed, 1.5) for seed in (2, 5)]))
    pairs = warp_pairs(images, RigidTransform.from_array(truth))
    found = estimator("pystackreg")(pairs.fixed, pairs.moving).transform
    np.testing.assert_allclose(found.as_array(), truth, atol=0.1)


@pytest.mark.parametrize("failing", [1, 5])
def test_a_way_on_which_ecc_diverges_costs_no_other_one(monkeypatch, failing):
    image, truth = picture(), np.array([1.0, -0.5, 42.0])
    moving = np.asarray(warp(image, RigidTransform(*truth)))
    refine, diverged = cv2.findTransformECC, []

    def once_diverging(*arguments):
        if arguments[-1] == failing and not diverged:
            diverged.append(failing)
            raise cv2.error("it stopped before its convergence")
        return refine(*arguments)

    monkeypatch.setattr(cv2, "findTransformECC", once_diverging)
    monkeypatch.setattr(peers, "_rotation_search", lambda *_: [truth + 1.0])
    found = peers.register_ecc(image, moving)
    assert diverged
    np.testing.assert_allclose(found, truth, atol=REACH["ecc"][1])


@pytest.mark.parametrize("name", PEERS)
def test_no_texture_no_trust(name):
    flat = jnp.full((1, 32, 32, 3), 90.0)
    result = estimator(name)(flat, flat)
    assert not np.any(np.asarray(result.success))
    assert np.isfinite(np.asarray(result.transform.as_array())).all()


@pytest.mark.parametrize("name", PEERS)
def test_the_same_call_gives_the_same_answer(name):
    pairs = warp_pairs(
        jnp.asarray(picture(seed=4))[None], RigidTransform.from_array(jnp.asarray([[1.0, 2, 40]]))
    )
    first, again = (estimator(name)(pairs.fixed, pairs.moving) for _ in range(2))
    np.testing.assert_array_equal(first.transform.as_array(), again.transform.as_array())


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_start_that_simpleitk_gives_up_costs_no_other_one(monkeypatch, failing):
    sitk = pytest.importorskip("SimpleITK", reason="pip install 'jaxreg[peers]' brings it")
    starts = [(0.0, 0.0, 0.0), (0.5, 1.0, 1.0), (-0.5, 1.0, 1.0)]
    starts[failing] = (0.0, 500.0, 500.0)  # no overlap
    monkeypatch.setattr(peers, "_itk_starts", lambda *_: starts)
    image = picture()
    truth = np.array([1.0, -0.5, np.rad2deg(starts[(failing + 1) % 3][0]) + 3.0])
    moving = np.asarray(warp(image, RigidTransform(*truth)))
    found = peers.register_simpleitk(sitk, image, moving)
    np.testing.assert_allclose(found, truth, atol=REACH["simpleitk"][1])


@pytest.mark.parametrize("name", PEERS)
def test_takes_oblong_images(name):
    image = jnp.asarray(picture(48, seed=6)[:32])
    truth = RigidTransform.from_array(jnp.asarray([[1.0, -2.0, 20.0]]))
    pairs = warp_pairs(image[None], truth)
    result = estimator(name)(pairs.fixed, pairs.moving)
    errors = np.abs(np.asarray(result.transform.as_array() - truth.as_array()))
    assert errors[:, :2].max() < REACH[name][0]
    assert errors[:, 2].max() < REACH[name][1]


@pytest.mark.parametrize("name", ["simpleitk", "pystackreg"])
def test_a_missing_package_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGE[name], None)
    with pytest.raises(ImportError, match=rf"{PACKAGE[name]}.*pip install 'jaxreg\[peers\]'"):
        getattr(peers, name)
    with pytest.raises(ValueError, match=rf"{name}.* cannot be loaded: {PACKAGE[name]} is not"):
        find_method(name)


def test_overlap_correlation_is_one_at_the_truth_and_minus_one_without_overlap():
    image = picture()[..., 0]
    moving = np.asarray(warp(image, RigidTransform(4.0, -3.0, 90.0)))
    assert overlap_correlation(image, moving, np.array([4.0, -3.0, 90.0])) > 0.999
    assert overlap_correlation(image, moving, np.array([4.0, -3.0, -90.0])) < 0.8
    assert overlap_correlation(image, moving, np.array([31.0, 0.0, 0.0])) == -1.0


def test_every_baseline_is_an_entry_point_that_loads():
    points = importlib.metadata.entry_points(group="jaxreg.methods")
    names = {point.name for point in points}
    expected = {"fft", "sift", "surf", "orb", "akaze", *PEERS}
    expected |= {name + "_x4" for name in ("sift", "surf", "orb", "akaze")}
    assert expected <= names
    for point in points:
        if importlib.util.find_spec(PACKAGE.get(point.name, "numpy")):
            assert callable(point.load())
