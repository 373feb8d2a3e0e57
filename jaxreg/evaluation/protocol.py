"""What is measured: suites of image pairs, and the conditions their transforms cover.

A suite is written as its images, then whatever disturbs them::

    cifar10    scene32    cifar10+noise10    scene32+noise10+gain    folder:shots@64+blur

===============  ==================================================================================
`photos32` etc.  one of the eight suites of `SUITES`
SOURCE@SIZE      any source of `jaxreg.data.load_images`, or ``scene``, at any size; translations
                 reach 5/32 of the size. What follows the last @SIZE disturbs: paths may hold a +
+noiseS          Gaussian noise of S grey levels in both images
+gain            the moving image times 0.7 to 1.3, plus -20 to 20
+blur, +blurS    Gaussian blur of the moving image, 0.7 or S pixels
+occlusion, +occlusionP  a square of one colour hides 20% or P% of the moving image; where the
                 protocol says "up to 20%" this is its hardest case, in every pair
+bicubic         the moving image is rendered with the bicubic kernel (not scenes)
+jpeg, +jpegQ    both images go through JPEG at quality 75 or Q
+shiftR          translations up to R pixels
+unrelated       the moving image shows another picture: every answer is wrong (not scenes)
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
GROSS_DEGREES = 5.0
_BATCH_PIXELS = 2**18  # of one image stack in a device batch while a suite is made

# Images of a suite, or the photographs of its scenes: what `load_source` gives.
Source = np.ndarray | Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Suite:
    """A kind of image pairs to measure on.

    Attributes:
      base: how its images are written: a name of `SUITES`, or SOURCE@SIZE.
      source: of the images, as `jaxreg.data.load_images` takes it; ``photos`` for scenes.
      size: height and width in pixels.
      max_shift: translations are within ``[-max_shift, max_shift]`` pixels on both axes.
      scene: whether both images are views of one larger photograph.
      interpolation: how the moving image is rendered (scenes: always a supersampled spline).
      disturbance: what happens to the images.
      jpeg: quality of the JPEG compression of both images, or None.
      unrelated: whether the two images show different pictures.
      modifiers: what follows the base in its name.
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

    @property
    def name(self) -> str:
        """How it is written, disturbances and all."""
        return "+".join((self.base, *self.modifiers))

    @property
    def gross_pixels(self) -> float:
        """From this translation error on an answer is wrong: 2 px at 32x32, 4 px at 96x96."""
        return 2.0 if self.size <= 64 else 4.0

    @property
    def bounded(self) -> bool:
        """Whether noise, and noise alone, disturbs the pairs, so that `cramer_rao` holds."""
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


def _bicubic(suite: Suite, _: float | None) -> Suite:
    if suite.scene:
        raise ValueError("bicubic does not go with scenes: they are rendered from a spline")
    return dataclasses.replace(suite, interpolation="cubic")


def _unrelated(suite: Suite, _: float | None) -> Suite:
    if suite.scene:
        raise ValueError("unrelated does not go with scenes: two of them may overlap")
    return dataclasses.replace(suite, unrelated=True)


def _jpeg(suite: Suite, quality: float | None) -> Suite:
    if quality is not None and not (1 <= quality <= 100 and quality == int(quality)):
        raise ValueError(f"jpeg takes a whole quality from 1 to 100, got {quality:g}")
    return dataclasses.replace(suite, jpeg=75 if quality is None else int(quality))


# Name -> whether a number follows ("must", "may", "never"), and what it does to the suite.
_MODIFIERS: dict[str, tuple[str, Callable[[Suite, float | None], Suite]]] = {
    "noise": ("must", lambda suite, s: _disturbed(suite, noise=s or 0.0)),
    "gain": ("never", lambda suite, _: _disturbed(suite, gain=0.3, bias=20.0)),
    "blur": ("may", lambda suite, s: _disturbed(suite, blur=0.7 if s is None else s)),
    "occlusion": (
        "may",
        lambda suite, p: _disturbed(suite, occlusion=(20.0 if p is None else p) / 100.0),
    ),
    "bicubic": ("never", _bicubic),
    "jpeg": ("may", _jpeg),
    "shift": ("must", lambda suite, r: dataclasses.replace(suite, max_shift=r or 0.0)),
    "unrelated": ("never", _unrelated),
}


