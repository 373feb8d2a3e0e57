"""Errors of an estimate, and the paper's training loss (Eqs. 2 to 5)."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxreg.geometry import RigidTransform

LAMBDA = 17.0  # the paper's weight of the translation loss
AngleLoss = Literal["arc", "chord"]


def translation_error(estimate: RigidTransform, truth: RigidTransform) -> jax.Array:
    """Compute the L1 distance of the two shifts, in pixels (the summand of Eq. 2)."""
    return jnp.abs(jnp.asarray(estimate.tx) - truth.tx) + jnp.abs(
        jnp.asarray(estimate.ty) - truth.ty
    )


def rotation_error(estimate: ArrayLike, truth: ArrayLike) -> jax.Array:
    """Compute the circular absolute difference of two angles in degrees, in [0, 180] (Eqs. 3, 4).

    >>> float(rotation_error(-180.0, 180.0))
    0.0
    >>> float(rotation_error(170.0, -170.0))
    20.0
    """
    difference = jnp.abs(jnp.asarray(estimate, jnp.float32) - jnp.asarray(truth, jnp.float32))
    difference = jnp.mod(difference, 360.0)
    return jnp.where(difference > 180.0, 360.0 - difference, difference)


def chord(angle: jax.Array) -> jax.Array:
    """Compute the chord of an angle in degrees, scaled to equal the angle where that is small.

    Unlike the angle it levels off towards 180 degrees, where the direction of the rotation is
    arbitrary.

    >>> [round(float(chord(a)), 1) for a in (1.0, 60.0, 180.0)]
    [1.0, 57.3, 114.6]
    """
    return (360.0 / jnp.pi) * jnp.sin(angle * (jnp.pi / 360.0))


def paper_loss(
    estimate: RigidTransform,
    truth: RigidTransform,
    translation_weight: float = LAMBDA,
    angle_loss: AngleLoss = "arc",
) -> jax.Array:
    """Compute the mean of ``lambda * translation error + rotation error`` over a batch (Eq. 5).

    Args:
      estimate: N transforms.
      truth: N transforms.
      translation_weight: lambda, in degrees per pixel.
      angle_loss: ``"arc"``, as in the paper, or ``"chord"``, the `chord` of the rotation error.
    """
    turn = rotation_error(estimate.theta, truth.theta)
    turn = chord(turn) if angle_loss == "chord" else turn
    return jnp.mean(translation_weight * translation_error(estimate, truth) + turn)
