"""Normal equations of the finish, from residuals of all pixels and channels to steps.

They are those of instrumental variables: the residual is projected on instruments, which need not
be the derivatives of the model. All are written in forms that are fast on CPUs.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.compute.products import product, times
from jaxreg.compute.small_systems import solve, swept_inverse
from jaxreg.geometry import RigidTransform

# Limits of a secant's step relative to the plain one, that of the normal matrix. They stop steps
# learnt from a residual that jumps as pixels enter the overlap: without them a converged pair was
# thrown 11 px off. No comparison of values is on record.
_LONGEST = 3.0  # its length at most, in lengths of the plain step
_AHEAD = 0.1  # its component along the plain step at least, in lengths of the plain step
# The secant is updated if the step that its inverse predicts from the drop of the projections has
# more than this share of the step taken along it.
_LEAST_PREDICTED = 0.2


class Unknowns(NamedTuple):
    """The U = 4 + C unknowns of the finish.

    Attributes:
      transform: from source to target, px and degrees.
      gain: scalar, grey values of the target per grey value of the source.
      bias: ``(C,)``, in grey values of the target.
    """

    transform: RigidTransform
    gain: jax.Array
    bias: jax.Array

    def moved(self, step: jax.Array) -> Unknowns:
        """Add a step ``(U,)``; the gain stays between 0.1 and 10."""
        t = self.transform
        t = RigidTransform(t.tx + step[0], t.ty + step[1], t.theta + step[2])
        return Unknowns(t, jnp.clip(self.gain + step[3], 0.1, 10.0), self.bias + step[4:])


class System(NamedTuple):
    """A linear system that maps weighted residuals to steps of the `Unknowns`.

    Attributes:
      instruments: ``(U, P * C)``, on which residuals are projected.
      inverse: ``(U, U)``, of the normal matrix; zero for gain and bias where they are held.
      scale: ``(U,)``, weights of the squared components of a step in its length.
      noise: ``(U,)``, the expected projections of a residual of noise alone.
    """

    instruments: jax.Array
    inverse: jax.Array
    scale: jax.Array
    noise: jax.Array


def design_matrix(slope: jax.Array, level: jax.Array) -> jax.Array:
    """``(U, P * C)``: derivatives of ``gain * source + bias`` by the `Unknowns` at a gain of 1.

    This is the transposed design matrix: one row for each unknown.

    Args:
      slope: ``(3, P, C)``, derivatives of the source by the transform.
      level: ``(P, C)``, values of the source.
    """
    pixels, channels = level.shape
    biases = jnp.tile(jnp.eye(channels, dtype=jnp.float32), (1, pixels))
    return jnp.concatenate([slope.reshape(3, -1), level.reshape(1, -1), biases])


def model_jacobian(design: jax.Array, gain: jax.Array) -> jax.Array:
    """``(U, P * C)``: derivatives of ``gain * source + bias``, from a `design_matrix`."""
    return jnp.concatenate([gain * design[:3], design[3:]])


def projections(instruments: jax.Array, weight: jax.Array, residual: jax.Array) -> jax.Array:
    """``(U,)``: products of instruments ``(U, P * C)`` and a residual, weighted per pixel.

    Args:
      instruments: ``(U, P * C)``.
      weight: ``(P,)``.
      residual: ``(P, C)``.
    """
    return product(instruments, (weight[:, None] * residual).reshape(-1))


def normal_matrix(instruments: jax.Array, jacobian: jax.Array, weight: jax.Array) -> jax.Array:
    """``(V, U)``: products of instruments and derivatives, weighted per pixel.

    Args:
      instruments: ``(V, P * C)``.
      jacobian: ``(U, P * C)``.
      weight: ``(P,)``.
    """
    weighted = jacobian * jnp.repeat(weight, jacobian.shape[1] // weight.size)
    return times(instruments, weighted).T


def after_a_small_move(
    slope: jax.Array, weight: jax.Array, residual: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Subtract from a residual ``(P, C)`` the part that a small move explains.

    Args:
      slope: ``(3, P * C)``, derivatives of the image by the transform.
      weight: ``(P,)``.
      residual: ``(P, C)``.

    Returns:
      The rest ``(P, C)``, and the weighted energy of the part subtracted, a scalar.
    """
    drop = projections(slope, weight, residual)
    step = solve(normal_matrix(slope, slope, weight), drop)
    return residual - product(step, slope).reshape(residual.shape), product(drop, step)


def damped_inverse(normal: jax.Array, changed: jax.Array) -> jax.Array:
    """Invert the normal matrix ``(U, U)``, faintly damped.

    Args:
      normal: the matrix.
      changed: scalar bool, whether gain and bias are unknowns; if not, only the block of
        ``(tx, ty, theta)`` is inverted and the rest is zero.
    """
    unknowns = len(normal)
    free = changed | (jnp.arange(unknowns) < 3)
    both = free[:, None] & free
    diagonal = jnp.maximum(jnp.abs(jnp.diagonal(normal)), 1e-12)
    scale = jax.lax.rsqrt(diagonal)
    scaled = jnp.where(both, normal * scale[:, None] * scale, 0.0)
    damped = scaled + jnp.diag(jnp.where(free, 1e-6, 1.0))
    return jnp.where(both, swept_inverse(damped) * scale[:, None] * scale, 0.0)


def secant(inverse: jax.Array, scale: jax.Array, step: jax.Array, drop: jax.Array) -> jax.Array:
    """Update an inverse so that it maps the drop of the projections to the step that caused it.

    The denoised derivatives are steeper or flatter than the residual's own, in some directions more
    than in others. Broyden's update (1965, doi:10.1090/S0025-5718-1965-0198670-6) learns the
    difference from the steps taken.

    Args:
      inverse: ``(U, U)``, from projections to steps.
      scale: ``(U,)``, see `System`.
      step: ``(U,)``, the last step; zero if there was none.
      drop: ``(U,)``, the decrease of the projections with that step.
    """
    row = product(scale * step, inverse)
    expected, taken = product(row, drop), product(scale * step, step)
    known = (taken > 0.0) & (expected > _LEAST_PREDICTED * taken)
    error = step - product(inverse, drop)
    return inverse + jnp.where(known, jnp.outer(error, row) / jnp.where(known, expected, 1.0), 0.0)


def guarded(step: jax.Array, plain: jax.Array, scale: jax.Array) -> jax.Array:
    """Shorten a secant's step that is too long; take half the plain step if it goes elsewhere.

    Where the residual jumps, as pixels enter the overlap, the secant learns wrong derivatives.

    Args:
      step: ``(U,)``, by the secant's inverse.
      plain: ``(U,)``, by the inverse of the normal matrix.
      scale: ``(U,)``, see `System`.
    """
    along, ahead = product(scale * plain, step), product(scale * plain, plain)
    short = jnp.minimum(1.0, _LONGEST * jnp.sqrt(ahead / (product(scale * step, step) + 1e-30)))
    return jnp.where(along > _AHEAD * ahead, short * step, 0.5 * plain)
