"""The search of the direct method: from no knowledge to an alignment at full size.

All rotations and shifts are searched on a coarse grid (`jaxreg.direct.correlation`), and the
candidates found are refined by Gauss-Newton. If one of them is clearly the best, it is refined
level by level. Otherwise a finer grid is searched, also by local contrast, and the best candidate
is refined together with its closest rivals, with restarts along the direction that the images
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

# Places in `Ranked` of the alignments that are refined: the best one twice and its two rivals; and
# the argument `near` of `gauss_newton` for each.
_REFINED = np.array([0, 0, 1, 2], np.int32)
_REFINED_NEAR = np.array([False, True, True, True])
# Degrees from a known alignment at which it is refined, and the argument `near` for each. At the
# two rotations Gauss-Newton returns to the known angle unless the images look alike at any angle.
# No comparison of values is on record.
_OFFSETS = np.array([0.0, 0.0, -12.0, 12.0], np.float32)
_OFFSETS_NEAR = np.array([False, True, False, False])
# Pixels of the coarse grid, the standard deviation of `local_evidence`'s neighbourhoods.
_NEIGHBOURHOOD = 1.5
_CANDIDATES = 3  # alignments that a search proposes
_LEVEL_STEP = 2.5  # largest ratio of pixel sizes between neighbouring levels
# Pixels along a side of the finer grid per pixel of the coarse one. On 2,000 training pairs with
# 20% hidden 1.25 gave 1.0% gross errors, 1.5 gave 0.25%, and 2, which takes longer, 0.15%.
_FINER = 1.5
# A pair is decided if the evidence of the best candidate is above the first, and that of its rival
# below the second as a share of it. That holds for 97% of CIFAR-10's training pairs; of about 9,000
# pairs decided so none was a gross error.
_DECIDED = 1.4
_DECIDED_RIVAL = 0.5

Best = tuple[RigidTransform, Standing]  # an alignment and its lead over its rivals


class _Found(NamedTuple):
    """The result of the search on the coarse grid.

    Attributes:
      pair: at full size.
      ranked: the best candidate and its rivals, in pixels of the coarse grid.
      candidates: all of them, in pixels of the coarse grid.
      limits: of the search; None if there was none.
    """

    pair: Pair
    ranked: Ranked
    candidates: RigidTransform
    limits: Limits | None


class _Level(NamedTuple):
    """A level of the pyramid, with pixels ``factor`` times as large as at full size."""

    factor: float
    pair: Pair


def coarse_side(side: int) -> int:
    """Shorter side of the coarse grid in its pixels: a quarter of the image's, but 16 to 32.

    >>> [coarse_side(s) for s in (8, 32, 96, 512)]
    [16, 16, 24, 32]
    """
    return min(max(round(side / 4), 16), 32)


def coarse_to_fine(pair: Pair, limits: Limits, widest: float) -> Best:
    """Find the best alignment of a pair within limits.

    Args:
      pair: planes ``(H, W)``.
      limits: of the search; the shift is a share of the shorter side.
      widest: largest shift that any limits allow, as a share of the shorter side; static.
    """
    candidates = _candidates(_pyramid(pair)[0].pair, limits, widest)
    search_finer = functools.partial(_search_finer, widest=widest)
    return _refine_or_compare(pair, candidates, search_finer, limits)


def improve(pair: Pair, known: RigidTransform) -> Best:
    """Improve a known alignment of a pair, where that raises the evidence.

    Gauss-Newton also starts from rotations of it to either side. Usually it returns to the known
    angle; where the images look alike at any angle it does not, and finds a rival.

    Args:
      pair: planes ``(H, W)``.
      known: one transform from source to target.
    """
    factor, coarse = _pyramid(pair)[0]
    known = jax.tree.map(lambda v: jnp.repeat(v, len(_OFFSETS)), _zoomed(known, 1.0 / factor))
    starts = RigidTransform(known.tx, known.ty, known.theta + pair.turn * _OFFSETS)
    improved = gauss_newton(coarse, starts, iterations=4, near=_OFFSETS_NEAR)
    candidates = jax.tree.map(lambda v, new: jnp.concatenate([v[:1], new]), known, improved)
    return _refine_or_compare(pair, candidates, _compare_candidates)


def _refine_or_compare(
    pair: Pair,
    candidates: RigidTransform,
    in_doubt: Callable[[_Found], Best],
    limits: Limits | None = None,
) -> Best:
    """Refine the best candidate to full size, or call ``in_doubt`` if none is clearly the best.

    Args:
      pair: at full size.
      candidates: in pixels of the coarse grid.
      in_doubt: finds the best alignment otherwise.
      limits: of the search, if any.
    """
    ranked = _ranked(_pyramid(pair)[0].pair, candidates, _NEIGHBOURHOOD)
    best, rival, _ = ranked.evidence.score
    decided = (best > _DECIDED) & (rival < _DECIDED_RIVAL * best)
    found = _Found(pair, ranked, candidates, limits)
    return cond_rarely(~decided, in_doubt, _refine_winner, found)


def _refine_winner(found: _Found) -> Best:
    """Refine the best candidate alone, level by level."""
    levels, t = _pyramid(found.pair), found.ranked.transform[:1]
    for coarser, level in itertools.pairwise(levels):
        t = _zoomed(t, coarser.factor / level.factor)
        t = gauss_newton(level.pair, t, iterations=3)
    return t[0], standing(found.ranked)


def _compare_candidates(found: _Found) -> Best:
    """Find the best of the given candidates."""
    return _compare_rivals(_pyramid(found.pair), found.candidates, _NEIGHBOURHOOD)


def _search_finer(found: _Found, widest: float) -> Best:
    """Find the best of the given candidates and those of a search on a finer grid.

    The finer grid, which keeps more detail, is searched twice. Grey values show what is faint;
    local contrast is insensitive to an object that hides a part of the view. Each search refines
    its candidates on its own images.
    """
    assert found.limits is not None  # there was a search
    limits, of_inverse = found.limits, jnp.asarray(found.limits.of_inverse)
    levels = _pyramid(found.pair, _FINER)
    zoom, pair = _factors(found.pair)[0] / levels[0].factor, levels[0].pair
    given = _zoomed(found.candidates, zoom)
    both = jax.tree.map(lambda *v: jnp.stack(v), pair, pair.each(local_contrast))
    # If the limits are those of the inverse, shifts may be longer along the rotated axes.
    narrow, wide = (
        functools.partial(_searched, widest=reach) for reach in (widest, 2**0.5 * widest)
    )

    def search_one(pair: Pair) -> RigidTransform:
        return _improved(pair, cond_rarely(of_inverse, wide, narrow, pair, limits))

    # In a loop, so that the search is compiled once.
    more = jax.lax.map(search_one, both)
    candidates = jax.tree.map(lambda v, new: jnp.concatenate([v, new.reshape(-1)]), given, more)
    return _compare_rivals(levels, candidates, _NEIGHBOURHOOD * zoom)


def _compare_rivals(levels: list[_Level], candidates: RigidTransform, sigma: float) -> Best:
    """Find the best of several candidates, refined together with its closest rivals.

    The best one is refined twice, with and without rejecting outliers in the first step: it may not
    explain pixels because they are hidden, or because it is off. One level on, `slide` checks it.

    Args:
      levels: of the pyramid, coarsest first.
      candidates: in pixels of the coarsest level.
      sigma: standard deviation of a neighbourhood, in pixels of the coarsest level.
    """
    ranked = _ranked(levels[0].pair, candidates, sigma)
    factor = levels[0].factor
    for number, level in enumerate(levels[1:] or levels):
        zoom, factor = factor / level.factor, level.factor
        sigma *= zoom
        t = _zoomed(ranked.transform[_REFINED], zoom)
        t = gauss_newton(level.pair, t, iterations=5, near=_REFINED_NEAR)
        ranked = _ranked(level.pair, t, sigma)
        if number == 0:
            ranked = _slid(level.pair, ranked, sigma)
    return ranked.transform[0], standing(ranked)


def _slid(pair: Pair, ranked: Ranked, sigma: float) -> Ranked:
    """Replace the best alignment by the one that `slide` finds, if that is clearly better.

    The former best then is its rival.
    """
    best = ranked.transform[0]
    beside, better = slide(pair, best)
    all_ = jax.tree.map(lambda *v: jnp.stack(v), beside, best, best)
    slid = Ranked(all_, local_evidence(pair, all_, sigma))
    return jax.tree.map(lambda a, b: jnp.where(better, a, b), slid, ranked)


def _candidates(pair: Pair, limits: Limits, widest: float) -> RigidTransform:
    """Search a grid for candidates and refine them on the same images; see `_searched`."""
    return _improved(pair, _searched(pair, limits, widest))


def _improved(pair: Pair, found: RigidTransform) -> RigidTransform:
    return gauss_newton(pair, found, iterations=4)


def _searched(pair: Pair, limits: Limits, widest: float) -> RigidTransform:
    """Search a grid for candidates.

    Args:
      pair: planes of the grid, grey values or local contrast.
      limits: of the search; the shift is a share of the shorter side.
      widest: largest shift that any limits allow, as a share of the shorter side.
    """
    side = min(pair.source.shape)
    limits = limits._replace(shift=limits.shift * side)
    # Steps of 10 degrees at 16 pixels: half a step moves the rim by 0.7 pixels.
    angles = 4 * round(9 / 16 * max(side, 16))
    return search(pair, angles, max(round(widest * side), 1), _CANDIDATES, limits)


def _ranked(pair: Pair, transforms: RigidTransform, sigma: float) -> Ranked:
    return best_and_rivals(transforms, local_evidence(pair, transforms, sigma))


def _factors(pair: Pair, finer: float = 1.0) -> list[float]:
    """Pixel sizes of the levels from the coarsest grid to full size.

    Args:
      pair: at full size.
      finer: pixels along a side of the coarsest grid per pixel of `coarse_side`.
    """
    shape = pair.source.shape
    return level_factors(shape, round(finer * coarse_side(min(shape))), _LEVEL_STEP)


def _pyramid(pair: Pair, finer: float = 1.0) -> list[_Level]:
    """The levels of `_factors`, coarsest first."""

    def level(factor: float) -> _Level:
        smaller = pair.each(lambda image: downsample(image, factor))
        masks = None if pair.masks is None else pair.masks.coarser(factor)
        return _Level(factor, smaller._replace(masks=masks))

    return [level(factor) for factor in _factors(pair, finer)]


def _zoomed(t: RigidTransform, zoom: float) -> RigidTransform:
    """Express a transform in pixels that are ``zoom`` times smaller."""
    return RigidTransform(t.tx * zoom, t.ty * zoom, t.theta)
