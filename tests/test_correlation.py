"""The coarse search against a brute-force masked correlation in NumPy."""

import itertools

import jax
import numpy as np
import pytest

from jaxreg.direct import correlation, discs
from jaxreg.direct.correlation import Limits, evidence, within
from jaxreg.direct.masking import Masks, Pair
from jaxreg.geometry import RigidTransform
from jaxreg.warping import warp
from tests.compilation_support import quickly_compiled
from tests.registration_support import errors, texture

SHAPES = [(16, 16), (16, 19), (18, 15), (14, 20)]

# Each compiled as one: they are dozens of operations.
correlation_volume = jax.jit(correlation.correlation_volume, static_argnames=("angles", "reach"))
search = jax.jit(correlation.search, static_argnames=("angles", "reach", "count"))
rotated_discs = jax.jit(discs.rotated_discs, static_argnames="angles")


@pytest.fixture(autouse=True)
def _quickly_compiled():
    with quickly_compiled():
        yield


def brute_force(turned, disc, moving, seen, dx, dy):
    """Masked NCC of a turned disc placed at a shift; both axes' centring as the docstring says."""
    side = len(disc)
    top = (moving.shape[0] - side) // 2 + dy
    left = (moving.shape[1] - side) // 2 + dx
    a, b = [], []
    for y in range(side):
        for x in range(side):
            v, u = top + y, left + x
            within = 0 <= v < moving.shape[0] and 0 <= u < moving.shape[1]
            if disc[y, x] and within and seen[v, u]:
                a.append(turned[y, x])
                b.append(moving[v, u])
    ncc = np.corrcoef(a, b)[0, 1]
    share = len(a) / disc.sum()
    return -np.sign(ncc) * share * np.log1p(0.01 - ncc**2)


