"""Make the pairs of a suite: the conditions that their transforms cover, and their images."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.disturbances import disturb_pair
from jaxreg.evaluation.bound import cramer_rao
from jaxreg.evaluation.suites import Suite, parse_suite
from jaxreg.geometry import RigidTransform
from jaxreg.interpolation import spline_coefficients
from jaxreg.scenes import fixed_view, iter_tiles, render_view
from jaxreg.warping import overlap, warp

ROTATION_BINS = 24
SHIFT_BINS = 4
CONDITIONS = ROTATION_BINS * SHIFT_BINS**2
PAIRS = 10 * CONDITIONS
_BATCH_PIXELS = 2**18  # pixels of the fixed images that are rendered at once

# Images of a suite, or the photographs of its scenes: what `load_source` returns.
Source = np.ndarray | Mapping[str, np.ndarray]


@functools.cache
def _condition_order() -> np.ndarray:
    """All conditions, in an order of which every beginning is spread evenly over the bins."""
    k = np.arange(CONDITIONS)
    # The two strides are coprime to the numbers of bins. Neighbours differ much; every 24 in a row
    # have all rotations, every 16 all translations. The carry k // 48 makes all 384 differ.
    rotation = 7 * k % ROTATION_BINS
    shift = 5 * (k + k // 48) % SHIFT_BINS**2
    return rotation * SHIFT_BINS**2 + shift


def conditions(pairs: int = PAIRS) -> np.ndarray:
    """Return ``(pairs,)`` conditions, 0..383, evenly distributed for any number of pairs.

    Condition ``(r * 4 + y) * 4 + x`` has its rotation in the r-th of 24 bins of 15 degrees,
    starting at -180, and its translations ty, tx in the y-th and x-th quarter of ``[-R, R]``.

    >>> sorted(conditions(384).tolist()) == list(range(384))
    True
    """
    return np.resize(_condition_order(), pairs)


def draw_parameters(pairs: int, max_shift: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw transforms, uniform within the bins of their conditions.

    Args:
      pairs: number of transforms.
      max_shift: R, the largest translation on each axis, in pixels.
      seed: seed of the transforms.

    Returns:
      ``(pairs, 3)`` float32 of (tx, ty, theta) in px, px and degrees, and ``(pairs,)`` conditions.
      A longer draw begins with the pairs of a shorter one, and R only scales the translations.
    """
    condition = conditions(pairs)
    rotation, shift = np.divmod(condition, SHIFT_BINS**2)
    cell = np.stack([shift % SHIFT_BINS, shift // SHIFT_BINS, rotation], -1)
    count = np.array([SHIFT_BINS, SHIFT_BINS, ROTATION_BINS])
    # NumPy takes the seed (seed, 0) as seed itself, with which `jaxreg.scenes.iter_tiles` draws the
    # places of scenes: the two share a stream. Another seed would give other pairs than those on
    # record. A tile takes fewer bits of the stream than a transform, so those of one pair have
    # little in common: with seed 0 a tile's place and its pair's transform correlate by .036 at
    # most over the 3,840 pairs of `scene32` and of `scene96`, where the standard error is .016, so
    # no figure is biased.
    place = (cell + np.random.default_rng((seed, 0)).random((pairs, 3))) / count
    reach = np.array([max_shift, max_shift, 180.0])
    return ((2.0 * place - 1.0) * reach).astype(np.float32), condition


@dataclasses.dataclass(frozen=True, eq=False)
class SuiteData:
    """The pairs of a suite, in the host's memory.

    Attributes:
      suite: the suite.
      fixed: ``(N, H, W, 3)`` float32, about in 0..255: splines, noise and gain exceed it.
      moving: the same shape.
      truth: ``(N, 3)`` float32 of the true (tx, ty, theta) in px, px and degrees.
      condition: ``(N,)`` condition of each pair, see `conditions`.
      bound: ``(N, 3)`` Cramér-Rao variances in px^2, px^2 and degrees^2; None unless
        `Suite.bounded`.
    """

    suite: Suite
    fixed: np.ndarray
    moving: np.ndarray
    truth: np.ndarray
    condition: np.ndarray
    bound: np.ndarray | None = None


def load_source(suite: Suite) -> Source:
    """Load the held-out images of a suite, or the photographs of its scenes.

    Raises the errors of `jaxreg.data.load_images` if they are not available.
    """
    from jaxreg import data

    if suite.scene:
        return data.photographs("test")
    return data.load_images(suite.source, "test", suite.size)


def _draw_images(images: np.ndarray, pairs: int, seed: int) -> np.ndarray:
    """Draw the ``(pairs,)`` indices of the images; none repeats before all have been drawn."""
    rng = np.random.default_rng((seed, 1))
    rounds = -(-pairs // len(images))
    return np.concatenate([rng.permutation(len(images)) for _ in range(rounds)])[:pairs]


def _unrelated_pairs(images: np.ndarray) -> np.ndarray:
    """For each pair, the index of the nearest earlier one, cyclically, with another image.

    Args:
      images: ``(pairs,)`` indices of the pairs' images, not all equal.

    >>> _unrelated_pairs(np.array([7, 7, 3, 7])) % 4
    array([2, 2, 1, 2])
    """
    other = np.arange(len(images)) - 1
    while (same := images[other] == images).any():
        other[same] -= 1
    return other


@functools.partial(jax.jit, static_argnums=0)
def _make_batch(
    suite: Suite, pictures: jax.Array, parameters: jax.Array, keys: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Render a batch: fixed and moving images ``(N, H, W, C)``, and bounds ``(N, 3)`` or None.

    Args:
      suite: the suite.
      pictures: N images, or N tiles of photographs if it has scenes.
      parameters: ``(N, 3)`` of (tx, ty, theta).
      keys: N random keys, for the disturbances.
    """

    def make(picture: jax.Array, p: jax.Array, key: jax.Array):
        picture, truth = picture.astype(jnp.float32), RigidTransform.from_array(p)
        if suite.scene:
            coefficients = spline_coefficients(picture)
            view = functools.partial(render_view, coefficients, size=suite.size)
            fixed = fixed_view(coefficients, suite.size)
        else:
            view = functools.partial(warp, picture, interpolation=suite.interpolation)
            fixed = picture
        bound = None
        if suite.bounded:
            shared = overlap(fixed.shape, truth)
            bound = cramer_rao(view, truth, shared, suite.disturbance.noise)
        return *disturb_pair(key, fixed, view(truth), suite.disturbance), bound

    return jax.vmap(make)(pictures, parameters, keys)


def _through_jpeg(images: np.ndarray, quality: int) -> np.ndarray:
    """Round RGB images to uint8, compress them by JPEG, and return the decoded ones."""
    import cv2

    result = np.empty_like(images)
    for k, image in enumerate(np.clip(np.rint(images), 0, 255).astype(np.uint8)):
        _, code = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        decoded = cv2.imdecode(code, cv2.IMREAD_COLOR)
        result[k] = np.asarray(decoded)[..., ::-1]
    return result


def build_suite(
    suite: Suite | str, pairs: int = PAIRS, seed: int = 0, source: Source | None = None
) -> SuiteData:
    """Make the pairs of a suite.

    With the same seed, images and transforms do not depend on the disturbances (except for scenes
    with ``shift``, which need other tiles), and a smaller suite is the beginning of a larger one
    (except with ``unrelated``, where the first pair takes its moving image from one of the last).
    Images come from the test split; none repeats before all have been drawn.

    Args:
      suite: the suite, or its name.
      pairs: number of pairs, evenly distributed over the conditions.
      seed: seed of the images, transforms and disturbances.
      source: the result of `load_source`, to avoid loading it again.

    Raises:
      ValueError: the name, the number of pairs or the seed is invalid, or an ``unrelated`` suite
        has no two different images. Loading the source may raise other errors, see `load_source`.

    >>> data = build_suite("random32+noise10", 2)
    >>> data.fixed.shape, data.truth.shape, data.bound.shape
    ((2, 32, 32, 3), (2, 3), (2, 3))
    """
    suite = parse_suite(suite) if isinstance(suite, str) else suite
    if pairs < 1:
        raise ValueError(f"pairs must be 1 or more, got {pairs}")
    if not 0 <= seed < 2**32:  # a JAX key would silently drop further bits
        raise ValueError(f"seed must be from 0 to 2**32 - 1, got {seed}")
    source = load_source(suite) if source is None else source
    pictures, partners = _draw_pictures(suite, source, pairs, seed)
    truth, condition = draw_parameters(pairs, suite.max_shift, seed)
    fixed, moving, bound = _render(suite, pictures, truth, seed)
    if suite.jpeg is not None:
        fixed, moving = _through_jpeg(fixed, suite.jpeg), _through_jpeg(moving, suite.jpeg)
    if partners is not None:
        moving = moving[partners]
    return SuiteData(suite, fixed, moving, truth, condition, bound)


def _draw_pictures(
    suite: Suite, source: Source, pairs: int, seed: int
) -> tuple[Iterator[np.ndarray], np.ndarray | None]:
    """Draw the image, or the tile of a scene, of each pair.

    Returns:
      The images or tiles; and for unrelated pairs the ``(pairs,)`` indices of the pairs that they
      take their moving images from, else None.
    """
    if not isinstance(source, np.ndarray):
        return iter_tiles(source, suite.size, suite.max_shift, seed), None
    drawn = _draw_images(source, pairs, seed)
    partners = None
    if suite.unrelated:
        if (drawn == drawn[0]).all():
            raise ValueError(f"suite {suite.name!r} takes two pairs or more, of different images")
        partners = _unrelated_pairs(drawn)
    return (source[i] for i in drawn), partners


def _render(
    suite: Suite, pictures: Iterator[np.ndarray], parameters: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Render all pairs in batches: fixed and moving images, and bounds or None."""
    pairs = len(parameters)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(pairs))
    shape = (pairs, suite.size, suite.size, 3)
    fixed, moving = np.empty(shape, np.float32), np.empty(shape, np.float32)
    bound = np.empty((pairs, 3), np.float32) if suite.bounded else None
    batch = min(pairs, max(1, _BATCH_PIXELS // suite.size**2))
    for start in range(0, pairs, batch):
        # The last batch is padded, so that all have one shape and one compilation.
        part = slice(start, min(start + batch, pairs))
        count = part.stop - part.start
        stack = np.stack(list(itertools.islice(pictures, count)))
        pad = batch - count
        stack = np.pad(stack, [(0, pad)] + [(0, 0)] * 3)
        index = np.pad(np.arange(part.start, part.stop), (0, pad))
        made = _make_batch(suite, stack, parameters[index], keys[index])
        fixed[part], moving[part] = made[0][:count], made[1][:count]
        if bound is not None:
            bound[part] = made[2][:count]
    return fixed, moving, bound
