"""The warp against OpenCV, SciPy, PyTorch's conventions and exact cases."""

import re

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import skimage.transform

from jaxreg.geometry import RigidTransform
from jaxreg.interpolation import INTERPOLATIONS
from jaxreg.result import Registration
from jaxreg.warping import overlap, pixel_grid, sample, warp
from tests.tolerances import FLOAT32_INTENSITY, OPENCV_WARP

OPENCV_FLAG = {"linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC}


def image(shape=(32, 32, 3), sigma=1.5, seed=0):
    noise = np.random.default_rng(seed).uniform(0, 255, shape)
    smooth = scipy.ndimage.gaussian_filter(noise, (sigma, sigma) + (0,) * (len(shape) - 2))
    return smooth.astype(np.float32)


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
@pytest.mark.parametrize("shape", [(32, 32), (33, 20, 3), (24, 40, 1)])
def test_agrees_with_opencv(interpolation, shape):
    t = RigidTransform(2.3, -1.7, 33.0)
    picture = image(shape)
    expected = cv2.warpAffine(
        picture,
        np.asarray(t.matrix(shape))[:2],
        shape[1::-1],
        flags=OPENCV_FLAG[interpolation],
    ).reshape(shape)
    np.testing.assert_allclose(warp(picture, t, interpolation), expected, atol=OPENCV_WARP)


@pytest.mark.parametrize("shape", [(32, 32), (33, 20, 3)])
def test_labels_are_moved_as_by_opencv_and_not_mixed(shape):
    t = RigidTransform(2.3, -1.7, 33.0)
    labels = np.random.default_rng(0).choice([0, 3, 70000], shape).astype(np.int32)
    matrix = np.asarray(t.matrix(shape))[:2]
    nearest = cv2.INTER_NEAREST
    expected = cv2.warpAffine(labels.astype(np.float32), matrix, shape[1::-1], flags=nearest)
    np.testing.assert_array_equal(warp(labels, t, "nearest"), expected)


@pytest.mark.parametrize("fill", [-7.5, 1e6, np.nan])
@pytest.mark.parametrize(
    ("interpolation", "flag"),
    [
        ("linear", cv2.INTER_LINEAR),
        ("cubic", cv2.INTER_CUBIC),
        ("nearest", cv2.INTER_NEAREST),
    ],
)
def test_what_lies_outside_is_filled_as_by_opencv(interpolation, flag, fill):
    t, shape = RigidTransform(2.3, -1.7, 33.0), (33, 20, 3)
    picture, matrix = image(shape), np.asarray(t.matrix(shape))[:2]
    expected = cv2.warpAffine(picture, matrix, shape[1::-1], flags=flag, borderValue=[fill] * 3)
    filled = np.asarray(warp(picture, t, interpolation, fill=fill))
    inside = np.asarray(overlap(shape, t), np.uint8)
    inside = cv2.erode(inside, np.ones((7, 7)), borderValue=0) > 0  # no kernel reaches out of it
    np.testing.assert_array_equal(filled[inside], warp(picture, t, interpolation)[inside])
    known = np.isfinite(expected)
    if interpolation != "cubic":  # whose NaN reaches farther in OpenCV than its taps do
        np.testing.assert_array_equal(np.isfinite(filled), known)
    scale = max(abs(np.nan_to_num(fill)) / 255, 1.0)
    np.testing.assert_allclose(filled[known], expected[known], atol=scale * OPENCV_WARP)


def test_fill_is_a_number_that_may_be_traced():
    t, picture = RigidTransform([2.0, -1.0], [0.0, 3.0], [0.0, 30.0]), image((2, 16, 16, 3))
    filled = warp(picture, t, fill=9)
    np.testing.assert_array_equal(jax.jit(lambda fill: warp(picture, t, fill=fill))(9), filled)
    np.testing.assert_array_equal(filled[0, :, :2], np.full((16, 2, 3), 9))
    flat, one = jnp.full((16, 16), 9.0), RigidTransform(-1.0, 3.0, 30.0)
    moved = warp(flat, one, "spline", fill=9.0)
    np.testing.assert_allclose(moved, flat, atol=FLOAT32_INTENSITY)
    with pytest.raises(ValueError, match=re.escape("fill must be one number, got an array of")):
        warp(flat, one, fill=jnp.zeros(3))
    with pytest.raises(ValueError, match="fill must hold real numbers"):
        warp(flat, one, fill="black")


@pytest.mark.parametrize("interpolation", ["linear", "cubic", "spline"])
def test_a_loss_that_leaves_out_a_fill_of_nan_has_a_derivative(interpolation):
    picture, target = image((16, 16)), image((16, 16), seed=1)

    def loss(parameters, fill):
        moved = warp(picture, RigidTransform.from_array(parameters), interpolation, fill=fill)
        return jnp.square(jnp.where(known, moved - target, 0.0)).sum()

    at = jnp.array([2.3, -1.7, 33.0])
    known = jnp.isfinite(warp(picture, RigidTransform.from_array(at), interpolation, fill=jnp.nan))
    assert 0.2 < known.mean() < 0.9
    left_out, black = (jax.grad(loss)(at, fill) for fill in (jnp.nan, 0.0))
    np.testing.assert_allclose(left_out, black, rtol=1e-4)


def test_agrees_with_scikit_image():
    t = RigidTransform(-3.1, 0.4, -101.0)
    inverse_map = np.linalg.inv(np.asarray(t.matrix((32, 32)), np.float64))
    expected = skimage.transform.warp(image(), inverse_map, order=1, mode="constant")
    # Its zeros start at the rim, ours blend over one pixel, as OpenCV's do: compare the inside.
    inside = np.asarray(overlap((32, 32), t))
    np.testing.assert_allclose(
        np.asarray(warp(image(), t))[inside], expected[inside], atol=FLOAT32_INTENSITY
    )


def test_spline_agrees_with_scipy():
    points = np.random.default_rng(1).uniform(0, 31, (200, 2)).astype(np.float32)
    picture = image((32, 32))
    expected = scipy.ndimage.map_coordinates(picture, points.T[::-1], order=3, mode="mirror")
    np.testing.assert_allclose(sample(picture, points, "spline"), expected, atol=FLOAT32_INTENSITY)


@pytest.mark.parametrize("size", [8, 31, 32])
@pytest.mark.parametrize("quarter", [-2, -1, 0, 1, 2, 3])
def test_quarter_turns_move_pixels_onto_pixels(size, quarter):
    picture = image((size, size, 3), sigma=0)
    turned = warp(picture, RigidTransform(0.0, 0.0, 90.0 * quarter))
    np.testing.assert_array_equal(turned, np.rot90(picture, -quarter))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_every_kernel_keeps_the_pixels_of_an_image_that_stays(interpolation):
    for picture in (image((20, 32, 3), sigma=0), np.full((9, 8), 100.0)):
        kept = warp(picture, RigidTransform.identity(), interpolation)
        np.testing.assert_allclose(kept, picture, atol=FLOAT32_INTENSITY)


@pytest.mark.parametrize("interpolation", ["linear", "spline"])
def test_zeros_blend_in_over_a_pixel(interpolation):
    points = np.float32([[-0.25, 4], [-1, 4], [-5, 4], [4, 7.5], [7.5, 7.5]])
    values = sample(np.full((8, 8), 100.0), points, interpolation)
    np.testing.assert_allclose(values, [75, 0, 0, 50, 25], atol=FLOAT32_INTENSITY)


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (3, 0), (0, -5), (-7, 2), (40, 0)])
def test_whole_pixels_shift_exactly(dx, dy):
    picture = image((24, 32), sigma=0)
    padded = np.pad(picture, 50)
    expected = np.roll(padded, (dy, dx), (0, 1))[50:-50, 50:-50]
    moved = warp(picture, RigidTransform(float(dx), float(dy), 0.0))
    np.testing.assert_array_equal(moved, expected)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS[1:])
