"""The direct method for one pair: search coarse, refine, finish exactly, judge.

Normalised cross-correlation over all rotations and shifts, on a grid of some 16 pixels, gives a
handful of candidates, which Gauss-Newton improves there. If one leads clearly it goes on through
the finer levels; else a finer grid is searched, by local contrast too, and the best goes on with
its closest rivals and what lies beside it along its weakest direction (`jaxreg.sliding`). The
winner is finished to numerical precision (`jaxreg.finishing`). How the rivals fared, how well the
winner's detail agrees and what its Hessian says decide whether to trust it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.branching import cond_rarely
from jaxreg.correlation import Limits, search
from jaxreg.finishing import finish
from jaxreg.geometry import RigidTransform, of_any_rank
from jaxreg.masking import Masks, Pair, fill
from jaxreg.preparation import Prepared, prepare, without_padding
from jaxreg.products import product
from jaxreg.pyramid import downsample, level_factors, local_contrast
from jaxreg.ranking import Ranked, Standing, best_and_rivals, local_evidence, standing
from jaxreg.refinement import gauss_newton
from jaxreg.result import Doubt, Registration, raised
from jaxreg.settings import WIDEST, DirectOptions, Settings
from jaxreg.sliding import slide
from jaxreg.trust import bounded, correlation, doubts_about

# The best alignment twice, from far and from near (see `gauss_newton`), and its rivals.
_BEST_TWICE, _NEAR = np.array([0, 0, 1, 2], np.int32), np.array([False, True, True, True])
# Degrees from an alignment known beforehand at which it is improved, and from near which of them.
_ASIDE = np.array([0.0, 0.0, -12.0, 12.0], np.float32)
_NEAR_OF_ASIDE = np.array([False, True, False, False])
_NEIGHBOURHOOD = 1.5  # pixels of the coarse grid, see `local_evidence`
_CANDIDATES = 3  # coarse alignments that a search proposes
_LEVEL_STEP = 2.5  # the largest ratio of the pixel sizes of neighbouring levels
_FURTHER = 1.5  # grid of the search that a doubtful pair gets, in sides of the first one
# Evidence from which a candidate needs no further ones, and the most that its rival may have of it.
_DECIDED, _DECIDED_LEAD = 1.4, 0.5
_SPACING = 2.0**-24  # of float32 numbers below 1: no coordinate is surer than that, in sides
_UNKNOWN = 1e6  # px^2 and degrees^2: the largest variance there is
_Best = tuple[RigidTransform, Standing]  # an alignment, and how it stands against its rivals
_UNRESOLVED = 2e-6  # px and degrees: the spacing of float32 coordinates from 16 to 32


_DEFAULT = DirectOptions().settings


def coarse_side(side: int) -> int:
    """Shorter side of the coarse grid: a quarter of the image's, but 16 to 32 pixels.

    >>> [coarse_side(s) for s in (8, 32, 96, 512)]
    [16, 16, 24, 32]
    """
    return min(max(round(side / 4), 16), 32)


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
    best, against_rivals = _coarse_to_fine(views, limits, WIDEST[far])
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
    best, against_rivals = _improve(views, _turned_round(known, pair))
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
    known = (doubts & Doubt.FEATURELESS) == 0
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


def _coarse_to_fine(views: Pair, limits: Limits, widest: float) -> _Best:
    """The best alignment within limits, whose shift is a share of the shorter side."""
    grid = coarse_side(min(views.source.shape))
    factor, coarse = _pyramid(views, grid)[0]

    def look_further(views: Pair, grey: RigidTransform, limits: Limits) -> _Best:
        fine = _pyramid(views, round(_FURTHER * grid))
        zoom = factor / fine[0].factor
        # Shifts within the limits may be longer along the axes that they have the other way round.
        candidates = functools.partial(_candidates, limits=limits, widest=2**0.5 * widest)
        return _look_further(fine, _zoomed(grey, zoom), _NEIGHBOURHOOD * zoom, candidates)

    return _onwards(views, _candidates(coarse, limits, widest), look_further, limits)


def _improve(views: Pair, known: RigidTransform) -> _Best:
    """An alignment known beforehand, improved where that helps.

    From a turn aside Gauss-Newton comes back to it; where images look alike at any angle it stays
    there, a rival.
    """
    grid = coarse_side(min(views.source.shape))
    factor, coarse = _pyramid(views, grid)[0]
    known = jax.tree.map(lambda v: jnp.repeat(v, len(_ASIDE)), _zoomed(known, 1.0 / factor))
    starts = RigidTransform(known.tx, known.ty, known.theta + views.turn * _ASIDE)
    improved = _refined(coarse, starts, iterations=4, near=_NEAR_OF_ASIDE)
    t = jax.tree.map(lambda v, new: jnp.concatenate([v[:1], new]), known, improved)
    return _onwards(views, t, lambda views, t: _carefully(_pyramid(views, grid), t, _NEIGHBOURHOOD))


def _onwards(views: Pair, t: RigidTransform, in_doubt: Callable[..., _Best], *more: Any) -> _Best:
    """From candidates in pixels of the coarsest level to the best at full size.

    Args:
      views: the pair.
      t: the candidates.
      in_doubt: from ``(views, t, *more)`` to the best, where none leads clearly.
      *more: pytrees of arrays.
    """
    levels = functools.partial(_pyramid, coarsest=coarse_side(min(views.source.shape)))
    ranked = _ranked(levels(views)[0].views, t, _NEIGHBOURHOOD)
    best, rival, _ = ranked.evidence.score
    decided = (best > _DECIDED) & (rival < _DECIDED_LEAD * best)
    follow = lambda views, ranked, *_: _follow(levels(views), ranked)  # noqa: E731
    rarely = lambda views, ranked, *rest: in_doubt(views, *rest)  # noqa: E731
    return cond_rarely(~decided, rarely, follow, views, ranked, t, *more)


class _Level(NamedTuple):
    """Both images with pixels ``factor`` times as large as at full size."""

    factor: float
    views: Pair


def _pyramid(views: Pair, coarsest: int) -> list[_Level]:
    """Levels from a shorter side of ``coarsest`` pixels to full size."""

    def level(factor: float) -> _Level:
        smaller = views.each(lambda image: downsample(image, factor))
        masks = views.masks and views.masks.coarser(factor)
        return _Level(factor, smaller._replace(masks=masks))

    return [level(f) for f in level_factors(views.source.shape, coarsest, _LEVEL_STEP)]


def _refined(views: Pair, starts: RigidTransform, iterations: int, **kind: Any) -> RigidTransform:
    return gauss_newton(*views[:2], starts, iterations, masks=views.masks, turn=views.turn, **kind)


def _ranked(views: Pair, transforms: RigidTransform, sigma: float) -> Ranked:
    evidence = local_evidence(*views[:2], transforms, sigma, masks=views.masks)
    return best_and_rivals(transforms, evidence)


def _candidates(views: Pair, limits: Limits, widest: float) -> RigidTransform:
    """Candidates found and refined on one kind of coarse images.

    Args:
      views: these.
      limits: the shift as a share of their shorter side.
      widest: the largest shift that can be searched, likewise.
    """
    side = min(views.source.shape)
    limits = limits._replace(shift=limits.shift * side)
    # Half a step of 10 degrees, on a side of 16 pixels, moves the rim by .7 pixels.
    angles = 4 * round(9 / 16 * max(side, 16))
    reach = max(round(widest * side), 1)
    found = search(*views[:2], angles, reach, _CANDIDATES, limits, views.masks)
    return _refined(views, found.transform, iterations=4)


def _follow(levels: list[_Level], ranked: Ranked) -> _Best:
    """`_coarse_to_fine` where one candidate is the only one in question."""
    t = ranked.transform[:1]
    for coarser, level in itertools.pairwise(levels):
        t = _zoomed(t, coarser.factor / level.factor)
        t = _refined(level.views, t, iterations=3)
    return t[0], standing(ranked)


def _look_further(
    levels: list[_Level],
    grey: RigidTransform,
    sigma: float,
    candidates: Callable[[Pair], RigidTransform],
) -> _Best:
    """`_coarse_to_fine` where the grey values' candidates leave a doubt.

    Grey values show what is faint, local contrast is insensitive to what hides a part: each is
    searched on a finer grid, which keeps more detail, and adds candidates of its own, refined on
    its own images.

    Args:
      levels: the pyramid, from that grid on.
      grey: the candidates so far, in pixels of that grid.
      sigma: standard deviation of a neighbourhood, likewise.
      candidates: finds more of them on a kind of coarse images.
    """
    views = levels[0].views
    both = jax.tree.map(lambda *v: jnp.stack(v), views, views.each(local_contrast))
    # A loop: its program is compiled once.
    more = jax.lax.map(candidates, both)
    t = jax.tree.map(lambda v, new: jnp.concatenate([v, new.reshape(-1)]), grey, more)
    return _carefully(levels, t, sigma)


def _carefully(levels: list[_Level], t: RigidTransform, sigma: float) -> _Best:
    """The best of candidates that leave a doubt.

    It goes on with its closest rivals, and both ways: what it fails to explain may be hidden, or it
    may be off. One level on, `slide` checks it.
    """
    ranked = _ranked(levels[0].views, t, sigma)
    factor = levels[0].factor
    for number, level in enumerate(levels[1:] or levels):
        zoom, factor = factor / level.factor, level.factor
        sigma *= zoom
        t = _zoomed(ranked.transform[_BEST_TWICE], zoom)
        t = _refined(level.views, t, iterations=5, near=_NEAR)
        ranked = _ranked(level.views, t, sigma)
        if number == 0:
            ranked = _slid(level.views, ranked, sigma)
    return ranked.transform[0], standing(ranked)


def _slid(views: Pair, ranked: Ranked, sigma: float) -> Ranked:
    """With the alignment that `slide` finds first and the former best its rival, if clearly better.

    Else the same.
    """
    best = ranked.transform[0]
    beside, better = slide(views, best)
    all_ = jax.tree.map(lambda *v: jnp.stack(v), beside, best, best)
    slid = Ranked(all_, local_evidence(*views[:2], all_, sigma, masks=views.masks))
    return jax.tree.map(lambda a, b: jnp.where(better, a, b), slid, ranked)


def _zoomed(t: RigidTransform, zoom: float) -> RigidTransform:
    """A transform of a level in pixels that are ``zoom`` times smaller."""
    return RigidTransform(t.tx * zoom, t.ty * zoom, t.theta)
