"""The shipped networks through the public calls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxreg
from jaxreg.registration import register, register_batch
from jaxreg.result import Doubt
from tests.compilation_support import quickly_compiled
from tests.registration_support import SIZE, are_gross, assert_finite, errors, photo_pairs
from tests.tolerances import REGISTERED_EXACTLY

COUNT = 16


@pytest.fixture(scope="module")
def pairs():
    return jax.tree.map(lambda x: x[:COUNT], photo_pairs())


@pytest.fixture(scope="module")
def answer(pairs):
    return register_batch(pairs.fixed, pairs.moving, method="compact")


def test_registers_photographs_and_says_how_well(pairs, answer):
    shift, turn = errors(answer.transform, pairs.transform)
    assert np.median(shift) < 0.1
    assert np.median(turn) < 0.3
    assert not (np.asarray(answer.success) & are_gross(answer.transform, pairs.transform)).any()
    assert answer.success.mean() > 0.9
    assert answer.standard_errors.shape == (COUNT, 3)
    truth, estimate = (np.asarray(t.as_array()) for t in (pairs.transform, answer.transform))
    deviations = np.abs(truth - estimate) / np.asarray(answer.standard_errors)
    assert 0.1 < np.median(deviations) < 3.0


@pytest.mark.parametrize("method", ["compact", "compact+refine"])
def test_numbers_stay_of_32_bits_where_jax_defaults_to_float64(pairs, method):
    with jax.enable_x64(True):
        call = lambda f, m: register_batch(f, m, method=method)  # noqa: E731
        result = jax.eval_shape(call, pairs.fixed, pairs.moving)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(result)} == {"float32", "bool", "int32"}


def test_unrelated_flat_and_infinite_ones_are_no_success(pairs, answer):
    moving = np.roll(pairs.moving, 1, 0)
    moving[:2] = 77.0
    fixed = np.array(pairs.fixed)
    fixed[1] = 12.0
    fixed[2] = np.inf
    result = register_batch(fixed, moving, method="compact")
    assert_finite(result)
    assert not result.success.any()
    assert [bool(Doubt(int(d)) & Doubt.NOT_FINITE) for d in result.doubts[:4]] == [0, 0, 1, 0]
    assert all(pair.reasons for pair in result)
    assert result.score.max() < 0.5 * answer.score.min()


def test_any_unit_and_grey_pairs(pairs, answer):
    scaled = register_batch(
        np.asarray(pairs.fixed) / 255, np.asarray(pairs.moving) / 255, method="compact"
    )
    np.testing.assert_allclose(scaled.transform.as_array(), answer.transform.as_array(), atol=0.02)
    grey = [np.asarray(i).mean(-1).round().astype(np.uint8) for i in (pairs.fixed, pairs.moving)]
    one_by_one = [register(*pair, method="compact") for pair in zip(*grey, strict=True)]
    assert one_by_one[0].covariance.shape == (3, 3)
    result = jax.tree.map(lambda *v: np.stack(v), *one_by_one)
    assert np.median(errors(result.transform, pairs.transform)[0]) < 0.15
    assert result.success.mean() > 0.9


def test_jitted_and_mapped(pairs, answer):
    result = jax.jit(jax.vmap(lambda f, m: register(f, m, method="compact")))(
        pairs.fixed, pairs.moving
    )
    np.testing.assert_allclose(result.transform.as_array(), answer.transform.as_array(), atol=1e-3)
    np.testing.assert_array_equal(result.success, answer.success)


def test_it_is_the_network_that_load_gives(pairs, answer):
    network = jaxreg.load("compact32")
    direct = network.estimate(pairs.fixed, pairs.moving)
    np.testing.assert_allclose(direct.transform.as_array(), answer.transform.as_array(), atol=0.02)
    np.testing.assert_allclose(direct.score, answer.score, atol=0.05)


@quickly_compiled()
def test_the_exact_end_makes_it_exact(pairs, answer):
    fixed, moving = np.array(pairs.fixed), np.array(pairs.moving)
    moving[-2:] = moving[:2]  # unrelated
    fixed[-1] = np.nan
    result = jax.jit(lambda f, m: register_batch(f, m, method="compact+refine"))(fixed, moving)
    assert_finite(result)
    assert not result.success[-2:].any()
    related = slice(0, COUNT - 2)
    good = np.asarray(answer.success)[related]
    assert result.success[related].mean() > 0.8
    shift, turn = (e[related][good] for e in errors(result.transform, pairs.transform))
    assert np.median(shift) < REGISTERED_EXACTLY[0]
    assert np.median(turn) < REGISTERED_EXACTLY[1]
    assert (result.standard_errors[related] < answer.standard_errors[related] + 1e-3).mean() > 0.8


@pytest.mark.parametrize("shape", [(33, 33), (32, 48), (95, 96, 3), (SIZE, SIZE, 2)])
def test_other_sizes_are_told(shape):
    expected = r"1 or 3 channels.*got 2" if shape[-1] == 2 else "must be 32x32 or 96x96.*'direct'"
    with pytest.raises(ValueError, match=expected):
        register(jnp.zeros(shape), jnp.zeros(shape), method="compact")


@quickly_compiled()
def test_flat_images_have_no_gradient(pairs):
    def total(fixed, moving):
        return register_batch(fixed, moving, method="compact").transform.as_array().sum()

    moving = jnp.asarray(pairs.moving).at[0].set(0.0)
    for gradient in jax.grad(total, (0, 1))(jnp.asarray(pairs.fixed), moving):
        np.testing.assert_array_equal(gradient[0], 0.0)
        assert np.isfinite(gradient).all()
        assert np.abs(gradient[1:]).max() > 0.0


@pytest.mark.parametrize("wrapped", [lambda call: call, jax.jit])
def test_no_pairs_at_all(wrapped):
    nothing = np.zeros((0, SIZE, SIZE), np.float32)
    result = wrapped(lambda f, m: register_batch(f, m, method="compact"))(nothing, nothing)
    assert result.transform.as_array().shape == (0, 3)
    assert result.covariance.shape == (0, 3, 3)
