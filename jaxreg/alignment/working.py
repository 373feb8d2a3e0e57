"""Make the pair to register from the pictures in two files, and scale its answer back.

Images larger than the working size are downsampled by one factor for both axes, so that the centre
stays the centre: a rigid motion stays rigid, its angle is unchanged and its translation scales by
the factor.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from jaxreg.alignment.files import Picture
from jaxreg.geometry import RigidTransform
from jaxreg.images import SMALLEST
from jaxreg.result import Registration

_HALF = 0.5  # share of a working pixel's area that must count for the pixel to count
_NO_MASKS: Mapping[str, np.ndarray] = types.MappingProxyType({})


@dataclasses.dataclass(frozen=True, eq=False)
class WorkingPair:
    """Two images of one shape, ready to register.

    Attributes:
      fixed: ``(h, w)`` or ``(h, w, 3)`` float32, intensities 0..255.
      moving: the same shape.
      masks: ``(h, w)`` bool, True where a pixel counts, by the keywords ``fixed_mask`` and
        ``moving_mask`` of `jaxreg.register`; empty if all pixels count.
      scale: width of a working pixel in pixels of the files, at least 1.
      size: width and height of the images in the files (after a crop), in pixels.
      notes: what was changed in the images, for the user to read.
    """

    fixed: np.ndarray
    moving: np.ndarray
    masks: Mapping[str, Any]
    scale: float
    size: tuple[int, int]
    notes: tuple[str, ...] = ()

    @property
    def working_size(self) -> tuple[int, int]:
        """Width and height of the images that are registered, in working pixels."""
        return self.fixed.shape[1], self.fixed.shape[0]


@dataclasses.dataclass(frozen=True)
class Answer:
    """The registration of one pair in plain numbers and in pixels of the files.

    Attributes:
      tx: shift to the right, in pixels of the files.
      ty: shift down, in pixels of the files.
      theta: rotation in degrees.
      covariance: 3x3, of ``(tx, ty, theta)``, or None if the method measures none.
      score: as in `jaxreg.result.Registration`, or None if it is not finite.
      success: as in `jaxreg.result.Registration`.
      found: as in `jaxreg.result.Registration`; also False if the transform is not finite.
      reasons: as in `jaxreg.result.Registration`: why the answer cannot be trusted.
    """

    tx: float
    ty: float
    theta: float
    covariance: tuple[tuple[float, ...], ...] | None
    score: float | None
    success: bool
    found: bool
    reasons: tuple[str, ...] = ()

    @property
    def standard_errors(self) -> tuple[float, float, float] | None:
        """Standard errors of tx and ty in pixels and of theta in degrees."""
        if self.covariance is None:
            return None
        tx, ty, theta = (float(np.sqrt(self.covariance[i][i])) for i in range(3))
        return tx, ty, theta

    @property
    def transform(self) -> RigidTransform:
        """The transform, in pixels of the files."""
        return RigidTransform(self.tx, self.ty, self.theta)


def crop_to_common(fixed: Picture, moving: Picture) -> tuple[Picture, Picture]:
    """Crop both pictures about their centres to the size they share."""
    width, height = (min(a, b) for a, b in zip(fixed.size, moving.size, strict=True))
    return crop(fixed, (width, height)), crop(moving, (width, height))


def crop(picture: Picture, size: tuple[int, int]) -> Picture:
    """Crop a picture about its centre to a width and height, neither larger than its own."""
    left, top = ((a - b) // 2 for a, b in zip(picture.size, size, strict=True))
    pixels = picture.pixels[top : top + size[1], left : left + size[0]]
    return dataclasses.replace(picture, pixels=np.ascontiguousarray(pixels))


def make_working(
    fixed: Picture, moving: Picture, largest: int, masks: Mapping[str, np.ndarray] = _NO_MASKS
) -> WorkingPair:
    """Make the pair to register, with at most ``largest`` pixels on the longer side.

    If one image is grey, the other is made grey, too.

    Args:
      fixed: the fixed picture, as in its file.
      moving: the moving picture, as in its file.
      largest: longest side of the result, in pixels.
      masks: ``(H, W)`` bool, of the pictures' size, by keywords of `jaxreg.register`.

    Raises:
      ValueError: the sizes differ, or the images are too small or too narrow.
    """
    if fixed.size != moving.size:
        a, b = ("{}x{}".format(*picture.size) for picture in (fixed, moving))
        raise ValueError(
            f"the images must be of one size, got {a} (fixed) and {b} (moving); "
            "--crop cuts both about their centres to the size they share"
        )
    notes = []
    for name, picture in (("fixed", fixed), ("moving", moving)):
        if picture.transparent:
            notes.append(f"alpha channel of {name} dropped")
    scale = _scale_of(fixed.size, largest)
    weights = {name: downsample(mask.astype(np.float32), scale) for name, mask in masks.items()}
    images = {"fixed_mask": fixed.pixels, "moving_mask": moving.pixels}
    ranges = _ranges([(image, masks.get(name)) for name, image in images.items()])
    pair = []
    for (name, image), limits in zip(images.items(), ranges, strict=True):
        # One image at a time: as float32 a photograph takes four times the memory.
        mask = masks.get(name)
        intensities = _intensities(_levelled(image, mask), *limits)
        pair.append(_downsampled(intensities, scale, mask, weights.get(name)))
    counts = {name: weight >= _HALF for name, weight in weights.items()}
    if pair[0].ndim != pair[1].ndim:
        colour = 0 if pair[0].ndim == 3 else 1
        pair[colour] = cv2.cvtColor(pair[colour], cv2.COLOR_RGB2GRAY)
        notes.append(f"{('fixed', 'moving')[colour]} made grey, as the other image is")
    if scale > 1:
        notes.append(f"downsampled by {scale:.4g} to register")
    return WorkingPair(pair[0], pair[1], counts, scale, fixed.size, tuple(notes))


def _scale_of(size: tuple[int, int], largest: int) -> float:
    """Factor by which to downsample; ValueError if the images are then too small or narrow."""
    width, height = size
    scale = max(max(width, height) / largest, 1.0)
    if min(width, height) / scale < SMALLEST:
        at = f", {int(width / scale)}x{int(height / scale)} at working size" if scale > 1 else ""
        raise ValueError(
            f"the images must be at least {SMALLEST} pixels high and wide, got {width}x{height}{at}"
        )
    return scale


def _levelled(image: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Set masked-out pixels to the mean of the others, so that they don't stretch the contrast."""
    if mask is None or not mask.any():
        return image
    levelled = image.copy()
    levelled[~mask] = image[mask].mean(0)
    return levelled


