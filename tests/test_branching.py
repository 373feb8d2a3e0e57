"""Branches of a batch: the answers of `jax.lax.cond`, the work of those that need it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxreg.compute import branching
from jaxreg.compute.branching import apart, cond_rarely, cond_where_any, run_long_rarely


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(branching, "_BLOCK", 4)


@functools.cache
def picking(cond):
    """One by one, in a batch, and in a batch of batches; traced once for each size."""

    def pick(x):
        return cond(x > 0, lambda v, k: -k * v["x"], lambda v, k: k + v["x"], {"x": x}, 3.0)

    return jax.jit(pick), jax.jit(jax.vmap(pick)), jax.jit(jax.vmap(jax.vmap(pick)))


def lists_of(size):
    return st.lists(st.integers(-9, 9), min_size=size, max_size=size)


@pytest.mark.parametrize("cond", [cond_rarely, cond_where_any])
@settings(deadline=None, max_examples=30)
@given(numbers=st.sampled_from([1, 3, 4, 9, 13]).flatmap(lists_of))  # each size is compiled
def test_a_batch_has_the_answers_of_its_elements(cond, numbers):
    one, batch, batches = picking(cond)
    x = jnp.asarray(numbers, jnp.float32)
    expected = np.where(x > 0, -3.0 * x, 3.0 + x)
    np.testing.assert_array_equal([one(v) for v in x], expected)
    np.testing.assert_array_equal(batch(x), expected)
    np.testing.assert_array_equal(batches(x[None])[0], expected)


@pytest.mark.parametrize("cond", [cond_rarely, cond_where_any])
def test_an_empty_batch_has_no_answers(cond):
    assert picking(cond)[1](jnp.zeros(0)).shape == (0,)


@pytest.mark.parametrize(("taken", "blocks"), [(0, 0), (1, 1), (4, 1), (5, 2), (11, 3)])
def test_the_rare_branch_runs_only_in_the_blocks_it_needs(taken, blocks):
    ran = []

    def rare(x):
        jax.debug.callback(lambda v: ran.append(float(v)), x)
        return -x

    def one(flag, x):
        return cond_rarely(flag, rare, lambda x: x, x)

    x = jnp.arange(11.0)
    flags = jnp.arange(11) >= 11 - taken
    result = jax.vmap(one)(flags, x)
    jax.effects_barrier()
    np.testing.assert_array_equal(result, np.where(flags, -x, x))
    assert len(ran) == 4 * blocks
    assert set(ran) >= set(np.asarray(x[flags]).tolist())


def test_a_loop_goes_on_only_in_the_blocks_that_want_more():
    ran = []

    def count_down(step, state, limit):
        def one(state):
            jax.debug.callback(lambda v: ran.append(int(v)), state[1])
            return state[0] - step, state[1] + 1

        return jax.lax.while_loop(lambda s: (s[0] > 0) & (s[1] < limit), one, state)

    def run(number):
        return run_long_rarely(count_down, lambda s: s[0] > 0, (2, 9), 2, (number, 0))

    numbers = jnp.array([0, 4, 11, 3, 40, 1, 18])
    together = jax.jit(jax.vmap(run))(numbers)
    jax.effects_barrier()
    # Seven take two steps; a block of four has the three others, up to seven more.
    assert len(ran) == 7 * 2 + 4 * 7
    alone = [run(n) for n in numbers]
    np.testing.assert_array_equal(np.transpose(together), alone)
    np.testing.assert_array_equal(together[1], [0, 2, 6, 2, 9, 1, 9])


@pytest.mark.parametrize("flags", [[True] * 3, [False] * 3, [True, False, True]])
def test_a_branch_that_nobody_takes_is_skipped(flags):
    ran = set()

    def branch(name, sign):
        def run(x):
            jax.debug.callback(lambda _: ran.add(name), x)
            return sign * x

        return run

    x, branches = jnp.arange(1.0, 4.0), (branch(True, -1), branch(False, 1))
    result = jax.vmap(lambda flag, x: cond_where_any(flag, *branches, x))(jnp.array(flags), x)
    jax.effects_barrier()
    np.testing.assert_array_equal(result, np.where(flags, -x, x))
    assert ran == set(flags)


def test_a_predicate_or_an_operand_that_all_share():
    x = jnp.arange(5.0)
    shared = jax.vmap(lambda v: cond_rarely(jnp.bool_(True), jnp.negative, lambda v: v, v))(x)
    np.testing.assert_array_equal(shared, -x)
    one = lambda flag: cond_rarely(flag, lambda v: v.sum(), lambda v: v[0], x)  # noqa: E731
    np.testing.assert_array_equal(jax.vmap(one)(x > 2), [0, 0, 0, 10, 10])


def test_what_runs_apart_is_a_branch_of_its_own_but_not_in_a_batch():
    def one(x, scale):
        return apart(x[0] > -1.0, lambda x, scale: {"y": scale * jnp.sin(x)}, x, scale)["y"]

    x = jnp.asarray(np.random.default_rng(0).uniform(size=(5, 3)), jnp.float32)
    batch = jax.vmap(one, in_axes=(0, None))
    np.testing.assert_allclose(jax.jit(batch)(x, 2.0), 2.0 * np.sin(x), rtol=1e-6)
    np.testing.assert_allclose([one(v, 2.0) for v in x], 2.0 * np.sin(x), rtol=1e-6)
    assert "conditional" in jax.jit(one).lower(x[0], 2.0).compile().as_text()
    for word in ("cond", "select"):
        assert word not in str(jax.make_jaxpr(batch)(x, 2.0))


def test_branches_have_the_derivatives_of_what_they_run():
    either = lambda v: cond_where_any(v > 2.0, jnp.square, jnp.sin, v)  # noqa: E731
    alone = lambda v: apart(v > -1.0, lambda v: v**3, v)  # noqa: E731
    x = jnp.arange(5.0)
    expected = np.where(x > 2.0, 2.0 * x, np.cos(x)), 3.0 * np.square(x)
    for function, slope in zip((either, alone), expected, strict=True):
        one_by_one = [jax.grad(function)(v) for v in x]
        together = jax.grad(lambda x: jax.vmap(function)(x).sum())(x)  # noqa: B023
        for answer in (jnp.stack(one_by_one), together, jax.vmap(jax.grad(function))(x)):
            np.testing.assert_allclose(answer, slope, rtol=1e-6)
