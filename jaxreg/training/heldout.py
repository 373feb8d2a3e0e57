"""Evaluate the network on held-out pairs, from images that it is not trained on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxreg.geometry import RigidTransform
from jaxreg.metrics import paper_loss, rotation_error, translation_error
from jaxreg.models.network import Tree, network_structure
from jaxreg.models.trained import network_transform
from jaxreg.pairs import Pairs, draw_pairs
from jaxreg.training.configs import TrainConfig
from jaxreg.training.devices import place, replicated, split_batch
from jaxreg.training.state import TrainState

# Seed of the held-out pairs: an arbitrary number, which no run's seed changes, so that all runs on
# the same images are evaluated on the same pairs.
_HELD_OUT_KEY = 20210131
_BATCH = 256  # pairs that are estimated at once


@dataclasses.dataclass(frozen=True)
class Errors:
    """Mean errors over the held-out pairs.

    Attributes:
      translation: L1 distance in pixels (Eq. 2).
      rotation: circular absolute difference in degrees (Eq. 4).
      loss: weighted sum of the two (Eq. 5), whichever loss the training minimises.
    """

    translation: float
    rotation: float
    loss: float

    def __str__(self) -> str:
        return f"{self.translation:.4f} px, {self.rotation:.4f} degrees"


def held_out_pairs(config: TrainConfig, images: np.ndarray, mesh: Mesh) -> Pairs:
    """Draw the held-out pairs on the device: always the same, undisturbed, zeros outside."""
    draw = jax.jit(
        functools.partial(
            draw_pairs,
            count=config.eval_pairs,
            max_shift=config.max_shift,
            interpolation=config.interpolation,
        )
    )
    return place(mesh, draw(jax.random.key(_HELD_OUT_KEY), images))


def errors_of(estimate: RigidTransform, truth: RigidTransform, weight: float) -> Errors:
    """Compute the mean errors of a batch; ``weight`` is that of pixels against degrees."""
    return Errors(
        float(translation_error(estimate, truth).mean()),
        float(rotation_error(estimate.theta, truth.theta).mean()),
        float(paper_loss(estimate, truth, weight)),
    )


def constant_predictor(truth: RigidTransform) -> RigidTransform:
    """Return the constant estimate with the least mean error on these pairs, for comparison.

    The shifts are medians. The angle is the best of 720 angles, half a degree apart.
    """
    angles = jnp.arange(-180.0, 180.0, 0.5)
    mean_error = jax.vmap(lambda angle: rotation_error(angle, truth.theta).mean())(angles)
    best = (jnp.median(truth.tx), jnp.median(truth.ty), angles[mean_error.argmin()])
    return RigidTransform(*(jnp.broadcast_to(v, jnp.shape(truth.tx)) for v in best))


Estimate = Callable[[TrainState, Pairs], RigidTransform]


def make_estimate(config: TrainConfig, mesh: Mesh) -> Estimate:
    """Make a function ``(state, pairs) -> transforms`` of the state's network.

    The moving average of the weights is used if the run keeps one. The pairs are spread over the
    devices if these divide them evenly. The transforms are NumPy arrays.
    """
    structure = network_structure(config.network)[0]

    @functools.partial(jax.jit, out_shardings=replicated(mesh))
    def jitted(weights: Tree, statistics: Tree, fixed: jax.Array, moving: jax.Array) -> jax.Array:
        if fixed.shape[0] % mesh.size == 0:
            fixed, moving = split_batch(mesh, (fixed, moving))
        return network_transform(structure, weights, statistics, fixed, moving).as_array()

    def estimate(state: TrainState, pairs: Pairs) -> RigidTransform:
        arrays = (state.weights, state.statistics)
        if config.average_decay > 0:
            arrays = (state.average, state.average_statistics)
        count = pairs.fixed.shape[0]
        size = min(_BATCH, count)
        parts = []
        for start in range(0, count, size):
            # The last batch starts earlier, so that all have one shape.
            first = min(start, count - size)
            chunk = slice(first, first + size)
            with jax.set_mesh(mesh):  # for the network's layers
                part = jitted(*arrays, pairs.fixed[chunk], pairs.moving[chunk])
            parts.append(np.asarray(part)[start - first :])
        return RigidTransform.from_array(np.concatenate(parts))

    return estimate
