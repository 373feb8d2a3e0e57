"""The instruments on which the finish projects its residual: denoised derivatives of both images.

A Wiener filter at the measured noise denoises them, and a blur suppresses aliasing where the
residual's spectrum shows it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.compute.products import apply_separable, dots, mean_once, product
from jaxreg.direct.denoising import cosine_blur, wiener
from jaxreg.direct.intensity import Fit
from jaxreg.direct.masking import Pair
from jaxreg.direct.normal_equations import after_a_small_move, design_matrix
from jaxreg.direct.pyramid import blurring_matrix
from jaxreg.direct.resampling import (
    Points,
    by_kernel,
    interpolant,
    noise_gain,
    noise_slopes,
    pull,
    slopes,
    slopes_by_gradient,
)
from jaxreg.direct.robust import scale_of
from jaxreg.interpolation import spline_gradient

# px: largest standard deviation of the blur before the derivative is taken. Where neither kernel is
# exact, aliasing makes the finest detail differ between the images. Chosen on scene pairs of the
# training photographs, as are the two shares below.
_ALIASING_BLUR = 1.5
# px: the blur of `slow_share`. It leaves about 5% of the power of white noise, at most 2% of that
# of aliasing, which is in the finest detail, and over half of that of an object hiding a part.
_SLOW = 1.5
WHITE, _ALIASING = 0.05, 0.02


class Instruments(NamedTuple):
    """The instruments and the model's derivatives, each as `design_matrix` has them.

    Attributes:
      columns: ``(U, P * C)``, instruments: the mean of both images' derivatives, where each image
        is denoised on its own grid. So each keeps its own noise as the transform moves; averaging
        the images first would tie the estimate to the transform at which they were averaged.
      source: ``(3, P * C)``, the source's derivatives by the transform.
      model: ``(U, P * C)``, derivatives of the target without denoising, those of the residual.
      slow: scalar, the residual's slow share, see `slow_share`; that of white noise if the kernel
        is bilinear.
      noise_alone: ``(3,)``, expected projections of a residual of noise alone: the source's
        instruments and its values share their noise.
    """

    columns: jax.Array
    source: jax.Array
    model: jax.Array
    slow: jax.Array
    noise_alone: jax.Array


def instruments(
    pair: Pair,
    points: Points,
    value: jax.Array,
    fit: Fit,
    steep: jax.Array,
    linear: jax.Array,
) -> Instruments:
    """Compute the instruments of an alignment.

    Args:
      pair: images ``(H, W, C)``.
      points: positions of the target's pixels in the source.
      value: ``(P, C)``, the source at the points.
      fit: of the target by these values.
      steep: ``(P,)`` `gradient_magnitude`.
      linear: the kernel, see `by_kernel`.
    """
    seen = _seen(pair, points, value, fit)
    power, of_target = jnp.square(fit.gain), pair.noise_of_target(fit.gain)
    noise = fit.covariance() / (of_target + power * noise_gain(points, linear))
    source, left = wiener(pair.source, noise)
    target, _ = wiener(seen, noise * of_target / power)
    model = design_matrix(*_of_target(seen, points))
    denoised = _Denoised(source, target, jnp.ones_like(steep), jnp.full_like(fit.gain, WHITE))
    as_it_is = lambda denoised, *_: denoised  # noqa: E731
    operands = denoised, model[:3], points.inside, fit, steep
    source, target, trust, slow = by_kernel(linear, as_it_is, _against_aliasing, *operands)
    image = interpolant(source, linear)
    slope, level = slopes(image, points, linear), pull(image, points, linear)
    slope_of_target, level_of_target = _of_target(target, points)
    mean = design_matrix(0.5 * (slope + slope_of_target), 0.5 * (level + level_of_target))
    # A residual that is aliasing is no noise.
    share = jnp.where(linear, 1.0, 1.0 - aliased(slow))
    shared = -0.5 * fit.gain * share * noise_slopes(points, pair.source.shape, left, linear)
    noise_alone = product(shared, fit.weight * trust)
    spread = jnp.repeat(trust, value.shape[1])  # over the channels
    return Instruments(spread * mean, spread * slope.reshape(3, -1), model, slow, noise_alone)


class _Denoised(NamedTuple):
    """Source and target ``(H, W, C)``, trust in each pixel ``(P,)``, and `slow_share`."""

    source: jax.Array
    target: jax.Array
    trust: jax.Array
    slow: jax.Array


def _against_aliasing(
    denoised: _Denoised, slope: jax.Array, inside: jax.Array, fit: Fit, steep: jax.Array
) -> _Denoised:
    """Blur both images and trust steep pixels less, as far as the residual is aliasing."""
    # The part that a small move would explain vanishes at the optimum.
    slope = jax.lax.stop_gradient(slope)  # trust and blur are constants to derivatives
    rest, _ = after_a_small_move(slope, fit.weight, fit.residual)
    slow = slow_share((inside[:, None] * rest).reshape(denoised.source.shape))
    sigma = _ALIASING_BLUR * aliased(slow)
    rows, across = (cosine_blur(size, sigma) for size in denoised.source.shape[:2])
    source, target = (apply_separable(rows, image, across) for image in denoised[:2])
    trust = precision(jnp.sqrt(mean_once(jnp.square(rest))), fit.weight, steep, aliased(slow))
    return _Denoised(source, target, trust, slow)


def _seen(pair: Pair, points: Points, value: jax.Array, fit: Fit) -> jax.Array:
    """The target in the source's units, continued by the source beyond the overlap."""
    expected = (fit.gain * value + fit.bias).reshape(pair.target.shape)
    inside = points.inside.reshape(*pair.target.shape[:2], 1)
    return (jnp.where(inside > 0, pair.target, expected) - fit.bias) / fit.gain


