"""Decide whether the direct method's answer should be trusted.

An answer is trusted if

- the finish settled near the alignment that the search found;
- its standard errors are small;
- fine detail agrees, and in more than a few places;
- it leads its closest rival, and itself shifted by a few pixels, clearly, and the more clearly the
  larger its standard errors are;
- the images determine every direction.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.compute.branching import cond_rarely
from jaxreg.compute.products import dots, mean_over_channels, mix, product, separable, times
from jaxreg.compute.small_systems import swept_inverse
from jaxreg.direct.finishing import Finished
from jaxreg.direct.masking import Masks
from jaxreg.direct.pyramid import blurring_matrix
from jaxreg.direct.ranking import Standing
from jaxreg.result import Doubt, Registration, raised
from jaxreg.similarity import masked_ncc

# The first four are chosen on pairs of training images with noise 10 and 20 and on unrelated pairs.
_LARGEST_ERROR = 0.12 / 32  # standard error of the shift, as a share of the shorter side
_LARGEST_TURN_ERROR = 0.8  # standard error of the angle, in degrees
_LEAST_DETAIL = 0.6  # correlation of the detail between 1 and 2 px
# Lead over the closest rival at equal overlap, in units of `evidence` and as a share of its own.
_LEAST_LEAD = 0.1
# Log-likelihood ratio, with each pixel as an observation, by which the answer must beat itself
# shifted by 2 or 3 px: along a straight edge, or on a pattern finer than the coarse grid, it does
# not. Photographs with noise 20 reach 40 and more; wrong answers that pass all else stay below 3.
_LEAST_SHIFT_RATIO = 10.0
_FARTHEST = 3  # px, the largest of these shifts
# Two or three spots of any field of spots fit some of any other field's, and robust weights reject
# the rest as hidden. Each row is (ratio, places): an alignment must agree in more than `places` if
# its unexplained share over the whole overlap exceeds `ratio` times that over the pixels kept.
# With the first row alone 34 of 1,200 unrelated pairs of drawn star fields are believed, with both
# rows 5; the second one refuses 4 of 1,951 scenes and none of 1,904 CIFAR-10 pairs with 20% hidden.
_COINCIDENCES = np.array([[3.0, 5.0], [1.3, 3.5]], np.float32)
_PLACE = 1.5  # px, standard deviation of the blur that makes one place
# (lead / evidence)^2 * shift ratio must exceed this per px of standard error: the larger the error,
# the clearer the leads must be. Of 146 wrong answers on 20,000 scene pairs of the training
# photographs, with and without noise, 16 were believed without this test and none is with it.
_LEAST_MARGIN = 1200.0
# See `_conditioning`: 2 of 1,000 scene pairs of the training photographs have less, the next ones
# 0.009 and more. Rings 3 to 9 px apart have 0.001 to 0.0025, with noise; stripes below 1e-8.
_LEAST_CONDITIONING = 3e-3
# If the angle was held: standard errors and px at the mean distance from the centre by which a turn
# would improve the alignment, from which the images are turned.
_TURNED, _TURNED_FAR = 5.0, 0.05
_SURELY = 3.0  # standard errors by which an answer must exceed a limit to be beyond it


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
    rotation_free: float | jax.Array = 1.0,
) -> jax.Array:
    """Collect the reasons against an alignment: `Doubt` bits, scalar int32; 0 to trust it.

    Args:
      end: the finished alignment.
      fixed: ``(H, W, C)``.
      moving: the same shape.
      axis: ``(C, 1)``, the mix of channels that varies most.
      against_rivals: its lead over the closest other alignments.
      masks: which pixels of fixed (the source) and moving (the target) count, if not all do.
      rotation_free: 1, or 0 if the angle was held.
    """
    shape = fixed.shape[:2]
    weight = end.weight.reshape(shape)
    source, target = (mix(axis.T, image.T).reshape(shape) for image in (end.value, end.target))
    errors = jnp.sqrt(jnp.maximum(jnp.diagonal(end.covariance), 0.0))
    largest = errors[:2].max()
    shift_ratio = _shift_log_likelihood_ratio(source, target, weight)
    evidence, lead, lead_at_equal_overlap = against_rivals
    # Without a rival `align_from` gives no evidence and an infinite lead.
    ahead = jnp.maximum(lead, 0.0) / jnp.maximum(evidence, 1e-30)
    margin = jnp.square(ahead) * shift_ratio
    in_fixed, in_moving = _without_rims(masks)
    conditioning = jnp.minimum(
        _conditioning(fixed, in_fixed, rotation_free),
        _conditioning(moving, in_moving, rotation_free),
    )
    precise = (largest < _LARGEST_ERROR * min(shape)) & (errors[2] < _LARGEST_TURN_ERROR)
    held = jnp.less(rotation_free, 1.0)
    planes = jax.lax.stop_gradient((source, target, weight))
    unknown = lambda source, *_: jnp.zeros_like(source[0, 0], bool)  # noqa: E731
    turned = cond_rarely(held, _turned, unknown, *planes)
    detail, places = _detail(source, target, weight)
    everywhere, kept = _unexplained(source, target, jnp.stack([end.inside, end.weight]))
    ratio, few = _COINCIDENCES.T
    by_chance = ((everywhere > ratio * kept) & (places <= few)).any()
    passed = {
        Doubt.NOT_CONVERGED: end.settled,
        Doubt.IMPRECISE: precise,
        Doubt.DETAIL_MISMATCH: detail > _LEAST_DETAIL,
        Doubt.CHANCE_MATCH: ~by_chance,
        Doubt.AMBIGUOUS: lead_at_equal_overlap > _LEAST_LEAD * jnp.maximum(evidence, 1.0),
        Doubt.APERTURE: shift_ratio > _LEAST_SHIFT_RATIO,
        Doubt.INSUFFICIENT_MARGIN: margin > _LEAST_MARGIN * largest,
        Doubt.UNDETERMINED: conditioning > _LEAST_CONDITIONING,
        Doubt.OUT_OF_BOUNDS: ~turned,
    }
    return sum((raised(doubt, ~fine) for doubt, fine in passed.items()), jnp.int32(0))


def bounded(answer: Registration, limits: jax.Array) -> Registration:
    """Mark an answer as not trusted if it lies clearly beyond the limits of the search.

    This can happen because the search's grid is coarse and the refinement is not limited.

    Args:
      answer: the registration of one pair.
      limits: ``(3,)``, largest absolute ``(tx, ty, theta)``, px and degrees.
    """
    errors = jnp.sqrt(jnp.diagonal(jnp.asarray(answer.covariance)))
    least = jnp.abs(answer.transform.as_array()) - _SURELY * errors
    beyond = raised(Doubt.OUT_OF_BOUNDS, (least > 1.001 * limits).any())
    doubts = jnp.asarray(answer.doubts) | beyond
    return dataclasses.replace(answer, success=doubts == 0, doubts=doubts)


def _unexplained(source: jax.Array, target: jax.Array, weights: jax.Array) -> jax.Array:
    """``(K,)``: share of a plane's variance not explained by the other, by weights ``(K, P)``."""
    s, t = source.reshape(-1), target.reshape(-1)
    sums = times(jnp.stack([jnp.ones_like(s), s, t, s * s, t * t, s * t]), weights)
    s, t, ss, tt, st = sums[:, 1:].T / jnp.maximum(sums[:, 0], 1.0)
    spread = jnp.maximum((ss - s * s) * (tt - t * t), 1e-12)
    return 1.0001 - jnp.square(jnp.clip((st - s * t) * jax.lax.rsqrt(spread), 0.0, 1.0))


