"""The direct method for one pair: search coarse, refine, finish exactly, judge.

Normalised cross-correlation over all rotations and shifts, on a grid of some 16 pixels, gives a
handful of candidates. Gauss-Newton improves each there; the best and its closest rival go on
through the finer levels; the winner is finished to numerical precision (`jaxreg.finishing`). How
the rival fared, how well the winner's detail agrees and what its Hessian says decide whether to
trust it.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Literal

import jax
import jax.numpy as jnp

from jaxreg.correlation import evidence, search
from jaxreg.finishing import Finished, finish
from jaxreg.geometry import RigidTransform
from jaxreg.metrics import rotation_error, translation_error
from jaxreg.pyramid import apply_separable, blurring_matrix, downsample, level_factors
from jaxreg.refinement import gauss_newton, sample_source
from jaxreg.result import Registration
from jaxreg.similarity import masked_ncc

Kernel = Literal["auto", "linear", "spline"]

# Candidates nearer than this, in pixels of their level and degrees, are one and the same.
_SAME_SHIFT, _SAME_TURN = 1.0, 6.0
# What makes an answer one to trust. Chosen on pairs of training images with noise 10 and 20 and on
# unrelated pairs: standard errors in shares of the shorter side and in degrees; the correlation of
# detail between 1 and 2 px; and the lead over the closest rival, in units of `evidence` and as a
# share of the winner's.
_LARGEST_ERROR = 0.12 / 32
_LARGEST_TURN_ERROR = 0.8
_LEAST_DETAIL = 0.6
_LEAST_LEAD = 0.1
# Log-likelihood ratio, in pixels, by which the winner must beat itself shifted by 2 or 3 px: along
# a straight edge, or on a pattern finer than the coarse grid, it does not. Photographs with noise
# 20 reach 40 and more, wrong answers that pass all else stay below 3.
_LEAST_DISTINCTION = 10.0
_FARTHEST = 3  # px
_UNRESOLVED = 1e-6  # px and degrees: what float32 resolves of a coordinate near 16
# Pixels that carry the detail (see `_detailed_pixels`): a lone bright one, whose turn nobody can
# tell, has 4, two of them have 8; of 500 crops of photographs the least has 5.
_LEAST_PIXELS = 4.5
# Spreads that differ by less than this factor, and means by less than so many spreads, are left for
# the refinement to follow. Wide, for the black corners of a warped image count in its spread.
_ALIKE = 16.0


@dataclasses.dataclass(frozen=True)
class DirectOptions:
    """Settings of the direct method, all static.

    Attributes:
      max_shift: largest translation searched along an axis, as a share of the shorter side.
      interpolation: ``"auto"`` chooses by the residual; ``"linear"`` and ``"spline"`` insist.
      candidates: coarse alignments that are refined.
      level_step: largest ratio of the pixel sizes of neighbouring levels.
    """

    max_shift: float = 1 / 3
    interpolation: Kernel = "auto"
    candidates: int = 6
    level_step: float = 2.5

    def __post_init__(self):
        if not 0.0 < self.max_shift <= 0.5:
            raise ValueError(
                f"max_shift must be in (0, 0.5] of the shorter side, got {self.max_shift}"
            )
        if self.interpolation not in ("auto", "linear", "spline"):
            raise ValueError(
                f"interpolation must be auto, linear or spline, got {self.interpolation!r}"
            )


def coarse_side(side: int) -> int:
    """Shorter side of the coarse grid: a quarter of the image's, but 16 to 32 pixels.

    >>> [coarse_side(s) for s in (8, 32, 96, 512)]
    [16, 16, 24, 32]
    """
    return min(max(round(side / 4), 16), 32)


def align(
    fixed: jax.Array, moving: jax.Array, options: DirectOptions = DirectOptions()
) -> Registration:
    """Register one pair by the direct method.

    Pure, of static shapes: works under ``jit`` and ``vmap``. The transform is differentiable with
    respect to the images through the optimum it is. Values that are not finite give finite numbers
    and ``success`` False.

    Args:
      fixed: ``(H, W, C)`` float32.
      moving: the same shape.
      options: settings.
    """
    finite = jnp.isfinite(fixed).all() & jnp.isfinite(moving).all()
    fixed, moving = jnp.where(finite, fixed, 0.0), jnp.where(finite, moving, 0.0)
    fixed, moving = _in_common_units(fixed, moving)
    start, lead, evidence_of_best = _coarse_to_fine(fixed, moving, options)
    end = finish(fixed, moving, start, options.interpolation)
    score, detail = _agreement(end, fixed.shape)
    side = min(fixed.shape[:2])
    errors = jnp.sqrt(jnp.maximum(jnp.diagonal(end.covariance), 0.0))
    success = (
        finite
        & (errors[:2].max() < _LARGEST_ERROR * side)
        & (errors[2] < _LARGEST_TURN_ERROR)
        & (detail > _LEAST_DETAIL)
        & (lead > _LEAST_LEAD)
        & (lead > _LEAST_LEAD * evidence_of_best)
        & (_distinction(end, score, fixed.shape) > _LEAST_DISTINCTION)
        & (jnp.minimum(_detailed_pixels(fixed), _detailed_pixels(moving)) > _LEAST_PIXELS)
    )
    transform = jax.tree.map(_without_rounding, end.transform)
    covariance = jnp.nan_to_num(jnp.clip(end.covariance, -1e6, 1e6), nan=1e6)
    return Registration(transform, score, success, covariance, jnp.bool_(True))


def _in_common_units(fixed: jax.Array, moving: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both images about zero and of a spread near 1, whatever their unit and offset.

    Float32 then resolves a faint texture on a bright background, and thresholds mean the same for
    any unit. Both are treated alike, so that a small change of brightness between them is left for
    the refinement to judge, unless they differ beyond what it can follow (uint8 against [0, 1]).
    """

    def describe(image: jax.Array) -> tuple[jax.Array, jax.Array]:
        largest = jnp.maximum(jnp.abs(image).max(), 1e-30)
        unit = image / largest
        mean = unit.mean((0, 1))
        # Texture below the rounding of float32 is not blown up.
        spread = jnp.maximum(jnp.sqrt(jnp.square(unit - mean).mean()), 1e-6)
        return mean * largest, spread * largest

    (mean_f, spread_f), (mean_m, spread_m) = jax.lax.stop_gradient(
        (describe(fixed), describe(moving))
    )
    larger = jnp.maximum(spread_f, spread_m)
    alike = (larger < _ALIKE * jnp.minimum(spread_f, spread_m)) & (
        jnp.abs(mean_f - mean_m).max() < _ALIKE * larger
    )
    middle = 0.5 * mean_f + 0.5 * mean_m
    own = lambda image, mean, spread: (  # noqa: E731
        (image - jnp.where(alike, middle, mean)) / jnp.where(alike, larger, spread)
    )
    return own(fixed, mean_f, spread_f), own(moving, mean_m, spread_m)


