"""Indexing and fetching of batched pytrees (transforms, registrations), and rank promotion."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

F = TypeVar("F", bound=Callable[..., Any])


def allow_rank_promotion(function: F) -> F:
    """Let a function broadcast even where the caller's `jax.numpy_rank_promotion` forbids it."""

    @functools.wraps(function)
    def allowed(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return cast(F, allowed)


def as_one(function: F) -> F:
    """Compile a function, so that one device call replaces dozens; inlined in larger programs."""
    return cast(F, jax.jit(allow_rank_promotion(function), inline=True))


def part(batch: Any, index: Any, batch_shape: tuple[int, ...]) -> Any:
    """Index every field of a batch; a scalar field belongs to all elements and stays as it is.

    Raises:
      IndexError: the index is out of range, which JAX alone would clamp, or contains ``...``.
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
    """Convert fields that are lists to arrays; JAX would take a list for a container."""
    array = lambda v: np.asarray(v, np.float32) if isinstance(v, list) else v  # noqa: E731
    return jax.tree.map(array, batch, is_leaf=lambda v: isinstance(v, list))


def on_host(batch: Any) -> Any:
    """Fetch a batch from the device in one transfer; a traced batch is returned as it is.

    Indexing a batch on the device would cost a transfer for each field of each element.
    """
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(batch))
    return batch if traced else jax.device_get(batch)
