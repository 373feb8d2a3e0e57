"""Suites of image pairs to measure on, and the conditions that their transforms cover.

The name of a suite is its images, followed by the disturbances::

    cifar10    scene32    cifar10+noise10    scene32+noise10+gain    folder:shots@64+blur

===============  ==================================================================================
`photos32` etc.  one of the eight suites of `SUITES`
SOURCE@SIZE      any source of `jaxreg.data.load_images`, or ``scene``, at any size; translations
                 up to 5/32 of the size. Disturbances follow the last @SIZE: a path may contain a +
+noiseS          Gaussian noise in both images, of standard deviation S in grey levels
+gain            the moving image times 0.7 to 1.3, plus -20 to 20 grey levels
+blur, +blurS    Gaussian blur of the moving image, of standard deviation 0.7 or S pixels
+occlusion, +occlusionP  a square of one colour hides 20% or P% of the moving image; where the
                 protocol says "up to 20%" this is its hardest case, in every pair
+bicubic         the moving image is rendered with the bicubic kernel (not scenes)
+jpeg, +jpegQ    both images are compressed by JPEG at quality 75 or Q
+shiftR          translations up to R pixels
+unrelated       the moving image shows another picture, so every answer is wrong (not scenes)
===============  ==================================================================================
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.disturbances import UNDISTURBED, Disturbance, disturb_pair
from jaxreg.evaluation.bound import cramer_rao
from jaxreg.geometry import RigidTransform
from jaxreg.interpolation import Interpolation, spline_coefficients
from jaxreg.scenes import fixed_view, iter_tiles, render_view
from jaxreg.warping import overlap, warp

ROTATION_BINS = 24
SHIFT_BINS = 4
CONDITIONS = ROTATION_BINS * SHIFT_BINS**2
PAIRS = 10 * CONDITIONS
GROSS_DEGREES = 5.0  # an answer with a larger rotation error is wrong
_BATCH_PIXELS = 2**18  # pixels of the fixed images that are rendered at once

# Images of a suite, or the photographs of its scenes: what `load_source` returns.
Source = np.ndarray | Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Suite:
    """A kind of image pairs to measure on.

    Attributes:
      base: first part of the name: a name of `SUITES`, or SOURCE@SIZE.
      source: source of the images, for `jaxreg.data.load_images`; ``photos`` for scenes.
      size: height and width of the images in pixels.
      max_shift: translations are within ``[-max_shift, max_shift]`` pixels on both axes.
      scene: whether both images are views of one larger photograph.
      interpolation: interpolation that renders the moving image (scenes: a supersampled spline).
      disturbance: noise, gain, blur and occlusion of the images.
      jpeg: quality of the JPEG compression of both images, or None.
      unrelated: whether the two images show different pictures.
      modifiers: the other parts of the name, such as ``noise10``.

    Raises:
      ValueError: a scene suite is bicubic or unrelated.
    """

    base: str
    source: str
    size: int
    max_shift: float
    scene: bool = False
    interpolation: Interpolation = "linear"
    disturbance: Disturbance = UNDISTURBED
    jpeg: int | None = None
    unrelated: bool = False
    modifiers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.scene and self.interpolation != "linear":
            raise ValueError("bicubic does not go with scenes: they are rendered from a spline")
        if self.scene and self.unrelated:
            raise ValueError("unrelated does not go with scenes: two of them may overlap")

    @property
    def name(self) -> str:
        """The whole name, with the disturbances."""
        return "+".join((self.base, *self.modifiers))

    @property
    def gross_pixels(self) -> float:
        """An answer with a larger translation error in pixels is wrong: 2 up to 64x64, else 4."""
        return 2.0 if self.size <= 64 else 4.0

    @property
    def bounded(self) -> bool:
        """Whether noise is the only disturbance, so that the Cramér-Rao bound holds."""
        noise = self.disturbance.noise
        plain = self.jpeg is None and not self.unrelated
        return plain and noise > 0 and self.disturbance == Disturbance(noise=noise)


SUITES = {
    suite.name: suite
    for suite in (
        Suite("cifar10", "cifar10", 32, 5.0),
        Suite("random32", "random", 32, 5.0),
        Suite("stl10", "stl10", 96, 15.0),
        Suite("random96", "random", 96, 15.0),
        Suite("photos32", "photos", 32, 5.0),
        Suite("photos96", "photos", 96, 15.0),
        Suite("scene32", "photos", 32, 5.0, scene=True),
        Suite("scene96", "photos", 96, 15.0, scene=True),
    )
}


def _disturbed(suite: Suite, **strengths: float) -> Suite:
    disturbance = dataclasses.replace(suite.disturbance, **strengths)
    return dataclasses.replace(suite, disturbance=disturbance)


def _jpeg(suite: Suite, quality: float | None) -> Suite:
    if quality is not None and not (1 <= quality <= 100 and quality == int(quality)):
        raise ValueError(f"jpeg takes a whole quality from 1 to 100, got {quality:g}")
    return dataclasses.replace(suite, jpeg=75 if quality is None else int(quality))


# Name -> whether a number follows ("must", "may", "never"), and the change to the suite.
_MODIFIERS: dict[str, tuple[str, Callable[[Suite, float | None], Suite]]] = {
    "noise": ("must", lambda suite, s: _disturbed(suite, noise=s or 0.0)),
    "gain": ("never", lambda suite, _: _disturbed(suite, gain=0.3, bias=20.0)),
    "blur": ("may", lambda suite, s: _disturbed(suite, blur=0.7 if s is None else s)),
    "occlusion": (
        "may",
        lambda suite, p: _disturbed(suite, occlusion=(20.0 if p is None else p) / 100.0),
    ),
    "bicubic": ("never", lambda suite, _: dataclasses.replace(suite, interpolation="cubic")),
    "jpeg": ("may", _jpeg),
    "shift": ("must", lambda suite, r: dataclasses.replace(suite, max_shift=r or 0.0)),
    "unrelated": ("never", lambda suite, _: dataclasses.replace(suite, unrelated=True)),
}


def _base_suite(name: str) -> Suite:
    """The undisturbed suite of a name."""
    if name in SUITES:
        return SUITES[name]
    source, at, size = name.rpartition("@")
    if at and source and size.isdigit() and int(size) >= 8:
        scene = source == "scene"
        return Suite(
            name, "photos" if scene else source, int(size), 5 * int(size) / 32, scene=scene
        )
    near = difflib.get_close_matches(name, SUITES, 1)
    raise ValueError(
        f"unknown suite {name!r}{f', did you mean {near[0]}?' if near else '.'} "
        f"There are {', '.join(SUITES)} and SOURCE@SIZE (such as folder:PATH@64, size 8 or more)"
    )


def parse_suite(spec: str) -> Suite:
    """Parse the name of a suite; see the module's docstring for the grammar.

    Raises:
      ValueError: a name is unknown, a number is missing or invalid, or a disturbance is given twice
        or does not apply to scenes. The error says what there is.

    >>> suite = parse_suite("cifar10+noise10+shift8")
    >>> suite.size, suite.max_shift, suite.disturbance.noise
    (32, 8.0, 10.0)
    """
    # A path may contain a +, so modifiers come after the last @SIZE if there is one.
    sized = re.match(r".*@\d+(?=\+|\Z)", spec, re.DOTALL)
    base = sized.group() if sized else spec.partition("+")[0]
    modifiers = spec[len(base) :].split("+")[1:]
    suite = _base_suite(base)
    seen = set()
    for modifier in modifiers:
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)?", modifier)
        word = match.group(1) if match else modifier
        if match is None or word not in _MODIFIERS:
            raise ValueError(
                f"suite {spec!r}: unknown disturbance {modifier!r}; there are "
                "noiseS, gain, blur[S], occlusion[P], bicubic, jpeg[Q], shiftR, unrelated"
            )
        number = None if match.group(2) is None else float(match.group(2))
        takes, apply = _MODIFIERS[word]
        if (number is None and takes == "must") or (number is not None and takes == "never"):
            example = f"{word}10" if takes == "must" else word
            raise ValueError(f"suite {spec!r}: {modifier!r} should read like {example!r}")
        if word in seen:
            raise ValueError(f"suite {spec!r}: {word} is given twice")
        seen.add(word)
        try:
            suite = apply(suite, number)
        except ValueError as error:
            raise ValueError(f"suite {spec!r}: {error}") from None
    return dataclasses.replace(suite, modifiers=tuple(modifiers))


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


@dataclasses.dataclass(frozen=True)
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
