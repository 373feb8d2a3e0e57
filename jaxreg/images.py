"""What a user may pass in as an image, checked once at the boundary."""

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
    """Whether any of them is part of a program being traced, and has no values to look at."""
    return any(isinstance(array, jax.core.Tracer) for array in arrays)


def real_array(image: ArrayLike, name: str, instead: str = "fill it first") -> Images:
    """An image, a stack of them or a mask as an array, on the host or the device where it is.

    Args:
      image: any real dtype; lists of arrays are stacks.
      name: as an error is to call it.
      instead: what to do with a masked array: without its mask it would be another image.

    Raises:
      ValueError: it does not hold real numbers, or hides some.
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

    Under a transformation there are no values to look at.

    Args:
      images: an image ``(H, W[, C])`` or a stack ``(N, H, W, C)``.
      name: as an error is to call it.
      instead: what to do then.
    """
    if are_traced(images) or images.dtype.kind in "biu" or not images.size:
        return
    with np.errstate(over="ignore", invalid="ignore"):
        # A sum that is finite has finite summands, and takes one pass. If it is not: extremes
        # alone, for a large stack gets no mask of its size beside it.
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
    """The sum in float32 of what is not traced, though a program around it may be."""
    if jax.default_backend() == "cpu":  # without a copy
        return float(np.asarray(images).sum(dtype=np.float32))
    with jax.ensure_compile_time_eval():
        return float(images.sum(dtype=np.float32))


def _extremes(images: Images) -> list[float]:
    """The least and the largest value, likewise."""
    if jax.default_backend() == "cpu":
        images = np.asarray(images)
    with jax.ensure_compile_time_eval():
        return [float(images.min()), float(images.max())]


def check_grey_levels(fixed: Images, moving: Images, method: str) -> None:
    """Refuse stacks that are not finite or not in the unit 0..255 that a method wants.

    Args:
      fixed: ``(N, H, W, C)``.
      moving: the same shape.
      method: as the error is to call it.

    Raises:
      ValueError: says what was given and what would work.
    """
    for images, name in ((fixed, "fixed"), (moving, "moving")):
        _check_finite(images, name, "fill or crop them first")
        if are_traced(images) or not images.size:
            continue
        if images.dtype == np.uint8:
            continue
        least, most = _extremes(images)
        centred = least < -0.5 * abs(most)  # noise alone does not take an image so far below zero
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
    """Two images with a channel axis, and fit to be registered; with their masks if they have any.

    Args:
      fixed: ``(H, W)`` or ``(H, W, C)``, any real dtype.
      moving: the same shape.
      *masks: None, or of fixed and moving, ``(H, W)`` or None: what is False, or not above
        zero, does not count, and need not be finite.

    Returns:
      Both, ``(H, W, C)``; their dtype is their own, and they stay where they are, on the host or a
      device. If either mask is given, then both masks, bool; one that is missing is all True.

    Raises:
      ValueError: shape, size, dtype or (outside of jit) a value is unfit; the argument is named.
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
    """Masks of fixed and moving images ``([N,] H, W)``, bool; none if none are given.

    Args:
      masks: ``([N,] H, W)``, or None for all pixels; for a stack also ``(H, W)``, one for all.
      images: what they are of.
      shape: of these, without channels.
    """
    if all(mask is None for mask in masks):
        return ()
    complete = []
    for mask, name in zip(masks, _NAMES, strict=True):
        mask = True if mask is None else mask
        array: Any = real_array(mask, f"{name}_mask")
        # On the host, for what is done to an array on a device would become part of a program.
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
    """Two stacks of images with a channel axis, and their masks; values are not looked at.

    Args:
      fixed: ``(N, H, W)`` or ``(N, H, W, C)``, any real dtype; or without N, one for all.
      moving: the same shape; likewise.
      *masks: as for `check_pair`, but ``(N, H, W)``; or without N, one for all.

    Returns:
      Both, ``(N, H, W, C)``; else as for `check_pair`. One for all is a view, no copy.

    Raises:
      ValueError: shape, size or dtype is unfit; the argument is named.
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
    """Whether one of two shapes has channels and the other none, be they of stacks or one image.

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
