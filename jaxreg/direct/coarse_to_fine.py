"""The search of the direct method: from nothing to an alignment at full size.

All rotations and shifts are searched on a coarse grid (`jaxreg.direct.correlation`), and
Gauss-Newton improves the candidates found. If one of them is clearly the best, it is refined level
by level. Otherwise a finer grid is searched, by local contrast too, and the best candidate is
refined together with its closest rivals and with starts offset along the direction that the images
determine least (`jaxreg.direct.sliding`).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.compute.branching import cond_rarely
from jaxreg.direct.correlation import Limits, search
from jaxreg.direct.masking import Pair
from jaxreg.direct.pyramid import downsample, level_factors, local_contrast
from jaxreg.direct.ranking import Ranked, Standing, best_and_rivals, local_evidence, standing
from jaxreg.direct.refinement import gauss_newton
from jaxreg.direct.sliding import slide
from jaxreg.geometry import RigidTransform

# The best alignment twice, from far and from near (see `gauss_newton`), and its rivals.
_BEST_TWICE, _NEAR = np.array([0, 0, 1, 2], np.int32), np.array([False, True, True, True])
# Degrees from an alignment known beforehand at which it is improved, and from near which of them.
_ASIDE = np.array([0.0, 0.0, -12.0, 12.0], np.float32)
_NEAR_OF_ASIDE = np.array([False, True, False, False])
_NEIGHBOURHOOD = 1.5  # pixels of the coarse grid, see `local_evidence`
_CANDIDATES = 3  # coarse alignments that a search proposes
_LEVEL_STEP = 2.5  # the largest ratio of the pixel sizes of neighbouring levels
_FINER = 1.5  # grid of the search that a doubtful pair gets, in sides of the first one
# Evidence from which a candidate needs no further ones, and the most that its rival may have of it.
_DECIDED, _DECIDED_LEAD = 1.4, 0.5

Best = tuple[RigidTransform, Standing]  # an alignment, and how it stands against its rivals


class _Found(NamedTuple):
    """What the coarse grid says of a pair.

    Attributes:
      views: the pair at full size.
      ranked: the best of the candidates and its rivals.
      candidates: all of them, in pixels of the coarse grid.
      limits: those of the search, or None where there was none.
    """

    views: Pair
    ranked: Ranked
    candidates: RigidTransform
    limits: Limits | None


class _Level(NamedTuple):
    """Both images with pixels ``factor`` times as large as at full size."""

    factor: float
    views: Pair


def coarse_side(side: int) -> int:
    """Shorter side of the coarse grid: a quarter of the image's, but 16 to 32 pixels.

    >>> [coarse_side(s) for s in (8, 32, 96, 512)]
    [16, 16, 24, 32]
    """
    return min(max(round(side / 4), 16), 32)


def coarse_to_fine(views: Pair, limits: Limits, widest: float) -> Best:
    """The best alignment of a pair within limits.

    Args:
      views: planes ``(H, W)``.
      limits: the shift as a share of the shorter side.
      widest: the largest shift that can be searched, likewise; static.
    """
    candidates = _candidates(_pyramid(views)[0].views, limits, widest)
    search_finer = functools.partial(_search_finer, widest=widest)
    return _refine_or_doubt(views, candidates, search_finer, limits)


def improve(views: Pair, known: RigidTransform) -> Best:
    """An alignment known beforehand, improved where that helps.

    From a turn aside Gauss-Newton comes back to it; where images look alike at any angle it stays
    there, a rival.
    """
    factor, coarse = _pyramid(views)[0]
    known = jax.tree.map(lambda v: jnp.repeat(v, len(_ASIDE)), _zoomed(known, 1.0 / factor))
    starts = RigidTransform(known.tx, known.ty, known.theta + views.turn * _ASIDE)
    improved = _refined(coarse, starts, iterations=4, near=_NEAR_OF_ASIDE)
    candidates = jax.tree.map(lambda v, new: jnp.concatenate([v[:1], new]), known, improved)
    return _refine_or_doubt(views, candidates, _compare_candidates)


def _refine_or_doubt(
    views: Pair,
    candidates: RigidTransform,
    in_doubt: Callable[[_Found], Best],
    limits: Limits | None = None,
) -> Best:
    """The best at full size, from candidates in pixels of the coarse grid.

    Args:
      views: the pair.
      candidates: some alignments.
      in_doubt: finds the best where none of these leads clearly.
      limits: of the search, if any.
    """
    ranked = _ranked(_pyramid(views)[0].views, candidates, _NEIGHBOURHOOD)
    best, rival, _ = ranked.evidence.score
    decided = (best > _DECIDED) & (rival < _DECIDED_LEAD * best)
    found = _Found(views, ranked, candidates, limits)
    return cond_rarely(~decided, in_doubt, _refine_winner, found)


def _refine_winner(found: _Found) -> Best:
    """The best where one candidate is the only one in question."""
    levels, t = _pyramid(found.views), found.ranked.transform[:1]
    for coarser, level in itertools.pairwise(levels):
        t = _zoomed(t, coarser.factor / level.factor)
        t = _refined(level.views, t, iterations=3)
    return t[0], standing(found.ranked)


def _compare_candidates(found: _Found) -> Best:
    """The best of the candidates that there are, where they leave a doubt."""
    return _compare_rivals(_pyramid(found.views), found.candidates, _NEIGHBOURHOOD)


def _search_finer(found: _Found, widest: float) -> Best:
    """The best where the candidates leave a doubt: these, and those of a finer grid.

    Grey values show what is faint, local contrast is insensitive to what hides a part: each is
    searched on a finer grid, which keeps more detail, and adds candidates of its own, refined on
    its own images.
    """
    assert found.limits is not None  # there was a search
    levels = _pyramid(found.views, _FINER)
    zoom, views = _factors(found.views)[0] / levels[0].factor, levels[0].views
    grey = _zoomed(found.candidates, zoom)
    both = jax.tree.map(lambda *v: jnp.stack(v), views, views.each(local_contrast))
    # Shifts within the limits may be longer along the axes that they have the other way round.
    search_one = functools.partial(_candidates, limits=found.limits, widest=2**0.5 * widest)
    # A loop: its program is compiled once.
    more = jax.lax.map(search_one, both)
    candidates = jax.tree.map(lambda v, new: jnp.concatenate([v, new.reshape(-1)]), grey, more)
    return _compare_rivals(levels, candidates, _NEIGHBOURHOOD * zoom)


def _compare_rivals(levels: list[_Level], candidates: RigidTransform, sigma: float) -> Best:
    """The best of candidates that leave a doubt.

    It is refined with its closest rivals, and both ways: what it fails to explain may be hidden, or
    it may be off. One level on, `slide` checks it.

    Args:
      levels: the pyramid.
      candidates: in pixels of its coarsest level.
      sigma: standard deviation of a neighbourhood, likewise.
    """
    ranked = _ranked(levels[0].views, candidates, sigma)
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
    """The alignment that `slide` finds, with the former best as its rival, if clearly better.

    Else the same.
    """
    best = ranked.transform[0]
    beside, better = slide(views, best)
    all_ = jax.tree.map(lambda *v: jnp.stack(v), beside, best, best)
    slid = Ranked(all_, local_evidence(*views[:2], all_, sigma, masks=views.masks))
    return jax.tree.map(lambda a, b: jnp.where(better, a, b), slid, ranked)


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


def _refined(
    views: Pair, starts: RigidTransform, iterations: int, near: np.ndarray | None = None
) -> RigidTransform:
    return gauss_newton(*views[:2], starts, iterations, near, views.masks, views.turn)


def _ranked(views: Pair, transforms: RigidTransform, sigma: float) -> Ranked:
    evidence = local_evidence(*views[:2], transforms, sigma, masks=views.masks)
    return best_and_rivals(transforms, evidence)


def _factors(views: Pair, finer: float = 1.0) -> list[float]:
    """Those of the levels from the coarse grid to full size.

    Args:
      views: the pair.
      finer: pixels along a side of the first grid, for one of the coarse grid.
    """
    shape = views.source.shape
    return level_factors(shape, round(finer * coarse_side(min(shape))), _LEVEL_STEP)


def _pyramid(views: Pair, finer: float = 1.0) -> list[_Level]:
    """The levels of `_factors`."""

    def level(factor: float) -> _Level:
        smaller = views.each(lambda image: downsample(image, factor))
        masks = views.masks and views.masks.coarser(factor)
        return _Level(factor, smaller._replace(masks=masks))

    return [level(factor) for factor in _factors(views, finer)]


def _zoomed(t: RigidTransform, zoom: float) -> RigidTransform:
    """A transform of a level in pixels that are ``zoom`` times smaller."""
    return RigidTransform(t.tx * zoom, t.ty * zoom, t.theta)
