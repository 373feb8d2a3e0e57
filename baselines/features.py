"""Feature baselines: SIFT, SURF, ORB and AKAZE, matched, filtered by RANSAC and fitted rigidly.

Each method detects keypoints in both grey images, matches nearest neighbours that pass the ratio
test, finds the consensus by RANSAC, and fits a rotation and a shift, without a scale, to the
inliers. If there are too few keypoints, matches or inliers there is no answer: ``found`` is False.

`sift`, `surf`, `orb` and `akaze` are the paper's methods, at native size and with the library's
defaults. The ``_x4`` variants first enlarge both images four times and have lower thresholds, which
lets them find keypoints in images of 32x32.

OpenCV's wheels lack SURF (a build flag from the time of its patent). If it is missing, mahotas'
SURF is used instead.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import cv2
import jax
import numpy as np
from mahotas.features import surf as mahotas_surf

from baselines.loop import from_matrix, register_each, to_grey
from jaxreg.geometry import Shape
from jaxreg.result import Registration

# A detector: from a uint8 grey image to (K, 2) points (x, y) in its pixels and K descriptors.
Detector = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class FeatureMethod:
    """A feature method with its settings; calling it registers a batch, as an estimator.

    Attributes:
      detector: builds the detector; called once.
      norm: distance of two descriptors, ``cv2.NORM_L2`` or ``cv2.NORM_HAMMING``.
      enlarge: factor by which the images are enlarged (cubic) before detection.
      ratio: a match is kept if its distance is below this share of the second best's.
      threshold: largest distance of an inlier from its prediction, in pixels of the given images.
      least: number of inliers that an answer needs. Two points always agree with some rigid
        transform up to scale, so the third is the first evidence.
    """

    detector: Callable[[], Detector]
    norm: int
    enlarge: int = 1
    ratio: float = 0.75
    threshold: float = 3.0
    least: int = 3

    def keypoints(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Detect ``(K, 2)`` points ``(x, y)`` in an image ``(H, W, C)``, with K descriptors."""
        grey = to_grey(image)
        if self.enlarge > 1:
            grey = cv2.resize(
                grey, None, fx=self.enlarge, fy=self.enlarge, interpolation=cv2.INTER_CUBIC
            )
        grey = np.clip(np.rint(grey), 0, 255).astype(np.uint8)
        points, descriptors = _built(self.detector)(grey)
        # Enlarged 4 times, the first pixel's centre lies 3/8 px outside that of the original.
        return (points + 0.5) / self.enlarge - 0.5, descriptors

    def register(self, fixed: np.ndarray, moving: np.ndarray) -> np.ndarray | None:
        """Register one pair ``(H, W, C)``: ``(tx, ty, theta)``, or None if there is no answer."""
        fixed_points, fixed_descriptors = self.keypoints(fixed)
        moving_points, moving_descriptors = self.keypoints(moving)
        pairs = match(fixed_descriptors, moving_descriptors, self.norm, self.ratio)
        return consensus(
            fixed_points[pairs[:, 0]],
            moving_points[pairs[:, 1]],
            fixed.shape,
            self.threshold,
            self.least,
        )

    def __call__(self, fixed: jax.Array, moving: jax.Array) -> Registration:
        """Register a batch ``(N, H, W, C)``, intensities in 0..255."""
        return register_each(self.register, fixed, moving)


def count_keypoints(method: FeatureMethod, images: np.ndarray) -> np.ndarray:
    """Count the keypoints in N images ``(N, H, W, C)``, as in Tables 3 and 6.

    >>> count_keypoints(orb, np.zeros((2, 32, 32, 3), np.uint8)).tolist()
    [0, 0]
    """
    return np.array([len(method.keypoints(image)[0]) for image in images], int)


def match(fixed: np.ndarray, moving: np.ndarray, norm: int, ratio: float) -> np.ndarray:
    """Match descriptors by their two nearest neighbours and Lowe's ratio test.

    Args:
      fixed: ``(K, D)`` descriptors.
      moving: ``(L, D)`` descriptors.
      norm: distance of descriptors, see `FeatureMethod`.
      ratio: see `FeatureMethod`.

    Returns:
      ``(M, 2)`` indices into the two. With fewer than two candidates there is no second best, and
      so no match.
    """
    if len(fixed) == 0 or len(moving) < 2:
        return np.zeros((0, 2), int)
    kept = [
        (best.queryIdx, best.trainIdx)
        for best, second in cv2.BFMatcher(norm).knnMatch(fixed, moving, k=2)
        if best.distance < ratio * second.distance
    ]
    return np.array(kept, int).reshape(-1, 2)


def consensus(
    fixed: np.ndarray, moving: np.ndarray, shape: Shape, threshold: float, least: int
) -> np.ndarray | None:
    """Find the rigid transform that most matches agree on; deterministic.

    RANSAC searches similarities (its minimal samples have two points). Inliers are then chosen
    again by the rigid fit, because the fitted scale has influenced the first choice.

    Args:
      fixed: ``(M, 2)`` points ``(x, y)`` in the fixed image.
      moving: ``(M, 2)`` the matching points in the moving image.
      shape: shape of the images, starting with ``(H, W)``.
      threshold: see `FeatureMethod`.
      least: see `FeatureMethod`.

    Returns:
      ``(tx, ty, theta)`` in px and degrees, or None.
    """
    if len(fixed) < least:
        return None
    cv2.setRNGSeed(0)
    similarity, chosen = cv2.estimateAffinePartial2D(
        fixed, moving, method=cv2.RANSAC, ransacReprojThreshold=threshold, maxIters=2000
    )
    if similarity is None:
        return None
    inliers = chosen.ravel().astype(bool)
    for _ in range(2):
        if inliers.sum() < least:
            return None
        rotation, shift = fit_rigid(fixed[inliers], moving[inliers])
        inliers = np.linalg.norm(fixed @ rotation.T + shift - moving, axis=1) <= threshold
    if inliers.sum() < least:
        return None
    rotation, shift = fit_rigid(fixed[inliers], moving[inliers])
    return from_matrix(np.column_stack([rotation, shift]), shape)


