"""Pairs of images and their masks, and the filling of masked pixels.

Masked pixels have no weight in any sum over pixels. But blurs, splines and gradients read them, so
they are filled with the mean of their surroundings: otherwise their border would look like an edge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.compute.products import apply_separable, separable
from jaxreg.direct.pyramid import blurring_matrix, downsample

_REACH = 2.0  # px: standard deviation of the Gaussian neighbourhood that fills a pixel
_FAR = 1e-3  # weight of the whole image's mean, which counts where no unmasked pixel is near


class Masks(NamedTuple):
    """Which pixels of a pair count: 1, or 0 where they are masked out.

    Attributes:
      source: ``(H, W)`` float32.
      target: the same shape.
    """

    source: jax.Array
    target: jax.Array

    def swapped(self) -> Masks:
        """Swap the masks of source and target."""
        return Masks(self.target, self.source)

    def without_rim(self) -> Masks:
        """Mask the neighbours of the source's masked pixels too, which a spline mixes with them."""
        return Masks(eroded(jax.lax.stop_gradient(self.source), 1), self.target)

    def coarser(self, factor: float) -> Masks:
        """Downsample to pixels ``factor`` times as large; one counts if half of it does."""
        half = (downsample(v, factor) >= 0.5 for v in self)
        return Masks(*(v.astype(jnp.float32) for v in half))


class Pair(NamedTuple):
    """Two images; the source is pulled onto the target's pixels.

    Source and target are the fixed and the moving image, or these swapped.

    Attributes:
      source: ``(H, W, C)``, or a plane ``(H, W)``.
      target: the same shape.
      masks: which pixels count, if not all do.
      turn: factor of the derivatives by the angle: 1, or 0 to hold the angle.
      detail_ratio: variance of the target's finest detail over that of the source's.
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
        """Swap source and target."""
        masks = self.masks and self.masks.swapped()
        ratio = 1.0 / self.detail_ratio
        return self._replace(
            source=self.target, target=self.source, masks=masks, detail_ratio=ratio
        )

    def noise_of_target(self, gain: jax.Array) -> jax.Array:
        """Variance of the target's noise in units of the source's.

        It is 1 if the exposure changed, and the squared gain if one image was only multiplied. The
        finest detail tells which, or which value in between.

        Args:
          gain: grey values of the target per grey value of the source.
        """
        power = jnp.square(gain)
        return jnp.clip(self.detail_ratio, jnp.minimum(power, 1.0), jnp.maximum(power, 1.0))

    def each(self, function: Callable[[jax.Array], jax.Array]) -> Pair:
        """Apply a function to both images."""
        return self._replace(source=function(self.source), target=function(self.target))

    def without_rim(self) -> Pair:
        """Apply `Masks.without_rim`, if there are masks."""
        return self._replace(masks=self.masks and self.masks.without_rim())


def eroded(mask: jax.Array, reach: int) -> jax.Array:
    """A mask ``(H, W)`` float32, 0 as well within ``reach`` px of where it is 0."""
    window = (2 * reach + 1,) * 2
    return jax.lax.reduce_window(mask, jnp.float32(1.0), jax.lax.min, window, (1, 1), "SAME")


def fill(images: jax.Array, masks: jax.Array) -> jax.Array:
    """Replace masked pixels of images ``(N, H, W, C)`` by the mean of their surroundings.

    Args:
      images: of any unit; masked pixels may be NaN.
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
