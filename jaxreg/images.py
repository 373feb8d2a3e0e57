"""What a user may pass in as an image, checked once at the boundary."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

SMALLEST = 8
LARGEST = 512


def _check_dtype(image: jax.Array | np.ndarray, name: str) -> None:
    if image.dtype.kind not in "biu" and not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(f"{name} must hold real numbers, got dtype {image.dtype}")


def _check_finite(image: jax.Array | np.ndarray, name: str) -> None:
    """Refuse NaN, infinity, and what float32 would make of too large a number."""
    if image.dtype.kind in "biu" or not image.size:
        return
    if jax.default_backend() == "cpu":  # without a copy
        image = np.asarray(image)
    with np.errstate(over="ignore", invalid="ignore"):
        # Extremes alone: a large stack gets no mask of its size beside it.
        if np.isfinite(np.asarray([image.min(), image.max()], np.float32)).all():
            return
        wrong = image.size - int(np.isfinite(np.asarray(image).astype(np.float32)).sum())
    raise ValueError(
        f"{name} must be finite, got {wrong} NaN or infinite values; fill or crop them first"
    )


def check_grey_levels(image: jax.Array | np.ndarray, method: str) -> None:
    """Refuse fractions of 1 where ``method`` wants 0..255; ValueError says so."""
    if isinstance(image, jax.core.Tracer) or not image.size or image.dtype.kind in "biu":
        return
    if 0.0 < float(image.max()) <= 1.0 and float(image.min()) >= 0.0:
        raise ValueError(
            f"fixed and moving must have intensities in 0..255 for method {method!r}, got at most "
            f"{float(image.max()):.3g}; multiply them by 255"
        )


def _check_shape(shape: tuple[int, ...], name: str, batched: bool) -> None:
    lead = 1 if batched else 0
    wanted = "(N, H, W) or (N, H, W, C)" if batched else "(H, W) or (H, W, C)"
    if len(shape) - lead not in (2, 3):
        hint = "; for a batch call jaxreg.register_batch" if not batched else ""
        if batched and len(shape) == 2:
            hint = "; for one pair call jaxreg.register"
        raise ValueError(f"{name} must be {wanted}, got shape {shape}{hint}")
    height, width = shape[lead : lead + 2]
    channels = shape[lead + 2] if len(shape) - lead == 3 else 1
    if min(height, width) < SMALLEST or max(height, width) > LARGEST:
        hint = "; downsample it first" if max(height, width) > LARGEST else ""
        if batched and width <= 4:
            hint = "; for one pair call jaxreg.register"
        raise ValueError(
            f"{name} must be {SMALLEST} to {LARGEST} pixels high and wide, "
            f"got {height} x {width}{hint}"
        )
    if not 1 <= channels <= 64:
        raise ValueError(
            f"{name} must have 1 to 64 channels on its last axis, got {channels}: shape {shape}"
        )


def check_pair(
    fixed: ArrayLike, moving: ArrayLike, batched: bool = False
) -> tuple[jax.Array | np.ndarray, jax.Array | np.ndarray]:
    """Two images, or two stacks of them, with a channel axis, and fit to be registered.

    Args:
      fixed: ``(H, W)`` or ``(H, W, C)``, any real dtype; with ``batched`` an axis N before.
      moving: the same shape.
      batched: whether there is a batch axis.

    Returns:
      Both, ``([N,] H, W, C)``; their dtype is their own, and they stay where they are, on the host
      or a device.

    Raises:
      ValueError: shape, size, dtype or (outside of jit) a value is unfit; the argument is named.
    """
    pair = []
    for image, name in ((fixed, "fixed"), (moving, "moving")):
        array = image if isinstance(image, jax.Array) else np.asarray(image)
        _check_dtype(array, name)
        _check_shape(array.shape, name, batched)
        # Under a transformation there are no values to look at; the result then says success=False.
        if not isinstance(array, jax.core.Tracer):
            _check_finite(array, name)
        pair.append(array)
    if pair[0].shape != pair[1].shape:
        raise ValueError(
            "fixed and moving must have the same shape, got "
            f"{pair[0].shape} and {pair[1].shape}; crop or pad one of them"
        )
    with_channels = 4 if batched else 3
    pair = [image if image.ndim == with_channels else image[..., None] for image in pair]
    return pair[0], pair[1]
