"""Rigid transforms against OpenCV, closed forms and group laws."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxreg.geometry import RigidTransform, cos_sin_degrees, wrap_degrees
from jaxreg.metrics import rotation_error
from tests.tolerances import FLOAT32_DEGREES, FLOAT32_PIXELS

SHAPE = (24, 40)
shifts = st.floats(-50, 50, width=32)
angles = st.floats(-720, 720, width=32)
transforms = st.builds(RigidTransform, shifts, shifts, angles)
points = st.lists(st.tuples(shifts, shifts), min_size=1, max_size=4).map(np.float32)


def assert_same(a, b):
    np.testing.assert_allclose(a.tx, b.tx, atol=FLOAT32_PIXELS)
    np.testing.assert_allclose(a.ty, b.ty, atol=FLOAT32_PIXELS)
    np.testing.assert_allclose(rotation_error(a.theta, b.theta), 0, atol=FLOAT32_DEGREES)


@given(transforms)
@settings(deadline=None)
def test_matrix_is_opencvs(t):
    centre = ((SHAPE[1] - 1) / 2, (SHAPE[0] - 1) / 2)
    expected = cv2.getRotationMatrix2D(centre, -float(t.theta), 1.0)  # OpenCV turns the other way
    expected[:, 2] += t.tx, t.ty
    np.testing.assert_allclose(t.matrix(SHAPE)[:2], expected, atol=FLOAT32_PIXELS)


@given(transforms, points)
@settings(deadline=None)
def test_inverse_undoes(t, p):
    back = t.inverse().apply(t.apply(p, SHAPE), SHAPE)
    np.testing.assert_allclose(back, p, atol=FLOAT32_PIXELS)
    assert_same(t.compose(t.inverse()), RigidTransform(0.0, 0.0, 0.0))


@given(transforms, transforms, points)
@settings(deadline=None)
def test_compose_applies_the_argument_first(second, first, p):
    one_by_one = second.apply(first.apply(p, SHAPE), SHAPE)
    np.testing.assert_allclose(
        second.compose(first).apply(p, SHAPE), one_by_one, atol=FLOAT32_PIXELS
    )


@given(transforms)
@settings(deadline=None)
def test_matrix_round_trip(t):
    back = RigidTransform.from_matrix(t.matrix(SHAPE), SHAPE)
    assert_same(back, RigidTransform(t.tx, t.ty, wrap_degrees(t.theta)))


def test_sign_conventions():
    # 90 degrees turns the right-pointing axis into the down-pointing one: clockwise on the screen.
    centre = np.float32([[19.5, 11.5]])
    right = centre + np.float32([[3, 0]])
    turned = RigidTransform(0.0, 0.0, 90.0).apply(right, SHAPE)
    np.testing.assert_array_equal(turned, centre + np.float32([[0, 3]]))
    shifted = RigidTransform(2.0, -1.0, 0.0).apply(centre, SHAPE)
    np.testing.assert_array_equal(shifted, centre + np.float32([[2, -1]]))


@pytest.mark.parametrize("quarter", range(-8, 9))
def test_quarter_turns_are_exact(quarter):
    cos, sin = cos_sin_degrees(90.0 * quarter)
    assert (float(cos), float(sin)) == [(1, 0), (0, 1), (-1, 0), (0, -1)][quarter % 4]


def test_angles_wrap_into_the_half_open_circle():
    near = np.float32([180, -180, 540, 0, 179.99])
    near = np.concatenate([near, np.nextafter(near, np.float32(-1e3)), np.nextafter(near, 1e3)])
    wrapped = np.asarray(wrap_degrees(near.astype(np.float32)))
    assert wrapped.min() >= -180
    assert wrapped.max() < 180
    np.testing.assert_array_equal(wrap_degrees(wrapped), wrapped)
    np.testing.assert_array_equal(
        wrap_degrees(np.float32([-180, 180, 540, 0, 179.5])), [-180, -180, -180, 0, 179.5]
    )


def test_batches_and_transformations():
    batch = RigidTransform.from_array(np.random.default_rng(0).normal(size=(5, 3)))
    p = np.float32([[0, 0], [3, 4]])
    together = batch.apply(p, SHAPE)
    one_by_one = jax.jit(jax.vmap(lambda t: t.apply(p, SHAPE)))(batch)
    assert together.shape == (5, 2, 2)
    np.testing.assert_allclose(together, one_by_one, atol=FLOAT32_PIXELS)
    assert batch.matrix(SHAPE).shape == (5, 3, 3)
    # d(x')/d(theta) at the point one pixel right of the centre is 0, d(y')/d(theta) is pi / 180.
    gradient = jax.jacobian(
        lambda theta: RigidTransform(0.0, 0.0, theta).apply(jnp.array([20.5, 11.5]), SHAPE)
    )(0.0)
    np.testing.assert_allclose(gradient, [0, np.pi / 180], atol=FLOAT32_PIXELS)


@pytest.mark.parametrize("array", [list, lambda v: np.asarray(v, ">f8"), np.longdouble])
def test_fields_may_be_lists_or_of_foreign_dtypes(array):
    """As a table's columns are, read by csv, FITS or `numpy.fromfile`."""
    columns = [2.0, -1.0], [0.5, 1.5], [30.0, -90.0]
    t = RigidTransform(*map(array, columns))
    assert len(t) == 2
    np.testing.assert_array_equal(t.as_array(), np.transpose(columns))
    np.testing.assert_array_equal([one.as_array() for one in t], np.transpose(columns))
    assert_same(t.compose(t.inverse()), RigidTransform.identity((2,)))
    assert t.matrix(SHAPE).shape == (2, 3, 3)


