"""Whether the direct method's answer should be trusted.

An answer is trusted if it settled near where the search saw it, its standard errors are small, its
detail agrees, and in more than a few places, it leads its closest rival clearly, it beats itself
shifted by a few pixels, both the more clearly the larger its standard errors are, and no direction
is left open.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.compute.products import dots, mean_over_channels, mix, product, separable, times
from jaxreg.direct.finishing import Finished
from jaxreg.direct.masking import Masks
from jaxreg.direct.pyramid import blurring_matrix
from jaxreg.direct.ranking import Standing
from jaxreg.result import Doubt, Registration, raised
from jaxreg.similarity import masked_ncc

# Chosen on pairs of training images with noise 10 and 20 and on
# unrelated pairs: standard errors in shares of the shorter side and in degrees; the correlation of
# detail between 1 and 2 px; and the lead over the closest rival, were that to show as much of the
# frame, in units of `evidence` and as a share of the winner's.
_LARGEST_ERROR = 0.12 / 32
_LARGEST_TURN_ERROR = 0.8
_LEAST_DETAIL = 0.6
_LEAST_LEAD = 0.1
# Log-likelihood ratio, in pixels, by which the winner must beat itself shifted by 2 or 3 px: along
# a straight edge, or on a pattern finer than the coarse grid, it does not. Photographs with noise
# 20 reach 40 and more, wrong answers that pass all else stay below 3.
_LEAST_DISTINCTION = 10.0
_FARTHEST = 3  # px
# Two or three spots lie somewhere in any field of spots as they do in any other, and robust weights
# leave the rest out as hidden. An alignment that leaves out so much (what is unexplained with it,
# over what is without) must agree in more places than these, each a blur of so many px wide. Of
# 1,200 unrelated pairs of drawn star fields 5 are believed, and would be 34 by the first of these
# alone; for the second 4 of 1,951 scenes are refused, no CIFAR-10 pair of 1,904 with 20% hidden.
_COINCIDENCES, _PLACE = np.array([[3.0, 5.0], [1.3, 3.5]], np.float32), 1.5
# The larger its standard error, the more clearly the winner must lead over its rival and over
# itself shifted: (lead / evidence)^2 * distinction is above so much for each px of error. Of 146
# wrong answers on 20,000 scene pairs of the training photographs, with and without noise, 16 were
# believed before, none is now.
_LEAST_MARGIN = 1200.0
# See `_determination`: of 1,000 scene pairs of photographs the least has 0.003, patterns that leave
# a direction open stay below 1e-8.
_LEAST_DETERMINATION = 1e-3
_SURELY = 3.0  # standard errors by which an answer is clearly beyond a limit


def correlation(end: Finished, shape: tuple[int, ...]) -> jax.Array:
    """Normalised cross-correlation of source and target ``(H, W, C)`` over their overlap."""
    mask = end.inside.reshape(shape[:2])
    return masked_ncc(end.value.reshape(shape), end.target.reshape(shape), mask)


def doubts_about(
    end: Finished,
    fixed: jax.Array,
    moving: jax.Array,
    axis: jax.Array,
    against_rivals: Standing,
    masks: Masks | None = None,
    turn: float | jax.Array = 1.0,
) -> jax.Array:
    """What speaks against an alignment: `Doubt` bits, scalar int32; 0 to trust it.

    Args:
      end: the finished alignment.
      fixed: ``(H, W, C)``.
      moving: the same shape.
      axis: ``(C, 1)``, the mix of channels that varies most.
      against_rivals: how it stands against the closest other alignments.
      masks: which pixels of fixed (the source) and moving count, if not all.
      turn: 1, or 0 if the angle was held.
    """
    shape = fixed.shape[:2]
    weight = end.weight.reshape(shape)
    source, target = (mix(axis.T, image.T).reshape(shape) for image in (end.value, end.target))
    errors = jnp.sqrt(jnp.maximum(jnp.diagonal(end.covariance), 0.0))
    largest, distinction = errors[:2].max(), _distinction(source, target, weight)
    evidence, lead, lead_alike = against_rivals
    # A lead without any evidence is one over no rival, infinite: see `align_from`.
    ahead = jnp.maximum(lead, 0.0) / jnp.maximum(evidence, 1e-30)
    margin = jnp.square(ahead) * distinction
    ways = (masks.without_rim(), masks.swapped().without_rim()) if masks else (None, None)
    seen = (None if way is None else way.source for way in ways)
    determination = jnp.minimum(*map(_determination, (fixed, moving), seen, (turn, turn)))
    precise = (largest < _LARGEST_ERROR * min(shape)) & (errors[2] < _LARGEST_TURN_ERROR)
    detail, places = _detail(source, target, weight)
    everywhere, kept = _unexplained(source, target, jnp.stack([end.inside, end.weight]))
    much, few = _COINCIDENCES.T
    by_chance = ((everywhere > much * kept) & (places <= few)).any()
    passed = {
        Doubt.NOT_CONVERGED: end.settled,
        Doubt.IMPRECISE: precise,
        Doubt.DETAIL_MISMATCH: detail > _LEAST_DETAIL,
        Doubt.CHANCE_MATCH: ~by_chance,
        Doubt.AMBIGUOUS: lead_alike > _LEAST_LEAD * jnp.maximum(evidence, 1.0),
        Doubt.APERTURE: distinction > _LEAST_DISTINCTION,
        Doubt.INSUFFICIENT_MARGIN: margin > _LEAST_MARGIN * largest,
        Doubt.UNDETERMINED: determination > _LEAST_DETERMINATION,
    }
    return sum((raised(doubt, ~fine) for doubt, fine in passed.items()), jnp.int32(0))


def bounded(answer: Registration, limits: jax.Array) -> Registration:
    """The same, not trusted if it lies clearly beyond what was to be searched.

    The search's grid is coarse, and the refinement moves freely.

    Args:
      answer: to one pair.
      limits: ``(3,)``, of shifts, in px, and of the angle, in degrees.
    """
    errors = jnp.sqrt(jnp.diagonal(jnp.asarray(answer.covariance)))
    least = jnp.abs(answer.transform.as_array()) - _SURELY * errors
    beyond = raised(Doubt.OUT_OF_BOUNDS, (least > 1.001 * limits).any())
    doubts = jnp.asarray(answer.doubts) | beyond
    return dataclasses.replace(answer, success=doubts == 0, doubts=doubts)


def _unexplained(source: jax.Array, target: jax.Array, weights: jax.Array) -> jax.Array:
    """The share of a plane's variance that the other does not explain, by K weights ``(K, P)``."""
    s, t = source.reshape(-1), target.reshape(-1)
    sums = times(jnp.stack([jnp.ones_like(s), s, t, s * s, t * t, s * t]), weights)
    s, t, ss, tt, st = sums[:, 1:].T / jnp.maximum(sums[:, 0], 1.0)
    spread = jnp.maximum((ss - s * s) * (tt - t * t), 1e-12)
    return 1.0001 - jnp.square(jnp.clip((st - s * t) * jax.lax.rsqrt(spread), 0.0, 1.0))


