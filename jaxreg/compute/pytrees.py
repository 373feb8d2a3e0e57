"""Batches of pytrees such as transforms and registrations, and functions that take them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

F = TypeVar("F", bound=Callable[..., Any])


def of_any_rank(function: F) -> F:
    """A function that may broadcast though its caller, by `jax.numpy_rank_promotion`, may not."""

    @functools.wraps(function)
    def allowed(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return cast(F, allowed)


def as_one(function: F) -> F:
    """One call to the device instead of dozens; part of a larger program, nothing changes."""
    return cast(F, jax.jit(of_any_rank(function), inline=True))


def part(batch: Any, index: Any, batch_shape: tuple[int, ...]) -> Any:
    """What an index takes of every field of a batch; a scalar among them is that of all.

    Raises:
      IndexError: as NumPy does, where JAX would take what is nearest.
    """
    if isinstance(index, list):
        index = np.asarray(index, None if index else np.int32)
    indices = index if isinstance(index, tuple) else (index,)
    if any(i is Ellipsis for i in indices):  # it would reach into a field's own axes
        raise IndexError("answers are indexed along the axes of the batch, without '...'")
    if not any(isinstance(i, jax.core.Tracer) for i in indices):
        np.broadcast_to(False, batch_shape)[index]
    return jax.tree.map(lambda v: v[index] if jnp.ndim(v) else v, _without_lists(batch))


def _without_lists(batch: Any) -> Any:
    """The same with arrays for fields that are lists, which to JAX are containers."""
    array = lambda v: np.asarray(v, np.float32) if isinstance(v, list) else v  # noqa: E731
    return jax.tree.map(array, batch, is_leaf=lambda v: isinstance(v, list))


def on_host(batch: Any) -> Any:
    """The same fetched once, where a device would be asked for each field of each element."""
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(batch))
    return batch if traced else jax.device_get(batch)