def test_broadcasting_may_be_forbidden():
    """Around a call, where what is inside of it broadcasts."""
    t = RigidTransform.from_array(np.ones((5, 3)))
    with jax.numpy_rank_promotion("raise"):
        both = t.compose(t.inverse()).apply(np.zeros((2, 2)), SHAPE), t.matrix(SHAPE)
    assert [v.shape for v in both] == [(5, 2, 2), (5, 3, 3)]


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_a_constant_matrix_may_be_part_of_a_program(array):
    matrix = array(np.eye(3, dtype=np.float32))
    tx = jax.jit(lambda x: x + RigidTransform.from_matrix(matrix, SHAPE).tx)(2.0)
    assert tx == 2.0


def test_a_batch_is_indexed_like_an_array():
    parameters = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    batch = RigidTransform.from_array(parameters)
    np.testing.assert_array_equal(batch[-1].as_array(), parameters[-1])
    np.testing.assert_array_equal(
        batch[parameters[:, 0] > 0].tx, parameters[:, 0][parameters[:, 0] > 0]
    )
    np.testing.assert_array_equal(batch[[0, 3]].as_array(), parameters[[0, 3]])
    np.testing.assert_array_equal([t.as_array() for t in batch], parameters)
    assert (len(batch), len(batch[[]]), len(batch[1:3])) == (5, 0, 2)
    assert bool(batch[0]) is bool(batch[:0]) is True
    for index in (5, -6, np.int64(7), (7,), [0, 7], np.ones(4, bool), (0, 0)):
        with pytest.raises(IndexError):
            batch[index]
    with pytest.raises(IndexError, match="along the axes of the batch"):
        batch[..., 0]
    for call in (len, iter, lambda one: one[0]):
        with pytest.raises(TypeError, match="one transform, not a batch"):
            call(batch[0])
    np.testing.assert_array_equal(jax.jit(lambda b, i: b[i])(batch, 3).as_array(), parameters[3])


def test_batches_are_equal_by_identity():
    """The truth value of a comparison of arrays would be ambiguous."""
    one, other = (RigidTransform.identity((2,)) for _ in range(2))
    assert one != other
    assert [other, one].index(one) == 1
    assert {other: 0, one: 1}[one] == 1


def test_a_scalar_among_arrays_is_that_of_all():
    some, shifts = RigidTransform(np.arange(3.0), 2, 30.0), np.arange(3.0)
    whole = RigidTransform(shifts, np.full(3, 2.0), np.full(3, 30.0))
    assert some.batch_shape == whole.batch_shape == (3,)
    for made in (
        lambda t: t.as_array(),
        lambda t: t[1].as_array(),
        lambda t: t.inverse().as_array(),
        lambda t: t.compose(t).as_array(),
        lambda t: t.matrix(SHAPE),
        lambda t: t.apply(np.ones((4, 2)), SHAPE),
    ):
        np.testing.assert_array_equal(made(some), made(whole))
    with pytest.raises(ValueError, match=r"tx, ty and theta must have one shape, .*\(2,\), \(3,\)"):
        len(RigidTransform(np.zeros(2), np.zeros(3), 0.0))
    with pytest.raises(ValueError, match="tx, ty and theta must have one shape"):
        RigidTransform(np.zeros((3, 1)), np.zeros(3), 0.0).as_array()


