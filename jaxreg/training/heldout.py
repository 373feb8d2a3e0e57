"""How good the network is on pairs of images that it has never seen."""

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

# The same pairs in every run on the same images, whatever its seed.
_HELD_OUT_KEY = 20210131
_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Errors:
    """Mean errors over the held-out pairs.

    Attributes:
      translation: L1 distance in pixels (Eq. 2).
      rotation: circular absolute difference in degrees (Eq. 4).
      loss: the two weighted (Eq. 5), whatever the training minimises.
    """

    translation: float
    rotation: float
    loss: float

    def __str__(self) -> str:
        return f"{self.translation:.4f} px, {self.rotation:.4f} degrees"


def held_out_pairs(config: TrainConfig, images: np.ndarray, mesh: Mesh) -> Pairs:
    """The evaluation pairs: fixed, undisturbed, zeros outside; on the device."""
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
    """Mean errors of a batch of estimates."""
    return Errors(
        float(translation_error(estimate, truth).mean()),
        float(rotation_error(estimate.theta, truth.theta).mean()),
        float(paper_loss(estimate, truth, weight)),
    )


def constant_predictor(truth: RigidTransform) -> RigidTransform:
    """The best answer without looking: the constant of least mean error on these very pairs.

    The shifts are medians; the angle is the best of 720 around the circle.
    """
    angles = jnp.arange(-180.0, 180.0, 0.5)
    mean_error = jax.vmap(lambda angle: rotation_error(angle, truth.theta).mean())(angles)
    best = (jnp.median(truth.tx), jnp.median(truth.ty), angles[mean_error.argmin()])
    return RigidTransform(*(jnp.broadcast_to(v, jnp.shape(truth.tx)) for v in best))


Estimate = Callable[[TrainState, Pairs], RigidTransform]


def make_estimate(config: TrainConfig, mesh: Mesh) -> Estimate:
    """``(state, pairs) -> transforms`` by the state's network, or its average if there is one.

    The pairs are spread over the devices, where they come out even. The transforms are arrays of
    the host.
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
            # The last batch reaches back, so that all have one shape.
            first = min(start, count - size)
            chunk = slice(first, first + size)
            with jax.set_mesh(mesh):  # so that the network's layers know of it
                part = jitted(*arrays, pairs.fixed[chunk], pairs.moving[chunk])
            parts.append(np.asarray(part)[start - first :])
        return RigidTransform.from_array(np.concatenate(parts))

    return estimate
