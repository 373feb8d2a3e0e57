"""Other libraries that register images, each used as well as its interface allows.

All are local methods or cannot tell an angle from one 180 degrees away. So each is given a search
over all angles, and its best answer is taken: SimpleITK's by its own criterion, the others' by the
correlation of the overlap. All work on grey images. The first three are given a mask without the
pixels where the moving image is black, as warping leaves them.

===============  ==============================================================================
`simpleitk`      Euler2D, mean squares; exhaustive start, then descent on a cubic B-spline
`ecc`            OpenCV's ``findTransformECC``; starts by phase correlation every 10 degrees
`pystackreg`     StackReg's rigid body; starts by phase correlation every 10 degrees
`skimage_polar`  scikit-image's recipe: polar Fourier magnitudes, then phase correlation
===============  ==============================================================================

SimpleITK and pystackreg come with ``pip install 'jaxreg[peers]'``. Without it, importing either
name from this module fails, so the error comes before an evaluation, not in the middle of it.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

import cv2
import jax
import numpy as np

from baselines.loop import from_matrix, register_each, to_grey, to_matrix, wrap
from jaxreg.result import Registration

# Smallest share of the moving image in an overlap whose correlation counts.
_LEAST_OVERLAP = 0.2
_CANDIDATES = 3  # starts that are refined; pystackreg refines twice as many
_UPSAMPLE = 20  # steps of phase correlation for each pixel


def __getattr__(name: str) -> Any:
    """Return `simpleitk` or `pystackreg`; ImportError says how to install a missing package."""
    if name not in _WITH_PACKAGE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    estimator, package = _WITH_PACKAGE[name]
    _package(package)
    return estimator


def _simpleitk(fixed: jax.Array, moving: jax.Array) -> Registration:
    """Register a batch ``(N, H, W, C)`` with SimpleITK.

    The exhaustive optimiser tries 25 angles and 5 x 5 shifts up to 1/6 of the image on smoothed
    images. Its three best distinct positions are refined on the images themselves, over the
    pixels of the moving image that are not black, and the least mean square decides.
    """
    sitk = _package("SimpleITK")
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    return register_each(functools.partial(register_simpleitk, sitk), fixed, moving)


def ecc(fixed: jax.Array, moving: jax.Array) -> Registration:
    """Register a batch ``(N, H, W, C)`` with OpenCV's ``findTransformECC``.

    Phase correlation of copies rotated every 10 degrees proposes starts. The three that correlate
    best are refined over the pixels of the moving image that are not black, both directly and by
    way of smoothed images. The moving image is first rotated back by multiples of 90 degrees, as
    ECC converges for angles below 90 degrees only.
    """
    return register_each(register_ecc, fixed, moving)


def _pystackreg(fixed: jax.Array, moving: jax.Array) -> Registration:
    """Register a batch ``(N, H, W, C)`` with pystackreg's rigid body.

    The library takes no start. So the moving image is moved back by each of the six best starts
    that phase correlation proposes to `ecc` (with its border repeated, not black), and four times
    more by the best answer so far. Nor does the library take a mask. In the last four calls the
    pixels that the moving image does not show are taken from the fixed image, so that they have no
    influence; with a start far away they would keep the answer there.
    """
    return register_each(
        functools.partial(register_pystackreg, _package("pystackreg")), fixed, moving
    )


_WITH_PACKAGE = {
    "simpleitk": (_simpleitk, "SimpleITK"),
    "pystackreg": (_pystackreg, "pystackreg"),
}


def skimage_polar(fixed: jax.Array, moving: jax.Array) -> Registration:
    """Register a batch ``(N, H, W, C)`` with scikit-image's recipe.

    The angle is the shift between the polar pictures of the log magnitudes of both spectra; theta
    and theta + 180 degrees are both tried. ``phase_cross_correlation`` finds the shift. The radius
    is linear, not logarithmic, as there is no scale to find.
    """
    return register_each(register_skimage_polar, fixed, moving)


def register_simpleitk(sitk: Any, fixed: np.ndarray, moving: np.ndarray) -> np.ndarray | None:
    """Register one pair ``(H, W, C)``: ``(tx, ty, theta)``, or None if SimpleITK fails."""
    images = [sitk.GetImageFromArray(to_grey(image)) for image in (fixed, moving)]
    centre = [(fixed.shape[1] - 1) / 2, (fixed.shape[0] - 1) / 2]
    best, least = None, np.inf
    try:
        starts = _itk_starts(sitk, images, centre, max(fixed.shape[:2]))
    except RuntimeError:  # ITK's exceptions
        return None
    seen = sitk.GetImageFromArray(_seen(to_grey(moving)))
    for start in starts:
        method, transform = _itk_method(sitk, centre, start, sitk.sitkBSpline)
        method.SetMetricMovingMask(seen)
        method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-5, 300, 0.5, 1e-8)
        method.SetOptimizerScalesFromPhysicalShift()
        try:
            method.Execute(*images)
        except RuntimeError:  # such as for lack of overlap
            continue
        if method.GetMetricValue() < least:
            theta, tx, ty = transform.GetParameters()
            best, least = np.array([tx, ty, wrap(np.rad2deg(theta))]), method.GetMetricValue()
    return best


def _itk_starts(sitk: Any, images: list, centre: list[float], size: int) -> list[tuple[float, ...]]:
    """Search exhaustively for the best positions (rad, px, px) that are far from each other."""
    angle_steps, shift_steps = 12, 2  # on either side of zero
    turn, shift = np.pi / angle_steps, size / 12
    shrink = max(1, round(size / 32))
    method, _ = _itk_method(sitk, centre, (0.0, 0.0, 0.0), sitk.sitkLinear)
    tried: list[tuple[float, tuple[float, ...]]] = []
    method.AddCommand(
        sitk.sitkIterationEvent,
        lambda: tried.append((method.GetMetricValue(), method.GetOptimizerPosition())),
    )
    method.SetOptimizerAsExhaustive([angle_steps, shift_steps, shift_steps])
    method.SetOptimizerScales([turn, shift, shift])
    smooth = [sitk.SmoothingRecursiveGaussian(image, max(1.0, 0.7 * shrink)) for image in images]
    method.Execute(sitk.Shrink(smooth[0], [shrink, shrink]), smooth[1])
    chosen: list[tuple[float, ...]] = []
    for _, (theta, x, y) in sorted(tried):
        if all(
            abs(wrap(np.rad2deg(theta - other[0]))) > np.rad2deg(1.5 * turn)
            or abs(x - other[1]) + abs(y - other[2]) > 1.5 * shift
            for other in chosen
        ):
            chosen.append((theta, x, y))
        if len(chosen) == _CANDIDATES:
            break
    return chosen


def _itk_method(sitk: Any, centre: list[float], start: tuple, interpolator: int) -> tuple[Any, Any]:
    transform = sitk.Euler2DTransform()
    transform.SetCenter(centre)
    transform.SetParameters(start)
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMeanSquares()
    method.SetInterpolator(interpolator)
    method.SetInitialTransform(transform, inPlace=True)
    method.SetNumberOfThreads(1)  # at these sizes threads cost more than they bring
    return method, transform


def register_ecc(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray | None:
    """Register one pair ``(H, W, C)``: ``(tx, ty, theta)``, or None if ECC never converges."""
    f, m = to_grey(fixed), to_grey(moving)
    answers = [
        _refine_by_ecc(f, m, start, blurs)
        for start in _rotation_search(f, m)[:_CANDIDATES]
        for blurs in ((1,), (5, 1))  # smoothing helps far starts, and loses some near ones
    ]
    found = [answer for answer in answers if answer is not None]
    # ECC's own values are not comparable: a small overlap easily agrees.
    return max(found, key=lambda answer: overlap_correlation(f, m, answer), default=None)


def _refine_by_ecc(
    fixed: np.ndarray, moving: np.ndarray, start: np.ndarray, blurs: tuple[int, ...]
) -> np.ndarray | None:
    """Refine a start by ECC on images smoothed by each width in turn; None if it diverges."""
    step = 1 if fixed.shape[0] == fixed.shape[1] else 2  # 90 degrees would swap height and width
    quarters = step * int(np.rint(start[2] / (90 * step)))
    turned = np.ascontiguousarray(np.rot90(moving, quarters))
    back = to_matrix(np.array([0.0, 0.0, -90.0 * quarters]), fixed.shape)
    matrix = (back @ to_matrix(start, fixed.shape))[:2].astype(np.float32)
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 60, 1e-7)
    seen = _seen(turned)
    try:
        for blur in blurs:
            _, matrix = cv2.findTransformECC(
                fixed, turned, matrix, cv2.MOTION_EUCLIDEAN, stop, seen, blur
            )
    except cv2.error:  # no convergence, or no texture
        return None
    return from_matrix(np.linalg.inv(back) @ np.vstack([matrix, [0.0, 0.0, 1.0]]), fixed.shape)


def _seen(moving: np.ndarray) -> np.ndarray:
    """``(H, W)`` uint8 mask: 0 at black pixels and their neighbours, which are mixed with black."""
    return cv2.erode((moving > 0).astype(np.uint8), np.ones((3, 3), np.uint8))


def _rotation_search(fixed: np.ndarray, moving: np.ndarray) -> list[np.ndarray]:
    """``(tx, ty, theta)`` by ``cv2.phaseCorrelate`` for each angle, sorted by correlation."""
    size = fixed.shape[::-1]
    window = cv2.createHanningWindow(size, cv2.CV_32F)
    # phaseCorrelate multiplies its inputs by the window in place, so it is given copies.
    level = moving - moving.mean()
    found = []
    for theta in np.arange(-180.0, 180.0, 10.0):
        turn = to_matrix(np.array([0.0, 0.0, theta]), fixed.shape)[:2]
        copy = cv2.warpAffine(fixed - fixed.mean(), turn, size)
        (tx, ty), _ = cv2.phaseCorrelate(copy, level.copy(), window)
        found.append(np.array([tx, ty, theta]))
    return sorted(found, key=lambda t: -overlap_correlation(fixed, moving, t))


def register_pystackreg(package: Any, fixed: np.ndarray, moving: np.ndarray) -> np.ndarray | None:
    """Register one pair ``(H, W, C)``: ``(tx, ty, theta)``, or None for a flat image."""
    f, m = to_grey(fixed), to_grey(moving)
    if f.std() == 0 or m.std() == 0:
        return None
    stackreg = package.StackReg(package.StackReg.RIGID_BODY)
    seen = _seen(m).astype(np.float32)

    def refine(start: np.ndarray, fill: bool) -> np.ndarray:
        matrix, size = to_matrix(start, f.shape), f.shape[::-1]
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        back = cv2.warpAffine(m, matrix[:2], size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
        if fill:
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            back = np.where(cv2.warpAffine(seen, matrix[:2], size, flags=flags) > 0.999, back, f)
        return from_matrix(matrix @ stackreg.register(f, back), f.shape)

    def agreement(parameters: np.ndarray) -> float:
        return overlap_correlation(f, m, parameters)

    starts = _rotation_search(f, m)[: 2 * _CANDIDATES]
    best = max((refine(start, False) for start in starts), key=agreement)
    for _ in range(4):
        best = max(best, refine(best, True), key=agreement)
    return best


def register_skimage_polar(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray | None:
    """Register one pair ``(H, W, C)``: ``(tx, ty, theta)``, or None for a flat image."""
    from skimage.filters import window
    from skimage.registration import phase_cross_correlation

    f, m = to_grey(fixed), to_grey(moving)
    if f.std() == 0 or m.std() == 0:
        return None
    hann = window("hann", f.shape).astype(np.float32)
    polar = [_polar_magnitude(image, hann) for image in (f, m)]
    shift, _, _ = phase_cross_correlation(*polar, upsample_factor=_UPSAMPLE, normalization=None)
    candidates = []
    for theta in (-shift[0], 180.0 - shift[0]):
        turn = to_matrix(np.array([0.0, 0.0, theta]), f.shape)[:2]
        copy = cv2.warpAffine(f, turn, f.shape[::-1])
        for normalization in ("phase", None):  # precise, or robust on smooth images
            (ty, tx), _, _ = phase_cross_correlation(
                (m - m.mean()) * hann,
                (copy - copy.mean()) * hann,
                upsample_factor=_UPSAMPLE,
                normalization=normalization,
            )
            candidates.append(np.array([tx, ty, wrap(theta)]))
    return max(candidates, key=lambda t: overlap_correlation(f, m, t))


def _polar_magnitude(image: np.ndarray, hann: np.ndarray) -> np.ndarray:
    """Compute the log magnitude of the spectrum: a row for each of 180 degrees, columns are radii.

    The other half of a real image's spectrum is the same. The spectrum is padded to twice the
    longer side, so that its bins are square and fine enough to interpolate. The mean over the
    angles is subtracted from each radius.
    """
    from skimage.filters import difference_of_gaussians
    from skimage.transform import warp_polar

    size = 2 * max(image.shape)
    band = difference_of_gaussians(image, 0.5, 8.0) * hann
    magnitude = np.log1p(np.abs(np.fft.fftshift(np.fft.fft2(band, (size, size)))))
    # The default centre of warp_polar is the middle of the array, half a bin off frequency zero.
    centre, shape = (size // 2, size // 2), (360, size // 2)
    polar = warp_polar(magnitude, center=centre, radius=shape[1], output_shape=shape)[:180, 2:]
    return polar - polar.mean(axis=0)


def overlap_correlation(fixed: np.ndarray, moving: np.ndarray, parameters: np.ndarray) -> float:
    """Correlate grey images over their overlap (normalised); -1 if the overlap is small."""
    matrix, size = to_matrix(parameters, fixed.shape)[:2], fixed.shape[::-1]
    inside = cv2.warpAffine(np.ones_like(fixed), matrix, size) > 0.999
    if inside.sum() < _LEAST_OVERLAP * inside.size:
        return -1.0
    a, b = cv2.warpAffine(fixed, matrix, size)[inside], moving[inside]
    a, b = a - a.mean(), b - b.mean()
    energy = float((a @ a) * (b @ b))
    return float(a @ b) / np.sqrt(energy) if energy > 0 else -1.0


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{name} is not installed; pip install 'jaxreg[peers]' brings it"
        ) from error
