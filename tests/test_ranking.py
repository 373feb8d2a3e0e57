"""Which candidate is the best: local agreement against scipy, occlusions, rivals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxreg.direct import ranking
from jaxreg.direct.correlation import evidence
from jaxreg.direct.masking import Pair
from jaxreg.direct.ranking import Evidence, Ranked
from jaxreg.geometry import RigidTransform
from jaxreg.warping import overlap, warp
from tests.registration_support import texture

# Each compiled as one: they are dozens of operations.
local_evidence = jax.jit(ranking.local_evidence, static_argnames="sigma")
standing = jax.jit(ranking.standing)
best_and_rivals = jax.jit(ranking.best_and_rivals)

TRUTH = RigidTransform(3.0, -2.0, 90.0)  # whole pixels: no interpolation blurs it


def stacked(*transforms):
    return RigidTransform.from_array(np.stack([t.as_array() for t in transforms]))


@pytest.mark.parametrize("sigma", [2.0, 3.0, 4.5])  # neighbourhoods 1, 2 and 3 px apart
def test_local_evidence_is_that_of_correlations_within_gaussian_neighbourhoods(sigma):
    source, target = texture((24, 20), seed=1), texture((24, 20), seed=2)
    t = RigidTransform(2.0, 3.0, 0.0)
    moved, inside = np.asarray(warp(source, t)), np.asarray(overlap(source.shape, t), float)

    def mean(values):
        # The blur of the method is cut off at the frame, and takes no account of what lies beyond.
        blur = lambda v: ndimage.gaussian_filter(v, sigma, mode="constant", truncate=20.0)  # noqa: E731
        return blur(inside * values) / blur(inside)

    cov = mean(moved * target) - mean(moved) * mean(target)
    var_s, var_t = (mean(v * v) - mean(v) ** 2 for v in (moved, target))
    expected = inside * np.asarray(evidence(cov / np.sqrt(var_s * var_t), np.ones(1)))
    pair = Pair(jnp.asarray(source), jnp.asarray(target))
    found = local_evidence(pair, stacked(t), sigma).score
    assert float(found[0]) == pytest.approx(expected.mean(), abs=0.02)


def test_a_hidden_fifth_leaves_the_right_one_far_ahead():
    image = jnp.asarray(texture((32, 32)) / 50)
    moving = warp(image, TRUTH)
    hidden = moving.at[9:23, 9:23].set(10.0)
    candidates = stacked(TRUTH, RigidTransform(-3.0, 2.0, 0.0))
    right, wrong = local_evidence(Pair(image, hidden), candidates, 2.0).score
    whole, _ = local_evidence(Pair(image, moving), candidates, 2.0).score
    assert right > 0.2 * whole
    assert wrong < 0.1 * right


def test_flat_images_have_no_evidence():
    flat, other = jnp.full((16, 16), 3.0), jnp.asarray(texture((16, 16)))
    for pair in [(flat, flat), (flat, other), (other, flat)]:
        found = local_evidence(Pair(*pair), stacked(TRUTH), 1.5).score
        assert np.abs(np.asarray(found)).max() < 0.05


def test_what_is_seen_are_the_pixels_of_the_overlap():
    image = jnp.asarray(texture((16, 20)))
    transforms = (0.0, 0.0, 0.0), (0.0, 4.0, 0.0), (8.0, 0.0, 180.0), (0.0, 8.0, 0.0)
    some = stacked(*(RigidTransform(*t) for t in transforms))
    seen = local_evidence(Pair(image, image), some, 1.5).seen
    np.testing.assert_allclose(seen, [16 * 20, 12 * 20, 16 * 12, 8 * 20], rtol=1e-3)


def test_the_rivals_are_other_alignments():
    candidates = stacked(
        RigidTransform(1.0, 1.0, 10.0),
        RigidTransform(1.2, 0.8, 12.0),
        RigidTransform(1.0, 1.0, 100.0),
        RigidTransform(-2.0, 1.0, 10.0),
    )
    evidence = Evidence(jnp.array([0.9, 0.8, 0.45, 0.5]), jnp.array([300.0, 900.0, 150.0, 310.0]))
    ranked = best_and_rivals(candidates, evidence)
    picked = [0, 3, 2]  # the last has half as much to show
    np.testing.assert_allclose(
        ranked.transform.as_array(), np.asarray(candidates.as_array())[picked]
    )
    for found, given in zip(ranked.evidence, evidence, strict=True):
        np.testing.assert_allclose(found, given[np.array(picked)])
    few = jax.tree.map(lambda v: v[:2], (candidates, evidence))
    np.testing.assert_allclose(best_and_rivals(*few).evidence.score, [0.9, -1.0, -1.0])


@pytest.mark.parametrize(
    ("scores", "seen", "lead", "lead_at_equal_overlap"),
    [
        ((0.9, 0.6, 0.5), (240.0, 180.0, 240.0), 0.3, 0.9 - 0.8),  # 12 of 16 rows
        ((0.9, 0.6, 0.5), (240.0, 240.0, 150.0), 0.3, 0.9 - 0.8),
        ((0.9, 0.6, 0.5), (120.0, 180.0, 240.0), 0.3, 0.3),  # more to show, and yet not better
        ((0.9, -1.0, -1.0), (240.0, 120.0, 120.0), 1.9, 1.9),  # no other, or one that disagrees
    ],
)
def test_a_rival_that_shows_less_is_compared_pixel_by_pixel(
    scores, seen, lead, lead_at_equal_overlap
):
    three = stacked(TRUTH, TRUTH, TRUTH)
    found = standing(Ranked(three, Evidence(jnp.array(scores), jnp.array(seen))))
    np.testing.assert_allclose(np.array(found), [0.9, lead, lead_at_equal_overlap], atol=1e-6)