def _detail(source: jax.Array, target: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Correlate the detail between 1 and 2 px of planes ``(H, W)``, and count where it agrees.

    Smooth shading matches other smooth shading at some angle even in unrelated images; detail does
    not.

    Returns:
      The normalised cross-correlation, and the number of places that agree: as many as there would
      be if all contributed equally to the agreement. Both are scalars.
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


def _shift_log_likelihood_ratio(
    source: jax.Array, target: jax.Array, weight: jax.Array
) -> jax.Array:
    """Smallest log-likelihood ratio of an alignment to itself shifted by 2 or 3 px; a scalar.

    The ratio is the number of pixels times the logarithm of the ratio of the unexplained shares of
    the variance; a share is at least 0.1%.

    Args:
      source: ``(H, W)``, on the target's pixels.
      target: ``(H, W)``.
      weight: ``(H, W)``.
    """
    width = weight.shape[1]

    def moments(plane: jax.Array) -> jax.Array:
        return jnp.stack([plane * weight, plane * plane * weight, weight])

    # All shifts are one matrix product: each row of one factor is the target padded for one dy,
    # each row of the other is the padded source cut out for one dx.
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


def _turned(source: jax.Array, target: jax.Array, weight: jax.Array) -> jax.Array:
    """Whether a turn would clearly improve an alignment whose angle was held.

    One Gauss-Newton step for shifts, angle, gain and bias, and the angle's standard error by
    White's estimator.

    Args:
      source: ``(H, W)``, on the target's pixels.
      target: ``(H, W)``.
      weight: ``(H, W)``.
    """
    v, u = jnp.gradient(source)
    y, x = (np.arange(size, dtype=np.float32) - (size - 1) / 2 for size in source.shape)
    radius = np.float32(_mean_lever(source.shape))
    rotation = (y[:, None] * u - x[None, :] * v) / radius
    rows = jnp.stack([rotation, u, v, source, jnp.ones_like(source)]).reshape(5, -1)
    weighted = rows * weight.reshape(1, -1)
    normal = times(weighted, rows)
    inverse = swept_inverse(normal + jnp.diag(1e-6 * jnp.diagonal(normal) + 1e-12))
    left_over = (target - source).reshape(-1)
    step = product(inverse, product(weighted, left_over))
    moves = product(inverse[0], weighted) * (left_over - product(step, rows))
    error = jnp.sqrt(dots(moves, moves))
    return (jnp.abs(step[0]) > _TURNED_FAR) & (jnp.abs(step[0]) > _TURNED * error)


def _without_rims(masks: Masks | None) -> tuple[jax.Array | None, jax.Array | None]:
    """Masks of fixed and moving without the neighbours of masked pixels, or None for each."""
    if masks is None:
        return None, None
    return masks.without_rim().source, masks.swapped().without_rim().source


def _conditioning(
    image: jax.Array, mask: jax.Array | None, rotation_free: float | jax.Array
) -> jax.Array:
    """How evenly an image's gradient determines shifts and angle: 1 if evenly, 0 if one is open.

    It is the determinant of the normal matrix of ``(tx, ty, theta)`` over that of a matrix with
    three equal eigenvalues and the same trace, where the angle is measured in pixels at the mean
    distance from the centre. It is zero for stripes and straight edges, which may shift along
    themselves, and for a single dot, which may rotate about itself. Scharr's gradient keeps its
    direction on fine patterns, such as rings a few pixels apart, where plain differences do not. It
    does not see stripes and checkerboards of single pixels: interpolation between the pixels erases
    those.

    Args:
      image: ``(H, W, C)`` in common units, with a spread of about 1.
      mask: ``(H, W)``, 1 where a pixel counts; None if all do.
      rotation_free: 1, or 0 if the angle was held: then the value is that of the shifts alone.
    """
    image = jax.lax.stop_gradient(image)
    smooth = lambda a, b, c: (3.0 * a + 10.0 * b + 3.0 * c) / 16.0  # noqa: E731
    beside, below = image[:, 2:] - image[:, :-2], image[2:] - image[:-2]
    u = smooth(beside[:-2], beside[1:-1], beside[2:])
    v = smooth(below[:, :-2], below[:, 1:-1], below[:, 2:])
    squares = jnp.stack([mean_over_channels(slopes) for slopes in (u * u, u * v, v * v)])
    if mask is not None:
        squares *= mask[1:-1, 1:-1]
    mean_lever = _mean_lever(image.shape)
    down, right = (_powers(size - 2, mean_lever) for size in image.shape[:2])
    # Sums of each, weighted by powers of the lever down (first index) and to the right (second).
    uu, uv, vv = separable(down, squares, right)
    a, b, c = uu[0, 0], vv[0, 0], uu[2, 0] - 2 * uv[1, 1] + vv[0, 2]  # of x, y, angle with itself
    d, e, f = uv[0, 0], uu[1, 0] - uv[0, 1], uv[1, 0] - vv[0, 1]  # x y, x angle, y angle
    c = jnp.where(rotation_free > 0.0, c, 0.5 * (a + b))
    e, f = rotation_free * e, rotation_free * f
    mean = (a + b + c) / 3 + 1e-6 * image.shape[0] * image.shape[1]
    a, b, c, d, e, f = (v / mean for v in (a, b, c, d, e, f))
    return a * b * c + 2 * d * e * f - a * f * f - b * e * e - c * d * d


def _mean_lever(shape: tuple[int, ...]) -> float:
    """Mean distance of the pixels from the centre, nearly, in px."""
    return float(np.hypot(shape[0], shape[1])) / np.sqrt(8.0)


@functools.cache
def _powers(size: int, unit: float) -> np.ndarray:
    """``(3, size)``: powers 0, 1 and 2 of the pixels' distance from the centre, in ``unit`` px."""
    lever = (np.arange(size) - (size - 1) / 2) / unit
    return np.stack([np.ones(size), lever, lever**2]).astype(np.float32)
