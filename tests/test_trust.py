"""Pairs whose answer must not be trusted, or only as far as its standard errors say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from jaxreg.geometry import RigidTransform
from jaxreg.registration import register_batch
from jaxreg.result import Doubt
from jaxreg.warping import warp
from tests.registration_support import COUNT, SIZE, errors, texture
from tests.tolerances import CALIBRATED, SMOOTH_NOISE

Y, X = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
FINE = (np.arange(4) + 0.5) / 4 - 0.5  # places in a pixel at which a view is rendered


def register_grey(fixed, moving, **options):
    """Register stacks ``(COUNT, SIZE, SIZE)``, in the shape of the other tests."""
    return register_batch(
        *(np.repeat(np.float32(v)[..., None], 3, -1) for v in (fixed, moving)), **options
    )


def transforms(shift, turn, seed=0):
    limits = np.array([shift, shift, turn])
    drawn = np.random.default_rng(seed).uniform(-1, 1, (COUNT, 3)) * limits
    return RigidTransform.from_array(np.float32(drawn))


def views(truth, sigma=1.5):
    """Views of smooth noise without a border: fixed and moving."""
    wide = np.stack([texture((2 * SIZE, 2 * SIZE), sigma, k) for k in range(COUNT)])
    moved = np.asarray(warp(wide[..., None], truth, "spline"))[..., 0]
    inner = slice(SIZE // 2, -SIZE // 2)
    return wide[:, inner, inner], moved[:, inner, inner]


def grey_levels(stack, noise, seed=1):
    noisy = stack + np.random.default_rng(seed).normal(0, noise, np.shape(stack))
    return np.clip(np.rint(noisy), 0, 255)


@pytest.mark.parametrize("period", [3.0, 4.0, 6.0])
def test_rings_leave_the_angle_open(period):
    truth = transforms(5.0, 180.0)
    centres = np.random.default_rng(2).uniform(-3, 3, (COUNT, 2))

    def rendered(centre):
        cells = [np.hypot(X + dx - centre[0], Y + dy - centre[1]) for dx in FINE for dy in FINE]
        return 128 + 100 * np.cos(2 * np.pi * np.stack(cells) / period).mean(0)

    shape = (SIZE, SIZE)
    middle = (SIZE - 1) / 2
    ends = truth.apply(np.float32(centres[:, None] + middle), shape)[:, 0] - middle
    fixed, moving = (np.stack([*map(rendered, np.asarray(c))]) for c in (centres, ends))
    result = register_grey(grey_levels(fixed, 2), grey_levels(moving, 2, seed=3))
    assert not np.asarray(result.success).any()


@pytest.mark.parametrize("turn", [0.0, 1.0, 4.0])
def test_a_held_angle_is_not_believed_where_the_images_are_turned(turn):
    truth = transforms(3.0, 0.0)
    signs = np.where(np.arange(COUNT) % 2, turn, -turn).astype(np.float32)
    truth = RigidTransform(truth.tx, truth.ty, signs)
    fixed, moving = (grey_levels(v, 2, seed) for seed, v in enumerate(views(truth)))
    result = register_grey(fixed, moving, max_rotation=0.0)
    out = (np.asarray(result.doubts) & int(Doubt.OUT_OF_BOUNDS)) > 0
    if turn:
        assert out.mean() > 0.9
        assert np.asarray(result.success).mean() < 0.1
    else:
        assert not out.any()
        assert np.asarray(result.success).mean() > 0.9


def test_a_stuck_pixel_does_not_make_few_grey_levels_many():
    truth = transforms(4.0, 180.0)
    fixed, moving = (np.where(v > 128, 255.0, 0.0) for v in views(truth, 3.0))
    plain = register_grey(fixed, moving)
    fixed[:, 3, 3] = moving[:, 3, 3] = 254.0
    stuck = register_grey(fixed, moving)
    ratio = np.asarray(stuck.covariance)[:, 0, 0] / np.asarray(plain.covariance)[:, 0, 0]
    assert np.median(ratio) == pytest.approx(1.0, abs=0.3)


@pytest.mark.parametrize("sigma", [0.0, 1.0, 2.0])
def test_the_covariance_of_smooth_noise(sigma):
    truth = transforms(4.0, 180.0)
    clean = views(truth, 2.5)
    noise = np.random.default_rng(4).normal(size=(2, COUNT, SIZE, SIZE))
    noise = scipy.ndimage.gaussian_filter(noise, (0, 0, sigma, sigma)) if sigma else noise
    result = register_grey(*(np.stack(clean) + 5.0 * noise / noise.std()))
    difference = np.asarray(result.transform.as_array()) - np.asarray(truth.as_array())
    difference[:, 2] = errors(result.transform, truth)[1]
    variance = np.asarray(jax.vmap(jnp.diagonal)(result.covariance))
    ratio = (np.square(difference) / variance)[np.asarray(result.success)].mean()
    assert ratio < (CALIBRATED[1] if sigma == 0.0 else SMOOTH_NOISE), ratio
