"""The public calls: shapes, dtypes, batches, transformations, errors and the API's conventions."""

import dataclasses
import inspect
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxreg
from jaxreg import registration
from jaxreg.compute import batching
from jaxreg.geometry import RigidTransform
from jaxreg.registration import register, register_batch
from jaxreg.result import Doubt, Registration
from jaxreg.warping import warp
from tests.compilation_support import quickly_compiled
from tests.registration_support import SIZE, assert_finite, errors, photo_pairs, texture
from tests.tolerances import REGISTERED, REGISTERED_UNIT

pytestmark = pytest.mark.usefixtures("batch_program")

TRUTH = RigidTransform(2.25, -1.5, 100.0)


@pytest.fixture(scope="module")
def batch():
    pairs = photo_pairs()
    return register_batch(pairs.fixed, pairs.moving)


def test_sides_may_be_longer_and_differ():
    fixed = texture((128, 95))
    result = register(fixed, warp(fixed, TRUTH))
    shift, turn = errors(result.transform, TRUTH)
    assert shift < REGISTERED[0]
    assert turn < REGISTERED[1]
    assert result.success
    assert result.covariance.shape == (3, 3)
    assert result.transform.tx.shape == result.score.shape == result.success.shape == ()


@quickly_compiled()
def test_the_smallest_size_and_many_channels():
    """Some are too small to be sure of; none may fail otherwise."""
    fixed = texture((8, 8, 5))
    assert_finite(register(fixed, warp(fixed, RigidTransform(0.5, -0.5, 90.0))))
    result = register(fixed, np.rot90(fixed, -1))
    assert_finite(result)
    assert max(errors(result.transform, RigidTransform(0.0, 0.0, 90.0))) < REGISTERED_UNIT


def test_a_channel_axis_of_one_is_none():
    fixed = texture((128, 95))
    moving = np.asarray(warp(fixed, TRUTH))
    plain, with_axis = register(fixed, moving), register(fixed[..., None], moving[..., None])
    jax.tree.map(np.testing.assert_array_equal, plain, with_axis)


def test_any_dtype_gives_the_same_answer(batch):
    pairs = photo_pairs()
    fixed, moving = (np.round(np.asarray(v)) for v in (pairs.fixed, pairs.moving))
    results = [
        register_batch(fixed.astype(dtype), moving.astype(dtype))
        for dtype in (np.uint8, np.uint16, np.int64, np.float16, np.float32, np.float64)
    ]
    for other in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, results[0], other)
    assert results[0].transform.tx.dtype == jnp.float32


@quickly_compiled()
def test_a_batch_and_a_mapped_program_agree():
    """Of pairs that take different branches: a clear one, one in doubt, one made by a spline."""
    fixed = np.stack([texture((SIZE, SIZE, 3), seed=s) for s in range(3)])
    moving = np.stack([warp(image, TRUTH) for image in fixed])
    moving[1, :, 8:19] = 128.0
    moving[2] = warp(fixed[2], TRUTH, interpolation="cubic")
    together = jax.jit(jax.vmap(register))(fixed, moving)
    for one, other in zip(register_batch(fixed, moving), together, strict=True):
        assert max(errors(one.transform, other.transform)) < REGISTERED_UNIT
        assert bool(one.success) == bool(other.success)
        np.testing.assert_allclose(one.score, other.score, atol=1e-4)


@pytest.mark.parametrize("call", [register, lambda f, m: register_batch(f[None], m[None])[0]])
def test_constant_images_may_be_part_of_a_program(call):
    fixed = texture((SIZE, SIZE, 3))
    result = jax.eval_shape(lambda y: y * call(fixed, fixed).score, 1.0)
    assert result.shape == ()


@pytest.mark.parametrize("x64", [False, True])
def test_neither_dtypes_nor_ranks_need_be_promoted(x64):
    image, mask = (jax.ShapeDtypeStruct((SIZE, SIZE), dtype) for dtype in ("float32", "bool"))
    calls = (
        lambda i, m: register(i, i, fixed_mask=m),
        lambda i, _: register_batch(i[None], i[None]),
        lambda i, _: register(i, i, method="compact"),
        lambda i, _: register(i, i, method="compact+refine"),
        lambda i, _: jax.vmap(register)(i[None], i[None]),
    )
    strict = jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise")
    with jax.enable_x64(x64), strict[0], strict[1]:
        for call in calls:
            assert jax.eval_shape(call, image, mask).score.dtype == jnp.float32
            along = jax.grad(lambda i, m, call=call: call(i, m).transform.as_array().sum())
            assert jax.eval_shape(along, image, mask).dtype == jnp.float32


