"""What lies beside an alignment along the direction that its images determine least."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.direct.masking import Pair
from jaxreg.direct.sliding import slide
from jaxreg.geometry import RigidTransform
from tests.tolerances import SLID_BACK

_TRUTH = np.array([0.5, 1.0, 0.0], np.float32)


def _edge_with_faint_rest(tx: float, ty: float) -> jax.Array:
    """``(32, 32)``: a straight upright edge and a faint slow wave along it, moved."""
    y, x = np.mgrid[:32, :32] - 15.5
    y, x = y - ty, x - tx
    wave = 0.15 * np.sin(2 * np.pi * y / 40) + 0.1 * np.cos(2 * np.pi * (x + y) / 40)
    return jnp.asarray(1.4 * (np.tanh(x / 4) + wave), jnp.float32)


def _slide(start: list[float]) -> tuple[RigidTransform, jax.Array]:
    fixed, moving = _edge_with_faint_rest(0.0, 0.0), _edge_with_faint_rest(*_TRUTH[:2])
    return jax.jit(slide)(Pair(fixed, moving), RigidTransform(*jnp.float32(start)))


def test_an_alignment_off_along_an_edge_slides_back():
    found, better = _slide([0.5, -4.0, 0.0])
    assert better
    np.testing.assert_allclose(found.as_array(), _TRUTH, atol=SLID_BACK)


def test_the_right_alignment_stays():
    assert not _slide(list(_TRUTH))[1]