def test_kernels_reproduce_a_ramp(interpolation):
    x, y = np.moveaxis(np.asarray(pixel_grid((32, 32))), -1, 0)
    points = np.random.default_rng(2).uniform(10, 21, (100, 2)).astype(np.float32)
    values = sample(3 * x - 2 * y, points, interpolation)
    np.testing.assert_allclose(
        values, 3 * points[:, 0] - 2 * points[:, 1], atol=0.02 if interpolation == "spline" else 0.5
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float64, bool])
def test_takes_any_real_dtype(dtype):
    picture = (image((16, 16)) > 120).astype(dtype)
    assert warp(picture, RigidTransform.identity()).dtype == jnp.float32
    np.testing.assert_array_equal(warp(picture, RigidTransform.identity()), picture)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS[1:])
def test_gradients_agree_with_differences(interpolation):
    picture = jnp.asarray(image())
    weights = jnp.asarray(image(seed=3)) / 255

    def value(parameters):
        moved = warp(picture, RigidTransform.from_array(parameters), interpolation)
        return jnp.vdot(weights[8:24, 8:24], moved[8:24, 8:24]) / 1000

    at = jnp.array([0.73, -1.21, 17.3])
    numeric = [
        (value(at.at[i].add(h)) - value(at.at[i].add(-h))) / (2 * h)
        for i, h in enumerate((0.01, 0.01, 0.03))
    ]
    np.testing.assert_allclose(jax.grad(value)(at), numeric, rtol=0.05, atol=0.02)


