"""Checks of the images and masks that a user passes in, made once at the boundary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxreg.geometry import MOST_CHANNELS

Images = jax.Array | np.ndarray

_NAMES = ("fixed", "moving")
SMALLEST = 8
LARGEST = 2048


def are_traced(*arrays: object) -> bool:
    """Whether any of the arrays is traced, and so has no values to look at."""
    return any(isinstance(array, jax.core.Tracer) for array in arrays)


def real_array(image: ArrayLike, name: str, instead: str = "fill it first") -> Images:
    """Convert an image, a stack or a mask to an array, on the host or device where it is.

    Args:
      image: any real dtype; a list of arrays is a stack.
      name: what an error calls it.
      instead: the advice for a masked array, which without its mask would be another image.

    Raises:
      ValueError: it does not hold real numbers, or is a masked array with masked values.
    """
    parts = image if isinstance(image, list | tuple) else [image]
    if any(map(np.ma.is_masked, parts)):
        raise ValueError(f"{name} is a masked array; {instead}")
    if not isinstance(image, jax.Array):
        try:
            image = jnp.asarray(image) if are_traced(*parts) else np.asarray(image)
        except ValueError as error:
            raise ValueError(f"{name} must be an array, or images of one size: {error}") from None
    if image.dtype.kind not in "biu" and not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(f"{name} must hold real numbers, got dtype {image.dtype}")
    return image


def _real_pair(fixed: ArrayLike, moving: ArrayLike) -> list[Images]:
    hint = "give its data and {0}_mask=~np.ma.getmaskarray({0})"
    images = zip((fixed, moving), _NAMES, strict=True)
    return [real_array(image, name, hint.format(name)) for image, name in images]


def _check_finite(images: Images, name: str, instead: str) -> None:
    """Raise ValueError for values that are NaN, infinite, or too large for float32.

    Traced images have no values and are not checked.

    Args:
      images: an image ``(H, W[, C])`` or a stack ``(N, H, W, C)``.
      name: what the error calls them.
      instead: the advice that the error gives.
    """
    if are_traced(images) or images.dtype.kind in "biu" or not images.size:
        return
    with np.errstate(over="ignore", invalid="ignore"):
        # A finite sum has finite summands, and takes one pass. If it overflows, the extremes
        # decide, which for a large stack takes less memory than a mask of its size.
        if np.isfinite(_sum(images)) or np.isfinite(np.array(_extremes(images), np.float32)).all():
            return
        wrong = ~np.isfinite(np.asarray(images).astype(np.float32))
    where = ""
    if images.ndim == 4:
        which = np.flatnonzero(wrong.any((1, 2, 3)))
        where = f" in {len(which)} of {len(images)} images, the first at index {which[0]}"
    raise ValueError(
        f"{name} must be finite, got {wrong.sum()} NaN or infinite values{where}; {instead}"
    )


def _sum(images: Images) -> float:
    """The sum, in float32, of images that are not traced, though the program around may be."""
    if jax.default_backend() == "cpu":  # without a copy
        return float(np.asarray(images).sum(dtype=np.float32))
    with jax.ensure_compile_time_eval():
        return float(images.sum(dtype=np.float32))


def _extremes(images: Images) -> list[float]:
    """The smallest and the largest value of images that are not traced."""
    if jax.default_backend() == "cpu":
        images = np.asarray(images)
    with jax.ensure_compile_time_eval():
        return [float(images.min()), float(images.max())]


def check_grey_levels(fixed: Images, moving: Images, method: str) -> None:
    """Refuse stacks that are not finite, or not in the unit 0..255 that a method needs.

    Args:
      fixed: ``(N, H, W, C)``.
      moving: the same shape.
      method: what the error calls it.

    Raises:
      ValueError: the images are unfit; the message gives their range and a remedy.
    """
    for images, name in ((fixed, "fixed"), (moving, "moving")):
        _check_finite(images, name, "fill or crop them first")
        if are_traced(images) or not images.size:
            continue
        if images.dtype == np.uint8:
            continue
        least, most = _extremes(images)
        centred = least < -0.5 * abs(most)  # noise alone does not reach so far below zero
        fractions = images.dtype.kind not in "iu" and not centred and 0.0 < most <= 1.0
        if centred or fractions or most > 255.5:
            raise ValueError(
                f"{name} must have intensities in 0..255 for {method}, got {least:.6g} to "
                f"{most:.6g}; " + ("multiply them by 255" if fractions else "rescale them")
            )


def _check_shape(shape: tuple[int, ...], name: str, batched: bool) -> None:
    lead = 1 if batched else 0
    wanted = "(N, H, W) or (N, H, W, C)" if batched else "(H, W) or (H, W, C)"
    if len(shape) - lead not in (2, 3):
        hint = "; for one pair call jaxreg.register" if batched and len(shape) == 2 else ""
        raise ValueError(f"{name} must be {wanted}, got shape {shape}{hint or _stack(batched)}")
    height, width = shape[lead : lead + 2]
    channels = shape[lead + 2] if len(shape) - lead == 3 else 1
    if min(height, width) < SMALLEST or max(height, width) > LARGEST:
        hint = ""
        if max(height, width) > LARGEST:
            hint = "; downsample it first"
        elif batched and width <= 4:
            hint = "; for one pair call jaxreg.register"
        elif height <= 4 and min(width, channels) >= SMALLEST:
            hint = "; channels go last: np.moveaxis(image, -3, -1)"
            hint += "" if batched else f"; {height} images: call jaxreg.register_batch"
        raise ValueError(
            f"{name} must be {SMALLEST} to {LARGEST} pixels high and wide, "
            f"got {height} x {width}{hint}"
        )
    if not 1 <= channels <= MOST_CHANNELS:
        hint = _stack(batched) if channels else ""
        raise ValueError(
            f"{name} must have 1 to {MOST_CHANNELS} channels on its last axis, "
            f"got {channels}: shape {shape}{hint}"
        )


def _stack(batched: bool) -> str:
    return "" if batched else "; for a stack (N, H, W) call jaxreg.register_batch"


def check_pair(fixed: ArrayLike, moving: ArrayLike, *masks: ArrayLike | None) -> tuple[Images, ...]:
    """Check two images and their masks, and give the images a channel axis.

    Args:
      fixed: ``(H, W)`` or ``(H, W, C)``, any real dtype.
      moving: the same shape.
      *masks: none, or those of fixed and moving, each ``(H, W)`` or None. A pixel where the mask
        is False, or not above zero, does not count, and need not be finite.

    Returns:
      Both images, ``(H, W, C)``, in their own dtype, on the host or device where they are. If
      either mask is given, both masks follow, bool; one that is missing is all True.

    Raises:
      ValueError: a shape, size, dtype or (outside of ``jit``) a value is unfit; the message names
        the argument.
    """
    pair = _real_pair(fixed, moving)
    for image, name in zip(pair, _NAMES, strict=True):
        _check_shape(image.shape, name, batched=False)
    _check_same(pair[0], pair[1])
    checked = _check_masks(masks, pair, pair[0].shape[:2])
    instead, colours = "fill, crop or mask them first", ".all(-1)" if pair[0].ndim == 3 else ""
    pair = [image if image.ndim == 3 else image[..., None] for image in pair]
    for i, name in enumerate(_NAMES):
        if not checked:
            hint = f"{instead}, as by {name}_mask=np.isfinite({name}){colours}"
            _check_finite(pair[i], name, hint)
        elif not are_traced(pair[i], checked[i]):
            _check_finite(np.where(checked[i][..., None], pair[i], 0), name, instead)
    return *pair, *checked


def _check_masks(
    masks: Sequence[ArrayLike | None], images: Sequence[Images], shape: tuple[int, ...]
) -> tuple[Images, ...]:
    """Convert masks of fixed and moving images to bool ``([N,] H, W)``; none if all are None.

    Args:
      masks: ``([N,] H, W)``, or None for all pixels; for a stack also ``(H, W)``, one for all.
      images: the images they belong to.
      shape: the images' shape without channels.
    """
    if all(mask is None for mask in masks):
        return ()
    complete = []
    for mask, name in zip(masks, _NAMES, strict=True):
        mask = True if mask is None else mask
        array: Any = real_array(mask, f"{name}_mask")
        # NumPy, because operations on a JAX array would become part of a traced program.
        array = array if are_traced(array) else np.asarray(array)
        if mask is not True and array.shape not in (shape, shape[-2:]):
            raise ValueError(
                f"{name}_mask must have the shape of its image without channels, {shape}"
                f"{f' or, one for all, {shape[-2:]}' if len(shape) > 2 else ''}, got {array.shape}"
            )
        spread = jnp.broadcast_to if are_traced(array, *images) else np.broadcast_to
        complete.append(spread(array if array.dtype == bool else array > 0, shape))
    return tuple(complete)


def check_stacks(
    fixed: ArrayLike, moving: ArrayLike, *masks: ArrayLike | None
) -> tuple[Images, ...]:
    """Check two stacks of images and their masks, and give the images a channel axis.

    Values are not checked.

    Args:
      fixed: ``(N, H, W)`` or ``(N, H, W, C)``, any real dtype; or one image without N for all.
      moving: the same shape; or one image for all.
      *masks: as for `check_pair`, but ``(N, H, W)``, or ``(H, W)`` for all.

    Returns:
      Both stacks, ``(N, H, W, C)``, and the masks as from `check_pair`. One image for all is
      repeated as a view, without a copy.

    Raises:
      ValueError: a shape, size or dtype is unfit; the message names the argument.
    """
    pair = _real_pair(fixed, moving)
    if _one_is_grey(pair[0].shape, pair[1].shape):
        _check_same(pair[0], pair[1], batched=True)
    for image, other, name in zip(pair, pair[::-1], _NAMES, strict=True):
        _check_shape(image.shape, name, batched=image.ndim != other.ndim - 1)
    if pair[0].ndim != pair[1].ndim:
        alone = int(pair[1].ndim < pair[0].ndim)
        one, many = pair[alone], pair[1 - alone]
        if are_traced(*pair):
            pair[alone] = jnp.broadcast_to(one, (len(many), *one.shape))
        else:
            pair[alone] = np.broadcast_to(np.asarray(one), (len(many), *one.shape))
    _check_same(pair[0], pair[1], batched=True)
    complete = [images if images.ndim == 4 else images[..., None] for images in pair]
    return *complete, *_check_masks(masks, pair, pair[0].shape[:3])


def _one_is_grey(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether only one of two shapes, each a stack's or an image's, has a channel axis.

    >>> _one_is_grey((8, 9), (5, 8, 9, 3)), _one_is_grey((8, 9, 3), (5, 8, 9))
    (True, True)
    >>> _one_is_grey((8, 9), (5, 8, 9)), _one_is_grey((8, 9, 3), (5, 8, 9, 3))
    (False, False)
    """
    less, more = sorted((a, b), key=len)
    if len(more) == 4:
        return less in (more[:3], more[1:3])
    return len(less) == len(more) == 3 and a[1:] != b[1:] and (a[:2] == b[1:] or a[1:] == b[:2])


def _check_same(fixed: Images, moving: Images, batched: bool = False) -> None:
    a, b = fixed.shape, moving.shape
    if a == b:
        return
    hint = "crop or pad one of them"
    if batched and _one_is_grey(a, b):
        hint = "make both grey or both colour"
    elif batched and len(a) == len(b) and a[0] != b[0]:
        hint = "give as many images in each"
    elif len(a) != len(b) or (a[:-1] == b[:-1] and len(a) == 3 + batched):
        hint = "make both grey or both colour"
    raise ValueError(f"fixed and moving must have the same shape, got {a} and {b}; {hint}")