def test_what_does_not_go_with_a_batch_is_named():
    three = RigidTransform.identity((3,))
    with pytest.raises(ValueError, match=r"first must be .* of the batch, \(3,\).* got \(2,\)"):
        three.compose(RigidTransform.identity((2,)))
    with pytest.raises(ValueError, match="first must be a RigidTransform, got float"):
        three.compose(3.0)
    with pytest.raises(ValueError, match=r"points must be .* of the batch, \(3,\).* got \(5,\)"):
        three.apply(np.zeros((5, 7, 2)), SHAPE)
    assert three.apply(np.zeros((3, 7, 2)), SHAPE).shape == (3, 7, 2)
    assert three.apply(np.zeros((7, 2)), SHAPE).shape == (3, 7, 2)


@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (4, 3)])
def test_steps_accumulate_as_they_compose_one_by_one(shape):
    steps = RigidTransform.from_array(np.random.default_rng(0).uniform(-90, 90, (*shape, 3)))
    total, expected = RigidTransform.identity(shape[1:]), []
    for step in steps:
        total = step.compose(total)
        expected.append(total.as_array())
    expected = np.reshape(expected, (*shape, 3))
    for found in (steps.accumulate(), jax.jit(RigidTransform.accumulate)(steps)):
        assert found.batch_shape == shape
        assert_same(found, RigidTransform.from_array(expected))


def test_steps_may_share_a_field_but_must_be_many():
    total = RigidTransform([1.0, 2.0], 0, np.float64(90.0)).accumulate()
    np.testing.assert_array_equal(total.as_array(), [[1, 0, 90], [2, 1, -180]])
    with pytest.raises(TypeError, match="one transform, not a batch"):
        RigidTransform.identity().accumulate()
    by_steps = jax.vmap(RigidTransform.accumulate)(RigidTransform(*np.ones((3, 2, 5))))
    assert by_steps.batch_shape == (2, 5)


@given(transforms, st.floats(0.25, 4.0), st.tuples(shifts, shifts))
@settings(deadline=None)
def test_in_parent_is_the_same_matrix_between_other_pixels(t, scale, origin):
    parent = (70, 90, 3)
    to_parent = np.array([[scale, 0, origin[0]], [0, scale, origin[1]], [0, 0, 1]])
    matrix = to_parent @ np.asarray(t.matrix(SHAPE), np.float64) @ np.linalg.inv(to_parent)
    found = t.in_parent(SHAPE, parent, scale=scale, origin=origin)
    expected = RigidTransform.from_matrix(matrix, parent)
    np.testing.assert_allclose(found.tx, expected.tx, atol=5 * FLOAT32_PIXELS)
    np.testing.assert_allclose(found.ty, expected.ty, atol=5 * FLOAT32_PIXELS)
    np.testing.assert_allclose(rotation_error(found.theta, t.theta), 0, atol=FLOAT32_DEGREES)


def test_in_parent_takes_batches_and_may_be_traced():
    batch = RigidTransform.from_array(np.random.default_rng(0).normal(size=(5, 3)))
    call = lambda t, o: t.in_parent(SHAPE, (70, 90), scale=2.0, origin=o)  # noqa: E731
    places = np.random.default_rng(1).normal(size=(5, 2)).astype(np.float32)
    together, mapped = call(batch, places), jax.jit(jax.vmap(call))(batch, places)
    assert_same(together, mapped)
    assert_same(together[3], call(batch[3], places[3]))
    assert_same(call(batch, (3, 4))[3], call(batch[3], (3, 4)))
    assert call(RigidTransform.identity(), places).batch_shape == (5,)
    traced = jax.jit(lambda s: batch.in_parent(SHAPE, (70, 90), scale=s))(2.0)
    assert_same(traced, call(batch, (0, 0)))
    same = RigidTransform(1.0, 2.0, 30.0).in_parent(SHAPE, SHAPE)
    np.testing.assert_array_equal(same.as_array(), [1.0, 2.0, 30.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"origin": 3.0}, r"origin must end in an axis of 2 \(x, y\), got shape \(\)"),
        ({"origin": np.zeros((3, 2))}, r"origin must be points .* got \(3,\) of them"),
        ({"scale": 0.0}, "scale must be a number above 0, got 0.0"),
        ({"scale": np.nan}, "scale must be a number above 0, got nan"),
        ({"scale": [1.0, 2.0]}, "scale must be a number above 0"),
    ],
)
def test_what_is_no_place_in_the_parent_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        RigidTransform.identity((5,)).in_parent(SHAPE, SHAPE, **options)


