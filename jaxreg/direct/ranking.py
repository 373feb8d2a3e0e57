"""Which of several alignments is the best, and which its closest rivals.

They are ranked by how well the images agree *neighbourhood by neighbourhood*: what hides a part of
a view spoils what it covers and no more, where a correlation of the whole would be lost.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.compute.products import product
from jaxreg.direct.correlation import evidence
from jaxreg.direct.masking import Masks
from jaxreg.direct.pyramid import blurring_matrix
from jaxreg.direct.resampling import sampled
from jaxreg.geometry import RigidTransform
from jaxreg.metrics import rotation_error, translation_error

# Share of the target's energy below which a neighbourhood counts as flat.
_FAINT = 0.002
# Candidates nearer than this, in pixels of their level and degrees, are one and the same.
_SAME_SHIFT, _SAME_TURN = 2.0, 6.0


class Evidence(NamedTuple):
    """How well images agree at each of K alignments.

    Attributes:
      score: ``(K,)``, see `local_evidence`.
      seen: ``(K,)``, pixels of the overlap.
    """

    score: jax.Array
    seen: jax.Array

    def as_much(self, seen: jax.Array) -> jax.Array:
        """The scores, scaled up to an overlap of at least so many pixels."""
        more = jnp.maximum(seen / jnp.maximum(self.seen, 1.0), 1.0)
        return jnp.where(self.score > 0.0, more, 1.0) * self.score


class Ranked(NamedTuple):
    """The best of some alignments and its closest rivals.

    Attributes:
      transform: ``(3,)`` transforms: the best; the rival with most evidence; and the rival with
        most evidence per visible pixel (`Evidence.as_much`). A periodic pattern fits as well one
        period on, over a smaller overlap.
      evidence: theirs; the score of a rival is -1 where all are the same alignment.
    """

    transform: RigidTransform
    evidence: Evidence


class Standing(NamedTuple):
    """How the best of some alignments stands against its closest rivals.

    Attributes:
      evidence: its own, see `local_evidence`.
      lead: by how much that is more than a rival's.
      lead_alike: the same, of rivals scaled up to its overlap.
    """

    evidence: jax.Array
    lead: jax.Array
    lead_alike: jax.Array


def local_evidence(
    source: jax.Array,
    target: jax.Array,
    transform: RigidTransform,
    sigma: float,
    masks: Masks | None = None,
) -> Evidence:
    """`evidence` of correlations within Gaussian neighbourhoods, averaged over the frame.

    Args:
      source: ``(H, W)``.
      target: the same shape.
      transform: K transforms from source to target.
      sigma: standard deviation of a neighbourhood, in pixels.
      masks: which pixels count, if not all do.

    Returns:
      That, to which pixels beyond the overlap add nothing, and how many are in it.
    """
    height, width = target.shape
    flat = target.reshape(-1)
    # One by one: outside of a loop CPUs are slow at sampling several at once.
    value, inside = jax.lax.map(functools.partial(sampled, source, masks=masks), transform)
    s, t = inside * value, inside * flat
    planes = jnp.stack([inside, s, t, s * value, t * flat, s * t])
    rows, columns = (blurring_matrix(size, sigma) for size in (height, width))
    planes = product(planes.reshape(-1, width), columns.T)
    # Rows before planes: the blur along the other axis is one matrix product, too.
    planes = jnp.moveaxis(planes.reshape(-1, height, width), 0, 1)
    planes = product(rows, planes.reshape(height, -1))
    planes = planes.reshape(height, 6, -1, width)
    count = jnp.maximum(planes[:, 0], 1e-3)
    s, t, ss, tt, st = (planes[:, k] / count for k in range(1, 6))
    floor = _FAINT * jnp.square(flat).mean() + 1e-12
    spread = (jnp.maximum(ss - s * s, 0.0) + floor) * (jnp.maximum(tt - t * t, 0.0) + floor)
    ncc = (st - s * t) * jax.lax.rsqrt(spread)
    seen = inside.sum(-1)
    inside = jnp.moveaxis(inside.reshape(-1, height, width), 0, 1)
    return Evidence(evidence(ncc, inside).mean((0, 2)), seen)


def same(a: RigidTransform, b: RigidTransform) -> jax.Array:
    """Whether two alignments are one and the same but for refinement."""
    near = translation_error(a, b) < _SAME_SHIFT
    return near & (rotation_error(a.theta, b.theta) < _SAME_TURN)


def best_and_rivals(transform: RigidTransform, evidence: Evidence) -> Ranked:
    """The best of K alignments and the best of those that are not the same one.

    Args:
      transform: K transforms.
      evidence: theirs.
    """
    best = jnp.argmax(evidence.score)
    known = same(transform, transform[best])
    others = evidence._replace(score=jnp.where(known, -1.0, evidence.score))
    alike = others.as_much(evidence.seen[best])
    rivals = jnp.stack([best, jnp.argmax(others.score), jnp.argmax(alike)])
    score = others.score[rivals].at[0].set(evidence.score[best])
    return Ranked(transform[rivals], Evidence(score, evidence.seen[rivals]))


def standing(ranked: Ranked) -> Standing:
    """How the best stands against its rivals."""
    best, rivals = ranked.evidence.score[0], ranked.evidence.score[1:]
    alike = ranked.evidence.as_much(ranked.evidence.seen[0])[1:]
    return Standing(best, best - rivals.max(), best - alike.max())
