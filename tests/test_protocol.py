"""Suites, their grammar and their conditions; the Cramér-Rao bound against a closed form."""

import functools
import operator

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

import jaxreg.data
from jaxreg.disturbances import Disturbance
from jaxreg.evaluation import protocol
from jaxreg.evaluation.bound import cramer_rao
from jaxreg.evaluation.protocol import build_suite, conditions, draw_parameters
from jaxreg.evaluation.suites import SUITES, parse_suite
from jaxreg.geometry import RigidTransform
from jaxreg.warping import warp
from tests.tolerances import FISHER, FLOAT32_INTENSITY


def images(count, size, seed=0):
    noise = np.random.default_rng(seed).uniform(0, 255, (count, size, size, 3))
    smooth = scipy.ndimage.gaussian_filter(noise, (0, 1, 1, 0))
    return np.clip(128 + 2 * (smooth - 128), 0, 255).astype(np.uint8)


@pytest.fixture(autouse=True)
def sources(monkeypatch):
    monkeypatch.setattr(jaxreg.data, "load_images", lambda source, split, size: images(50, size))
    pictures = {"a": images(1, 200)[0], "b": images(1, 180, 1)[0]}
    monkeypatch.setattr(jaxreg.data, "photographs", lambda split: pictures)


def test_the_eight_suites():
    fields = operator.attrgetter("source", "size", "max_shift", "gross_pixels", "scene")
    small, large = (32, 5.0, 2.0), (96, 15.0, 4.0)
    assert {name: fields(suite) for name, suite in SUITES.items()} == {
        "cifar10": ("cifar10", *small, False),
        "random32": ("random", *small, False),
        "photos32": ("photos", *small, False),
        "scene32": ("photos", *small, True),
        "stl10": ("stl10", *large, False),
        "random96": ("random", *large, False),
        "photos96": ("photos", *large, False),
        "scene96": ("photos", *large, True),
    }


@pytest.mark.parametrize(
    ("spec", "field", "value"),
    [
        ("cifar10+noise10", "disturbance", Disturbance(noise=10.0)),
        ("scene32+noise2.5", "disturbance", Disturbance(noise=2.5)),
        ("cifar10+gain", "disturbance", Disturbance(gain=0.3, bias=20.0)),
        ("cifar10+blur", "disturbance", Disturbance(blur=0.7)),
        ("cifar10+blur2", "disturbance", Disturbance(blur=2.0)),
        ("cifar10+occlusion", "disturbance", Disturbance(occlusion=0.2)),
        ("cifar10+occlusion5+noise2", "disturbance", Disturbance(noise=2.0, occlusion=0.05)),
        ("cifar10+bicubic", "interpolation", "cubic"),
        ("cifar10+jpeg", "jpeg", 75),
        ("cifar10+jpeg60", "jpeg", 60),
        ("cifar10+shift10", "max_shift", 10.0),
        ("folder:some/where@64", "source", "folder:some/where"),
        ("folder:some/where@64", "max_shift", 10.0),
        ("scene@48+gain", "scene", True),
        ("folder:/a+b/c+@64", "source", "folder:/a+b/c+"),
        ("folder:/a+b@64+noise2", "disturbance", Disturbance(noise=2.0)),
        ("folder:/a+b@64+noise2+jpeg", "base", "folder:/a+b@64"),
        ("folder:/a@64+b@8+noise2", "source", "folder:/a@64+b"),
        ("cifar10+noise2+jpeg", "base", "cifar10"),
    ],
)
def test_specs(spec, field, value):
    suite = parse_suite(spec)
    assert getattr(suite, field) == value
    assert suite.name == spec


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cifr10", r"unknown suite 'cifr10', did you mean cifar10\? There are cifar10, random32"),
        ("cifar10+snow", "unknown disturbance 'snow'; there are noiseS, gain"),
        ("cifar10+", "unknown disturbance ''"),
        ("cifar10+noise", "'noise' should read like 'noise10'"),
        ("cifar10+gain3", "'gain3' should read like 'gain'"),
        ("cifar10+noise2+noise5", "noise is given twice"),
        ("cifar10+jpeg101", "quality from 1 to 100"),
        ("cifar10+occlusion200", "in \\[0, 1\\], got 2.0"),
        ("scene32+bicubic", "does not go with scenes"),
        ("scene32+unrelated", "may overlap"),
        ("photos@4", "size 8 or more"),
        ("folder:/a+b", "unknown suite 'folder:/a'.*SOURCE@SIZE"),
        ("folder:/a+b@64+snow", "unknown disturbance 'snow'"),
    ],
)
def test_wrong_specs_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        parse_suite(spec)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_a_key_would_cut_are_refused(seed):
    with pytest.raises(ValueError, match="seed must be from 0"):
        build_suite("photos32", 4, seed)


