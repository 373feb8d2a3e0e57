"""The direct method for one pair: search on a coarse grid, refine, finish exactly, judge.

`jaxreg.direct` lists the stages and their modules.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.compute.products import product
from jaxreg.compute.pytrees import allow_rank_promotion
from jaxreg.direct.coarse_to_fine import coarse_to_fine, improve
from jaxreg.direct.correlation import Limits
from jaxreg.direct.finishing import finish
from jaxreg.direct.masking import Masks, Pair, fill
from jaxreg.direct.preparation import Prepared, prepare, without_padding
from jaxreg.direct.ranking import Standing
from jaxreg.direct.settings import WIDEST, DirectOptions, Settings
from jaxreg.direct.trust import bounded, correlation, doubts_about
from jaxreg.geometry import RigidTransform
from jaxreg.result import Doubt, Registration, raised

# Spacing of float32 numbers from 0.5 to 1; the smallest standard error, in sides or half turns.
_SPACING = 2.0**-24
_UNRESOLVED = 2e-6  # px and degrees: spacing of float32 numbers from 16 to 32; less is set to zero
_UNKNOWN = 1e6  # px^2 and degrees^2: the largest variance, and that of an unknown transform
_DEFAULT = DirectOptions().settings


@allow_rank_promotion
def align(
    fixed: jax.Array,
    moving: jax.Array,
    settings: jax.typing.ArrayLike = _DEFAULT,
    *masks: jax.Array,
    far: bool = False,
) -> Registration:
    """Register one pair by the direct method.

    The function is pure and works under ``jit`` and ``vmap``. The transform is differentiable with
    respect to the images, by the implicit function theorem at the optimum. Images with values that
    are not finite give finite numbers and ``success`` False.

    Args:
      fixed: ``(H, W, C)`` float32.
      moving: the same shape.
      settings: ``(3,)``, the fields of `Settings`.
      *masks: none, or the masks of fixed and moving, ``(H, W)`` float32: 1 where a pixel counts,
        else 0.
      far: whether ``max_shift`` may exceed a third of the shorter side, up to a half; static.
    """
    options = Settings(*jnp.asarray(settings))
    prepared, both, pair = _prepare(fixed, moving, masks, options.turn)
    limits = Limits(options.max_shift, options.max_rotation, prepared.more_in_fixed)
    best, against_rivals = coarse_to_fine(pair, limits, WIDEST[far])
    start = _zero_if_same(_inverse_if_swapped(best, prepared), prepared)
    answer = _finish_and_judge(prepared, start, against_rivals, options, both)
    shift = options.max_shift * min(fixed.shape[:2])
    return bounded(answer, jnp.stack([shift, shift, options.max_rotation]))


@allow_rank_promotion
def align_near(
    fixed: jax.Array,
    moving: jax.Array,
    settings: jax.typing.ArrayLike,
    initial: jax.Array,
    *masks: jax.Array,
) -> Registration:
    """Register one pair like `align`, but from a known alignment instead of a search.

    Args:
      fixed: as for `align`.
      moving: as for `align`.
      settings: as for `align`; of the limits only a held angle applies.
      initial: ``(3,)``, the ``(tx, ty, theta)`` of the known alignment, px and degrees.
      *masks: as for `align`.
    """
    options = Settings(*jnp.asarray(settings))
    prepared, both, pair = _prepare(fixed, moving, masks, options.turn)
    known = RigidTransform.from_array(jnp.nan_to_num(jax.lax.stop_gradient(initial)))
    best, against_rivals = improve(pair, _inverse_if_swapped(known, prepared))
    start = _inverse_if_swapped(best, prepared)
    return _finish_and_judge(prepared, start, against_rivals, options, both)


def align_from(fixed: jax.Array, moving: jax.Array, transform: RigidTransform) -> Registration:
    """Finish an alignment that is already close, such as a network's, without any search.

    Args:
      fixed: ``(H, W, C)`` float32.
      moving: the same shape.
      transform: within a few tenths of a pixel.
    """
    prepared = prepare(fixed, moving)
    infinite = jnp.float32(jnp.inf)
    no_rival = Standing(jnp.float32(0.0), infinite, infinite)
    return _finish_and_judge(prepared, _zero_if_same(transform, prepared), no_rival, Settings())


def _prepare(
    fixed: jax.Array, moving: jax.Array, masks: tuple[jax.Array, ...], rotation_free: jax.Array
) -> tuple[Prepared, Masks | None, Pair]:
    """Prepare a pair: in common units, its masks if any, and the grey planes to be searched.

    The search ignores pixels that the source is pulled from beyond its frame, but the padding of an
    image looks like content. So the image with less padding is pulled: if that is the moving one,
    the pair to be searched is swapped.
    """
    both = Masks(*masks) if masks else None
    if both is not None:
        fixed, moving = fill(jnp.stack([fixed, moving]), jnp.stack(both))
    prepared = prepare(fixed, moving, both)
    images = jax.lax.stop_gradient((prepared.fixed, prepared.moving))
    grey = [
        without_padding(_mixed(prepared.axis, image), padding)
        for image, padding in zip(images, prepared.padding, strict=True)
    ]
    pair = Pair(grey[0], grey[1], both, rotation_free)
    pick = functools.partial(jnp.where, prepared.more_in_fixed)
    return prepared, both, jax.tree.map(pick, pair.swapped(), pair)


def _inverse_if_swapped(t: RigidTransform, prepared: Prepared) -> RigidTransform:
    """Convert a transform between the pair as given and the pair as searched, either way."""
    return jax.tree.map(functools.partial(jnp.where, prepared.more_in_fixed), t.inverse(), t)


def _zero_if_same(t: RigidTransform, prepared: Prepared) -> RigidTransform:
    """Replace the transform by zeros if the images are identical, even if other angles fit too."""
    same = (prepared.fixed == prepared.moving).all()
    return jax.tree.map(lambda v: jnp.where(same, 0.0, v), t)


def _mixed(axis: jax.Array, image: jax.Array) -> jax.Array:
    """Mix the channels of an image ``(H, W, C)`` by an axis ``(C, 1)`` to a plane ``(H, W)``."""
    return product(image, axis)[..., 0]


def _finish_and_judge(
    prepared: Prepared,
    start: RigidTransform,
    against_rivals: Standing,
    options: Settings,
    masks: Masks | None = None,
) -> Registration:
    """Refine an alignment to numerical precision and judge it.

    Args:
      prepared: the pair.
      start: from fixed to moving, within a few tenths of a pixel.
      against_rivals: its lead over other alignments.
      options: kernel, and whether the angle is held.
      masks: of fixed and moving, if any.
    """
    images, rotation_free = (prepared.fixed, prepared.moving), options.turn
    pair = Pair(*images, masks, rotation_free, grain=prepared.grain)
    end = finish(pair, start, options.kernel, prepared.border)
    doubts = doubts_about(end, *images, prepared.axis, against_rivals, masks, rotation_free)
    doubts |= raised(Doubt.NOT_FINITE, ~prepared.finite)
    transform = jax.tree.map(_without_rounding, end.transform)
    # A direction that the images leave open has no known value, and no known derivative either.
    known = (doubts & Doubt.UNDETERMINED) == 0
    transform = jax.tree.map(lambda v: jnp.where(known, v, jax.lax.stop_gradient(v)), transform)
    # Rescale rows and columns: clipping single entries would not leave a covariance matrix.
    unit = jnp.sqrt(jnp.minimum(_UNKNOWN / jnp.maximum(jnp.diagonal(end.covariance), 1.0), 1.0))
    covariance = end.covariance * unit[:, None] * unit
    known &= jnp.isfinite(covariance).all()
    covariance = jnp.where(known, covariance, _UNKNOWN * jnp.eye(3, dtype=jnp.float32))
    resolved = _SPACING * np.array([*prepared.fixed.shape[1::-1], 180.0], np.float32)
    # Where one variance is a million times another, rotating them may round the smaller below zero.
    negative = jnp.minimum(jnp.diagonal(covariance), 0.0)
    covariance += jnp.diag(jnp.square(resolved) - negative)
    score = correlation(end, prepared.fixed.shape)
    return Registration(transform, score, doubts == 0, covariance, jnp.bool_(True), doubts)


def _without_rounding(parameter: jax.Array) -> jax.Array:
    """Make a parameter finite, and zero if it is below the resolution of float32 coordinates.

    The derivative is kept.
    """
    parameter = jnp.nan_to_num(parameter)
    zero = parameter - jax.lax.stop_gradient(parameter)
    return jnp.where(jnp.abs(parameter) < _UNRESOLVED, zero, parameter)