def _without_rounding(parameter: jax.Array) -> jax.Array:
    """Finite, and zero where pixel coordinates in float32 could not tell; the derivative stays."""
    parameter = jnp.nan_to_num(parameter)
    zero = parameter - jax.lax.stop_gradient(parameter)
    return jnp.where(jnp.abs(parameter) < _UNRESOLVED, zero, parameter)


def principal_channel(fixed: jax.Array, moving: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Project two images ``(H, W, C)`` on the mix of channels in which both vary most.

    Both, for black corners vary in grey alone, where the other image may be constant: hence the
    parallel sum of the two covariances, which is large only where both are.
    """
    channels = fixed.shape[-1]
    if channels == 1:
        return fixed, moving

    def inverse_spread(image: jax.Array) -> jax.Array:
        centred = image - image.mean((0, 1))
        spread = jnp.einsum("yxc,yxd->cd", centred, centred, precision=jax.lax.Precision.HIGHEST)
        ridge = 1e-4 * jnp.trace(spread) / channels + 1e-12
        return jnp.linalg.inv(spread + ridge * jnp.eye(channels))

    axis = jnp.linalg.eigh(inverse_spread(fixed) + inverse_spread(moving))[1][:, :1]
    return fixed @ axis, moving @ axis


def _coarse_to_fine(
    fixed: jax.Array, moving: jax.Array, options: DirectOptions
) -> tuple[RigidTransform, jax.Array, jax.Array]:
    """The best alignment by Gauss-Newton, its lead in evidence over the closest rival, and its own.

    No gradient passes.
    """
    fixed, moving = jax.lax.stop_gradient((fixed, moving))
    grid = coarse_side(min(fixed.shape[:2]))
    factors = level_factors(fixed.shape, grid, options.level_step)
    coarse = principal_channel(downsample(fixed, factors[0]), downsample(moving, factors[0]))
    reach = max(round(options.max_shift * min(coarse[0].shape[:2])), 1)
    # Three angles for each pixel of the side: half a step then moves the rim by half a pixel.
    peaks = search(
        coarse[0][..., 0], coarse[1][..., 0], 4 * round(0.75 * grid), reach, options.candidates
    )
    t, score = _refine(*coarse, peaks.transform, iterations=5)
    t, score = _best_and_rival(t, score)
    for coarser, factor in itertools.pairwise(factors):
        t = RigidTransform(t.tx * (coarser / factor), t.ty * (coarser / factor), t.theta)
        t, score = _refine(downsample(fixed, factor), downsample(moving, factor), t, iterations=4)
    t, score = _best_and_rival(t, score)
    return _take(t, jnp.array(0)), score[0] - score[1], score[0]


def _refine(
    fixed: jax.Array, moving: jax.Array, candidates: RigidTransform, iterations: int
) -> tuple[RigidTransform, jax.Array]:
    """Gauss-Newton from each candidate, and the evidence where it ends."""

    def one(start: RigidTransform) -> tuple[RigidTransform, jax.Array]:
        end, _ = gauss_newton(fixed, moving, start, iterations)
        samples = sample_source(fixed, end)
        mask = samples.inside.reshape(fixed.shape[:2])
        ncc = masked_ncc(samples.value.reshape(fixed.shape), moving, mask)
        return end, evidence(ncc, samples.inside.mean())

    return jax.vmap(one)(candidates)


def _take(t: RigidTransform, index: jax.Array) -> RigidTransform:
    return jax.tree.map(lambda v: v[index], t)


def _best_and_rival(t: RigidTransform, score: jax.Array) -> tuple[RigidTransform, jax.Array]:
    """The best candidate, and the best of those that are not the same alignment."""
    best = jnp.argmax(score)
    winner = _take(t, best)
    same = (translation_error(t, winner) < 2 * _SAME_SHIFT) & (
        rotation_error(t.theta, winner.theta) < _SAME_TURN
    )
    rival_score = jnp.where(same, -1.0, score)
    rival = jnp.argmax(rival_score)
    return _take(t, jnp.stack([best, rival])), jnp.stack([score[best], rival_score[rival]])


def _agreement(end: Finished, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Correlation over the overlap: of the images, and of their detail between 1 and 2 px.

    Smooth shading matches smooth shading at some angle, related or not; detail does not.
    """
    mask = end.samples.inside.reshape(shape[:2])
    count = jnp.maximum(mask.sum(), 1.0)

    def band(flat: jax.Array) -> tuple[jax.Array, jax.Array]:
        image = flat.reshape(shape)
        image = (image - (mask[..., None] * image).sum((0, 1)) / count) * mask[..., None]
        blurred = []
        for sigma in (1.0, 2.0):
            rows, columns = (blurring_matrix(size, sigma) for size in shape[:2])
            weight = apply_separable(rows, mask[..., None], columns)
            blurred.append(apply_separable(rows, image, columns) / jnp.maximum(weight, 1e-3))
        return image, blurred[0] - blurred[1]

    (source, source_band), (target, target_band) = band(end.samples.value), band(end.target)
    return masked_ncc(source, target, mask), masked_ncc(source_band, target_band, mask)


def _distinction(end: Finished, score: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """How much less likely the best of the alignments 2 or 3 px beside the winner is.

    In pixels times the logarithm of the unexplained share, 0.1% taken as the least.
    """
    source, target = end.samples.value.reshape(shape), end.target.reshape(shape)
    mask = end.samples.inside.reshape(shape[:2])
    offsets = itertools.product(range(-_FARTHEST, _FARTHEST + 1), repeat=2)
    ring = jnp.array([d for d in offsets if max(abs(d[0]), abs(d[1])) > 1])

    def shifted(image: jax.Array, offset: jax.Array) -> jax.Array:
        start = (*(_FARTHEST + offset), *[0] * (image.ndim - 2))
        return jax.lax.dynamic_slice(image, start, (*shape[:2], *image.shape[2:]))

    margin = ((_FARTHEST, _FARTHEST),) * 2
    padded, padded_mask = jnp.pad(source, (*margin, (0, 0))), jnp.pad(mask, margin)

    def unexplained(offset: jax.Array) -> tuple[jax.Array, jax.Array]:
        both = mask * shifted(padded_mask, offset)
        ncc = masked_ncc(shifted(padded, offset), target, both)
        return both.sum(), 1.001 - jnp.square(jnp.maximum(ncc, 0.0))

    count, rest = jax.lax.map(unexplained, ring)
    least = 1.001 - jnp.square(jnp.maximum(score, 0.0))
    return (count * jnp.log(rest / least)).min()


def _detailed_pixels(image: jax.Array) -> jax.Array:
    """The effective number of pixels among which the energy of the gradient is shared.

    The gradient is that of central differences, which are blind to stripes and checkerboards of
    single pixels: those lose their place as soon as they are sampled between the pixels.
    """
    image = jax.lax.stop_gradient(image)
    along_x = image[1:-1, 2:] - image[1:-1, :-2]
    along_y = image[2:, 1:-1] - image[:-2, 1:-1]
    energy = (jnp.square(along_x) + jnp.square(along_y)).sum(-1)
    rounding = 1e-8 * jnp.square(jnp.square(image - image.mean((0, 1))).sum())
    return jnp.square(energy.sum()) / (jnp.square(energy).sum() + rounding + 1e-12)
