"""The direct method for one pair: search coarse, refine, finish exactly, judge.

The stages, and the modules they are in, are listed in `jaxreg.direct`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.compute.products import product
from jaxreg.compute.pytrees import of_any_rank
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

_SPACING = 2.0**-24  # of float32 numbers below 1: no coordinate is surer than that, in sides
_UNRESOLVED = 2e-6  # px and degrees: the spacing of float32 coordinates from 16 to 32
_UNKNOWN = 1e6  # px^2 and degrees^2: the largest variance there is
_DEFAULT = DirectOptions().settings


@of_any_rank
def align(
    fixed: jax.Array,
    moving: jax.Array,
    settings: jax.typing.ArrayLike = _DEFAULT,
    *masks: jax.Array,
    far: bool = False,
) -> Registration:
    """Register one pair by the direct method.

    Pure, of static shapes: works under ``jit`` and ``vmap``. The transform is differentiable with
    respect to the images through the optimum it is. Values that are not finite give finite numbers
    and ``success`` False.

    Args:
      fixed: ``(H, W, C)`` float32.
      moving: the same shape.
      settings: ``(3,)``, the fields of `Settings`.
      *masks: none, or of both images ``(H, W)``, float32: 1 where a pixel counts, else 0.
      far: whether ``max_shift`` may be above a third, up to a half.
    """
    asked = Settings(*jnp.asarray(settings))
    pair, both, views = _prepared(fixed, moving, masks, asked.turn)
    limits = Limits(asked.max_shift, asked.max_rotation, pair.more_in_fixed)
    best, against_rivals = coarse_to_fine(views, limits, WIDEST[far])
    start = _zero_if_same(_turned_round(best, pair), pair)
    answer = _finish_and_judge(pair, start, against_rivals, asked, both)
    shift = asked.max_shift * min(fixed.shape[:2])
    return bounded(answer, jnp.stack([shift, shift, asked.max_rotation]))


@of_any_rank
def align_near(
    fixed: jax.Array,
    moving: jax.Array,
    settings: jax.typing.ArrayLike,
    initial: jax.Array,
    *masks: jax.Array,
) -> Registration:
    """`align` near an alignment known beforehand, in place of the search.

    Args:
      fixed: as for `align`.
      moving: as for `align`.
      settings: likewise; the limits are not asked, but whether the angle is held.
      initial: ``(3,)``, its ``(tx, ty, theta)``.
      *masks: as for `align`.
    """
    asked = Settings(*jnp.asarray(settings))
    pair, both, views = _prepared(fixed, moving, masks, asked.turn)
    known = RigidTransform.from_array(jnp.nan_to_num(jax.lax.stop_gradient(initial)))
    best, against_rivals = improve(views, _turned_round(known, pair))
    start = _turned_round(best, pair)
    return _finish_and_judge(pair, start, against_rivals, asked, both)


def align_from(fixed: jax.Array, moving: jax.Array, transform: RigidTransform) -> Registration:
    """`align` from an alignment that is close enough for the finish, such as a network's.

    Args:
      fixed: ``(H, W, C)`` float32.
      moving: the same shape.
      transform: within a few tenths of a pixel.
    """
    pair = prepare(fixed, moving)
    far_ahead = jnp.float32(jnp.inf)
    no_rival = Standing(jnp.float32(0.0), far_ahead, far_ahead)
    return _finish_and_judge(pair, _zero_if_same(transform, pair), no_rival, Settings())


def _prepared(
    fixed: jax.Array, moving: jax.Array, masks: tuple[jax.Array, ...], turn: jax.Array
) -> tuple[Prepared, Masks | None, Pair]:
    """A pair in common units, its masks if any, and what is searched: its grey values.

    Pixels that the search pulls from beyond the frame do not count, while those of a padded image
    look like any other: so the one with less of them is pulled, the other way round if need be.
    """
    both = Masks(*masks) if masks else None
    if both:
        fixed, moving = fill(jnp.stack([fixed, moving]), jnp.stack(both))
    pair = prepare(fixed, moving, both)
    images = jax.lax.stop_gradient((pair.fixed, pair.moving))
    grey = [
        without_padding(_along(pair.axis, image), pad)
        for image, pad in zip(images, pair.padding, strict=True)
    ]
    there = Pair(grey[0], grey[1], both, turn)
    pick = functools.partial(jnp.where, pair.more_in_fixed)
    return pair, both, jax.tree.map(pick, there.swapped(), there)


def _turned_round(t: RigidTransform, pair: Prepared) -> RigidTransform:
    """From the pair as given to the pair as it is searched, or back."""
    return jax.tree.map(functools.partial(jnp.where, pair.more_in_fixed), t.inverse(), t)


def _zero_if_same(t: RigidTransform, pair: Prepared) -> RigidTransform:
    """The answer to two images that are the same, even if they fit at other angles as well."""
    same = (pair.fixed == pair.moving).all()
    return jax.tree.map(lambda v: jnp.where(same, 0.0, v), t)


def _along(axis: jax.Array, image: jax.Array) -> jax.Array:
    """The plane ``(H, W)`` of an image ``(H, W, C)`` along an axis of its channels ``(C, 1)``."""
    return product(image, axis)[..., 0]


def _finish_and_judge(
    pair: Prepared,
    start: RigidTransform,
    against_rivals: Standing,
    asked: Settings,
    masks: Masks | None = None,
) -> Registration:
    """Finish an alignment and judge it."""
    images, turn = (pair.fixed, pair.moving), asked.turn
    end = finish(Pair(*images, masks, turn, grain=pair.grain), start, asked.kernel)
    doubts = doubts_about(end, *images, pair.axis, against_rivals, masks, turn)
    doubts |= raised(Doubt.NOT_FINITE, ~pair.finite)
    transform = jax.tree.map(_without_rounding, end.transform)
    # Nobody knows what the images leave open, nor how it would change with them.
    known = (doubts & Doubt.UNDETERMINED) == 0
    transform = jax.tree.map(lambda v: jnp.where(known, v, jax.lax.stop_gradient(v)), transform)
    # In smaller units: with entries cut off one by one it would be no covariance any more.
    unit = jnp.sqrt(jnp.minimum(_UNKNOWN / jnp.maximum(jnp.diagonal(end.covariance), 1.0), 1.0))
    covariance = end.covariance * unit[:, None] * unit
    known &= jnp.isfinite(covariance).all()
    covariance = jnp.where(known, covariance, _UNKNOWN * jnp.eye(3, dtype=jnp.float32))
    resolved = _SPACING * np.array([*pair.fixed.shape[1::-1], 180.0], np.float32)
    # Of a variance a million times another's, turned, rounding may leave less than nothing.
    negative = jnp.minimum(jnp.diagonal(covariance), 0.0)
    covariance += jnp.diag(jnp.square(resolved) - negative)
    score = correlation(end, pair.fixed.shape)
    return Registration(transform, score, doubts == 0, covariance, jnp.bool_(True), doubts)


def _without_rounding(parameter: jax.Array) -> jax.Array:
    """Finite, and zero where float32 coordinates could not tell.

    The derivative stays.
    """
    parameter = jnp.nan_to_num(parameter)
    zero = parameter - jax.lax.stop_gradient(parameter)
    return jnp.where(jnp.abs(parameter) < _UNRESOLVED, zero, parameter)
