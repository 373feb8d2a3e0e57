"""Whether the direct method's answer should be trusted.

An answer is trusted if its standard errors are small, its detail agrees, it leads its closest rival
clearly, it beats itself shifted by a few pixels, and there is detail enough to tell a turn.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp

from jaxreg.finishing import Finished
from jaxreg.pyramid import apply_separable, blurring_matrix
from jaxreg.similarity import masked_ncc

# Chosen on pairs of training images with noise 10 and 20 and on
# unrelated pairs: standard errors in shares of the shorter side and in degrees; the correlation of
# detail between 1 and 2 px; and the lead over the closest rival, in units of `evidence` and as a
# share of the winner's.
_LARGEST_ERROR = 0.12 / 32
_LARGEST_TURN_ERROR = 0.8
_LEAST_DETAIL = 0.6
_LEAST_LEAD = 0.1
# Log-likelihood ratio, in pixels, by which the winner must beat itself shifted by 2 or 3 px: along
# a straight edge, or on a pattern finer than the coarse grid, it does not. Photographs with noise
# 20 reach 40 and more, wrong answers that pass all else stay below 3.
_LEAST_DISTINCTION = 10.0
_FARTHEST = 3  # px
# Pixels that carry the detail (see `_detailed_pixels`): a lone bright one, whose turn nobody can
# tell, has 4, two of them have 8; of 500 crops of photographs the least has 5.
_LEAST_PIXELS = 4.5


def correlation(end: Finished, shape: tuple[int, ...]) -> jax.Array:
    """Normalised cross-correlation of source and target ``(H, W, C)`` over their overlap."""
    mask = end.samples.inside.reshape(shape[:2])
    return masked_ncc(end.samples.value.reshape(shape), end.target.reshape(shape), mask)


def trusted(
    end: Finished,
    score: jax.Array,
    fixed: jax.Array,
    moving: jax.Array,
    lead: jax.Array,
    evidence_of_best: jax.Array,
) -> jax.Array:
    """Whether to trust an alignment; a scalar bool.

    Args:
      end: the finished alignment.
      score: its `correlation`.
      fixed: ``(H, W, C)``.
      moving: the same shape.
      lead: by how much evidence it beat its closest rival.
      evidence_of_best: its own (see `jaxreg.correlation.evidence`).
    """
    shape = fixed.shape
    errors = jnp.sqrt(jnp.maximum(jnp.diagonal(end.covariance), 0.0))
    return (
        (errors[:2].max() < _LARGEST_ERROR * min(shape[:2]))
        & (errors[2] < _LARGEST_TURN_ERROR)
        & (_detail(end, shape) > _LEAST_DETAIL)
        & (lead > _LEAST_LEAD)
        & (lead > _LEAST_LEAD * evidence_of_best)
        & (_distinction(end, score, shape) > _LEAST_DISTINCTION)
        & (jnp.minimum(_detailed_pixels(fixed), _detailed_pixels(moving)) > _LEAST_PIXELS)
    )


def _detail(end: Finished, shape: tuple[int, ...]) -> jax.Array:
    """Correlation over the overlap of the detail between 1 and 2 px.

    Smooth shading matches smooth shading at some angle, related or not; detail does not.
    """
    mask = end.samples.inside.reshape(shape[:2])
    count = jnp.maximum(mask.sum(), 1.0)

    def band(flat: jax.Array) -> jax.Array:
        image = flat.reshape(shape)
        image = (image - (mask[..., None] * image).sum((0, 1)) / count) * mask[..., None]
        blurred = []
        for sigma in (1.0, 2.0):
            rows, columns = (blurring_matrix(size, sigma) for size in shape[:2])
            weight = apply_separable(rows, mask[..., None], columns)
            blurred.append(apply_separable(rows, image, columns) / jnp.maximum(weight, 1e-3))
        return blurred[0] - blurred[1]

    return masked_ncc(band(end.samples.value), band(end.target), mask)


def _distinction(end: Finished, score: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """How much less likely the best of the alignments 2 or 3 px beside the winner is.

    In pixels times the logarithm of the unexplained share, 0.1% taken as the least.
    """
    source, target = end.samples.value.reshape(shape), end.target.reshape(shape)
    mask = end.samples.inside.reshape(shape[:2])
    offsets = itertools.product(range(-_FARTHEST, _FARTHEST + 1), repeat=2)
    ring = jnp.array([d for d in offsets if max(abs(d[0]), abs(d[1])) > 1])

    def shifted(image: jax.Array, offset: jax.Array) -> jax.Array:
        start = (*(_FARTHEST + offset), *[0] * (image.ndim - 2))
        return jax.lax.dynamic_slice(image, start, (*shape[:2], *image.shape[2:]))

    margin = ((_FARTHEST, _FARTHEST),) * 2
    padded, padded_mask = jnp.pad(source, (*margin, (0, 0))), jnp.pad(mask, margin)

    def unexplained(offset: jax.Array) -> tuple[jax.Array, jax.Array]:
        both = mask * shifted(padded_mask, offset)
        ncc = masked_ncc(shifted(padded, offset), target, both)
        return both.sum(), 1.001 - jnp.square(jnp.maximum(ncc, 0.0))

    count, rest = jax.lax.map(unexplained, ring)
    least = 1.001 - jnp.square(jnp.maximum(score, 0.0))
    return (count * jnp.log(rest / least)).min()


def _detailed_pixels(image: jax.Array) -> jax.Array:
    """The effective number of pixels among which the energy of the gradient is shared.

    The gradient is that of central differences, which are blind to stripes and checkerboards of
    single pixels: those lose their place as soon as they are sampled between the pixels.
    """
    image = jax.lax.stop_gradient(image)
    along_x = image[1:-1, 2:] - image[1:-1, :-2]
    along_y = image[2:, 1:-1] - image[:-2, 1:-1]
    energy = (jnp.square(along_x) + jnp.square(along_y)).sum(-1)
    rounding = 1e-8 * jnp.square(jnp.square(image - image.mean((0, 1))).sum())
    return jnp.square(energy.sum()) / (jnp.square(energy).sum() + rounding + 1e-12)
