"""The compiled part of training: many steps in one dispatch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from jaxreg.metrics import rotation_error, translation_error
from jaxreg.models import Network
from jaxreg.models.network import Tree, network_structure, split_network
from jaxreg.pairs import Pairs
from jaxreg.training.batches import TrainingImages, draw_batch
from jaxreg.training.configs import TrainConfig
from jaxreg.training.devices import place, replicated, split_batch
from jaxreg.training.state import TrainState, make_optimizer, update_average


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class StepMetrics:
    """The metrics of a step, or their sums over the steps of a dispatch; float32 scalars."""

    loss: jax.Array
    translation: jax.Array
    rotation: jax.Array
    gradient_norm: jax.Array

    @classmethod
    def zeros(cls) -> StepMetrics:
        """The sums over no steps."""
        return cls(*(jnp.zeros(()) for _ in dataclasses.fields(cls)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class DispatchReport:
    """The results of a dispatch that the host reads.

    Attributes:
      sums: metrics summed over the finite steps.
      finite: False if loss, gradient or weights became non-finite. The dispatch ended there, and
        the state is the one before that step.
      last: metrics of the last step, finite or not.
    """

    sums: StepMetrics
    finite: jax.Array
    last: StepMetrics

    @classmethod
    def start(cls) -> DispatchReport:
        """The report before the first step."""
        return cls(StepMetrics.zeros(), jnp.asarray(True), StepMetrics.zeros())


def train_step(
    state: TrainState,
    images: TrainingImages,
    *,
    config: TrainConfig,
    structure: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> tuple[TrainState, StepMetrics]:
    """Draw pairs and make one step of the optimiser; a pure function."""
    pairs = draw_batch(jax.random.fold_in(state.key, state.step), images, config)
    pairs = split_batch(mesh, pairs)
    loss_of = functools.partial(_loss, structure, state.statistics, pairs, config)
    (loss, (estimate, statistics)), gradient = jax.value_and_grad(loss_of, has_aux=True)(
        state.weights
    )
    updates, opt_state = optimizer.update(gradient, state.optimizer, state.weights)
    weights = optax.apply_updates(state.weights, updates)
    averages = (state.average, state.average_statistics)
    if config.average_decay > 0:
        new = (weights, statistics)
        averages = update_average(averages, new, state.step, config.average_decay)
    metrics = StepMetrics(
        loss=loss,
        translation=translation_error(estimate, pairs.transform).mean(),
        rotation=rotation_error(estimate.theta, pairs.transform.theta).mean(),
        gradient_norm=optax.tree.norm(gradient),
    )
    new_state = TrainState(state.step + 1, state.key, weights, statistics, *averages, opt_state)
    return new_state, metrics


def _loss(
    structure: nnx.GraphDef, statistics: Tree, pairs: Pairs, config: TrainConfig, weights: Tree
):
    network: Network = nnx.merge(structure, weights, statistics)
    network.train()
    loss, estimate = network.loss(pairs, config.translation_weight, config.angle_loss)
    return loss, (estimate, split_network(network)[2])


@dataclasses.dataclass(frozen=True)
class Dispatch:
    """Many training steps in one call by the host: ``(state, images, count) -> (state, report)``.

    The state is donated. The grouping of steps into dispatches does not change the results, as the
    number of steps is an argument of one compiled program.

    Attributes:
      program: the compiled program.
      mesh: the devices that it was compiled for.
      loops: whether the program makes all steps of a dispatch, or a single one.
    """

    program: jax.stages.Compiled
    mesh: Mesh
    loops: bool

    def __call__(
        self, state: TrainState, images: TrainingImages, count: jax.Array
    ) -> tuple[TrainState, DispatchReport]:
        """Make ``count`` (scalar int32) steps, fewer if one is not finite."""
        report = place(self.mesh, DispatchReport.start())
        if self.loops:
            return self.program(state, report, images, count)
        for _ in range(int(count)):
            state, report = self.program(state, report, images)
            if not report.finite:
                break
        return state, report


def compile_dispatch(
    config: TrainConfig,
    mesh: Mesh,
    state: TrainState,
    images: TrainingImages,
    loops: bool | None = None,
) -> Dispatch:
    """Compile a `Dispatch` for the shapes of ``state`` and ``images``.

    Args:
      config: configuration of the run.
      mesh: the devices that share the work.
      state: a state, or its shapes.
      images: the training images, or their shapes.
      loops: as in `Dispatch`; by default True on accelerators. On CPU the host calls the program
        step by step: XLA does not optimise the weight gradients of convolutions in the body of a
        loop, which makes them tens of times slower (https://github.com/jax-ml/jax/issues/12868).
    """
    if loops is None:
        loops = mesh.devices.flat[0].platform != "cpu"
    where = replicated(mesh)
    step = functools.partial(
        _guarded_step,
        config=config,
        structure=network_structure(config.network)[0],
        optimizer=make_optimizer(config),
        mesh=mesh,
    )
    program = functools.partial(_steps, step) if loops else step
    count = jax.ShapeDtypeStruct((), jnp.int32, sharding=where)
    arguments = (state, jax.eval_shape(DispatchReport.start), images, *([count] if loops else []))
    jitted = jax.jit(program, donate_argnums=(0, 1), out_shardings=where)
    with jax.set_mesh(mesh):  # for the network's layers
        return Dispatch(jitted.lower(*arguments).compile(), mesh, loops)


def _guarded_step(
    state: TrainState, report: DispatchReport, images: TrainingImages, **settings: Any
) -> tuple[TrainState, DispatchReport]:
    """`train_step`, undone if its loss, gradient or weights are not finite."""
    new, metrics = train_step(state, images, **settings)
    norms = (metrics.loss, metrics.gradient_norm, optax.tree.norm(new.weights))
    finite = jnp.isfinite(jnp.stack(norms)).all()
    keep = functools.partial(jax.tree.map, lambda a, b: jnp.where(finite, a, b))
    sums = jax.tree.map(jnp.add, report.sums, metrics)
    return keep(new, state), DispatchReport(keep(sums, report.sums), finite, metrics)


def _steps(
    step: Callable[[TrainState, DispatchReport, TrainingImages], tuple[TrainState, DispatchReport]],
    state: TrainState,
    report: DispatchReport,
    images: TrainingImages,
    count: jax.Array,
) -> tuple[TrainState, DispatchReport]:
    """Make ``count`` steps, fewer if one is not finite."""
    end = state.step + count
    return jax.lax.while_loop(
        lambda carry: (carry[0].step < end) & carry[1].finite,
        lambda carry: step(*carry, images),
        (state, report),
    )
