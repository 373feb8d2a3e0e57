"""The compact network: a small learned matcher with the geometry built in.

A few convolutions turn each image into a 16x16 map of features. A disc of the fixed map is turned
to all angles and correlated with the moving map at all shifts (`jaxreg.models.volume`), so the
network need not learn what a rotation is: it learns which features tell a true alignment from a
false one, as a classifier over all cells of that volume. The cells around the best one then give
the estimate to a fraction of a cell with its uncertainty, and Gauss-Newton steps at full resolution
(`jaxreg.models.polish`) finish it. Nothing in it depends on where in the image something is seen,
so black corners are of no use to it.
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
from jaxreg.models.network import Network, check_images
from jaxreg.models.polish import blur, polish
from jaxreg.models.volume import GRID, correlate, visible
from jaxreg.pairs import Pairs
from jaxreg.result import Registration

INPUT_SIZE = 2 * GRID  # larger images are brought to 32x32 first
NEAR = 5  # cells each way that the local regression looks at
# An answer is trusted if the odds for its peak are more than this times its standard error in
# working pixels.
# Chosen on pairs of training images: with it 1% of pairs with noise 10 and 8% of noisy scenes are
# refused, and none of 2,000 unrelated pairs and 3% of the wrong answers to noisy scenes trusted.
ODDS_PER_PIXEL = 20.0


@dataclasses.dataclass(frozen=True)
class CompactConfig:
    """Settings of the compact network.

    Attributes:
      image_size: height and width of the images, 32 or more. Larger ones are brought to 32x32
        first (see `shrink`); translations stay in pixels of the images given.
      width: channels of the convolutions.
      layers: 3x3 convolutions.
      features: channels of the maps that are correlated.
      angles: rotations of the template over the full turn, a multiple of 4.
      window: diameter of the template in cells of two pixels (of 32); even.
      reach: largest shift each way in cells.
      hidden: units of the local regression.
      steps: Gauss-Newton steps at the end.
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
        if self.window % 2 or not 2 <= self.window <= GRID - 2:  # turned, it needs some room
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
        """The transforms of N pairs, and how sure they are.

        Args:
          fixed: ``(N, image_size, image_size, 3)`` float32, intensities in 0..255.
          moving: the same.

        Returns:
          N transforms; their ``(N, 3, 3)`` covariances for ``(tx, ty, theta)`` in pixels and
          degrees, provided that the right peak of the volume was chosen; and ``(N,)`` the
          probability that it was.
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

        The score is not the images' correlation but how sure the network is, from 0 to 1: the odds
        for the chosen peak, against the standard error of the answer (the largest of both shifts
        and of the turn, seen a third of the image's side from its centre). Sorted by it, the wrong
        answers on scenes come ten times later than by correlation. Above 0.5 it is a success.
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

        The local regression is trained at the best cell, or at the true one where the best is
        wrong: a wrong cell has nothing to teach it. Both terms are likelihoods, in cells, so
        ``translation_weight`` and ``angle_loss`` are of no use to them.
        """
        del translation_weight, angle_loss
        check_images(pairs.fixed, pairs.moving, self.image_size)
        fixed, moving = _standardise(pairs.fixed), _standardise(pairs.moving)
        volume = self._volume(fixed, moving)
        logits = self._logits(volume)
        truth = self._to_cells(pairs.transform)
        cross_entropy = -(self._target(truth) * jax.nn.log_softmax(logits)).sum(-1)
        best = self._cell(jnp.argmax(logits, -1))
        away = jnp.abs(self._difference(truth, best)) > jnp.array([2.0, 1.5, 1.5])
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
        estimate = self._from_cells(jnp.where(wrong, best, final))
        return jnp.mean(cross_entropy + local + 3.0 * miss + likelihood), self._to_pixels(estimate)

    def _volume(self, fixed: jax.Array, moving: jax.Array) -> jax.Array:
        """``(N, angles, S)`` normalised correlations of the features."""
        # A cell is four pixels: their colours side by side, so that its centre lies between them.
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
        """``(N, angles * S)``: a correlation is evidence in proportion to what it is made of."""
        seen = visible(self.config.window, self.config.reach).mean(0)
        logits = volume * jnp.sqrt(seen) * jnp.exp(self.sharpness[...])
        return logits.reshape(volume.shape[0], -1)

    def _regress(self, volume: jax.Array, cell: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Offset from a cell and log spread, both ``(N, 3)`` in cells, from its neighbourhood."""
        n, half = volume.shape[0], NEAR // 2
        side = 2 * self.config.reach + 1
        grid = volume.reshape(n, -1, side, side)
        grid = jnp.concatenate([grid[:, -half:], grid, grid[:, :half]], 1)
        grid = jnp.pad(grid, ((0, 0), (0, 0), (half, half), (half, half)))
        start = cell.astype(jnp.int32) + jnp.int32([0, self.config.reach, self.config.reach])
        near = jax.vmap(lambda g, s: jax.lax.dynamic_slice(g, s, (NEAR,) * 3))(grid, start)
        x = near.reshape(n, -1)
        x = 10.0 * (x - x[:, NEAR**3 // 2, None])
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
        """Estimate in working pixels after the last steps, and its precision (px, radians)."""
        transform = self._from_cells(cell + offset)
        # A Laplace distribution of spread b has variance 2 b^2; (angle, y, x) -> (x, y, angle).
        deviation = jnp.exp(log_spread[:, ::-1]) * self._units * 2**0.5
        precision = jnp.eye(3, dtype=jnp.float32) / deviation[:, None, :] ** 2
        smooth_fixed, smooth_moving = blur(fixed), blur(moving)
        start = precision
        for _ in range(self.config.steps):
            transform, precision = polish(
                smooth_fixed, smooth_moving, transform, start, jnp.exp(self.trust[...])
            )
        return transform, precision

    def _certainty(self, logits: jax.Array, best: jax.Array) -> jax.Array:
        """``(N,)`` probability of the cells within two of the best one."""
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

    # Cells are (angle, y, x): the angle in 0..angles, the shifts from -reach to reach.

    @property
    def _units(self) -> jax.Array:
        """Size of a cell ``(x, y, angle)`` in working pixels and radians."""
        return jnp.float32([2.0, 2.0, 2 * jnp.pi / self.config.angles])

    def _wrap(self, angle: jax.Array) -> jax.Array:
        half = self.config.angles / 2
        return jnp.mod(angle + half, self.config.angles) - half

    def _difference(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """``a - b`` in cells, the angle the short way round."""
        d = a - b
        return jnp.concatenate([self._wrap(d[:, :1]), d[:, 1:]], -1)

    def _cell(self, flat: jax.Array) -> jax.Array:
        """``(N, 3)`` cells of indices into the flattened volume."""
        side = 2 * self.config.reach + 1
        k, s = flat // side**2, flat % side**2
        reach = self.config.reach
        return jnp.stack([k, s // side - reach, s % side - reach], -1).astype(jnp.float32)

    def _nearest(self, cells: jax.Array) -> jax.Array:
        reach = float(self.config.reach)
        k = jnp.mod(jnp.round(cells[:, :1]), self.config.angles)
        return jnp.concatenate([k, jnp.clip(jnp.round(cells[:, 1:]), -reach, reach)], -1)

    def _target(self, truth: jax.Array) -> jax.Array:
        """``(N, angles * S)``: the truth shared out linearly among the cells around it."""
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
    """``(32, size)`` weights of the pixels in each of 32 samples along an axis."""
    step = size / INPUT_SIZE
    centre = (np.arange(INPUT_SIZE) + 0.5) * step - 0.5
    weight = np.maximum(1 - np.abs(np.arange(size) - centre[:, None]) / step, 0.0)
    return (weight / weight.sum(1, keepdims=True)).astype(np.float32)


def shrink(images: jax.Array) -> jax.Array:
    """Images ``(N, S, S, C)`` to ``(N, 32, 32, C)`` through a triangle two samples wide.

    The mean over blocks would alias: the samples of a turned image would then be others than those
    of the image, on noise so much so that the two no longer match.
    """
    if images.shape[1] == INPUT_SIZE:
        return images
    weight = _triangles(images.shape[1])
    return contract("yi,nijc,xj->nyxc", weight, images, weight)


def _standardise(images: jax.Array) -> jax.Array:
    """``(N, 32, 32, 3)`` of mean 0 and deviation 1 for each image: free of gain and bias."""
    images = shrink(images)
    images = images - images.mean((1, 2, 3), keepdims=True)
    # The floor is far under any real contrast: it only keeps a flat image's rounding errors small.
    return images * jax.lax.rsqrt((images**2).mean((1, 2, 3), keepdims=True) + 0.01)


def _student(error: jax.Array, precision: jax.Array) -> jax.Array:
    """Negative log-likelihood of N errors of three, in Student's t of 4 degrees of freedom.

    Its tails forgive the pairs that a Gaussian would let decide everything.
    """
    squares = jnp.einsum("ni,nij,nj->n", error, precision, error)
    return 3.5 * jnp.log1p(squares / 4.0) - 0.5 * jnp.log(jnp.linalg.det(precision))
