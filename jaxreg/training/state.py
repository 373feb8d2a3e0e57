"""What a step changes: weights, statistics, optimiser, and where it stands."""

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

# Folded into the seed's key for the pairs. nnx.Rngs(seed) folds in 0, 1, 2, ... for one tensor of
# weights after another: no network has so many.
_PAIRS_STREAM = 2**32 - 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The whole state of a run; a pytree of arrays and nothing else.

    Attributes:
      step: steps done, int32. It is also the position in the data: pairs are drawn from
        ``fold_in(key, step)``.
      key: the random key of all pairs.
      weights: what is trained, nested dictionaries.
      statistics: what the network keeps besides (batch norm's running statistics).
      average: moving average of the weights, or empty.
      average_statistics: that of the statistics, which go with the weights that made them.
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
    """The learning rate of each step, counted from 0."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "cosine":
        warmup = min(warmup, config.steps // 2)
        main = optax.cosine_decay_schedule(peak, config.steps - warmup)
    else:
        main = optax.constant_schedule(peak)
    if warmup == 0:
        return main
    # From peak / warmup on: a rate of zero would waste the first step.
    rise = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
    return optax.join_schedules([rise, main], [warmup])


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Adam, as in the paper, with the configured schedule and limit on the gradient."""
    adam = optax.adam(learning_rate_schedule(config))
    if config.clip_norm > 0:
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), adam)
    return adam


def fresh_state(config: TrainConfig, weights: Tree, statistics: Tree) -> TrainState:
    """The state before the first step, for these weights; also under `jax.eval_shape`."""
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
    """The state of a run that starts from random weights."""
    _, weights, statistics = split_network(config.network.build(nnx.Rngs(config.seed)))
    return place(mesh, fresh_state(config, weights, statistics))


def abstract_state(config: TrainConfig, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and places of the state's arrays, for compiling and restoring."""
    _, weights, statistics = network_structure(config.network)
    shapes = jax.eval_shape(lambda w, s: fresh_state(config, w, s), weights, statistics)
    where = replicated(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes)


def update_average(average: Tree, new: Tree, step: jax.Array, decay: float) -> Tree:
    """The moving average after one more step; it forgets faster while there is little to keep."""
    keep = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, x: keep * a + (1.0 - keep) * x, average, new)
