"""Suites of image pairs to measure on, and their names.

The name of a suite is its images, followed by the disturbances::

    cifar10    scene32    cifar10+noise10    scene32+noise10+gain    folder:shots@64+blur

===============  ==================================================================================
`photos32` etc.  one of the eight suites of `SUITES`
SOURCE@SIZE      any source of `jaxreg.data.load_images`, or ``scene``, at any size; translations
                 up to 5/32 of the size. Disturbances follow the last @SIZE: a path may contain a +
+noiseS          Gaussian noise in both images, of standard deviation S in grey levels
+gain            the moving image times 0.7 to 1.3, plus -20 to 20 grey levels
+blur[S]         Gaussian blur of the moving image, of standard deviation 0.7 or S pixels
+occlusion[P]    a square of one colour hides 20% or P% of the moving image; where the protocol
                 says "up to 20%" this is its hardest case, in every pair
+bicubic         the moving image is rendered with the bicubic kernel (not scenes)
+jpeg[Q]         both images are compressed by JPEG at quality 75 or Q
+shiftR          translations up to R pixels
+unrelated       the moving image shows another picture, so every answer is wrong (not scenes)
===============  ==================================================================================
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable

from jaxreg.disturbances import UNDISTURBED, Disturbance
from jaxreg.interpolation import Interpolation

GROSS_DEGREES = 5.0  # an answer with a larger rotation error is wrong


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