@pytest.mark.parametrize(
    "call",
    [
        register_batch,
        lambda f, m: register_batch(f, m, moving_mask=m > 0),
        lambda f, m: register_batch(f, m, method="compact+refine"),
        lambda f, m: jax.vmap(register)(f, m),  # as an accelerator does it
        jax.grad(lambda f, m: register_batch(f, m).transform.tx.sum()),
    ],
)
def test_a_batch_may_be_mapped_over_shards(call):
    mesh = jax.make_mesh((1,), ("pairs",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("pairs")
    call = jax.shard_map(call, mesh=mesh, in_specs=spec, out_specs=spec)
    image = jax.ShapeDtypeStruct((2, SIZE, SIZE), "float32")
    assert all(v.shape[0] == 2 for v in jax.tree.leaves(jax.eval_shape(call, image, image)))


def test_a_second_pair_of_a_shape_compiles_nothing():
    fixed = texture((128, 95), seed=1)
    register(fixed, fixed)
    options = batching.compiler_options(fixed.size)
    program = registration._program(False, False, tuple(options.items()))
    size = program._cache_size()
    assert size
    register(fixed[::-1], fixed.astype(np.uint8))
    register(fixed, fixed, max_shift=19, max_rotation=30, interpolation="spline")
    committed = jax.device_put(fixed, jax.devices()[0])
    register(jnp.asarray(fixed), committed)
    register(committed, fixed)
    register(committed, jnp.asarray(committed, jnp.bfloat16))
    assert program._cache_size() == size


@pytest.mark.parametrize("third", [95 / 3, np.float32(95 / 3), jnp.float32(95) / 3])
def test_a_third_of_the_shorter_side_is_the_default_limit(third):
    fixed = texture((128, 95))
    moving = np.asarray(warp(fixed, TRUTH))
    default, explicit = register(fixed, moving), register(fixed, moving, max_shift=third)
    jax.tree.map(np.testing.assert_array_equal, default, explicit)
    known = jax.eval_shape(lambda i: register(i, i, initial=TRUTH, max_shift=third), fixed)
    assert known.score.shape == ()


def cheap_method(fixed, moving):
    """The first pixels as an answer: what a method sees and in which order."""
    a, b = np.asarray(fixed)[:, 0, 0, 0], np.asarray(moving)[:, 0, 0, 0]
    return Registration(RigidTransform(a, b, 0 * a), 0 * a, a < 0)


def test_batches_of_any_number_keep_their_order(monkeypatch):
    monkeypatch.setattr(batching, "_CPU_BATCH", 4)
    shapes = []

    def method(fixed, moving):
        shapes.append(fixed.shape[0])
        return cheap_method(fixed, moving)

    monkeypatch.setattr(registration, "find_method", lambda _: method)
    for count in (0, 1, 3, 4, 5, 8, 11):
        shapes.clear()
        number = np.arange(count, dtype=np.float32)[:, None, None] * np.ones((count, 8, 8))
        result = register_batch(number, number + 100, method="any")
        np.testing.assert_array_equal(result.transform.tx, np.arange(count))
        np.testing.assert_array_equal(result.transform.ty, np.arange(count) + 100)
        assert len({*shapes}) == 1  # one shape, so one compilation
        assert result.score.shape == result.found.shape == (count,)
    one = register(number[0], number[0] + 100, method="any")
    assert (float(one.transform.ty), bool(one.found)) == (100.0, True)


def test_no_pairs_give_an_empty_answer():
    result = register_batch(np.zeros((0, 32, 32, 3)), np.zeros((0, 32, 32, 3)))
    assert isinstance(result, Registration)
    assert result.transform.as_array().shape == (0, 3)
    assert result.success.shape == result.score.shape == (0,)
    assert result.covariance.shape == (0, 3, 3)


def test_more_pairs_than_a_chunk(batch):
    pairs = photo_pairs()
    order = np.r_[np.arange(64), 3]
    result = register_batch(pairs.fixed[order], pairs.moving[order])
    expected = batch[order]
    shift, turn = errors(result.transform, expected.transform)
    assert max(shift.max(), turn.max()) < REGISTERED_UNIT


def test_one_reference_for_all(batch):
    pairs = photo_pairs()
    for fixed, moving in ((pairs.fixed[5], pairs.moving), (pairs.fixed, pairs.moving[5])):
        result = register_batch(fixed, moving)
        assert result.score.shape == batch.score.shape
        jax.tree.map(np.testing.assert_array_equal, result[5], batch[5])


def test_a_bad_frame_spoils_its_own_pair_alone(batch):
    pairs = photo_pairs()
    moving = np.array(pairs.moving)
    moving[2, 0, 0] = np.nan
    result = register_batch(pairs.fixed, moving)
    assert not result.success[2]
    assert all(np.isfinite(v).all() for v in jax.tree.leaves(result))
    jax.tree.map(np.testing.assert_array_equal, result[3:], batch[3:])
    with pytest.raises(ValueError, match=r"moving must be finite.* in 1 of .*first at index 2"):
        register_batch(pairs.fixed, moving, method="fft")


@pytest.mark.parametrize("count", [5, 64, 130])
def test_other_methods_under_jit(count):
    fixed = np.stack([texture((8, 8), seed=s) for s in range(count)])
    call = lambda f, m: register_batch(f, m, method="constant")  # noqa: E731
    np.testing.assert_allclose(
        jax.jit(call)(fixed, fixed[::-1]).score, call(fixed, fixed[::-1]).score, atol=1e-6
    )


@pytest.mark.parametrize("count", [5, 130])
def test_arrays_of_a_device_may_be_part_of_a_program(count):
    images = jnp.asarray(np.stack([texture((8, 8, 1), seed=s) for s in range(count)]))
    result = jax.jit(lambda y: y * register_batch(images, images, method="constant").score)(2.0)
    np.testing.assert_allclose(result, 2.0, atol=1e-5)


def test_other_methods_by_name():
    fixed = texture((16, 16))
    result = register(fixed, fixed, method="constant")
    assert result.transform.tx.shape == ()
    assert float(result.score) == pytest.approx(1.0, abs=1e-5)
    assert result.covariance is None
    assert result.standard_errors is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda i: register(i[None], i[None]), r"got shape \(1, 16, 16, 3\).*register_batch"),
        (lambda i: register_batch(i[..., 0], i[..., 0]), r"for one pair call jaxreg.register"),
        (lambda i: register(i, i[:12]), r"same shape.*\(16, 16, 3\) and \(12, 16, 3\)"),
        (lambda i: register(i, i, method="dirct"), "did you mean direct"),
        (
            lambda i: register(i, i, max_shift=0.0),
            "max_shift must be above 0 and at most 8 pixels, half of .* 16 x 16 images, got 0",
        ),
        (lambda i: register(i[:12], i[:12], max_shift=6.1), "at most 6 .* 12 x 16 .*, got 6.1"),
        (lambda i: register_batch(i[None, 2:], i[None, 2:], max_shift=8), "at most 7 .*, got 8"),
        (lambda i: register(i, i, max_shift=np.nan), "max_shift must be above 0 .*, got nan"),
        (lambda i: register(i, i, interpolation="cubic"), "interpolation must be"),
        (lambda i: register(i, i, max_rotation=181), r"max_rotation must be in \[0, 180\]"),
        (
            lambda i: register(i, i, method="constant", max_shift=2),
            "max_shift, .* are for method 'direct'",
        ),
        (lambda i: register(i * np.nan, i), "fixed must be finite.*768 NaN"),
        (lambda i: register(i, i[:7]), "moving must be 8 to 2048 pixels"),
        (lambda i: register_batch([i, i[:9]], [i, i]), "fixed must be an array, or images of one"),
        (lambda i: register_batch(i, i), r"got 16 x 3; for one pair call jaxreg.register"),
        (lambda i: register(1e39 * np.float64(i), i), "fixed must be finite"),
        (lambda i: register(i / 255, i / 255, method="orb"), r"in 0\.\.255 for method 'orb'"),
        (lambda i: register(i, i, max_shift="a"), "max_shift must be a number, got 'a'"),
        (lambda i: register(i, i, max_rotation=None), "max_rotation must be a number, got None"),
        (
            lambda i: jax.eval_shape(lambda limit: register(i, i, max_rotation=limit), 5.0),
            "max_rotation must be a number, got .*; under jit make it a static argument",
        ),
        (
            lambda i: jax.vmap(lambda limit: register(i, i, max_shift=limit))(jnp.ones(2)),
            "max_shift must be a number, got .* under vmap a Python or NumPy number",
        ),
        (lambda i: register(i, i, method=None), "method must be a name, got None"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(texture((16, 16, 3)))


def test_standard_errors_are_the_roots_of_the_diagonal(batch):
    np.testing.assert_allclose(
        np.square(batch.standard_errors),
        np.diagonal(batch.covariance, axis1=1, axis2=2),
        rtol=1e-5,
        atol=1e-12,
    )


# Conventions of the public API.


def test_every_public_name_is_documented():
    for name in jaxreg.__all__:
        assert inspect.getdoc(getattr(jaxreg, name)), name


@pytest.mark.parametrize("function", [register, register_batch])
def test_options_are_keyword_only(function):
    fixed, moving, *options = inspect.signature(function).parameters.values()
    assert (fixed.name, moving.name) == ("fixed", "moving")
    assert options
    for option in options:
        assert option.kind is inspect.Parameter.KEYWORD_ONLY
        assert option.default is not inspect.Parameter.empty
        assert f"{option.name}:" in function.__doc__


def test_a_result_is_a_pytree_and_indexed_like_an_array(batch):
    one = jax.tree.map(lambda v: v[3], batch)
    assert isinstance(one, Registration)
    jax.tree.map(np.testing.assert_array_equal, batch[3], one)
    good = batch[np.asarray(batch.success)]
    assert len(good.transform.tx) == np.asarray(batch.success).sum()
    assert [float(r.score) for r in batch] == np.asarray(batch.score).tolist()
    assert Registration(batch.transform, batch.score, batch.success)[0].found is True
    assert len(batch) == len(batch.score)
    assert bool(one) is bool(batch[:0]) is True
    with pytest.raises(IndexError):
        batch[len(batch)]
    for call in (len, iter, lambda answer: answer[0]):
        with pytest.raises(TypeError, match="to one pair, not to a batch"):
            call(one)


def test_reasons_are_of_one_pair(batch):
    assert batch[3].reasons == []
    with pytest.raises(TypeError, match=r"reasons are of one pair.*: rs\[i\].reasons"):
        _ = batch.reasons
    with pytest.raises(TypeError, match="reasons are of one pair"):
        jax.jit(lambda r: len(r.reasons))(batch[3])


def test_the_inverse_carries_the_covariance_over():
    rng = np.random.default_rng(0)
    parameters = (rng.uniform(-60, 60, (6, 3)) * [1, 1, 3]).astype(np.float32)
    factors = rng.normal(size=(6, 3, 3)).astype(np.float32)
    covariance = factors @ np.swapaxes(factors, 1, 2)
    inverted = lambda p: RigidTransform.from_array(p).inverse().as_array()  # noqa: E731
    slopes = np.asarray(jax.vmap(jax.jacobian(inverted))(parameters))
    expected = slopes @ covariance @ np.swapaxes(slopes, 1, 2)
    batch = Registration(
        RigidTransform.from_array(parameters), jnp.arange(6.0), jnp.arange(6) > 2, covariance
    )
    one_by_one = jax.tree.map(lambda *v: jnp.stack(v), *(r.inverse() for r in batch))
    for back in (
        batch.inverse(),
        jax.jit(Registration.inverse)(batch),
        jax.vmap(Registration.inverse)(dataclasses.replace(batch, found=jnp.ones(6, bool))),
        one_by_one,
    ):
        np.testing.assert_allclose(back.covariance, expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(back.transform.as_array(), inverted(parameters), atol=1e-4)
        np.testing.assert_array_equal(back.score, batch.score)
        np.testing.assert_array_equal(back.success, batch.success)
    again = batch.inverse().inverse()
    np.testing.assert_allclose(again.covariance, covariance, rtol=1e-3, atol=1e-3)
    without = Registration(RigidTransform(1, 2, 3.0), 0.5, True, doubts=np.int32(0)).inverse()
    assert without.covariance is None
    assert without.doubts == 0


def test_the_inverse_of_a_shared_angle_and_of_lists():
    covariance = np.stack([np.eye(3)] * 2)
    mixed = Registration(RigidTransform([1.0, 2.0], 0, 90.0), 1.0, True, covariance).inverse()
    np.testing.assert_array_equal(mixed.transform.as_array(), [[0, 1, -90], [0, 2, -90]])
    assert mixed.covariance.shape == (2, 3, 3)


def test_every_doubt_is_told_and_its_bit_is_fixed():
    """The bits are what users stored."""
    assert [doubt.name for doubt in Doubt] == [
        *("NOT_FINITE", "NOT_CONVERGED", "IMPRECISE", "DETAIL_MISMATCH", "AMBIGUOUS", "APERTURE"),
        *("UNDETERMINED", "NETWORK_UNSURE", "CHANCE_MATCH", "INSUFFICIENT_MARGIN", "OUT_OF_BOUNDS"),
    ]
    assert [int(doubt) for doubt in Doubt] == [1 << bit for bit in range(11)]
    assert all(len(doubt.descriptions) == 1 for doubt in Doubt)
    assert len(set(Doubt(2047).descriptions)) == 11
    assert Doubt(0).descriptions == []


def test_limits_may_be_arrays_of_one_number():
    image = jnp.zeros((SIZE, SIZE))
    limits = {"max_shift": jnp.float32(8), "max_rotation": np.full((), 30)}
    call = lambda i: register(i, i, **limits)  # noqa: E731
    assert jax.eval_shape(call, image).score.shape == ()


def test_importing_is_light():
    heavy = (
        "cv2",
        "tensorflow_datasets",
        "matplotlib",
        "flax",
        "skimage",
        "orbax",
        "scipy.ndimage",
    )
    code = f"import sys, jaxreg; print([m for m in {heavy!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
