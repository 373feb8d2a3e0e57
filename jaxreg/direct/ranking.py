"""Rank alignments by local evidence: find the best one and its closest rivals.

The images are correlated *within neighbourhoods*. An object that hides a part of the view then
spoils only the neighbourhoods that it covers, where it would spoil a correlation of the whole.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.compute.products import product
from jaxreg.direct.correlation import evidence
from jaxreg.direct.masking import Pair
from jaxreg.direct.pyramid import blurring_matrix
from jaxreg.direct.resampling import sampled
from jaxreg.geometry import RigidTransform
from jaxreg.metrics import rotation_error, translation_error

# Share of the target's mean square that is added to the local variances: a neighbourhood with less
# counts as flat. No comparison of values is on record, nor for the next two.
_FAINT = 0.002
# Distance of the centres of neighbourhoods, in their standard deviations and at least a pixel.
_SPACING = 2 / 3
# Alignments that differ by less than both are the same one.
_SAME_SHIFT = 2.0  # px of their pyramid level
_SAME_TURN = 6.0  # degrees


class Evidence(NamedTuple):
    """How well two images agree at each of K alignments.

    Attributes:
      score: ``(K,)``, see `local_evidence`.
      seen: ``(K,)``, number of pixels in the overlap.
    """

    score: jax.Array
    seen: jax.Array

    def at_overlap(self, seen: jax.Array) -> jax.Array:
        """Scale positive scores ``(K,)`` up to an overlap of at least ``seen`` pixels."""
        more = jnp.maximum(seen / jnp.maximum(self.seen, 1.0), 1.0)
        return jnp.where(self.score > 0.0, more, 1.0) * self.score


class Ranked(NamedTuple):
    """The best of several alignments and its closest rivals.

    Attributes:
      transform: ``(3,)`` transforms: the best one; the rival with the most evidence; and the rival
        with the most evidence at the overlap of the best (`Evidence.at_overlap`). A periodic
        pattern fits as well one period on, over a smaller overlap.
      evidence: of the three; a rival's score is -1 if all alignments are the same one.
    """

    transform: RigidTransform
    evidence: Evidence


class Standing(NamedTuple):
    """How far the best of several alignments leads its closest rivals.

    Attributes:
      evidence: scalar, of the best, see `local_evidence`.
      lead: scalar, its evidence minus the largest of a rival's.
      lead_at_equal_overlap: scalar, the same with rivals scaled up to the overlap of the best.
    """

    evidence: jax.Array
    lead: jax.Array
    lead_at_equal_overlap: jax.Array


def local_evidence(pair: Pair, transform: RigidTransform, sigma: float) -> Evidence:
    """Average over the frame the `evidence` of correlations within Gaussian neighbourhoods.

    Neighbourhoods overlap, so they need not be centred at every pixel. Those whose centre is beyond
    the overlap add nothing.

    Args:
      pair: planes ``(H, W)``.
      transform: K transforms from source to target.
      sigma: standard deviation of a neighbourhood, in pixels.
    """
    height, width = pair.target.shape
    flat = pair.target.reshape(-1)
    sample = functools.partial(sampled, pair.source, masks=pair.masks)
    # In a loop: CPUs are slow at sampling several alignments at once.
    value, inside = jax.lax.map(sample, transform)
    s, t = inside * value, inside * flat
    planes = jnp.stack([inside, s, t, s * value, t * flat, s * t])
    down, right = (_centres(size, sigma) for size in (height, width))
    rows, columns = blurring_matrix(height, sigma)[down], blurring_matrix(width, sigma)[right]
    planes = product(planes.reshape(-1, width), columns.T)
    # With the rows as the first axis the blur along the other axis is one matrix product, too.
    planes = jnp.moveaxis(planes.reshape(-1, height, len(columns)), 0, 1)
    planes = product(rows, planes.reshape(height, -1))
    planes = planes.reshape(len(rows), 6, -1, len(columns))
    count = jnp.maximum(planes[:, 0], 1e-3)
    s, t, ss, tt, st = (planes[:, k] / count for k in range(1, 6))
    floor = _FAINT * jnp.square(flat).mean() + 1e-12
    spread = (jnp.maximum(ss - s * s, 0.0) + floor) * (jnp.maximum(tt - t * t, 0.0) + floor)
    ncc = (st - s * t) * jax.lax.rsqrt(spread)
    seen = inside.sum(-1)
    inside = jnp.moveaxis(inside.reshape(-1, height, width)[:, down, right], 0, 1)
    return Evidence(evidence(ncc, inside).mean((0, 2)), seen)


def _centres(size: int, sigma: float) -> slice:
    """Centres of neighbourhoods along a line of pixels, in its middle."""
    step = max(int(_SPACING * sigma + 1e-6), 1)
    return slice((size - 1) % step // 2, None, step)


def same_alignment(a: RigidTransform, b: RigidTransform) -> jax.Array:
    """Return whether two alignments are so close that refinement would make them one."""
    near = translation_error(a, b) < _SAME_SHIFT
    return near & (rotation_error(a.theta, b.theta) < _SAME_TURN)


def best_and_rivals(transform: RigidTransform, evidence: Evidence) -> Ranked:
    """Find the best of K alignments, and its closest rivals among those that differ from it.

    Args:
      transform: K transforms.
      evidence: of the K alignments.
    """
    best = jnp.argmax(evidence.score)
    known = same_alignment(transform, transform[best])
    others = evidence._replace(score=jnp.where(known, -1.0, evidence.score))
    at_equal_overlap = others.at_overlap(evidence.seen[best])
    rivals = jnp.stack([best, jnp.argmax(others.score), jnp.argmax(at_equal_overlap)])
    score = others.score[rivals].at[0].set(evidence.score[best])
    return Ranked(transform[rivals], Evidence(score, evidence.seen[rivals]))


def standing(ranked: Ranked) -> Standing:
    """Compute how far the best leads its rivals."""
    best, rivals = ranked.evidence.score[0], ranked.evidence.score[1:]
    at_equal_overlap = ranked.evidence.at_overlap(ranked.evidence.seen[0])[1:]
    return Standing(best, best - rivals.max(), best - at_equal_overlap.max())
