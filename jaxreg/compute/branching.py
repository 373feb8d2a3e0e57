"""Branches in a batch: `jax.lax.cond` of one pair, vmapped, runs both for all of them.

These run only what is needed, where few pairs take a branch or all take the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

T = TypeVar("T")
# Elements of a batch that run a rare branch at a time, at least and as a share of all: few enough
# for a few not to pay for many, many enough to outweigh what starting a kernel costs.
_BLOCK, _SHARE = 256, 32


def cond_rarely(
    pred: jax.Array, rare: Callable[..., T], usual: Callable[..., T], *operands: object
) -> T:
    """`jax.lax.cond`, but vmapped it runs the usual branch for all and the rare one for its own.

    Those that take the rare branch are gathered and run in blocks, as many as it needs.

    Args:
      pred: scalar bool, whether to take the rare branch.
      rare: from the operands to a pytree of arrays; may close over no value being traced.
      usual: likewise, with results of the same shapes and dtypes.
      *operands: pytrees of arrays, without derivatives: reverse mode is not supported.

    >>> pick = lambda v: cond_rarely(v > 2, lambda v: 10 * v, lambda v: v, v)
    >>> jax.vmap(pick)(jnp.arange(5))
    Array([ 0,  1,  2, 30, 40], dtype=int32)
    """

    def batch(pred: jax.Array, *operands: object) -> T:
        return _overwrite(pred, rare, jax.vmap(usual)(*operands), operands)

    return _batched_by(batch, functools.partial(_cond, rare, usual), pred, *operands)


def cond_where_any(
    pred: jax.Array, on_true: Callable[..., T], on_false: Callable[..., T], *operands: object
) -> T:
    """`jax.lax.cond`, but vmapped it runs a branch, for all, only if any of them takes it.

    Where a derivative is asked for, both branches run: a `cond` that is differentiated and then
    vmapped has no reverse mode. Else args and results are as for `cond_rarely`.

    >>> pick = lambda v: cond_where_any(v > 2, lambda v: 10 * v, lambda v: v, v)
    >>> jax.vmap(pick)(jnp.arange(5))
    Array([ 0,  1,  2, 30, 40], dtype=int32)
    """

    def batch(pred: jax.Array, *operands: object) -> T:
        # Three programs, lest a batch of which all take the same pay for writing and picking.
        mixed = lambda *operands: jax.vmap(both)(pred, *operands)  # noqa: E731
        some = lambda *operands: jax.lax.cond(pred.any(), mixed, jax.vmap(on_false), *operands)  # noqa: E731
        return jax.lax.cond(pred.all(), jax.vmap(on_true), some, *operands)

    def both(pred: jax.Array, *operands: object) -> T:
        return _pick(pred, on_true(*operands), on_false(*operands))

    def one(pred: jax.Array, *operands: object) -> T:
        return _batched_by(batch, functools.partial(_cond, on_true, on_false), pred, *operands)

    return _derived_by(both, one, pred, *operands)


def run_long_rarely(
    run: Callable[..., T],
    unfinished: Callable[[T], jax.Array],
    limits: tuple[int, int],
    constants: object,
    state: T,
) -> T:
    """``run(constants, state, limit=limits[1])``, a loop; vmapped most stop at the first limit.

    Those that are unfinished there are gathered and go on in blocks, as for `cond_rarely`.

    Args:
      run: goes on with a state until it is finished or has taken ``limit`` steps, those before
        included; may close over no value being traced.
      unfinished: whether a state is, a scalar bool.
      limits: in steps, for all of a batch and for its stragglers.
      constants: a pytree of arrays.
      state: likewise; what ``run`` returns.

    >>> def halve(least, v, limit):
    ...     more = lambda s: (s[0] > least) & (s[1] < limit)
    ...     return jax.lax.while_loop(more, lambda s: (s[0] / 2, s[1] + 1), v)
    >>> go = lambda v: run_long_rarely(halve, lambda s: s[0] > 1.0, (2, 9), 1.0, (v, 0))
    >>> jax.vmap(go)(jnp.float32([1.0, 4.0, 64.0]))[1].tolist()
    [0, 2, 6]
    """
    first, last = (functools.partial(run, limit=limit) for limit in limits)

    def batch(constants: object, state: T) -> T:
        state = jax.vmap(first)(constants, state)
        return _overwrite(jax.vmap(unfinished)(state), last, state, (constants, state))

    return _batched_by(batch, last, constants, state)


def apart(true: jax.Array, function: Callable[..., T], *operands: object) -> T:
    """``function(*operands)``, computed once for all its consumers.

    XLA on CPUs fuses what is cheap by the element into each of its consumers, which then recompute
    it, but not out of a branch of `cond`. Under `vmap`, and for a derivative, the function is
    simply called.

    Args:
      true: scalar bool that is always True, though the compiler cannot prove it.
      function: from the operands to a pytree of arrays; may close over no value being traced.
      *operands: pytrees of arrays.

    >>> square = lambda v: apart(v > 0.0, jnp.square, v)
    >>> jax.vmap(square)(jnp.arange(1.0, 4.0))
    Array([1., 4., 9.], dtype=float32)
    """
    shapes = jax.eval_shape(function, *operands)
    nothing = lambda *_: jax.tree.map(jnp.zeros_like, shapes)  # noqa: E731

    def batch(_: jax.Array, *operands: object) -> T:
        return jax.vmap(function)(*operands)

    def one(true: jax.Array, *operands: object) -> T:
        return _batched_by(batch, functools.partial(_cond, function, nothing), true, *operands)

    return _derived_by(lambda _, *operands: function(*operands), one, true, *operands)


def _pick(pred: jax.Array, a: T, b: T) -> T:
    return jax.tree.map(functools.partial(jnp.where, pred), a, b)


def _cond(
    on_true: Callable[..., T], on_false: Callable[..., T], pred: jax.Array, *operands: object
) -> T:
    return jax.lax.cond(pred, on_true, on_false, *operands)


def _batched_by(batch: Callable[..., T], one: Callable[..., T], *operands: object) -> T:
    """``one`` of the operands; vmapped, ``batch`` of all of them with a leading axis."""
    run = custom_vmap(lambda operands: one(*operands))

    @run.def_vmap
    def _(size: int, batched: list, operands: tuple) -> tuple[T, T]:
        spread = lambda v, is_: v if is_ else jnp.broadcast_to(v, (size, *jnp.shape(v)))  # noqa: E731
        result = batch(*jax.tree.map(spread, operands, batched[0]))
        return result, jax.tree.map(lambda _: True, result)

    return run(operands)


def _derived_by(plain: Callable[..., T], one: Callable[..., T], *operands: object) -> T:
    """``one`` of the operands; where a derivative is asked for, ``plain``, which is the same."""
    run = jax.custom_jvp(one)

    @run.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple[T, T]:
        return jax.jvp(plain, primals, tangents)

    return run(*operands)


def _overwrite(pred: jax.Array, rare: Callable[..., T], result: T, operands: tuple) -> T:
    """``result`` ``(N, ...)`` with that of the rare branch where ``pred`` ``(N,)`` holds."""
    size, number = len(pred), pred.sum()
    if not size:
        return result
    block = min(max(_BLOCK, size // _SHARE), size)
    first = jnp.argsort(~pred, stable=True)
    nobody = size  # an index that is read as the last element and never written
    index = jnp.where(jnp.arange(size) < number, first, nobody)
    index = jnp.pad(index, (0, -size % block), constant_values=nobody)

    def step(i: jax.Array, result: T) -> T:
        own = jax.lax.dynamic_slice_in_dim(index, i * block, block)
        some = jax.vmap(rare)(*jax.tree.map(lambda v: v.at[own].get(mode="clip"), operands))
        write = lambda all_, new: all_.at[own].set(new, mode="drop")  # noqa: E731
        return jax.tree.map(write, result, some)

    return jax.lax.fori_loop(0, -(-number // block), step, result)
