"""The compiled part of training: many steps in one dispatch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from jaxreg.metrics import rotation_error, translation_error
from jaxreg.models import Network
from jaxreg.pairs import Pairs
from jaxreg.training.batches import Images, draw_batch
from jaxreg.training.configs import TrainConfig
from jaxreg.training.devices import replicated, split_batch
from jaxreg.training.state import (
    TrainState,
    Tree,
    make_optimizer,
    network_structure,
    split_network,
    update_average,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepMetrics:
    """What a step measures, or the sums over the steps of a dispatch; float32 scalars."""

    loss: jax.Array
    translation: jax.Array
    rotation: jax.Array
    gradient_norm: jax.Array

    @classmethod
    def zeros(cls) -> StepMetrics:
        """Sums over nothing."""
        return cls(*(jnp.zeros(()) for _ in dataclasses.fields(cls)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DispatchReport:
    """What the host reads after a dispatch.

    Attributes:
      sums: metrics summed over the finite steps.
      finite: False if loss, gradient or weights turned non-finite. The state is then the one
        before that step, and the dispatch ended there.
      last: metrics of the last step tried.
    """

    sums: StepMetrics
    finite: jax.Array
    last: StepMetrics


def train_step(
    state: TrainState,
    images: Images,
    *,
    config: TrainConfig,
    structure: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> tuple[TrainState, StepMetrics]:
    """Draw pairs, one step of the optimiser. Pure."""
    pairs = draw_batch(jax.random.fold_in(state.key, state.step), images, config)
    pairs = split_batch(mesh, pairs)
    loss_of = functools.partial(_loss, structure, state.statistics, pairs, config)
    (loss, (estimate, statistics)), gradient = jax.value_and_grad(loss_of, has_aux=True)(
        state.weights
    )
    updates, opt_state = optimizer.update(gradient, state.optimizer, state.weights)
    weights = optax.apply_updates(state.weights, updates)
    average = state.average
    if config.average_decay > 0:
        average = update_average(average, weights, state.step, config.average_decay)
    metrics = StepMetrics(
        loss=loss,
        translation=translation_error(estimate, pairs.transform).mean(),
        rotation=rotation_error(estimate.theta, pairs.transform.theta).mean(),
        gradient_norm=optax.tree.norm(gradient),
    )
    return TrainState(state.step + 1, state.key, weights, statistics, average, opt_state), metrics


def _loss(
    structure: nnx.GraphDef, statistics: Tree, pairs: Pairs, config: TrainConfig, weights: Tree
):
    network: Network = nnx.merge(structure, weights, statistics)
    network.train()
    loss, estimate = network.loss(pairs, config.translation_weight, config.angle_loss)
    return loss, (estimate, split_network(network)[2])


Dispatch = Callable[[TrainState, Images, jax.Array], tuple[TrainState, DispatchReport]]


def make_dispatch(config: TrainConfig, mesh: Mesh) -> Dispatch:
    """``(state, images, count) -> (state, report)``: up to ``count`` steps, to be jitted.

    The number of steps is an argument and the loop a `jax.lax.while_loop`, so that one compiled
    program serves every number: what a step computes cannot depend on how steps are grouped.
    """
    step = functools.partial(
        train_step,
        config=config,
        structure=network_structure(config)[0],
        optimizer=make_optimizer(config),
        mesh=mesh,
    )

    def dispatch(
        state: TrainState, images: Images, count: jax.Array
    ) -> tuple[TrainState, DispatchReport]:
        end = state.step + count

        def body(carry: tuple[TrainState, DispatchReport]) -> tuple[TrainState, DispatchReport]:
            old, report = carry
            new, metrics = step(old, images)
            norms = (metrics.loss, metrics.gradient_norm, optax.tree.norm(new.weights))
            finite = jnp.isfinite(jnp.stack(norms)).all()
            keep = functools.partial(jax.tree.map, lambda a, b: jnp.where(finite, a, b))
            sums = jax.tree.map(jnp.add, report.sums, metrics)
            return keep(new, old), DispatchReport(keep(sums, report.sums), finite, metrics)

        def goes_on(carry: tuple[TrainState, DispatchReport]) -> jax.Array:
            return (carry[0].step < end) & carry[1].finite

        nothing = StepMetrics.zeros()
        start = DispatchReport(nothing, jnp.asarray(True), nothing)
        return jax.lax.while_loop(goes_on, body, (state, start))

    return dispatch


def compile_dispatch(
    config: TrainConfig, mesh: Mesh, state: TrainState, images: Images
) -> jax.stages.Compiled:
    """`make_dispatch` compiled for the shapes of ``state`` and ``images``; the state is donated."""
    where = replicated(mesh)
    jitted = jax.jit(make_dispatch(config, mesh), donate_argnums=0, out_shardings=where)
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=where)
    return jitted.lower(state, images, count).compile()
