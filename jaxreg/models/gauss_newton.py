"""One Gauss-Newton step of registration inside a network, starting from a prior estimate."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxreg.compute.products import contract
from jaxreg.compute.small_systems import inverse
from jaxreg.geometry import RigidTransform, cos_sin_degrees, wrap_degrees
from jaxreg.warping import sample

# Pixels between the disc and the image's border. They keep the half-covered pixels at the border
# of a warped image, and what `blur` spreads of them, out of the disc.
RIM = 3.0


def blur(images: jax.Array) -> jax.Array:
    """Smooth images ``(N, H, W, C)`` by the kernel (1, 2, 1) / 4 on both axes, edges repeated."""
    for axis in (1, 2):
        width = [(1, 1) if i == axis else (0, 0) for i in range(4)]
        padded = jnp.pad(images, width, mode="edge")
        size = images.shape[axis]
        before, here, after = (
            jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(3)
        )
        images = 0.25 * before + 0.5 * here + 0.25 * after
    return images


def _disc(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flat indices of the inner disc's P pixels, and their offsets ``x, y`` from the centre."""
    side = np.arange(size) - (size - 1) / 2
    y, x = np.meshgrid(side, side, indexing="ij")
    inside = x * x + y * y <= (size / 2 - RIM) ** 2
    return np.flatnonzero(inside), x[inside].astype(np.float32), y[inside].astype(np.float32)


def gauss_newton_step(
    fixed: jax.Array,
    moving: jax.Array,
    transform: RigidTransform,
    information: jax.Array,
    trust: jax.Array,
) -> tuple[RigidTransform, jax.Array]:
    """Improve N estimates by one Gauss-Newton step on the images at full resolution.

    The moving image is sampled where the estimate puts the pixels of the fixed image's inner disc,
    and gain and bias are fitted. The linearised difference of the two gives a step; the noise that
    the step would leave gives its precision. The result is the mean of estimate and step, weighted
    by their precisions: the estimate stays where the images determine little.

    Args:
      fixed: ``(N, S, S, C)`` float32, smoothed (see `blur`).
      moving: the same shape.
      transform: N estimates, in pixels of these images and degrees.
      information: ``(N, 3, 3)`` precision of the estimates (inverse covariance) for a step
        ``(x, y, angle)`` in pixels and radians.
      trust: scalar, the share of the pixels that counts as independent evidence.

    Returns:
      The improved estimates and their ``(N, 3, 3)`` precision.
    """
    weight, here, there, slopes = _residual(fixed, moving, transform)
    normal, right, noise = _normal_equations(weight, here, there, slopes)
    evidence = trust / noise[:, None]
    precision = information + evidence[..., None] * normal
    step = _solve(precision, evidence * right)
    return _compose(transform, step), precision


def _residual(
    fixed: jax.Array, moving: jax.Array, transform: RigidTransform
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Both images at the P points of the fixed image's inner disc.

    Returns:
      Weights ``(N, P, 1)``, 0 outside the moving image; the fixed and the moving image's values
      minus their means, each ``(N, P, C)``; and the derivatives ``(N, P, C, 3)`` of the fixed
      image's values by a step.
    """
    n, size = fixed.shape[:2]
    index, x, y = _disc(size)

    def inner(images: jax.Array) -> jax.Array:
        flat = images.reshape(n, size * size, -1)
        return flat.at[:, index].get(mode="promise_in_bounds")

    slope_x = inner(0.5 * (jnp.roll(fixed, -1, 2) - jnp.roll(fixed, 1, 2)))
    slope_y = inner(0.5 * (jnp.roll(fixed, -1, 1) - jnp.roll(fixed, 1, 1)))
    slopes = jnp.stack([slope_x, slope_y, slope_y * x[:, None] - slope_x * y[:, None]], -1)
    cos, sin = (v[:, None] for v in cos_sin_degrees(transform.theta))
    centre = (size - 1) / 2
    u = cos * x - sin * y + jnp.asarray(transform.tx)[:, None] + centre
    v = sin * x + cos * y + jnp.asarray(transform.ty)[:, None] + centre
    seen = jnp.minimum(jnp.minimum(u, size - 1 - u), jnp.minimum(v, size - 1 - v))
    weight = jnp.clip(seen, 0.0, 1.0)[..., None]
    there = jax.vmap(sample)(moving, jnp.stack([u, v], -1))
    here = inner(fixed)
    count = _count(weight)
    mean = lambda z: (weight * z).sum(1, keepdims=True) / count  # noqa: E731
    return weight, here - mean(here), there - mean(there), slopes


def _count(weight: jax.Array) -> jax.Array:
    """``(N, 1, 1)`` sum of the weights plus one, so that it can be divided by."""
    return weight.sum((1, 2))[:, None, None] + 1.0


def _normal_equations(
    weight: jax.Array, here: jax.Array, there: jax.Array, slopes: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normal matrix ``(N, 3, 3)``, right side ``(N, 3)``, and ``(N,)`` variance of the noise.

    The gain is fitted first. The noise is the residual that the least-squares step would leave.
    """
    total = lambda z: (weight * z).sum((1, 2))  # noqa: E731
    energy = total(here * here) + 1e-6
    gain = jnp.maximum(total(here * there) / energy, 0.1)[:, None, None]
    error = there - gain * here
    slopes = gain[..., None] * slopes
    weighted = weight[..., None] * slopes
    normal = contract("npci,npcj->nij", weighted, slopes)
    right = contract("npci,npc->ni", weighted, error)
    ridge = 1e-6 * (jnp.trace(normal, axis1=1, axis2=2) + 1e-6)[:, None, None]
    alone = _solve(normal + ridge * jnp.eye(3, dtype=jnp.float32), right)
    left = total(error * error) - (alone * right).sum(-1)
    values = _count(weight)[:, 0, 0] * here.shape[-1]
    return normal, right, jnp.maximum(left, 1e-4 * energy) / values


def _compose(transform: RigidTransform, step: jax.Array) -> RigidTransform:
    """The improved transforms: as M(T p) = F(p + step), T after the inverse of the step."""
    angle = jnp.asarray(transform.theta) - jnp.rad2deg(step[:, 2])
    cos, sin = cos_sin_degrees(angle)
    return RigidTransform(
        transform.tx - cos * step[:, 0] + sin * step[:, 1],
        transform.ty - sin * step[:, 0] - cos * step[:, 1],
        wrap_degrees(angle),
    )


def _solve(matrix: jax.Array, right: jax.Array) -> jax.Array:
    return contract("nij,nj->ni", inverse(matrix), right)
