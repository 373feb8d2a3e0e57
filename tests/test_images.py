"""What the boundary accepts, and what it says to the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.images import check_pair


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    "dtype", [bool, np.uint8, np.int16, np.uint16, np.int64, np.float16, np.float64, jnp.bfloat16]
)
@pytest.mark.parametrize("module", [np, jnp])
def test_real_dtypes_are_taken_as_they_are(module, dtype):
    if module is jnp and dtype in (np.int64, np.float64):
        pytest.skip("JAX is 32-bit by default")
    image = module.ones((8, 9), dtype)
    fixed, moving = check_pair(image, image)
    assert fixed.dtype == moving.dtype == image.dtype
    assert fixed.shape == (8, 9, 1)
    np.testing.assert_array_equal(fixed, 1.0)


def test_nested_lists_are_images():
    assert check_pair([[1] * 8] * 8, [[2] * 8] * 8)[1].shape == (8, 8, 1)


@pytest.mark.parametrize(
    ("shape", "batched", "expected"),
    [
        ((8, 512), False, (8, 512, 1)),
        ((8, 8, 64), False, (8, 8, 64)),
        ((5, 8, 8), True, (5, 8, 8, 1)),
        ((0, 8, 8, 3), True, (0, 8, 8, 3)),
    ],
)
def test_accepted_shapes(shape, batched, expected):
    assert check_pair(zeros(*shape), zeros(*shape), batched)[0].shape == expected


@pytest.mark.parametrize(
    ("fixed", "moving", "batched", "message"),
    [
        (zeros(8), zeros(8), False, r"fixed must be \(H, W\).*got shape \(8,\)"),
        (zeros(), zeros(), False, r"got shape \(\)"),
        (zeros(2, 8, 8, 3), zeros(2, 8, 8, 3), False, "for a batch call jaxreg.register_batch"),
        (zeros(8, 8), zeros(8, 8), True, "for one pair call jaxreg.register"),
        (zeros(7, 8), zeros(7, 8), False, "8 to 512 pixels high and wide, got 7 x 8"),
        (zeros(8, 513), zeros(8, 513), False, "got 8 x 513; downsample it first"),
        (zeros(0, 0), zeros(0, 0), False, "got 0 x 0"),
        (zeros(8, 8, 0), zeros(8, 8, 0), False, "1 to 64 channels on its last axis, got 0"),
        (zeros(3, 32, 32), zeros(3, 32, 32), False, "fixed must be 8 to 512.*got 3 x 32"),
        (zeros(8, 8), zeros(8, 9), False, r"\(8, 8\) and \(8, 9\); crop or pad"),
        (zeros(8, 8), zeros(8, 8, 1), False, "same shape"),
        (zeros(2, 8, 8), zeros(3, 8, 8), True, "same shape"),
        (zeros(8, 8), zeros(8, 8, dtype=complex), False, "moving must hold real.*complex128"),
        (np.full((8, 8), "a"), zeros(8, 8), False, "fixed must hold real numbers"),
        (np.full((8, 8), None), zeros(8, 8), False, "fixed must hold real.*object"),
        (zeros(8, 8), np.full((8, 8), np.inf), False, "moving must be finite.*64 NaN or infinite"),
        (np.full((8, 8), 1e300), zeros(8, 8), False, "fixed must be finite"),
    ],
)
def test_the_rest_is_refused_with_a_reason(fixed, moving, batched, message):
    with pytest.raises(ValueError, match=message):
        check_pair(fixed, moving, batched)


def test_shapes_are_checked_under_jit_and_values_are_not():
    checked = jax.jit(check_pair)(np.full((8, 8), np.nan), np.zeros((8, 8)))
    assert np.isnan(checked[0]).all()
    with pytest.raises(ValueError, match="same shape"):
        jax.jit(check_pair)(np.zeros((8, 8)), np.zeros((9, 8)))
