"""What the boundary accepts, and what it says to the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.images import check_grey_levels, check_pair, check_stacks, real_array


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
    listed = jax.eval_shape(lambda one: real_array([one, one], "image"), zeros(8, 9))
    assert listed.shape == (2, 8, 9)


def test_a_masked_array_that_hides_nothing_is_an_image():
    assert check_pair(np.ma.ones((8, 8)), zeros(8, 8))[0].shape == (8, 8, 1)


def test_a_mask_may_not_be_a_masked_array():
    with pytest.raises(ValueError, match="fixed_mask is a masked array; fill it first"):
        check_pair(zeros(8, 8), zeros(8, 8), HIDDEN, None)


@pytest.mark.parametrize(
    ("check", "shape", "expected"),
    [
        (check_pair, (8, 2048), (8, 2048, 1)),
        (check_pair, (8, 8, 16), (8, 8, 16)),
        (check_stacks, (5, 8, 8), (5, 8, 8, 1)),
        (check_stacks, (0, 8, 8, 3), (0, 8, 8, 3)),
    ],
)
def test_accepted_shapes(check, shape, expected):
    assert check(zeros(*shape), zeros(*shape))[0].shape == expected


@pytest.mark.parametrize("module", [np, jnp])
@pytest.mark.parametrize("tail", [(), (3,)])
def test_one_image_may_stand_for_all_without_a_copy(module, tail):
    one, many = module.ones((8, 9, *tail), np.uint8), module.zeros((5, 8, 9, *tail), np.uint8)
    shape = (5, 8, 9, *(tail or (1,)))
    for a, b in (check_stacks(one, many), check_stacks(many, one)[::-1]):
        assert a.shape == b.shape == shape
        assert np.asarray(a).strides[0] == 0
        np.testing.assert_array_equal(a, 1)
        np.testing.assert_array_equal(b, 0)


HIDDEN = np.ma.masked_equal(np.eye(8), 1)
BAD_PAIRS = [
    (zeros(8), zeros(8), r"fixed must be \(H, W\).*got shape \(8,\)"),
    (zeros(), zeros(), r"got shape \(\)"),
    (zeros(2, 8, 8, 3), zeros(2, 8, 8, 3), r"a stack \(N, H, W\) call jaxreg.register_batch"),
    (zeros(9, 32, 32), zeros(9, 32, 32), "16 channels.*got 32.* call jaxreg.register_batch"),
    (zeros(7, 8), zeros(7, 8), "8 to 2048 pixels high and wide, got 7 x 8"),
    (zeros(8, 2049), zeros(8, 2049), "got 8 x 2049; downsample it first"),
    (zeros(0, 0), zeros(0, 0), "got 0 x 0"),
    (zeros(8, 8, 0), zeros(8, 8, 0), "1 to 16 channels on its last axis, got 0"),
    (zeros(3, 32, 32), zeros(3, 32, 32), "got 3 x 32; channels go last: np.moveaxis"),
    (zeros(3, 32, 32), zeros(3, 32, 32), "; 3 images: call jaxreg.register_batch"),
    (zeros(8, 8), zeros(8, 9), r"\(8, 8\) and \(8, 9\); crop or pad"),
    (zeros(8, 8), zeros(8, 8, 3), "same shape.*; make both grey or both colour"),
    (zeros(8, 8, 1), zeros(8, 8, 3), "same shape.*; make both grey or both colour"),
    (zeros(8, 8), zeros(8, 8, dtype=complex), "moving must hold real.*complex128"),
    (np.full((8, 8), "a"), zeros(8, 8), "fixed must hold real numbers"),
    (np.full((8, 8), None), zeros(8, 8), "fixed must hold real.*object"),
    (
        *(zeros(8, 8), np.full((8, 8), np.inf)),
        r"moving must be finite, got 64 NaN or infinite values; fill, crop or mask them first, "
        r"as by moving_mask=np.isfinite\(moving\)$",
    ),
    (np.full((8, 8, 3), np.nan), zeros(8, 8, 3), r"fixed_mask=np.isfinite\(fixed\).all\(-1\)$"),
    (np.full((8, 8), 1e300), zeros(8, 8), "fixed must be finite"),
    (zeros(8, 8), HIDDEN, r"moving is a masked array; .*moving_mask=~np.ma.getmaskarray\(moving\)"),
]
BAD_STACKS = [
    (zeros(8, 8), zeros(8, 8), "for one pair call jaxreg.register"),
    (zeros(2, 8, 8), zeros(3, 8, 8), "same shape.*; give as many images in each"),
    (zeros(2, 8, 8), zeros(2, 9, 8), "same shape.*; crop or pad"),
    (zeros(9, 8), zeros(3, 8, 8), "same shape.*; crop or pad"),
    (zeros(2, 8, 8, 1), zeros(2, 8, 8, 3), "same shape.*; make both grey or both colour"),
    (zeros(2, 8, 8), zeros(2, 8, 8, 1), "same shape.*; make both grey or both colour"),
    (zeros(9, 8, 3), zeros(2, 9, 8), "same shape.*; make both grey or both colour"),
    (zeros(2, 3, 32, 32), zeros(2, 3, 32, 32), "got 3 x 32; channels go last"),
    (zeros(2, 8, 8), np.full((2, 8, 8), "a"), "moving must hold real numbers"),
    (zeros(8, 8), zeros(2, 8, 8, 1), r"\(8, 8\) and \(2, 8, 8, 1\); make both grey or both colour"),
    (zeros(2, 8, 9), zeros(8, 9, 3), r"\(2, 8, 9\) and \(8, 9, 3\); make both grey or both"),
    ([zeros(8, 8), HIDDEN], zeros(2, 8, 8), "fixed is a masked array"),
]


@pytest.mark.parametrize(
    ("check", "fixed", "moving", "message"),
    [(check_pair, *case) for case in BAD_PAIRS] + [(check_stacks, *case) for case in BAD_STACKS],
)
def test_the_rest_is_refused_with_a_reason(check, fixed, moving, message):
    with pytest.raises(ValueError, match=message):
        check(fixed, moving)


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (0.7, np.float32, "moving must have intensities in 0..255 for sift, got 0 to 0.7; mult"),
        (1, bool, "got 0 to 1; multiply them by 255"),
        (1000, np.uint16, "got 0 to 1000; rescale them"),
        (-3.0, np.float32, "got -3 to 0; rescale them"),
        (np.nan, np.float32, "128 NaN.* in 2 of 4 images, the first at index 1; fill or crop them"),
    ],
)
def test_units_that_a_method_cannot_take_are_named(value, dtype, message):
    fixed, moving = zeros(4, 8, 8, 1), zeros(4, 8, 8, 1, dtype=dtype)
    moving[[1, 3]] = value
    with pytest.raises(ValueError, match=message):
        check_grey_levels(fixed, moving, "sift")


@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 3)])
def test_the_hint_to_mask_what_is_not_finite_is_good(shape):
    image = np.ones(shape)
    image[:2] = np.nan
    with pytest.raises(ValueError, match="mask them first, as by ") as error:
        check_pair(image, image)
    mask = eval(str(error.value).split("fixed_mask=")[1], {"np": np, "fixed": image})
    with pytest.raises(
        ValueError, match=r"moving must be finite.*; fill, crop or mask them first$"
    ):
        check_pair(image, image, mask, None)
    np.testing.assert_array_equal(check_pair(image, image, mask, mask)[2].sum(), 54)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_arrays_of_a_device_have_values_also_in_a_program_they_take_no_part_in(
    monkeypatch, backend
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    good, one, bad = jnp.full((2, 8, 8, 1), 9.0), jnp.ones((8, 8, 3)), jnp.full((8, 8, 1), jnp.nan)

    @jax.jit
    def checked(_, images):
        check_pair(one, one)
        check_grey_levels(good, images, "sift")
        return images.sum()

    assert checked(0.0, good) == 9.0 * good.size
    with pytest.raises(ValueError, match="fixed must be finite, got 64 NaN"):
        jax.jit(lambda _: check_pair(bad, bad))(0.0)


def test_shapes_are_checked_under_jit_and_values_are_not():
    checked = jax.jit(check_pair)(np.full((8, 8), np.nan), np.zeros((8, 8)))
    assert np.isnan(checked[0]).all()
    with pytest.raises(ValueError, match="same shape"):
        jax.jit(check_pair)(np.zeros((8, 8)), np.zeros((9, 8)))
