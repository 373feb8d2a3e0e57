"""Normal equations of the finish, from residuals of all pixels and channels to steps.

They are those of instrumental variables: what the residual is projected on need not be the
derivative of the model. All of it in forms that CPUs are fast at.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.compute.products import product, times
from jaxreg.compute.small_systems import solve, swept_inverse
from jaxreg.geometry import RigidTransform

# Of a secant's step, in plain ones: how long it may be, and how far it must lead their way.
_LONGEST, _AHEAD = 3.0, 0.1


class Unknowns(NamedTuple):
    """What the finish looks for, U = 4 + C numbers.

    Attributes:
      transform: from source to target.
      gain: scalar, grey values of the target for one of the source.
      bias: ``(C,)``.
    """

    transform: RigidTransform
    gain: jax.Array
    bias: jax.Array

    def moved(self, step: jax.Array) -> Unknowns:
        """A step ``(U,)`` away."""
        t = self.transform
        t = RigidTransform(t.tx + step[0], t.ty + step[1], t.theta + step[2])
        return Unknowns(t, jnp.clip(self.gain + step[3], 0.1, 10.0), self.bias + step[4:])


class System(NamedTuple):
    """What takes weighted residuals to steps of the `Unknowns`.

    Attributes:
      instruments: ``(U, P * C)``, what residuals are projected on.
      inverse: ``(U, U)`` of instruments times derivatives; zero for gain and bias if held.
      scale: ``(U,)``, what makes steps comparable.
      noise: ``(U,)``, what noise alone adds to the residuals' products with the instruments.
    """

    instruments: jax.Array
    inverse: jax.Array
    scale: jax.Array
    noise: jax.Array


def columns(slope: jax.Array, level: jax.Array) -> jax.Array:
    """``(U, P * C)``: how a source changes with the `Unknowns`.

    Args:
      slope: ``(3, P, C)``, with the transform.
      level: ``(P, C)``, its values.
    """
    pixels, channels = level.shape
    biases = jnp.tile(jnp.eye(channels, dtype=jnp.float32), (1, pixels))
    return jnp.concatenate([slope.reshape(3, -1), level.reshape(1, -1), biases])


def moments(instruments: jax.Array, weight: jax.Array, residual: jax.Array) -> jax.Array:
    """``(U,)`` products of ``(U, P * C)`` with a residual ``(P, C)``, weighted ``(P,)``."""
    return product(instruments, (weight[:, None] * residual).reshape(-1))


def of_model(columns: jax.Array, gain: jax.Array) -> jax.Array:
    """Derivatives ``(U, P * C)`` of ``gain * source + bias`` from those of the source."""
    return jnp.concatenate([gain * columns[:3], columns[3:]])


def normal_matrix(left: jax.Array, right: jax.Array, weight: jax.Array) -> jax.Array:
    """``(U, U)`` weighted products of ``(U, P * C)`` over all pixels and channels."""
    weighted = right * jnp.repeat(weight, right.shape[1] // weight.size)
    return times(left, weighted).T


def after_a_small_move(
    slope: jax.Array, weight: jax.Array, residual: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A residual ``(P, C)`` less what a small move would explain, and the energy of that.

    Args:
      slope: ``(3, P * C)``, how the image changes with the transform.
      weight: ``(P,)``.
      residual: ``(P, C)``.
    """
    drop = moments(slope, weight, residual)
    step = solve(normal_matrix(slope, slope, weight), drop)
    return residual - product(step, slope).reshape(residual.shape), product(drop, step)


def damped_inverse(normal: jax.Array, changed: jax.Array) -> jax.Array:
    """Inverse of the normal matrix, or of its block of ``(tx, ty, theta)`` alone, rest zero."""
    unknowns = len(normal)
    free = changed | (jnp.arange(unknowns) < 3)
    both = free[:, None] & free
    diagonal = jnp.maximum(jnp.abs(jnp.diagonal(normal)), 1e-12)
    scale = jax.lax.rsqrt(diagonal)
    scaled = jnp.where(both, normal * scale[:, None] * scale, 0.0)
    damped = scaled + jnp.diag(jnp.where(free, 1e-6, 1.0))
    return jnp.where(both, swept_inverse(damped) * scale[:, None] * scale, 0.0)


def secant(inverse: jax.Array, scale: jax.Array, step: jax.Array, drop: jax.Array) -> jax.Array:
    """The inverse that sends the drop of the moments back to the step that caused it.

    The denoised derivatives are steeper or flatter than the residual's own, more so in one
    direction than another: Broyden's update (1965, doi:10.1090/S0025-5718-1965-0198670-6) learns
    it from the steps taken.

    Args:
      inverse: ``(U, U)``, from moments to steps.
      scale: ``(U,)``, what makes steps comparable.
      step: ``(U,)``, the last step; zero for none.
      drop: ``(U,)``, by how much the moments fell with it.
    """
    row = product(scale * step, inverse)
    expected, taken = product(row, drop), product(scale * step, step)
    known = (taken > 0.0) & (expected > 0.2 * taken)
    error = step - product(inverse, drop)
    return inverse + jnp.where(known, jnp.outer(error, row) / jnp.where(known, expected, 1.0), 0.0)


def guarded(step: jax.Array, plain: jax.Array, scale: jax.Array) -> jax.Array:
    """A secant's step, shortened if it leaps; half the plain one if it leads elsewhere.

    Where the residual jumps, as pixels enter the overlap, a secant learns what is not so.

    Args:
      step: ``(U,)``, by the secant's inverse.
      plain: ``(U,)``, by that of the normal matrix.
      scale: ``(U,)``, what makes steps comparable.
    """
    along, ahead = product(scale * plain, step), product(scale * plain, plain)
    short = jnp.minimum(1.0, _LONGEST * jnp.sqrt(ahead / (product(scale * step, step) + 1e-30)))
    return jnp.where(along > _AHEAD * ahead, short * step, 0.5 * plain)
