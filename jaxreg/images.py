"""What a user may pass in as an image, checked once at the boundary."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

SMALLEST = 8
LARGEST = 512


def _as_float32(image: ArrayLike, name: str) -> jax.Array | np.ndarray:
    """Float32 pixels of any real dtype; bool counts as 0 and 1."""
    array = image if isinstance(image, jax.Array) else np.asarray(image)
    kind = jnp.dtype(array.dtype).kind
    if kind not in "biuf" and not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} must hold real numbers, got dtype {array.dtype}")
    # NumPy on NumPy: no transfer to the device before everything has been checked. What is too
    # large becomes infinite, and is told as such.
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


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
        raise ValueError(
            f"{name} must be {SMALLEST} to {LARGEST} pixels high and wide, got {height} x {width}"
            + ("; downsample it first" if max(height, width) > LARGEST else "")
        )
    if not 1 <= channels <= 64:
        raise ValueError(
            f"{name} must have 1 to 64 channels on its last axis, got {channels}: shape {shape}"
        )


def check_pair(
    fixed: ArrayLike, moving: ArrayLike, batched: bool = False
) -> tuple[jax.Array | np.ndarray, jax.Array | np.ndarray]:
    """Two images, or two stacks of them, as float32 with a channel axis.

    Args:
      fixed: ``(H, W)`` or ``(H, W, C)``, any real dtype; with ``batched`` an axis N before.
      moving: the same shape.
      batched: whether there is a batch axis.

    Returns:
      Both, ``([N,] H, W, C)``; they stay where they are, on the host or a device.

    Raises:
      ValueError: shape, size, dtype or (outside of jit) a value is unfit; the argument is named.
    """
    pair = []
    for image, name in ((fixed, "fixed"), (moving, "moving")):
        array = _as_float32(image, name)
        _check_shape(array.shape, name, batched)
        # Under a transformation there are no values to look at; the result then says success=False.
        if not isinstance(array, jax.core.Tracer):
            finite = np.isfinite(np.asarray(array))
            if not finite.all():
                raise ValueError(
                    f"{name} must be finite, got {finite.size - finite.sum()} NaN or infinite "
                    "values; fill or crop them first"
                )
        pair.append(array)
    if pair[0].shape != pair[1].shape:
        raise ValueError(
            "fixed and moving must have the same shape, got "
            f"{pair[0].shape} and {pair[1].shape}; crop or pad one of them"
        )
    with_channels = 4 if batched else 3
    pair = [image if image.ndim == with_channels else image[..., None] for image in pair]
    return pair[0], pair[1]