def _downsampled(
    image: np.ndarray, scale: float, mask: np.ndarray | None, weight: np.ndarray | None
) -> np.ndarray:
    """`downsample` using only the pixels that count; ``weight`` is the downsampled mask."""
    if mask is None or weight is None or scale == 1:
        return downsample(image, scale)
    if image.ndim == 3:
        mask, weight = mask[..., None], weight[..., None]
    return downsample(image * mask, scale) / np.maximum(weight, _HALF)


def _ranges(images: Sequence[tuple[np.ndarray, np.ndarray | None]]) -> list[tuple[float, float]]:
    """Lowest and highest intensity of each image among the pixels that count."""
    ranges = []
    for image, mask in images:
        counting = image if mask is None or not mask.any() else image[mask]
        ranges.append((float(counting.min()), float(counting.max())))
    if len({image.dtype for image, _ in images}) == 1:  # one range, so that equal pixels stay equal
        lows, highs = zip(*ranges, strict=True)
        return [(min(lows), max(highs))] * len(images)
    return ranges


def _intensities(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """Convert to float32 in 0..255; all but 8-bit pixels are stretched from ``low``..``high``."""
    if image.dtype == np.uint8:
        return image.astype(np.float32)
    stretched = image - low
    stretched *= 255.0 / (high - low) if high > low else 0.0
    return stretched.astype(np.float32, copy=False)


def downsample(image: np.ndarray, scale: float) -> np.ndarray:
    """Low-pass a float32 image and resample it to ``1 / scale`` of its size, about its centre.

    >>> downsample(np.ones((100, 60), np.float32), 2.5).shape
    (40, 24)
    """
    if scale == 1:
        return image
    height, width = image.shape[:2]
    # Sigma of half an output pixel, less (in variance) the half input pixel that is already there.
    sigma = 0.5 * float(np.sqrt(scale * scale - 1))
    image = cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
    # width / scale of the longer side is an integer; 1e-6 keeps rounding from losing a pixel of it.
    w, h = int(width / scale + 1e-6), int(height / scale + 1e-6)
    to_file = np.array(  # from working pixels to pixels of the file
        [
            [scale, 0, (width - 1) / 2 - scale * (w - 1) / 2],
            [0, scale, (height - 1) / 2 - scale * (h - 1) / 2],
        ]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, to_file, (w, h), flags=flags, borderMode=cv2.BORDER_REFLECT_101)


def scale_back(registration: Registration, scale: float) -> Answer:
    """Convert a working pair's registration to pixels of the files; ``scale`` as in the pair."""
    t = registration.transform
    tx, ty, theta = (float(v) for v in (t.tx, t.ty, t.theta))
    score = float(registration.score)
    known = score if np.isfinite(score) else None
    if not np.isfinite([tx, ty, theta]).all():
        return Answer(0.0, 0.0, 0.0, None, known, success=False, found=False)
    covariance = None
    if registration.covariance is not None:
        unit = np.array([scale, scale, 1.0])
        matrix = np.asarray(registration.covariance, np.float64) * np.outer(unit, unit)
        covariance = tuple(tuple(float(v) for v in row) for row in matrix)
    return Answer(
        tx=tx * scale + 0.0,  # adding 0.0 turns a negative zero into a plain one
        ty=ty * scale + 0.0,
        theta=theta + 0.0,
        covariance=covariance,
        score=known,
        success=bool(registration.success),
        found=bool(registration.found),
        reasons=tuple(registration.reasons),
    )
