"""Derivatives of the direct method with respect to the images."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.geometry import RigidTransform
from jaxreg.registration import register, register_batch
from jaxreg.warping import warp
from tests.compilation_support import quickly_compiled
from tests.registration_support import texture


@jax.jit
def jacobian(fixed, moving):
    """Derivatives by both images of ``(tx, ty, theta)``, score and variances; and the former.

    The pair is the second of a batch, behind itself the other way round.
    """

    def parameters(fixed, moving):
        found = register_batch(jnp.stack([moving, fixed]), jnp.stack([fixed, moving]))[1]
        numbers = [found.transform.as_array(), found.score[None], jnp.diagonal(found.covariance)]
        return jnp.concatenate(numbers), found.transform.as_array()

    return jax.jacrev(parameters, argnums=(0, 1), has_aux=True)(fixed, moving)


@quickly_compiled()
def test_gradients_agree_with_registering_again():
    """By the implicit function theorem, against differences of whole registrations.

    The answer is smooth in the images as long as no decision changes: a picture that fades out
    before the rim, so that no pixel that enters or leaves the overlap counts, and noise so short of
    tails that no residual is an outlier.
    """
    shape = (24, 24, 1)
    fade = np.clip((10 - np.hypot(*(np.mgrid[:24, :24] - 11.5))) / 4, 0, 1)[..., None]
    picture = fade**2 * (3 - 2 * fade) * (texture(shape, sigma=1.5, seed=5) - 128)
    noise = np.random.default_rng(0).uniform(-1, 1, shape)
    moving = warp(picture, RigidTransform(1.4, -0.7, 25.0)) + noise
    images = [np.float32(128 + picture), np.float32(128 + moving)]
    by_image, _ = jacobian(*images)
    step = 1e-3
    for which in range(2):
        assert np.isfinite(np.asarray(by_image[which])).all()
        bump = texture(shape, sigma=2.5, seed=7 + which) - 128
        ends = []
        for change in (step * bump, -step * bump):
            changed = [image + change * (i == which) for i, image in enumerate(images)]
            ends.append(np.asarray(jacobian(*changed)[1]))
        numeric = (ends[0] - ends[1]) / (2 * step)
        analytic = np.einsum("khwc,hwc->k", np.asarray(by_image[which][:3]), bump)
        # The denoised derivative is held fixed, which is of second order in the noise; the
        # differences carry rounding of 1e-6 px over twice the step.
        np.testing.assert_allclose(analytic, numeric, rtol=0.05, atol=5e-3)


@quickly_compiled()
def test_gradients_of_a_pair_that_fits_exactly_are_those_of_all_its_pixels():
    """Rounding, largest at the steepest pixels, must not make outliers of them."""
    picture = np.rint(texture((24, 24, 1), sigma=0.7, seed=3))
    images = [picture, np.asarray(warp(picture, RigidTransform(1.4, -0.7, 25.0)))]
    by_image, _ = jacobian(*images)
    units, off = np.array([1.0, 1.0, 0.1]), []  # of ten degrees
    for seed in range(8):
        noise = np.random.default_rng(seed).normal(0, 0.1, picture.shape).astype(np.float32)
        ends = [np.asarray(jacobian(images[0], images[1] + side * noise)[1]) for side in (1, -1)]
        numeric = units * (ends[0] - ends[1])[:3] / 2
        analytic = units * np.einsum("khwc,hwc->k", np.asarray(by_image[1][:3]), noise)
        off.append(np.linalg.norm(analytic - numeric) / np.linalg.norm(numeric))
    assert np.median(off) < 0.15


@jax.jit
def both_ways(fixed, moving):
    """Derivatives of transform and score of one pair, in reverse and in forward mode."""

    def parameters(fixed, moving):
        found = register(fixed, moving)
        return jnp.append(found.transform.as_array(), found.score)

    pair = fixed, moving
    along = jax.jvp(parameters, pair, (fixed - moving, jnp.ones_like(moving)))[1]
    return jax.jacrev(parameters, argnums=(0, 1))(*pair), along


@quickly_compiled()
def test_gradients_of_hopeless_pairs_are_finite():
    flat = np.full((24, 24, 1), 9.0, np.float32)
    spoilt = flat.copy()
    spoilt[3, 4] = np.nan
    picture = texture((24, 24, 1))
    for pair in [(flat, flat), (flat, spoilt), (flat, 2 * flat), (picture, picture)]:
        for gradient in jacobian(*pair)[0]:
            assert np.isfinite(np.asarray(gradient)).all()
    columns = np.arange(24)[None, :, None] + np.zeros_like(flat)
    edges = [np.float32(200.0 * (columns > place)) for place in (11, 13)]
    for pair in [(0 * flat, picture), (picture, 0 * flat), edges]:
        for gradient in jacobian(*pair)[0]:  # of the transform: what is open has none
            np.testing.assert_array_equal(gradient[:3], 0.0)
    sevens = np.full_like(flat, 7.0)
    for pair in [(sevens, picture), (0 * flat, picture), (picture, sevens), (picture, 0 * flat)]:
        for gradient in jax.tree.leaves(both_ways(*pair)):
            assert np.isfinite(np.asarray(gradient)).all()