def test_is_linear_in_the_image():
    t = RigidTransform(1.3, 2.2, 48.0)
    a, b = image(seed=4), image(seed=5)
    np.testing.assert_allclose(
        warp(2 * a - b, t), 2 * warp(a, t) - warp(b, t), atol=FLOAT32_INTENSITY
    )


@pytest.mark.parametrize("together", [warp, jax.jit(warp), jax.jit(jax.vmap(warp))])
def test_a_stack_is_one_by_one(together):
    pictures = np.stack([image(seed=s) for s in range(4)])
    batch = RigidTransform.from_array(np.random.default_rng(0).normal(size=(4, 3)) * 5)
    warped, seen = together(pictures, batch), overlap((32, 32), batch)
    assert warped.shape == pictures.shape
    for i, t in enumerate(batch):
        np.testing.assert_allclose(warped[i], warp(pictures[i], t), atol=FLOAT32_INTENSITY)
        np.testing.assert_array_equal(seen[i], overlap((32, 32), t))


def test_a_scalar_is_that_of_a_whole_batch():
    pictures, shifts = np.stack([image(seed=s) for s in range(4)]), np.arange(4.0)
    some, every = (RigidTransform(-1.5, shifts, theta) for theta in (20.0, np.full(4, 20.0)))
    whole = RigidTransform(np.full(4, -1.5), shifts, every.theta)
    for batch in (some, every):
        np.testing.assert_array_equal(warp(pictures, batch), warp(pictures, whole))
        np.testing.assert_array_equal(overlap((9, 8), batch), overlap((9, 8), whole))


def test_one_by_one_as_part_of_a_program_and_mapped_alike():
    ts = RigidTransform.from_array([[2.3, -1.7, 33.0], [0.5, 4.0, -70.0]])
    stack = np.stack([image(), image(seed=1)])
    moved, shown = warp(stack, ts), overlap((32, 32), ts)
    for program in (jax.jit, jax.vmap):
        np.testing.assert_allclose(program(warp)(stack, ts), moved, atol=FLOAT32_INTENSITY)
    for k, t in enumerate(ts):
        np.testing.assert_allclose(warp(stack[k], t), moved[k], atol=FLOAT32_INTENSITY)
        np.testing.assert_array_equal(overlap((32, 32, 3), t), shown[k])
    for unfit, kind in ((image(), "an array"), (ts, "RigidTransform")):
        with pytest.raises(ValueError, match=rf"shape must be.*, got {kind}; pass image\.shape"):
            overlap(unfit, ts)