def _of_target(image: jax.Array, points: Points) -> tuple[jax.Array, jax.Array]:
    """Slopes ``(3, P, C)`` and values ``(P, C)`` of an image on the target's grid."""
    pixels = image.reshape(-1, image.shape[-1])
    v, u = (g.reshape(pixels.shape) for g in spline_gradient(image))
    return slopes_by_gradient(u, v, points.lever), pixels


def precision(
    size: jax.Array, weight: jax.Array, steep: jax.Array, aliased: jax.Array
) -> jax.Array:
    """Weight of each pixel ``(P,)``: the smaller, the larger the expected residual.

    It is half way between equal weights and the inverse of the expected residual, and differs from
    1 only as far as the residual is aliasing. The faint rest of a picture thus tells where it lies
    along a straight edge.

    Args:
      size: ``(P,)``, absolute residuals.
      weight: ``(P,)``.
      steep: ``(P,)`` `gradient_magnitude`.
      aliased: scalar, see `aliased`.
    """
    mean = dots(weight, size) / jnp.maximum(weight.sum(), 1.0)
    expected = mean + aliased * (scale_of(size, steep)(weight) - mean)
    return (2.0 * mean + 1e-12) / (mean + expected + 1e-12)


def slow_share(residual: jax.Array) -> jax.Array:
    """Share of the power of a residual ``(H, W, C)`` that a blur leaves; a scalar."""
    rows, across = (blurring_matrix(size, _SLOW) for size in residual.shape[:2])
    blurred, residual = (
        image.reshape(-1) for image in (apply_separable(rows, residual, across), residual)
    )
    return dots(blurred, blurred) / jnp.maximum(dots(residual, residual), 1e-20)


def aliased(slow: jax.Array) -> jax.Array:
    """How far a residual with this slow share is aliasing: 0 to 1.

    It is 0 for white noise, which needs the sharpest derivative, and for anything slower, such as
    an object hiding a part of the view, which is left to the robust weights.
    """
    return jnp.clip((WHITE - slow) / (WHITE - _ALIASING), 0.0, 1.0)