def _base_suite(name: str) -> Suite:
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
    """The suite that a text stands for; see the module's docstring for the grammar.

    Raises:
      ValueError: a name is unknown or a number is missing; says what there is.

    >>> suite = parse_suite("cifar10+noise10+shift8")
    >>> suite.size, suite.max_shift, suite.disturbance.noise
    (32, 8.0, 10.0)
    """
    # A path may hold a + of its own: modifiers come after the last @SIZE, where there is one.
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
    """All conditions, such that every first part of them is spread evenly over the bins."""
    k = np.arange(CONDITIONS)
    # The two strides are coprime to the numbers of bins. Neighbours differ much, every 24 in a
    # row have all rotations, every 16 all translations; the carry makes all 384 differ.
    rotation = 7 * k % ROTATION_BINS
    shift = 5 * (k + k // 48) % SHIFT_BINS**2
    return rotation * SHIFT_BINS**2 + shift


def conditions(pairs: int = PAIRS) -> np.ndarray:
    """``(pairs,)`` condition of each pair, 0..383, spread evenly over any number of pairs.

    Condition ``(r * 4 + y) * 4 + x`` has its rotation in the r-th of 24 bins of 15 degrees from
    -180 on, and its translations ty, tx in the y-th and x-th quarter of ``[-R, R]``.

    >>> sorted(conditions(384).tolist()) == list(range(384))
    True
    """
    return np.resize(_condition_order(), pairs)


def draw_parameters(pairs: int, max_shift: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Transforms uniform inside their condition's bins.

    Returns:
      ``(pairs, 3)`` float32 of (tx, ty, theta), and ``(pairs,)`` conditions. The first pairs of a
      longer draw are those of a shorter one, and R only scales the translations.
    """
    condition = conditions(pairs)
    rotation, shift = np.divmod(condition, SHIFT_BINS**2)
    cell = np.stack([shift % SHIFT_BINS, shift // SHIFT_BINS, rotation], -1)
    count = np.array([SHIFT_BINS, SHIFT_BINS, ROTATION_BINS])
    # NumPy pads (seed, 0) to the stream of seed itself, from which `jaxreg.scenes.iter_tiles` draws
    # the places of scenes. Another one would be other pairs than those on record, and a tile takes
    # fewer bits of it than a transform, so those of one pair have little in common: with seed 0 a
    # tile's place and its pair's transform correlate by .036 at most over the 3,840 pairs of
    # `scene32` and of `scene96`, where the standard error is .016, so no figure is biased.
    place = (cell + np.random.default_rng((seed, 0)).random((pairs, 3))) / count
    reach = np.array([max_shift, max_shift, 180.0])
    return ((2.0 * place - 1.0) * reach).astype(np.float32), condition


@dataclasses.dataclass(frozen=True)
class SuiteData:
    """The pairs of a suite, in the host's memory.

    Attributes:
      suite: what they are.
      fixed: ``(N, H, W, C)`` float32.
      moving: the same.
      truth: ``(N, 3)`` float32 of the true (tx, ty, theta).
      condition: ``(N,)`` the condition of each pair.
      bound: ``(N, 3)`` Cramér-Rao variances in px^2, px^2, degrees^2, or None (`Suite.bounded`).
    """

    suite: Suite
    fixed: np.ndarray
    moving: np.ndarray
    truth: np.ndarray
    condition: np.ndarray
    bound: np.ndarray | None = None


def load_source(suite: Suite) -> Source:
    """The held-out images of a suite, or the photographs of its scenes.

    Raises whatever `jaxreg.data.load_images` raises where they are not to be had.
    """
    from jaxreg import data

    if suite.scene:
        return data.photographs("test")
    return data.load_images(suite.source, "test", suite.size)


def _draw_images(images: np.ndarray, pairs: int, seed: int) -> np.ndarray:
    """``(pairs,)`` image of each pair: every image once before any comes again."""
    rng = np.random.default_rng((seed, 1))
    rounds = -(-pairs // len(images))
    return np.concatenate([rng.permutation(len(images)) for _ in range(rounds)])[:pairs]


def _unrelated_pairs(images: np.ndarray) -> np.ndarray:
    """``(pairs,)`` for each pair the nearest one before it, around, that shows another image.

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
    """Fixed and moving images and bounds of a batch of images or tiles."""

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
    """RGB images, rounded to uint8, after JPEG compression."""
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

    The same seed gives the same images and transforms whatever disturbs them (but for scenes with
    ``shift``, which need other tiles), and a smaller number of pairs the first ones of a larger
    (but for ``unrelated``, whose first image goes with the last pair's). Images come from the test
    split, none twice while there are others.

    Args:
      suite: what to make, or how it is written.
      pairs: how many; spread evenly over the conditions.
      seed: of everything drawn.
      source: what `load_source` gave, to save loading it again.
    """
    suite = parse_suite(suite) if isinstance(suite, str) else suite
    if pairs < 1:
        raise ValueError(f"pairs must be 1 or more, got {pairs}")
    if not 0 <= seed < 2**32:  # more bits a JAX key would drop in silence
        raise ValueError(f"seed must be from 0 to 2**32 - 1, got {seed}")
    source = load_source(suite) if source is None else source
    pictures: Iterator[np.ndarray]
    if isinstance(source, np.ndarray):
        drawn = _draw_images(source, pairs, seed)
        if suite.unrelated and (drawn == drawn[0]).all():
            raise ValueError(f"suite {suite.name!r} takes two pairs or more, of different images")
        pictures = (source[i] for i in drawn)
    else:
        pictures = iter_tiles(source, suite.size, suite.max_shift, seed)
    parameters, condition = draw_parameters(pairs, suite.max_shift, seed)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(pairs))
    shape = (pairs, suite.size, suite.size, 3)
    fixed, moving = np.empty(shape, np.float32), np.empty(shape, np.float32)
    bound = np.empty((pairs, 3), np.float32) if suite.bounded else None
    batch = min(pairs, max(1, _BATCH_PIXELS // suite.size**2))
    for start in range(0, pairs, batch):
        # The last batch is padded: one shape, one compilation.
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
    if suite.jpeg is not None:
        fixed, moving = _through_jpeg(fixed, suite.jpeg), _through_jpeg(moving, suite.jpeg)
    if suite.unrelated:
        moving = moving[_unrelated_pairs(drawn)]
    return SuiteData(suite, fixed, moving, parameters, condition, bound)
