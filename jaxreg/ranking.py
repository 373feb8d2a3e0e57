"""Which of several alignments is the best, and which its closest rival.

They are ranked by how well the images agree *neighbourhood by neighbourhood*: what hides a part of
a view spoils what it covers and no more, where a correlation of the whole would be lost.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.correlation import evidence
from jaxreg.geometry import RigidTransform
from jaxreg.masking import Masks
from jaxreg.metrics import rotation_error, translation_error
from jaxreg.products import product
from jaxreg.pyramid import blurring_matrix
from jaxreg.resampling import sampled, source_points

# Share of the target's energy below which a neighbourhood counts as flat.
_FAINT = 0.002
# Candidates nearer than this, in pixels of their level and degrees, are one and the same.
_SAME_SHIFT, _SAME_TURN = 2.0, 6.0


class Ranked(NamedTuple):
    """The best of some alignments and its closest rival.

    Attributes:
      transform: ``(2,)`` transforms, the best first.
      score: ``(2,)``; the rival's is -1 where all are the same alignment.
    """

    transform: RigidTransform
    score: jax.Array


class Standing(NamedTuple):
    """How the best of some alignments stands against its closest rival.

    Attributes:
      evidence: its own, see `local_evidence`.
      lead: by how much that is more than the rival's.
      lead_alike: the same, had the rival as much of the frame to show: a pattern that repeats fits
        as well one period on, but on less, which is less evidence and no worse a fit.
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
) -> jax.Array:
    """`evidence` of correlations within Gaussian neighbourhoods, averaged over the frame.

    Args:
      source: ``(H, W)``.
      target: the same shape.
      transform: K transforms from source to target.
      sigma: standard deviation of a neighbourhood, in pixels.
      masks: which pixels count, if not all do.

    Returns:
      ``(K,)``; pixels beyond the overlap add nothing.
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
    inside = jnp.moveaxis(inside.reshape(-1, height, width), 0, 1)
    return evidence(ncc, inside).mean((0, 2))


def same(a: RigidTransform, b: RigidTransform) -> jax.Array:
    """Whether two alignments are one and the same but for refinement."""
    near = translation_error(a, b) < _SAME_SHIFT
    return near & (rotation_error(a.theta, b.theta) < _SAME_TURN)


def best_and_rival(transform: RigidTransform, score: jax.Array) -> Ranked:
    """The best of K alignments and the best of those that are not the same one.

    Args:
      transform: K transforms.
      score: ``(K,)``.
    """
    best = jnp.argmax(score)
    rivals = jnp.where(same(transform, transform[best]), -1.0, score)
    rival = jnp.argmax(rivals)
    both = jnp.stack([best, rival])
    return Ranked(transform[both], jnp.stack([score[best], rivals[rival]]))


def standing(ranked: Ranked, shape: tuple[int, ...], masks: Masks | None = None) -> Standing:
    """How the best stands against its rival.

    Args:
      ranked: transforms between images of this size.
      shape: theirs, ``(H, W)``.
      masks: which pixels count, if not all do.
    """
    seen = lambda t: source_points(shape, t, masks=masks).inside.sum()  # noqa: E731
    of_best, of_rival = jax.vmap(seen)(ranked.transform)
    best, rival = ranked.score
    more = jnp.maximum(of_best / jnp.maximum(of_rival, 1.0), 1.0)
    return Standing(best, best - rival, best - jnp.where(rival > 0.0, more, 1.0) * rival)
