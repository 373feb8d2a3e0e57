"""Image pairs, and how tests of registration compare answers.

Everything runs as one batch of one shape, for compiling a shape takes far longer than running it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage

from jaxreg.data import load_images
from jaxreg.geometry import RigidTransform
from jaxreg.pairs import Pairs, draw_pairs
from jaxreg.registration import register_batch

COUNT = 64  # the chunk of the CPU, so that nothing else is compiled
SIZE = 32
# Settings unlike the default, of several tests: one compilation.
FAR_AND_UPRIGHT = {"max_shift": SIZE / 2, "max_rotation": 25.0, "interpolation": "spline"}


@functools.cache
def photo_pairs(seed=0) -> Pairs:
    """Protocol pairs of crops of the embedded photographs."""
    images = jnp.asarray(load_images("photos", "test", SIZE))
    return draw_pairs(jax.random.key(seed), images, COUNT, 5.0)


def texture(shape, sigma=1.2, seed=0):
    """Smooth noise of full contrast, 0..255 float32."""
    noise = np.random.default_rng(seed).normal(size=shape)
    smooth = scipy.ndimage.gaussian_filter(noise, (sigma, sigma) + (0,) * (len(shape) - 2))
    return np.clip(128 + 45 * smooth / smooth.std(), 0, 255).astype(np.float32)


def register_many(pairs, **options):
    """Register a list of (fixed, moving), all 32x32 and grey or RGB, in one batch of `COUNT`."""
    stack = np.zeros((2, COUNT, SIZE, SIZE, 3), np.float32)
    for i, pair in enumerate(pairs):
        for j, image in enumerate(pair):
            image = np.asarray(image)
            stack[j, i] = image if image.ndim == 3 else image[..., None]
    result = register_batch(*stack, **options)
    return [jax.tree.map(lambda v, i=i: np.asarray(v[i]), result) for i in range(len(pairs))]


def errors(transform, truth):
    """L1 translation errors in px and rotation errors in degrees, as NumPy arrays."""
    difference = np.asarray(transform.as_array()) - np.asarray(truth.as_array())
    turn = (difference[..., 2] + 180.0) % 360.0 - 180.0
    return np.abs(difference[..., :2]).sum(-1), np.abs(turn)


def are_gross(transform, truth):
    """The protocol's gross errors at 32x32."""
    shift, turn = errors(transform, truth)
    return (shift > 2.0) | (turn > 5.0)


def repeated(tx, ty, theta, count=COUNT):
    return RigidTransform(*(np.full(count, v, np.float32) for v in (tx, ty, theta)))


def assert_finite(result):
    for leaf in jax.tree.leaves(result):
        assert np.isfinite(np.asarray(leaf)).all()