def test_overlap_is_where_a_white_image_stays_white():
    t = RigidTransform(3.2, -4.6, 25.0)
    white = np.asarray(warp(np.ones((32, 32)), t))
    np.testing.assert_array_equal(np.asarray(overlap((32, 32), t)), white > 1 - 1e-3)


@pytest.mark.parametrize("interpolation", ["nearest", "linear", "cubic", "spline"])
def test_a_sample_may_be_taken_where_broadcasting_is_forbidden(interpolation):
    picture, points = image((16, 16, 3)), np.ones((4, 5, 2))
    with jax.numpy_rank_promotion("raise"):
        assert sample(picture, points, interpolation).shape == (4, 5, 3)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="nearest, linear, cubic, spline, got 'lanczos'"):
        warp(image(), RigidTransform.identity(), "lanczos")
    with pytest.raises(ValueError, match=r"got shape \(4, 32, 32, 3\); a stack takes as many"):
        warp(np.zeros((4, 32, 32, 3)), RigidTransform.identity())
    with pytest.raises(ValueError, match=r"image must be .*got shape \(4, 32, 32, 3\)"):
        sample(np.zeros((4, 32, 32, 3)), np.zeros((5, 2)))
    with pytest.raises(ValueError, match=r"points must end in an axis of 2.*got shape \(5, 3\)"):
        sample(image(), np.zeros((5, 3)))
    for unfit in (np.zeros((8, 8), np.complex64), np.ma.masked_less(image(), 128.0)):
        with pytest.raises(ValueError, match=r"image (must hold real numbers|is a masked array)"):
            sample(unfit, np.zeros((5, 2)))
    with pytest.raises(ValueError, match=r"got shape \(40, 24, 32\); a stack takes as many"):
        warp(np.zeros((40, 24, 32)), RigidTransform.identity())
    with pytest.raises(ValueError, match=r"transform must be one or N .* shape \(4, 1\)"):
        warp(np.zeros((4, 32, 32)), RigidTransform.identity((4, 1)))
    answer = Registration(RigidTransform.identity(), 1.0, True)
    with pytest.raises(ValueError, match=r"got Registration; pass its \.transform"):
        warp(image(), answer)
    with pytest.raises(ValueError, match="image must hold real numbers, got dtype complex64"):
        warp(np.zeros((8, 8), np.complex64), RigidTransform.identity())
    with pytest.raises(ValueError, match="image is a masked array; fill it first"):
        warp(np.ma.masked_less(image(), 128.0), RigidTransform.identity())
    for shape, count in (((4, 32, 32), (3,)), ((32, 32), (32,))):
        with pytest.raises(ValueError, match=r"image must be \(N, H, W\).*transforms, got shape"):
            warp(np.zeros(shape), RigidTransform.identity(count))
    for shape in ((4, 32, 32, 3), (4, 32, 32)):
        with pytest.raises(ValueError, match=rf"shape must be.*{re.escape(str(shape))}"):
            overlap(shape, RigidTransform.identity())


@pytest.mark.parametrize("kernel", INTERPOLATIONS)
def test_nothing_is_seen_from_afar_nor_at_infinity(kernel):
    scene = jnp.asarray(image((9, 7, 2)))
    far = [[jnp.inf, 1.0], [2.0, -jnp.inf], [1e30, -1e30], [-2.5, 3.0], [3.0, 10.5]]
    np.testing.assert_array_equal(sample(scene, jnp.array(far), kernel), 0.0)
    slope = jax.grad(lambda points: sample(scene, points, kernel).sum())(jnp.array(far))
    np.testing.assert_array_equal(slope, 0.0)