def fit_rigid(fixed: np.ndarray, moving: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit the rotation R and the shift s of ``moving = R fixed + s`` by least squares.

    In the plane Kabsch's problem (doi:10.1107/S0567739476001873) has a closed form.

    Args:
      fixed: ``(M, 2)`` points.
      moving: ``(M, 2)`` points.

    Returns:
      R ``(2, 2)`` and s ``(2,)``.
    """
    a, b = fixed - fixed.mean(0), moving - moving.mean(0)
    angle = np.arctan2(
        (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum(), (a[:, 0] * b[:, 0] + a[:, 1] * b[:, 1]).sum()
    )
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return rotation, moving.mean(0) - rotation @ fixed.mean(0)


@functools.cache
def _built(build: Callable[[], Detector]) -> Detector:
    return build()


def _opencv(create: str, *, pyramid: float = 0.0, **options) -> Detector:
    """Make a detector of OpenCV.

    OpenCV's versions differ in which detectors the main module has (AKAZE until 4, SIFT since 4.4).

    Args:
      create: name of the function that creates it.
      pyramid: scale factor between its pyramid's levels, if its points need correction: ORB
        multiplies the points of a level by its scale without regard to the half pixel between a
        pixel's centre and its corner, so they are off by ``(scale - 1) / 2``.
      **options: keyword arguments of ``create``.
    """
    owner = cv2 if hasattr(cv2, create) else cv2.xfeatures2d
    feature = getattr(owner, create)(**options)

    def detect(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        keypoints, descriptors = feature.detectAndCompute(grey, None)
        if descriptors is None or not len(keypoints):
            return np.zeros((0, 2)), np.zeros((0, 1), np.uint8)
        points = np.array([k.pt for k in keypoints], np.float64)
        if pyramid:
            octaves = np.array([k.octave for k in keypoints])
            points += ((pyramid**octaves - 1.0) / 2.0)[:, None]
        return points, descriptors

    return detect


def _sift() -> Detector:
    return _opencv("SIFT_create")


def _sift_x4() -> Detector:
    # Without the precise upscaling OpenCV's points are half a pixel off.
    return _opencv(
        "SIFT_create",
        contrastThreshold=0.002,
        edgeThreshold=40,
        sigma=2.0,
        enable_precise_upscale=True,
    )


def _orb() -> Detector:
    return _opencv("ORB_create")


def _orb_x4() -> Detector:
    return _opencv("ORB_create", pyramid=1.2, scaleFactor=1.2, edgeThreshold=8, fastThreshold=2)


def _akaze() -> Detector:
    return _opencv("AKAZE_create")


def _akaze_x4() -> Detector:
    return _opencv("AKAZE_create", threshold=1e-6)


def _surf() -> Detector:
    try:
        return _opencv("SURF_create")
    except (AttributeError, cv2.error):
        return functools.partial(detect_mahotas_surf)


def _surf_x4() -> Detector:
    try:
        return _opencv("SURF_create", hessianThreshold=10.0)
    except (AttributeError, cv2.error):
        return functools.partial(detect_mahotas_surf, rim=32, threshold=1e-4, nr_scales=4)


def detect_mahotas_surf(
    grey: np.ndarray, *, rim: int = 0, **options
) -> tuple[np.ndarray, np.ndarray]:
    """Detect keypoints by mahotas' SURF; a `Detector`.

    Args:
      grey: ``(H, W)`` uint8.
      rim: pixels by which the image is first extended on all sides, by reflection; mahotas drops
        points whose descriptors would reach outside.
      **options: keyword arguments of ``mahotas.features.surf``.
    """
    found = mahotas_surf.surf(np.pad(grey, rim, mode="symmetric"), **options)
    points = found[:, 1::-1].astype(np.float64) - rim
    inside = np.all((points >= 0) & (points <= np.array(grey.shape[::-1]) - 1), axis=1)
    return points[inside], found[inside, 6:].astype(np.float32)


sift = FeatureMethod(_sift, cv2.NORM_L2)
surf = FeatureMethod(_surf, cv2.NORM_L2)
orb = FeatureMethod(_orb, cv2.NORM_HAMMING)
akaze = FeatureMethod(_akaze, cv2.NORM_HAMMING)
sift_x4 = FeatureMethod(_sift_x4, cv2.NORM_L2, enlarge=4, ratio=0.9, threshold=1.0)
surf_x4 = FeatureMethod(_surf_x4, cv2.NORM_L2, enlarge=4, ratio=0.9, threshold=1.0)
orb_x4 = FeatureMethod(_orb_x4, cv2.NORM_HAMMING, enlarge=4, ratio=0.85, threshold=1.0)
akaze_x4 = FeatureMethod(_akaze_x4, cv2.NORM_HAMMING, enlarge=4, ratio=0.9, threshold=1.0)
