"""A pair of images, which of their pixels count, and what stands in for those that do not.

What does not count has no weight in any sum over pixels. Blurs, splines and gradients reach over
it, though, so it is filled with what its surroundings suggest, lest its rim look like an edge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.compute.products import apply_separable, separable
from jaxreg.direct.pyramid import blurring_matrix, downsample

_REACH = 2.0  # px: standard deviation of the surroundings
_FAR = 1e-3  # weight of the mean of all beside that of the surroundings, for want of any


class Masks(NamedTuple):
    """Which pixels of a pair count: 1, or 0 where a mask takes them out.

    Attributes:
      source: ``(H, W)`` float32.
      target: the same shape.
    """

    source: jax.Array
    target: jax.Array

    def swapped(self) -> Masks:
        """Those of the pair whose images have changed places."""
        return Masks(self.target, self.source)

    def without_rim(self) -> Masks:
        """Without the source's neighbours of masked pixels, which a spline would mix in."""
        neighbours = jax.lax.reduce_window(
            jax.lax.stop_gradient(self.source),
            jnp.float32(1.0),
            jax.lax.min,
            (3, 3),
            (1, 1),
            "SAME",
        )
        return Masks(neighbours, self.target)

    def coarser(self, factor: float) -> Masks:
        """Of pixels ``factor`` times as large: those of which half counts."""
        half = (downsample(v, factor) >= 0.5 for v in self)
        return Masks(*(v.astype(jnp.float32) for v in half))


class Pair(NamedTuple):
    """Two images, the source to be pulled onto the target's pixels.

    Attributes:
      source: ``(H, W, C)``, or planes ``(H, W)``.
      target: the same shape.
      masks: which pixels count, if not all do.
      turn: what the derivatives by the angle are multiplied with: 1, or 0 where it is held.
      detail_ratio: of the finest detail of target and source, as variances.
      grain: variance of the residual due to rounding both images to grey levels.
      counts: which pixels of the target count near the alignment in question, ``(P,)``, if not all.
    """

    source: jax.Array
    target: jax.Array
    masks: Masks | None = None
    turn: float | jax.Array = 1.0
    detail_ratio: float | jax.Array = 1.0
    grain: float | jax.Array = 0.0
    counts: float | jax.Array = 1.0

    def swapped(self) -> Pair:
        """The same the other way round."""
        masks = self.masks and self.masks.swapped()
        ratio = 1.0 / self.detail_ratio
        return self._replace(
            source=self.target, target=self.source, masks=masks, detail_ratio=ratio
        )

    def noise_of_target(self, gain: jax.Array) -> jax.Array:
        """Variance of the target's noise, in units of the source's.

        The same if the exposure changed; if one image was only multiplied, so was its noise. The
        finest detail tells which of these, or what between.

        Args:
          gain: grey values of the target for one of the source.
        """
        power = jnp.square(gain)
        return jnp.clip(self.detail_ratio, jnp.minimum(power, 1.0), jnp.maximum(power, 1.0))

    def each(self, function: Callable[[jax.Array], jax.Array]) -> Pair:
        """With what a function makes of either image."""
        return self._replace(source=function(self.source), target=function(self.target))

    def without_rim(self) -> Pair:
        """With `Masks.without_rim`, if there are any."""
        return self._replace(masks=self.masks and self.masks.without_rim())


def fill(images: jax.Array, masks: jax.Array) -> jax.Array:
    """Images ``(N, H, W, C)`` whose masked pixels are replaced by the mean of their surroundings.

    Args:
      images: of any unit; what does not count may be NaN.
      masks: ``(N, H, W)`` float32, 1 where a pixel counts, else 0.
    """

    def one(image: jax.Array, mask: jax.Array) -> jax.Array:
        kept = mask[..., None] > 0
        image = jnp.where(kept, image, 0.0)
        mean = image.sum((0, 1)) / jnp.maximum(mask.sum(), 1.0)
        rows, columns = (blurring_matrix(size, _REACH) for size in mask.shape)
        around = apply_separable(rows, image, columns) + _FAR * mean
        weight = separable(rows, mask, columns) + _FAR
        return jnp.where(kept, image, around / weight[..., None])

    return jax.vmap(one)(images, masks)
