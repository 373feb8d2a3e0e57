"""Warp pictures of any size and dtype, and draw overlays to judge a registration by eye."""

from __future__ import annotations

import cv2
import numpy as np

from jaxreg.alignment import STYLES
from jaxreg.geometry import RigidTransform

_LARGEST_PANEL = 1024  # longer side of one panel of an overlay, in pixels
_SMALLEST_PANEL = 256  # smaller panels are magnified by a whole factor
_TILES = 8  # of the checkerboard, along the shorter side
_GAP, _CAPTION = 8, 28
_STRETCHED = (0.1, 99.9)  # percentiles of pixels beyond 8 bits that become black and white


def warp_pixels(pixels: np.ndarray, transform: RigidTransform, back: bool = False) -> np.ndarray:
    """Warp a picture of any size as `jaxreg.warping.warp` does, by bilinear interpolation.

    Args:
      pixels: ``(H, W)`` or ``(H, W, C)``, integers of 8 to 32 bits, float32 or float64.
      transform: from fixed to moving, in pixels of this picture.
      back: apply the inverse, which makes the moving image look like the fixed one.

    Returns:
      An array like ``pixels`` in shape and dtype, 0 outside of the picture, NaN next to NaN.
    """
    # In double precision: float32 would round the offsets of a large photograph.
    height, width = pixels.shape[:2]
    cx, cy = (width - 1) / 2, (height - 1) / 2
    tx, ty, theta = (float(np.asarray(v)) for v in (transform.tx, transform.ty, transform.theta))
    quarter, rest = divmod(theta + 45.0, 90.0)
    cos, sin = np.cos(np.deg2rad(rest - 45.0)), np.sin(np.deg2rad(rest - 45.0))
    for _ in range(int(quarter) % 4):  # exact at multiples of 90 degrees
        cos, sin = -sin, cos
    dx = cx + tx - cos * cx + sin * cy
    dy = cy + ty - sin * cx - cos * cy
    matrix = np.array([[cos, -sin, dx], [sin, cos, dy]])
    # OpenCV 5 rounds coordinates to 1/32 px except for uint8, uint16 and float32, so the other
    # dtypes lose less as float32; OpenCV 4 rounds them for all.
    known = pixels if pixels.dtype in (np.uint8, np.uint16) else pixels.astype(np.float32)
    flags = cv2.INTER_LINEAR | (cv2.WARP_INVERSE_MAP if back else 0)
    warped = cv2.warpAffine(known, matrix, (width, height), flags=flags)
    if warped.dtype == pixels.dtype or pixels.dtype.kind == "f":
        return warped.astype(pixels.dtype)
    limits = np.iinfo(pixels.dtype)  # float32 rounds the largest 32-bit integer up, beyond it
    return np.clip(np.rint(warped.astype(np.float64)), limits.min, limits.max).astype(pixels.dtype)


def overlay(
    fixed: np.ndarray, moving: np.ndarray, transform: RigidTransform, style: str
) -> np.ndarray:
    """Draw fixed over moving before and after alignment, side by side.

    Args:
      fixed: ``(H, W)`` or RGB ``(H, W, 3)``.
      moving: the same size; may differ in channels and dtype.
      transform: from fixed to moving.
      style: ``"checkerboard"``, alternating tiles of fixed and moving; or ``"red-cyan"``, fixed in
        red and moving in cyan, grey where they agree.

    Returns:
      RGB uint8: two panels with captions, magnified if small and shrunk if large.

    Raises:
      ValueError: the style is unknown.
    """
    if style not in STYLES:
        raise ValueError(f"overlay style must be one of {', '.join(STYLES)}, got {style!r}")
    blend = _checkerboard if style == "checkerboard" else _red_cyan
    first, second = _to_uint8(fixed), _to_uint8(moving)
    panels = []
    for caption, image in (("before", first), ("after", warp_pixels(first, transform))):
        panels.append(_captioned(_resized(blend(image, second)), caption))
    gap = np.full((panels[0].shape[0], _GAP, 3), 255, np.uint8)
    return np.concatenate([panels[0], gap, panels[1]], axis=1)


def _to_uint8(image: np.ndarray) -> np.ndarray:
    """Convert to RGB uint8 for viewing; all but 8-bit pixels are stretched to their range.

    A thousandth of the pixels is clipped at either end: with one hot pixel, all others would be
    black.
    """
    if image.dtype != np.uint8:
        known = image[np.isfinite(image)]  # NaN is possible where a mask covers it
        low, high = map(float, np.percentile(known, _STRETCHED))
        if low == high:
            low, high = float(known.min()), float(known.max())
        gain = 255.0 / (high - low) if high > low else 0.0
        image = np.nan_to_num((image - low) * gain, posinf=0.0, neginf=0.0)
        image = np.rint(np.clip(image, 0.0, 255.0)).astype(np.uint8)
    return image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)


def _checkerboard(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    height, width = first.shape[:2]
    tile = max(min(height, width) / _TILES, 1.0)
    rows, columns = (np.arange(n) // tile for n in (height, width))
    odd = (rows[:, None] + columns[None, :]) % 2 == 1
    return np.where(odd[..., None], second, first)


def _red_cyan(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    red, cyan = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (first, second))
    return np.stack([red, cyan, cyan], axis=-1)


def _resized(panel: np.ndarray) -> np.ndarray:
    height, width = panel.shape[:2]
    longer = max(height, width)
    if longer > _LARGEST_PANEL:
        factor = _LARGEST_PANEL / longer
        size = (max(round(width * factor), 1), max(round(height * factor), 1))
        return cv2.resize(panel, size, interpolation=cv2.INTER_AREA)
    factor = -(-_SMALLEST_PANEL // longer) if longer < _SMALLEST_PANEL else 1
    return panel.repeat(factor, axis=0).repeat(factor, axis=1)


def _captioned(panel: np.ndarray, caption: str) -> np.ndarray:
    strip = np.full((_CAPTION, panel.shape[1], 3), 255, np.uint8)
    cv2.putText(strip, caption, (6, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([strip, panel], axis=0)