def test_conditions_are_balanced_for_any_number():
    assert np.array_equal(np.bincount(conditions()), np.full(384, 10))
    for pairs in range(1, 500, 7):
        rotation, shift = np.divmod(conditions(pairs), 16)
        for bins, count in ((rotation, 24), (shift, 16), (shift // 4, 4), (shift % 4, 4)):
            counts = np.bincount(bins, minlength=count)
            assert np.ptp(counts) <= 2
        assert np.ptp(np.bincount(conditions(pairs), minlength=384)) <= 1


def test_parameters_lie_in_their_bins_and_fill_them():
    parameters, condition = draw_parameters(3840, 5.0, seed=1)
    rotation, shift = np.divmod(condition, 16)
    y, x = np.divmod(shift, 4)
    np.testing.assert_array_equal(np.floor((parameters[:, 0] + 5) / 2.5), x)
    np.testing.assert_array_equal(np.floor((parameters[:, 1] + 5) / 2.5), y)
    np.testing.assert_array_equal(np.floor((parameters[:, 2] + 180) / 15), rotation)
    within = (parameters[:, 2] + 180) % 15 / 15
    # The mean of 3,840 uniform draws has a standard error of 0.005.
    np.testing.assert_allclose([within.mean(), within.std()], [0.5, 1 / np.sqrt(12)], atol=0.02)
    np.testing.assert_array_equal(draw_parameters(100, 5.0, seed=1)[0], parameters[:100])
    doubled, _ = draw_parameters(100, 10.0, seed=1)
    np.testing.assert_allclose(doubled[:, :2], 2 * parameters[:100, :2], rtol=1e-6)
    np.testing.assert_array_equal(doubled[:, 2], parameters[:100, 2])


def test_a_suite_is_the_warp_of_images_that_do_not_repeat(monkeypatch):
    monkeypatch.setattr(protocol, "_BATCH_PIXELS", 32 * 32 * 16)  # several batches, one partial
    data = build_suite("cifar10", pairs=40, seed=2)
    assert data.fixed.shape == data.moving.shape == (40, 32, 32, 3)
    assert data.fixed.dtype == np.float32
    assert len({image.tobytes() for image in data.fixed}) == 40
    assert {image.tobytes() for image in data.fixed} <= {
        image.tobytes() for image in images(50, 32).astype(np.float32)
    }
    for k in (0, 39):
        expected = warp(data.fixed[k], RigidTransform.from_array(data.truth[k]))
        np.testing.assert_allclose(data.moving[k], expected, atol=FLOAT32_INTENSITY)
    assert data.bound is None


def test_images_come_again_only_when_all_were_used():
    data = build_suite("cifar10", pairs=120, seed=2)
    counts = np.unique(data.fixed.reshape(120, -1), axis=0, return_counts=True)[1]
    assert len(counts) == 50
    assert counts.min() >= 2


@pytest.mark.parametrize("spec", ["cifar10", "scene32"])
def test_disturbed_suites_hold_the_same_pairs(spec, monkeypatch):
    plain = build_suite(spec, pairs=12, seed=3)
    monkeypatch.setattr(protocol, "_BATCH_PIXELS", 32 * 32 * 5)  # batches must not matter either
    noisy = build_suite(f"{spec}+noise10", pairs=17, seed=3)
    np.testing.assert_array_equal(noisy.truth[:12], plain.truth)
    difference = np.concatenate([noisy.fixed[:12] - plain.fixed, noisy.moving[:12] - plain.moving])
    np.testing.assert_allclose([difference.mean(), difference.std()], [0, 10], atol=0.2)
    assert noisy.bound.shape == (17, 3)
    assert (noisy.bound > 0).all()
    again = build_suite(f"{spec}+noise10", pairs=12, seed=3)
    np.testing.assert_allclose(again.moving, noisy.moving[:12], atol=FLOAT32_INTENSITY)
    assert not np.allclose(build_suite(spec, pairs=12, seed=4).moving, plain.moving)


def test_the_bound_of_a_pair_is_that_of_its_overlap():
    """Against the Fisher information of all channels, by finite differences of scipy's warp."""
    plain, noisy = build_suite("cifar10", 12, seed=3), build_suite("cifar10+noise10", 5, seed=3)
    y, x = np.mgrid[:32, :32] - 15.5

    def before(p):
        cos, sin = np.cos(np.deg2rad(p[2])), np.sin(np.deg2rad(p[2]))
        u, v = x - p[0], y - p[1]
        return np.stack([cos * v - sin * u, cos * u + sin * v]) + 15.5

    def moved(planes, p):
        pull = functools.partial(scipy.ndimage.map_coordinates, order=1, mode="grid-constant")
        return np.stack([pull(plane, before(p)) for plane in planes])

    for k in range(5):
        planes, truth = np.moveaxis(plain.fixed[k], -1, 0).astype(float), plain.truth[k]
        shared = (np.abs(before(truth) - 15.5) <= 15.5).all(0)
        slopes = [moved(planes, truth + h) - moved(planes, truth - h) for h in 1e-5 * np.eye(3)]
        jacobian = np.stack([slope[:, shared].ravel() / 2e-5 for slope in slopes])
        expected = 2 * 10**2 * np.diag(np.linalg.inv(jacobian @ jacobian.T))
        np.testing.assert_allclose(noisy.bound[k], expected, rtol=FISHER)


def test_bounds_only_where_noise_is_all_there_is():
    assert parse_suite("scene32+noise10+shift8").bounded
    for spec in (
        "scene32",
        "cifar10+noise10+gain",
        "cifar10+noise10+unrelated",
        "cifar10+noise5+jpeg",
    ):
        assert not parse_suite(spec).bounded


def test_scenes_have_no_black_corners():
    data = build_suite("scene32", pairs=6, seed=0)
    outside = np.asarray(warp(np.ones((32, 32)), RigidTransform.from_array(data.truth[0]))) < 0.5
    assert outside.any()
    assert data.moving[0][outside].mean() > 50


def test_unrelated_pairs_show_different_pictures():
    plain, mixed = (build_suite(f"cifar10{s}", pairs=5, seed=0) for s in ("", "+unrelated"))
    np.testing.assert_array_equal(mixed.fixed, plain.fixed)
    np.testing.assert_array_equal(mixed.moving, plain.moving[[4, 0, 1, 2, 3]])


def test_unrelated_pairs_are_so_however_few_images_there_are():
    few = images(2, 32)
    mixed = build_suite("cifar10+unrelated", pairs=7, seed=0, source=few)
    drawn = (mixed.fixed == few[0]).all((1, 2, 3))
    plain = build_suite("cifar10", pairs=7, seed=0, source=few)
    for moving, first in zip(mixed.moving, drawn, strict=True):
        (donor,) = np.flatnonzero((plain.moving == moving).all((1, 2, 3)))
        assert drawn[donor] != first
    for pairs, source in ((1, few), (3, few[:1])):
        with pytest.raises(ValueError, match="takes two pairs or more, of different images"):
            build_suite("cifar10+unrelated", pairs=pairs, seed=0, source=source)


def test_jpeg_is_opencvs():
    plain, coded = (build_suite(f"cifar10{s}", pairs=3, seed=0) for s in ("", "+jpeg75"))
    for before, after in ((plain.fixed, coded.fixed), (plain.moving, coded.moving)):
        for a, b in zip(before, after, strict=True):
            bgr = cv2.cvtColor(np.clip(np.rint(a), 0, 255).astype(np.uint8), cv2.COLOR_RGB2BGR)
            code = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 75])[1]
            expected = cv2.cvtColor(cv2.imdecode(code, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
            assert np.array_equal(b, expected)


def test_pairs_must_be_positive():
    with pytest.raises(ValueError, match="pairs must be 1 or more, got 0"):
        build_suite("cifar10", pairs=0)


def test_cramer_rao_closed_form():
    # A view whose derivatives are known: x^2 moved by tx, y^2 by ty, and 3 grey levels a degree on
    # a pattern of its own, orthogonal to both, in the third channel.
    y, x = np.meshgrid(np.arange(9.0) - 4, np.arange(9.0) - 4, indexing="ij")
    pattern = np.where((x + y) % 2, 3.0, -3.0)

    def view(t):
        return jnp.stack([(x - t.tx) ** 2, (y - t.ty) ** 2, pattern * t.theta], -1)

    mask = np.ones((9, 9), bool)
    variance = cramer_rao(view, RigidTransform(0.0, 0.0, 10.0), jnp.asarray(mask), noise=2.0)
    expected = [2 * 4 / np.sum(4 * x**2), 2 * 4 / np.sum(4 * y**2), 2 * 4 / (9 * 81)]
    np.testing.assert_allclose(variance, expected, rtol=1e-5)
    # Half the pixels, twice the variance; correlated columns against a plain matrix inverse.
    mask[:, :4] = False
    mixed = lambda t: view(t) + 0.5 * t.tx * y[..., None] + 0.3 * t.theta * x[..., None]  # noqa: E731
    j = np.stack([np.stack([-2 * x, 0 * x, 0 * x], -1) + 0.5 * y[..., None],
                  np.stack([0 * x, -2 * y, 0 * x], -1),
                  np.stack([0 * x, 0 * x, pattern], -1) + 0.3 * x[..., None]], -1)  # fmt: skip
    j = j[mask].reshape(-1, 3)
    variance = cramer_rao(mixed, RigidTransform(0.0, 0.0, 10.0), jnp.asarray(mask), noise=2.0)
    np.testing.assert_allclose(variance, np.diag(8 * np.linalg.inv(j.T @ j)), rtol=1e-4)


def test_cramer_rao_of_what_cannot_be_registered_is_infinite():
    stripes = jnp.broadcast_to(jnp.sin(jnp.arange(32.0)) * 50, (32, 32))[..., None]
    mask = jnp.zeros((32, 32), bool).at[8:24, 8:24].set(True)
    for picture in (stripes * 0 + 9, stripes):  # nothing to see; nothing that fixes ty
        view = functools.partial(warp, picture)
        variance = cramer_rao(view, RigidTransform.from_array([0.3, 0.2, 0.0]), mask, 1.0)
        assert np.isinf(variance).all()