def test_wrong_shapes_are_named():
    for shape in ((32,), (5, 32, 32, 3), (5, 32, 32)):
        with pytest.raises(ValueError, match="shape must be"):
            RigidTransform.identity().matrix(shape)
    with pytest.raises(ValueError, match=r"shape must be .* got int"):
        RigidTransform.identity().matrix(32)
    for array in (np.zeros(SHAPE), jnp.zeros(SHAPE)):
        with pytest.raises(ValueError, match=r"\(H, W, C\), got an array; pass image.shape"):
            RigidTransform.identity().matrix(array)
    with pytest.raises(ValueError, match=r"\(H, W, C\), got RigidTransform; pass image.shape"):
        RigidTransform.identity().matrix(RigidTransform.identity())
    with pytest.raises(ValueError, match="axis of 3"):
        RigidTransform.from_array(np.zeros(4))
    for points in (1.0, [1.0, 2.0, 1.0]):  # one number; homogeneous ones
        with pytest.raises(ValueError, match="points must end in an axis of 2"):
            RigidTransform.identity().apply(points, SHAPE)
    with pytest.raises(ValueError, match=r"\(\.\.\., 2, 3\), got shape \(2, 2\)"):
        RigidTransform.from_matrix(np.eye(2), SHAPE)
    with pytest.raises(ValueError, match="matrix must be a rotation and a shift, got a reflection"):
        RigidTransform.from_matrix(np.stack([np.eye(3), np.diag([1.0, -1.0, 1.0])]), SHAPE)
    for block in (np.zeros((3, 3)), np.full((3, 3), np.nan)):
        with pytest.raises(ValueError, match="got none that has an angle"):
            RigidTransform.from_matrix(block, SHAPE)


@given(angles, st.floats(0.3, 3.0), st.floats(-1.0, 1.0))
@settings(deadline=None)
def test_a_matrix_stands_for_its_nearest_rotation(theta, scale, shear):
    block = scale * np.asarray(RigidTransform(0.0, 0.0, theta).matrix(SHAPE), np.float64)[:2, :2]
    block = block @ [[1.0, shear], [0.0, 1.0]]
    left, _, right = np.linalg.svd(block)
    (cos, _), (sin, _) = left @ right
    angle = RigidTransform.from_matrix(np.c_[block, [0.0, 0.0]], SHAPE).theta
    expected = np.rad2deg(np.arctan2(sin, cos))
    np.testing.assert_allclose(rotation_error(angle, expected), 0, atol=FLOAT32_DEGREES)


@pytest.mark.parametrize("dtype", [np.float16, jnp.float16, jnp.bfloat16])
def test_a_matrix_of_small_floats_moves_points_as_apply_does(dtype):
    t = RigidTransform(dtype(0.3), dtype(0.3), dtype(0.0))
    matrix = t.matrix((512, 512))
    assert matrix.dtype == jnp.float32
    np.testing.assert_allclose(matrix[:2, 2], t.apply(np.zeros(2), (512, 512)), atol=FLOAT32_PIXELS)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.float16])
def test_small_dtypes_do_not_overflow(dtype):
    plain = RigidTransform(2.0, 3.0, 100.0)
    for small in (
        RigidTransform.from_array(np.array([2, 3, 100], dtype)),
        RigidTransform(dtype(2), dtype(3), dtype(100)),
    ):
        for made in (lambda t: t.inverse(), lambda t: t.compose(t)):
            result = made(small).as_array()
            np.testing.assert_allclose(result, made(plain).as_array(), atol=FLOAT32_DEGREES)
            assert result.dtype == jnp.float32
