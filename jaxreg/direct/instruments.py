"""The instruments on which the finish projects its residual: denoised derivatives of both images.

A Wiener filter at the measured noise denoises them, and a blur suppresses aliasing where the
residual's spectrum shows it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxreg.compute.products import apply_separable, dots, mean_once, product
from jaxreg.direct.denoising import interpolant_of, wiener, with_gradient
from jaxreg.direct.intensity import Fit
from jaxreg.direct.masking import Pair
from jaxreg.direct.normal_equations import after_a_small_move, design_matrix
from jaxreg.direct.pyramid import blurring_matrix
from jaxreg.direct.resampling import (
    Points,
    by_kernel,
    flat,
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
    model = design_matrix(_slopes_of_target(spline_gradient(seen), points), flat(seen))
    white = lambda _, __, fit, steep: (jnp.ones_like(steep), jnp.full_like(fit.gain, WHITE))  # noqa: E731
    inside = points.inside.reshape(*pair.source.shape[:2], 1)
    trust, slow = by_kernel(linear, white, _look_for_aliasing, model[:3], inside, fit, steep)
    blur = _ALIASING_BLUR * aliased(slow)
    power, of_target = jnp.square(fit.gain), pair.noise_of_target(fit.gain)
    noise = fit.covariance() / (of_target + power * noise_gain(points, linear))
    source, left = wiener(pair.source, noise, blur)
    target, _ = wiener(seen, noise * of_target / power, blur)
    image = interpolant_of(source, linear)
    slope, level = slopes(image, points, linear), pull(image, points, linear)
    denoised, gradient = with_gradient(target)
    slope_of_target = _slopes_of_target(gradient, points)
    mean = design_matrix(0.5 * (slope + slope_of_target), 0.5 * (level + flat(denoised)))
    # A residual that is aliasing is no noise.
    share = jnp.where(linear, 1.0, 1.0 - aliased(slow))
    shared = -0.5 * fit.gain * share * noise_slopes(points, pair.source.shape, left, linear)
    noise_alone = product(shared, fit.weight * trust)
    spread = jnp.repeat(trust, value.shape[1])  # over the channels
    return Instruments(spread * mean, spread * slope.reshape(3, -1), model, slow, noise_alone)


def _look_for_aliasing(
    slope: jax.Array, inside: jax.Array, fit: Fit, steep: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Compute trust in each pixel ``(P,)``, less in steep ones under aliasing, and `slow_share`.

    Args:
      slope: ``(3, P * C)``, the target's derivatives by the transform.
      inside: ``(H, W, 1)`` weight of the overlap.
      fit: of the target by the source.
      steep: ``(P,)`` `gradient_magnitude`.
    """
    # The part that a small move would explain vanishes at the optimum.
    slope = jax.lax.stop_gradient(slope)  # trust and blur are constants to derivatives
    rest, _ = after_a_small_move(slope, fit.weight, fit.residual)
    slow = slow_share(inside * rest.reshape(*inside.shape[:2], -1))
    size = jnp.sqrt(mean_once(jnp.square(rest)))
    return precision(size, fit.weight, steep, aliased(slow)), slow


def _seen(pair: Pair, points: Points, value: jax.Array, fit: Fit) -> jax.Array:
    """The target in the source's units, continued by the source beyond the overlap."""
    expected = (fit.gain * value + fit.bias).reshape(pair.target.shape)
    inside = points.inside.reshape(*pair.target.shape[:2], 1)
    return (jnp.where(inside > 0, pair.target, expected) - fit.bias) / fit.gain


def _slopes_of_target(gradient: tuple[jax.Array, jax.Array], points: Points) -> jax.Array:
    """Slopes ``(3, P, C)`` of an image on the target's grid, from its `spline_gradient`."""
    v, u = map(flat, gradient)
    return slopes_by_gradient(u, v, points.lever)


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
