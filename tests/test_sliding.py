"""What lies beside an alignment along the direction that its images determine least."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.geometry import RigidTransform
from jaxreg.sliding import slide
from jaxreg.warping import warp


def _edge_with_faint_rest() -> jax.Array:
    """``(32, 32)``: a straight upright edge, and a faint slow wave along it."""
    y, x = np.mgrid[:32, :32] - 15.5
    wave = 0.1 * np.sin(2 * np.pi * y / 24) + 0.1 * np.cos(2 * np.pi * (x + y) / 40)
    image = np.tanh(x / 2) + wave
    return jnp.asarray((image - image.mean()) / image.std(), jnp.float32)


def test_an_alignment_off_along_an_edge_slides_back():
    image = _edge_with_faint_rest()
    truth = RigidTransform(*jnp.float32([0.5, 1.0, 0.0]))
    moving = warp(image[..., None], truth)[..., 0]
    off = RigidTransform(*jnp.float32([0.5, -4.0, 0.0]))
    found, better = jax.jit(slide)(image, moving, off)
    assert better
    np.testing.assert_allclose(found.as_array(), truth.as_array(), atol=0.2)


def test_the_right_alignment_stays():
    image = _edge_with_faint_rest()
    truth = RigidTransform(*jnp.float32([0.5, 1.0, 0.0]))
    moving = warp(image[..., None], truth)[..., 0]
    assert not jax.jit(slide)(image, moving, truth)[1]
