"""The state of a run, which each step updates: weights, statistics, optimiser and step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from jaxreg.models.network import Tree, network_structure, split_network
from jaxreg.training.configs import TrainConfig
from jaxreg.training.devices import place, replicated

# Folded into the seed's key for the pairs. For the weights, nnx.Rngs(seed) folds in 0, 1, 2, ...,
# one number for each tensor, and no network has so many tensors.
_PAIRS_STREAM = 2**32 - 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class TrainState:
    """The whole state of a run; a pytree of arrays only.

    Attributes:
      step: number of steps done, int32. It is also the position in the data: pairs are drawn from
        ``fold_in(key, step)``.
      key: random key of all pairs.
      weights: the trained arrays, nested dictionaries.
      statistics: the network's other arrays (batch normalisation's running statistics).
      average: moving average of the weights, or empty.
      average_statistics: moving average of the statistics, which belongs to that of the weights.
      optimizer: optax's state.
    """

    step: jax.Array
    key: jax.Array
    weights: Tree
    statistics: Tree
    average: Tree
    average_statistics: Tree
    optimizer: Any


def learning_rate_schedule(config: TrainConfig) -> optax.Schedule:
    """Return the learning rate as a function of the step, counted from 0."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "cosine":
        warmup = min(warmup, config.steps // 2)
        main = optax.cosine_decay_schedule(peak, config.steps - warmup)
    else:
        main = optax.constant_schedule(peak)
    if warmup == 0:
        return main
    # It starts at peak / warmup, as a rate of zero would waste the first step.
    rise = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, main], [warmup])


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Make the optimiser: Adam, as in the paper, with the configured schedule and clipping."""
    adam = optax.adam(learning_rate_schedule(config))
    if config.clip_norm > 0:
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), adam)
    return adam


def fresh_state(config: TrainConfig, weights: Tree, statistics: Tree) -> TrainState:
    """Make the state before the first step, for these weights; also under `jax.eval_shape`."""
    averages: tuple[Tree, Tree] = ({}, {})
    if config.average_decay > 0:
        averages = jax.tree.map(jnp.copy, (weights, statistics))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.fold_in(jax.random.key(config.seed), _PAIRS_STREAM),
        weights=weights,
        statistics=statistics,
        average=averages[0],
        average_statistics=averages[1],
        optimizer=make_optimizer(config).init(weights),
    )


def create_state(config: TrainConfig, mesh: Mesh) -> TrainState:
    """Make the state of a run that starts from random weights, on the devices."""
    _, weights, statistics = split_network(config.network.build(nnx.Rngs(config.seed)))
    return place(mesh, fresh_state(config, weights, statistics))


def abstract_state(config: TrainConfig, mesh: Mesh) -> TrainState:
    """Return shapes, dtypes and shardings of the state, to compile for it or restore it."""
    _, weights, statistics = network_structure(config.network)
    shapes = jax.eval_shape(lambda w, s: fresh_state(config, w, s), weights, statistics)
    where = replicated(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes)


def update_average(average: Tree, new: Tree, step: jax.Array, decay: float) -> Tree:
    """Return the moving average after one more step; the decay is smaller in the first steps."""
    keep = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, x: keep * a + (1.0 - keep) * x, average, new)
