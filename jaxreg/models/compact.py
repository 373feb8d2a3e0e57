"""The compact network: a small learned matcher with the geometry built in.

A few convolutions turn each image into a 16x16 map of features. A disc of the fixed map is rotated
by all angles and correlated with the moving map at all shifts (`jaxreg.models.volume`), so the
network need not learn what a rotation is. It learns which features tell a true alignment from a
false one, as a classifier over all cells of that volume. A regression on the cells around the best
one estimates the transform to a fraction of a cell, with its uncertainty. Gauss-Newton steps at
full resolution (`jaxreg.models.gauss_newton`) refine it. Nothing depends on the position of
features in the image, so the network cannot exploit the black corners of warped images.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxreg.compute.products import contract
from jaxreg.compute.small_systems import inverse
from jaxreg.geometry import RigidTransform, wrap_degrees
from jaxreg.metrics import LAMBDA, AngleLoss
from jaxreg.models.gauss_newton import blur, gauss_newton_step
from jaxreg.models.network import Network, check_images
from jaxreg.models.volume import GRID, correlate, visible
from jaxreg.pairs import Pairs
from jaxreg.result import Registration

INPUT_SIZE = 2 * GRID  # larger images are shrunk to 32x32 first
NEAR = 5  # side of the cube of cells, around the best one, that the local regression sees
# An answer is trusted if the odds for its peak exceed this many times its standard error in
# working pixels (those of the 32x32 images).
# Chosen on pairs of training images: with it 1% of pairs with noise 10 and 8% of noisy scenes are
# refused, and none of 2,000 unrelated pairs and 3% of the wrong answers to noisy scenes trusted.
ODDS_PER_PIXEL = 20.0
# Weight of the estimate's error in cells in the loss, against three negative log-likelihoods.
_ERROR_WEIGHT = 3.0
# Largest distance in cells (angle, y, x) of the truth from a peak that counts as right. The local
# regression sees two cells in each direction.
_RIGHT_PEAK = (2.0, 1.5, 1.5)
# Factor on the inputs of the local regression: the differences of the correlations around the best
# cell from the one in it, which are small.
_REGRESSION_GAIN = 10.0
# Added to the variance of an image, in squared grey levels, before division by it. It is far below
# any real contrast, and only keeps the rounding errors of a flat image small.
_LEAST_VARIANCE = 0.01


@dataclasses.dataclass(frozen=True)
class CompactConfig:
    """Settings of the compact network.

    Attributes:
      image_size: height and width of the images in pixels, 32 or more. Larger ones are shrunk to
        32x32 first (see `shrink`); translations stay in pixels of the images given.
      width: channels of the convolutions.
      layers: number of 3x3 convolutions.
      features: channels of the maps that are correlated.
      angles: number of rotations of the template over the full turn, a multiple of 4.
      window: diameter of the template in cells; even. A cell is two pixels of the 32x32 images.
      reach: largest shift in each direction, in cells.
      hidden: units of the local regression.
      steps: number of Gauss-Newton steps at the end.
    """

    image_size: int = 32
    width: int = 12
    layers: int = 2
    features: int = 4
    angles: int = 36
    window: int = 12
    reach: int = 5
    hidden: int = 64
    steps: int = 2

    def __post_init__(self) -> None:
        for name in ("width", "layers", "features", "reach", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.image_size < INPUT_SIZE:
            raise ValueError(f"image_size must be at least {INPUT_SIZE}, got {self.image_size}")
        if self.angles % 4 or self.angles < 8:
            raise ValueError(f"angles must be a multiple of 4 and at least 8, got {self.angles}")
        if self.window % 2 or not 2 <= self.window <= GRID - 2:  # rotations need a margin
            raise ValueError(f"window must be even, from 2 to {GRID - 2}, got {self.window}")
        if self.steps < 0:
            raise ValueError(f"steps must not be negative, got {self.steps}")

    def build(self, rngs: nnx.Rngs) -> Compact:
        """A fresh network; its weights are drawn from ``rngs.params``."""
        return Compact(self, rngs=rngs)


class Compact(Network):
    """Learned features, correlated over all rotations and shifts; see the module's docstring."""

    def __init__(self, config: CompactConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.image_size = config.image_size
        width = config.width
        channels = [12] + [width] * config.layers
        self.convolutions = nnx.List(
            [nnx.Conv(a, b, (3, 3), rngs=rngs) for a, b in itertools.pairwise(channels)]
        )
        self.last = nnx.Conv(width, config.features, (1, 1), rngs=rngs)
        self.sharpness = nnx.Param(jnp.float32(3.0))
        self.local = nnx.List(
            [
                nnx.Linear(NEAR**3, config.hidden, rngs=rngs),
                nnx.Linear(config.hidden, config.hidden, rngs=rngs),
                nnx.Linear(config.hidden, 6, kernel_init=nnx.initializers.zeros_init(), rngs=rngs),
            ]
        )
        self.trust = nnx.Param(jnp.float32(-1.0))

    def __call__(self, fixed: jax.Array, moving: jax.Array) -> RigidTransform:
        """The transforms of N pairs ``(N, image_size, image_size, 3)``, see `Network`."""
        return self.predict(fixed, moving)[0]

    def predict(
        self, fixed: jax.Array, moving: jax.Array
    ) -> tuple[RigidTransform, jax.Array, jax.Array]:
        """Estimate the transforms of N pairs, with their uncertainty.

        Args:
          fixed: ``(N, image_size, image_size, 3)`` float32, intensities in 0..255.
          moving: the same.

        Returns:
          N transforms; their ``(N, 3, 3)`` covariances for ``(tx, ty, theta)`` in pixels and
          degrees, given that the chosen peak of the volume is the right one; and the ``(N,)``
          probabilities that it is.
        """
        check_images(fixed, moving, self.image_size)
        fixed, moving = _standardise(fixed), _standardise(moving)
        volume = self._volume(fixed, moving)
        logits = self._logits(volume)
        best = self._cell(jnp.argmax(logits, -1))
        offset, log_spread = self._regress(volume, best)
        transform, precision = self._finish(fixed, moving, best, offset, log_spread)
        scale = self.image_size / INPUT_SIZE
        units = jnp.float32([scale, scale, 180.0 / jnp.pi])
        covariance = inverse(precision) * units[:, None] * units
        return self._to_pixels(transform), covariance, self._certainty(logits, best)

    def estimate(self, fixed: jax.Array, moving: jax.Array) -> Registration:
        """Register N pairs, see `Network.estimate`.

        The score is the network's own confidence, from 0 to 1, not the images' correlation. It
        compares the odds for the chosen peak with the standard error of the answer: the largest of
        those of both shifts and of the rotation, as displacement a third of the image's side from
        its centre. Sorted by it, the wrong answers on scenes come ten times later than by
        correlation. ``success`` is a score above 0.5.
        """
        transform, covariance, certainty = self.predict(fixed, moving)
        scale = self.image_size / INPUT_SIZE
        arm = jnp.float32([1.0, 1.0, INPUT_SIZE / 3 * jnp.pi / 180 * scale]) / scale
        errors = jnp.sqrt(jnp.diagonal(covariance, axis1=1, axis2=2)) * arm
        doubt = ODDS_PER_PIXEL * errors.max(-1) * jnp.maximum(1.0 - certainty, 0.0)
        score = certainty / (certainty + doubt + 1e-12)
        return Registration(transform, score, score > 0.5, covariance, jnp.ones_like(score, bool))

    def loss(
        self,
        pairs: Pairs,
        translation_weight: float = LAMBDA,
        angle_loss: AngleLoss = "arc",
    ) -> tuple[jax.Array, RigidTransform]:
        """Cross-entropy over the volume plus the likelihood of the estimate; see `Network.loss`.

        The local regression is trained at the best cell, or at the true cell where the best one is
        wrong, as nothing can be learned from a wrong cell. All terms are in cells, so
        ``translation_weight`` and ``angle_loss`` are ignored.
        """
        del translation_weight, angle_loss
        check_images(pairs.fixed, pairs.moving, self.image_size)
        fixed, moving = _standardise(pairs.fixed), _standardise(pairs.moving)
        volume = self._volume(fixed, moving)
        logits = self._logits(volume)
        truth = self._to_cells(pairs.transform)
        cross_entropy = -(self._target(truth) * jax.nn.log_softmax(logits)).sum(-1)
        best = self._cell(jnp.argmax(logits, -1))
        away = jnp.abs(self._difference(truth, best)) > jnp.array(_RIGHT_PEAK)
        wrong = away.any(-1)[:, None]
        cell = jnp.where(wrong, self._nearest(truth), best)
        offset, log_spread = self._regress(volume, cell)
        error = jnp.abs(self._difference(truth, cell) - offset)
        local = (error * jnp.exp(-log_spread) + log_spread).sum(-1)
        transform, precision = self._finish(fixed, moving, cell, offset, log_spread)
        final = self._to_cells(transform, 1.0)
        error = self._difference(truth, final)
        likelihood = _student(error[:, ::-1] * self._units, precision)
        miss = jnp.minimum(jnp.abs(error), 2.0).sum(-1)
        value = jnp.mean(cross_entropy + local + _ERROR_WEIGHT * miss + likelihood)
        estimate = self._from_cells(jnp.where(wrong, best, final))
        return value, self._to_pixels(estimate)

    def _volume(self, fixed: jax.Array, moving: jax.Array) -> jax.Array:
        """``(N, angles, S)`` normalised correlations of the features."""
        # The 12 channels of a cell are the colours of its 2x2 pixels: its centre lies between them.
        x = jnp.concatenate([fixed, moving])
        x = x.reshape(-1, GRID, 2, GRID, 2, 3).swapaxes(2, 3).reshape(-1, GRID, GRID, 12)
        for convolution in self.convolutions:
            x = nnx.relu(convolution(x))
        x = self.last(x)
        x = x.reshape(x.shape[0], GRID**2, -1).swapaxes(1, 2)
        x = x - x.mean(-1, keepdims=True)
        n = fixed.shape[0]
        c = self.config
        return correlate(x[:n], x[n:], c.angles, c.window, c.reach)

    def _logits(self, volume: jax.Array) -> jax.Array:
        """``(N, angles * S)`` logits: correlations weighted by the root of the visible share."""
        seen = visible(self.config.window, self.config.reach).mean(0)
        logits = volume * jnp.sqrt(seen) * jnp.exp(self.sharpness[...])
        return logits.reshape(volume.shape[0], -1)

    def _regress(self, volume: jax.Array, cell: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Regress the offset from a cell and its log spread, both ``(N, 3)`` in cells."""
        n, half = volume.shape[0], NEAR // 2
        side = 2 * self.config.reach + 1
        grid = volume.reshape(n, -1, side, side)
        grid = jnp.concatenate([grid[:, -half:], grid, grid[:, :half]], 1)
        grid = jnp.pad(grid, ((0, 0), (0, 0), (half, half), (half, half)))
        start = cell.astype(jnp.int32) + jnp.int32([0, self.config.reach, self.config.reach])
        near = jax.vmap(lambda g, s: jax.lax.dynamic_slice(g, s, (NEAR,) * 3))(grid, start)
        x = near.reshape(n, -1)
        x = _REGRESSION_GAIN * (x - x[:, NEAR**3 // 2, None])
        for layer in list(self.local)[:-1]:
            x = nnx.gelu(layer(x))
        x = self.local[-1](x)
        return x[:, :3], jnp.clip(x[:, 3:], -6.0, 3.0)

    def _finish(
        self,
        fixed: jax.Array,
        moving: jax.Array,
        cell: jax.Array,
        offset: jax.Array,
        log_spread: jax.Array,
    ) -> tuple[RigidTransform, jax.Array]:
        """The estimate in working pixels after the last steps, and its precision (px, radians)."""
        transform = self._from_cells(cell + offset)
        # A Laplace distribution of spread b has variance 2 b^2; (angle, y, x) -> (x, y, angle).
        deviation = jnp.exp(log_spread[:, ::-1]) * self._units * 2**0.5
        precision = jnp.eye(3, dtype=jnp.float32) / deviation[:, None, :] ** 2
        smooth_fixed, smooth_moving = blur(fixed), blur(moving)
        start = precision
        for _ in range(self.config.steps):
            transform, precision = gauss_newton_step(
                smooth_fixed, smooth_moving, transform, start, jnp.exp(self.trust[...])
            )
        return transform, precision

    def _certainty(self, logits: jax.Array, best: jax.Array) -> jax.Array:
        """``(N,)`` probability of the cells at most two from the best one on each axis."""
        side = 2 * self.config.reach + 1
        k = (
            jnp.abs(self._wrap(jnp.arange(self.config.angles, dtype=jnp.float32) - best[:, :1]))
            <= 2
        )
        shift = jnp.arange(side, dtype=jnp.float32) - self.config.reach
        y, x = (jnp.abs(shift - best[:, i, None]) <= 2 for i in (1, 2))
        chance = jax.nn.softmax(logits).reshape(-1, self.config.angles, side, side)
        near = (k.astype(jnp.float32), y.astype(jnp.float32), x.astype(jnp.float32))
        return jnp.einsum("nkyx,nk,ny,nx->n", chance, *near)

    # Cells are (angle, y, x): the angle in [0, angles), the shifts from -reach to reach.

    @property
    def _units(self) -> jax.Array:
        """Size of a cell ``(x, y, angle)`` in working pixels and radians."""
        return jnp.float32([2.0, 2.0, 2 * jnp.pi / self.config.angles])

    def _wrap(self, angle: jax.Array) -> jax.Array:
        half = self.config.angles / 2
        return jnp.mod(angle + half, self.config.angles) - half

    def _difference(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """``a - b`` in cells, with the angle in [-angles / 2, angles / 2)."""
        d = a - b
        return jnp.concatenate([self._wrap(d[:, :1]), d[:, 1:]], -1)

    def _cell(self, flat: jax.Array) -> jax.Array:
        """``(N, 3)`` cells at N indices into the flattened volume."""
        side = 2 * self.config.reach + 1
        k, s = flat // side**2, flat % side**2
        reach = self.config.reach
        return jnp.stack([k, s // side - reach, s % side - reach], -1).astype(jnp.float32)

    def _nearest(self, cells: jax.Array) -> jax.Array:
        reach = float(self.config.reach)
        k = jnp.mod(jnp.round(cells[:, :1]), self.config.angles)
        return jnp.concatenate([k, jnp.clip(jnp.round(cells[:, 1:]), -reach, reach)], -1)

    def _target(self, truth: jax.Array) -> jax.Array:
        """``(N, angles * S)`` weights: the truth, distributed linearly on the cells around it."""
        reach = self.config.reach
        share = lambda d: jnp.maximum(1.0 - jnp.abs(d), 0.0)  # noqa: E731
        k = share(self._wrap(jnp.arange(self.config.angles) - truth[:, :1]))
        y, x = (share(jnp.arange(-reach, reach + 1) - truth[:, i, None]) for i in (1, 2))
        return jnp.einsum("nk,ny,nx->nkyx", k, y, x).reshape(truth.shape[0], -1)

    def _from_cells(self, cells: jax.Array) -> RigidTransform:
        theta = wrap_degrees(cells[:, 0] * (360.0 / self.config.angles))
        return RigidTransform(2.0 * cells[:, 2], 2.0 * cells[:, 1], theta)

    def _to_cells(self, transform: RigidTransform, scale: float | None = None) -> jax.Array:
        """Cells of transforms in pixels of the images, or in working pixels (``scale`` 1)."""
        pixels = 2.0 * (self.image_size / INPUT_SIZE if scale is None else scale)
        t = transform.as_array()
        k = jnp.mod(t[:, 2] * (self.config.angles / 360.0), self.config.angles)
        return jnp.stack([k, t[:, 1] / pixels, t[:, 0] / pixels], -1)

    def _to_pixels(self, transform: RigidTransform) -> RigidTransform:
        scale = self.image_size / INPUT_SIZE
        return RigidTransform(transform.tx * scale, transform.ty * scale, transform.theta)


@functools.cache
def _triangles(size: int) -> np.ndarray:
    """``(32, size)`` weights of ``size`` pixels in each of 32 samples along an axis."""
    step = size / INPUT_SIZE
    centre = (np.arange(INPUT_SIZE) + 0.5) * step - 0.5
    weight = np.maximum(1 - np.abs(np.arange(size) - centre[:, None]) / step, 0.0)
    return (weight / weight.sum(1, keepdims=True)).astype(np.float32)


def shrink(images: jax.Array) -> jax.Array:
    """Shrink images ``(N, S, S, C)`` to ``(N, 32, 32, C)``.

    The filter is a triangle, two samples wide. Means over blocks would alias: the samples of a
    rotated image would differ from those of the image, on noise so much that they do not match.
    """
    if images.shape[1] == INPUT_SIZE:
        return images
    weight = _triangles(images.shape[1])
    return contract("yi,nijc,xj->nyxc", weight, images, weight)


def _standardise(images: jax.Array) -> jax.Array:
    """Shrink images to 32x32 and normalise each to mean 0 and deviation 1."""
    images = shrink(images)
    images = images - images.mean((1, 2, 3), keepdims=True)
    variance = (images**2).mean((1, 2, 3), keepdims=True)
    return images * jax.lax.rsqrt(variance + _LEAST_VARIANCE)


def _student(error: jax.Array, precision: jax.Array) -> jax.Array:
    """Negative log-likelihood of errors ``(N, 3)`` in Student's t of 4 degrees of freedom.

    Its heavy tails limit the influence of pairs with large errors, which would dominate a Gaussian.
    """
    squares = jnp.einsum("ni,nij,nj->n", error, precision, error)
    return 3.5 * jnp.log1p(squares / 4.0) - 0.5 * jnp.log(jnp.linalg.det(precision))