def _detail(source: jax.Array, target: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """How well the detail between 1 and 2 px of planes ``(H, W)`` agrees, and in how many places.

    Smooth shading matches smooth shading at some angle, related or not; detail does not. The places
    are as many as would share the agreement evenly.
    """
    flat, count = weight.reshape(-1), jnp.maximum(weight.sum(), 1.0)
    centred = [
        (plane - dots(plane.reshape(-1), flat) / count) * weight for plane in (source, target)
    ]
    planes = jnp.stack([*centred, weight])

    def blurred(planes: jax.Array, sigma: float) -> jax.Array:
        rows, columns = (blurring_matrix(size, sigma) for size in weight.shape)
        return separable(rows, planes, columns)

    narrow, wide = (blurred(planes, sigma) for sigma in (1.0, 2.0))
    fine, rough = (smooth[:2] / jnp.maximum(smooth[2], 1e-3) for smooth in (narrow, wide))
    source, target = fine - rough
    agreeing = blurred(weight * jnp.maximum(source * target, 0.0), _PLACE)
    spread = jnp.square(agreeing.sum()) / jnp.maximum(jnp.square(agreeing).sum(), 1e-20)
    ncc = masked_ncc(source[..., None], target[..., None], weight)
    return ncc, spread / (4.0 * np.pi * _PLACE**2)


def _distinction(source: jax.Array, target: jax.Array, weight: jax.Array) -> jax.Array:
    """How much less likely the best of the alignments 2 or 3 px beside the winner is.

    In pixels times the logarithm of the unexplained share, 0.1% taken as the least. A shift needs
    the sums of products of three planes ``(H, W)``.
    """
    width = weight.shape[1]

    def moments(plane: jax.Array) -> jax.Array:
        return jnp.stack([plane * weight, plane * plane * weight, weight])

    # Wide enough that every shift is one and the same product of rows: the source's beside one
    # another at each dx, the target's one above another at each dy.
    span = 2 * _FARTHEST + 1
    source = jnp.pad(moments(source), ((0, 0), *((_FARTHEST, _FARTHEST),) * 2))
    beside = jnp.stack([source[:, :, k : k + width] for k in range(span)])
    target = moments(target)
    above = jnp.stack(
        [jnp.pad(target, ((0, 0), (k, 2 * _FARTHEST - k), (0, 0))) for k in range(span)]
    )
    above, beside = (v.reshape(3 * span, -1) for v in (above, beside))
    sums = product(above, beside.T)
    sums = jnp.moveaxis(sums.reshape(span, 3, span, 3), 1, -1)
    (both, _, s), (_, _, ss), (t, tt, count) = (sums[..., k, :].T for k in range(3))
    some = jnp.maximum(count, 1.0)
    spread = jnp.maximum(ss - s * s / some, 1e-6 * ss) * jnp.maximum(tt - t * t / some, 1e-6 * tt)
    ncc = (both - s * t / some) * jax.lax.rsqrt(spread + 1e-30)
    rest = 1.001 - jnp.square(jnp.clip(ncc, 0.0, 1.0))
    least = rest[_FARTHEST, _FARTHEST]
    far = np.abs(np.mgrid[:span, :span] - _FARTHEST).max(0) > 1
    return jnp.where(far, count * jnp.log(rest / least), jnp.inf).min()


def _determination(image: jax.Array, mask: jax.Array | None, turn: float | jax.Array) -> jax.Array:
    """How evenly an image's gradient determines shifts and turn: 1 if alike, 0 if one is open.

    Of an image ``(H, W, C)`` in common units, whose spread is about 1. The determinant of the
    normal matrix of ``(tx, ty, theta)`` over what it would be with three equal eigenvalues, the
    turn counted in pixels at the mean distance from the middle. Zero for stripes and edges, whose
    shift along themselves nobody can tell, and for a lone dot, which may turn about itself. The
    gradient is that of central differences, which are blind to stripes and checkerboards of single
    pixels: those lose their place as soon as they are sampled between the pixels.

    Where the angle was held (``turn`` is 0), that of the shifts alone.
    """
    image = jax.lax.stop_gradient(image)
    u = image[1:-1, 2:] - image[1:-1, :-2]
    v = image[2:, 1:-1] - image[:-2, 1:-1]
    squares = jnp.stack([mean_over_channels(slopes) for slopes in (u * u, u * v, v * v)])
    if mask is not None:
        squares *= mask[1:-1, 1:-1]
    mean_lever = float(np.hypot(image.shape[0], image.shape[1])) / np.sqrt(8.0)
    down, right = (_powers(size - 2, mean_lever) for size in image.shape[:2])
    # Sums of each, weighted by powers of the lever down (first index) and to the right.
    uu, uv, vv = separable(down, squares, right)
    a, b, c = uu[0, 0], vv[0, 0], uu[2, 0] - 2 * uv[1, 1] + vv[0, 2]  # of x, y, turn with itself
    d, e, f = uv[0, 0], uu[1, 0] - uv[0, 1], uv[1, 0] - vv[0, 1]  # x y, x turn, y turn
    c, e, f = jnp.where(turn > 0.0, c, 0.5 * (a + b)), turn * e, turn * f
    mean = (a + b + c) / 3 + 1e-6 * image.shape[0] * image.shape[1]
    a, b, c, d, e, f = (v / mean for v in (a, b, c, d, e, f))
    return a * b * c + 2 * d * e * f - a * f * f - b * e * e - c * d * d


@functools.cache
def _powers(size: int, unit: float) -> np.ndarray:
    """``(3, size)``: powers 0, 1 and 2 of the pixels' distance from the middle, in ``unit``."""
    lever = (np.arange(size) - (size - 1) / 2) / unit
    return np.stack([np.ones(size), lever, lever**2]).astype(np.float32)
