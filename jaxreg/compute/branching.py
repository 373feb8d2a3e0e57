"""Conditionals and loops for vmapped code.

Under `jax.vmap`, `jax.lax.cond` evaluates both branches for every element, and a loop runs until
the slowest element is done. These helpers run a rare branch, or the last steps of a loop, only for
the elements that need it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from jaxreg.compute.pytrees import allow_rank_promotion

T = TypeVar("T")
# A rare branch runs on blocks of at least `_BLOCK` elements, or 1 / `_SHARE` of the batch. Small
# blocks waste little work on padding; large ones outweigh the cost of launching a kernel.
_BLOCK = 256
_SHARE = 32


def cond_rarely(
    pred: jax.Array, rare: Callable[..., T], usual: Callable[..., T], *operands: object
) -> T:
    """Run ``rare`` if ``pred`` holds, else ``usual``, as `jax.lax.cond` does.

    Under `vmap` the usual branch runs for all elements. Those that take the rare branch are then
    gathered, and it runs for them alone, in as many blocks as they fill.

    Args:
      pred: scalar bool, whether to take the rare branch.
      rare: function of the operands that returns a pytree of arrays; must not close over traced
        values.
      usual: the same, with results of the same shapes and dtypes.
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
    """Run ``on_true`` if ``pred`` holds, else ``on_false``, as `jax.lax.cond` does.

    Under `vmap` a branch runs only if any element takes it, and then for all elements. Under
    differentiation both branches run, because a `cond` that is differentiated and then vmapped has
    no reverse mode. Arguments and results are otherwise those of `cond_rarely`.

    >>> pick = lambda v: cond_where_any(v > 2, lambda v: 10 * v, lambda v: v, v)
    >>> jax.vmap(pick)(jnp.arange(5))
    Array([ 0,  1,  2, 30, 40], dtype=int32)
    """

    def batch(pred: jax.Array, *operands: object) -> T:
        # Three programs, so that a batch whose elements agree does not pay for the selection.
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
    """Run a loop, ``run(constants, state, limit=limits[1])``, that few elements need in full.

    Under `vmap` all elements run to the first limit. Those that are unfinished then are gathered
    and continue to the second limit in blocks, as for `cond_rarely`.

    Args:
      run: continues from a state until that is finished or has taken ``limit`` steps in total;
        must not close over traced values.
      unfinished: returns whether a state is unfinished, a scalar bool.
      limits: the two limits, in steps.
      constants: a pytree of arrays.
      state: the initial state, a pytree of arrays; ``run`` returns the same structure.

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


def apart(opaque_true: jax.Array, function: Callable[..., T], *operands: object) -> T:
    """Compute ``function(*operands)`` once for all its consumers.

    XLA on CPUs fuses cheap elementwise work into each of its consumers, which then recompute it.
    It does not fuse across the branches of a `cond`, so the call is put into one whose predicate
    is always true but that XLA cannot fold away. Under `vmap` and under differentiation the
    function is simply called.

    Args:
      opaque_true: scalar bool that is always True, computed from data so that the compiler cannot
        prove it.
      function: function of the operands that returns a pytree of arrays; must not close over
        traced values.
      *operands: pytrees of arrays.

    >>> square = lambda v: apart(v > 0.0, jnp.square, v)
    >>> jax.vmap(square)(jnp.arange(1.0, 4.0))
    Array([1., 4., 9.], dtype=float32)
    """
    shapes = jax.eval_shape(function, *operands)
    nothing = lambda *_: jax.tree.map(jnp.zeros_like, shapes)  # noqa: E731

    def batch(_: jax.Array, *operands: object) -> T:
        return jax.vmap(function)(*operands)

    def one(opaque_true: jax.Array, *operands: object) -> T:
        isolated = functools.partial(_cond, function, nothing)
        return _batched_by(batch, isolated, opaque_true, *operands)

    return _derived_by(lambda _, *operands: function(*operands), one, opaque_true, *operands)


def _pick(pred: jax.Array, a: T, b: T) -> T:
    return jax.tree.map(functools.partial(jnp.where, pred), a, b)


def _cond(
    on_true: Callable[..., T], on_false: Callable[..., T], pred: jax.Array, *operands: object
) -> T:
    return jax.lax.cond(pred, on_true, on_false, *operands)


def _batched_by(batch: Callable[..., T], one: Callable[..., T], *operands: object) -> T:
    """Call ``one(*operands)``; under `vmap` call ``batch`` on the stacked operands instead."""
    run = custom_vmap(lambda operands: one(*operands))

    # Rules are traced later than ``one``, outside of the settings around this call.
    @run.def_vmap
    @allow_rank_promotion
    def _(size: int, batched: list, operands: tuple) -> tuple[T, T]:
        spread = lambda v, is_: v if is_ else jnp.broadcast_to(v, (size, *jnp.shape(v)))  # noqa: E731
        result = batch(*jax.tree.map(spread, operands, batched[0]))
        return result, jax.tree.map(lambda _: True, result)

    return run(operands)


def _derived_by(plain: Callable[..., T], one: Callable[..., T], *operands: object) -> T:
    """Call ``one(*operands)``; under differentiation call ``plain``, the same function."""
    run = jax.custom_jvp(one)

    @run.defjvp
    @allow_rank_promotion
    def _(primals: tuple, tangents: tuple) -> tuple[T, T]:
        return jax.jvp(plain, primals, tangents)

    return run(*operands)


def _overwrite(pred: jax.Array, rare: Callable[..., T], result: T, operands: tuple) -> T:
    """Replace ``result`` ``(N, ...)`` by ``rare(*operands)`` where ``pred`` ``(N,)`` holds."""
    size, number = len(pred), pred.sum()
    if not size:
        return result
    block = min(max(_BLOCK, size // _SHARE), size)
    first = jnp.argsort(~pred, stable=True)
    nobody = size  # out of range: reads clip it to the last element, writes drop it
    index = jnp.where(jnp.arange(size) < number, first, nobody)
    index = jnp.pad(index, (0, -size % block), constant_values=nobody)

    def step(i: jax.Array, result: T) -> T:
        own = jax.lax.dynamic_slice_in_dim(index, i * block, block)
        some = jax.vmap(rare)(*jax.tree.map(lambda v: v.at[own].get(mode="clip"), operands))
        write = lambda all_, new: all_.at[own].set(new, mode="drop")  # noqa: E731
        return jax.tree.map(write, result, some)

    return jax.lax.fori_loop(0, -(-number // block), step, result)