def inscribed_disc(side):
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    return np.hypot(x, y) <= side / 2


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("angle", [0.0, 135.0])
def test_volume_agrees_with_brute_force(shape, angle):
    """Of images that are views of one, for which a line too many or too few masks."""
    fixed = texture(shape, seed=1)
    moving = np.asarray(warp(fixed, RigidTransform(2.0, -1.0, angle))) + texture(shape, seed=2) / 4
    volume = np.asarray(correlation_volume(Pair(fixed, moving), angles=8, reach=4))
    assert volume.shape == (9, 9, 8)
    turned, disc, seen = rotated_discs(fixed, 8), inscribed_disc(min(shape)), np.ones(shape, bool)
    for k, dy, dx in itertools.product(range(8), (-4, -1, 0, 4), (-4, 0, 2, 4)):
        expected = brute_force(np.asarray(turned[k]), disc, moving, seen, dx, dy)
        assert volume[4 + dy, 4 + dx, k] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_windows_made_in_a_loop_are_the_same(shape, monkeypatch):
    pair = Pair(texture(shape, seed=1), texture(shape, seed=2))
    at_once = correlation_volume(pair, angles=8, reach=4)
    monkeypatch.setattr(correlation, "_LOOP", 0)
    volume = jax.jit(lambda pair: correlation.correlation_volume(pair, angles=8, reach=4))
    np.testing.assert_allclose(volume(pair), at_once, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_volume_of_masked_images_agrees_with_brute_force(shape):
    fixed, moving = texture(shape, seed=1), texture(shape, seed=2)
    masks = Masks(*(np.float32(texture(shape, seed=s) > 110) for s in (3, 4)))
    volume = np.asarray(correlation_volume(Pair(fixed, moving, masks), angles=8, reach=4))
    assert volume.shape == (9, 9, 8)
    turned, seen = rotated_discs(fixed, 8), np.asarray(rotated_discs(masks.source, 8)) >= 0.5
    for k, dy, dx in itertools.product(range(8), (-4, 0, 3), (-4, 1, 4)):
        disc = inscribed_disc(min(shape))
        part = np.asarray(turned[k])
        both = brute_force(part, disc & seen[k], moving, masks.target > 0, dx, dy)
        # `brute_force` counts shares of what is seen of the disc.
        expected = both * (disc & seen[k]).sum() / disc.sum()
        assert volume[4 + dy, 4 + dx, k] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("rotation", [0.0, 20.0, 90.0, 150.0, 180.0])
def test_a_limited_turn_is_covered(rotation):
    turns = (np.arange(24) + 12) % 24 - 12
    kept = np.abs(turns[within(Limits(3.0, rotation), 24, reach=3)[3, 3]])
    assert kept.max() * 15 >= rotation > (kept.max() - 1) * 15
    assert len(kept) == min(2 * kept.max() + 1, 24)


@pytest.mark.parametrize(("shift", "rotation"), [(3.0, 20.0), (2.4, 90.0), (0.1, 0.0)])
def test_the_best_within_limits_is_found(shift, rotation):
    pair = Pair(texture((16, 19), seed=1), texture((16, 19), seed=2))
    limits = Limits(shift, rotation)
    peaks = search(pair, angles=24, reach=3, count=3, limits=limits)
    assert (np.abs((peaks.theta + 180) % 360 - 180) <= np.ceil(rotation / 15) * 15).all()
    assert np.abs([peaks.tx + 0.5, peaks.ty]).max() <= max(round(shift), 1)
    volume = np.array(correlation_volume(pair, angles=24, reach=3))
    volume[~np.asarray(within(limits, 24, reach=3))] = -np.inf
    y, x, k = np.unravel_index(volume.argmax(), volume.shape)
    np.testing.assert_allclose(peaks[0].as_array(), [x - 3.5, y - 3, 15 * k])


def test_discs_are_turned_clockwise():
    image = texture((16, 16))
    discs = np.asarray(rotated_discs(image, 16))
    assert discs.shape == (16, 16, 16)
    turned = np.asarray(warp(image, RigidTransform(0.0, 0.0, 67.5)))
    np.testing.assert_allclose(discs[3, 4:12, 4:12], turned[4:12, 4:12], atol=1e-2)
    np.testing.assert_array_equal(discs[4], np.rot90(discs[0], -1))


@pytest.mark.parametrize("shape", SHAPES)
def test_search_finds_a_turn_and_a_shift(shape):
    """Also where the square of the disc sits half a pixel off the image's centre."""
    truth = RigidTransform(2.0, -1.0, 60.0)
    fixed = texture(shape, seed=3)
    everything = Limits(5.0, 180.0)
    pair = Pair(fixed, warp(fixed, truth))
    peaks = search(pair, angles=48, reach=5, count=6, limits=everything)
    assert peaks.batch_shape == (6,)
    volume = np.asarray(correlation_volume(pair, angles=48, reach=5))
    half_y, half_x = (0.5 * ((size - min(shape)) % 2) for size in shape)
    place = peaks.ty + half_y + 5, peaks.tx + half_x + 5, peaks.theta / 7.5
    scores = volume[tuple(np.asarray(v).round().astype(int) for v in place)]
    assert (np.diff(scores) <= 0).all()
    shift, turn = errors(peaks[0], truth)
    assert shift <= 1.0
    assert turn <= 7.5


def test_evidence_grows_with_overlap_and_correlation():
    shares = np.array([0.1, 0.5, 1.0])
    assert (np.diff(np.asarray(evidence(np.float32(0.9), shares))) > 0).all()
    values = np.asarray(evidence(np.linspace(-1, 1, 21).astype(np.float32), np.float32(0.7)))
    assert (np.diff(values[:10]) > 0).all()
    assert (np.diff(values[11:]) > 0).all()
    assert np.sign(values[0]) == -1
    assert np.isfinite(values).all()


def test_constant_images_have_finite_evidence():
    flat = np.full((16, 16), 5.0, np.float32)
    for pair in [(flat, flat), (flat, texture((16, 16))), (texture((16, 16)), flat)]:
        volume = np.asarray(correlation_volume(Pair(*pair), angles=8, reach=4))
        assert np.isfinite(volume).all()
        assert np.abs(volume).max() < 0.1
