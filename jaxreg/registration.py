"""`register` for one pair of images, `register_batch` for a stack of pairs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxreg.compute.batching import (
    OnePair,
    Options,
    compiler_options,
    map_batches,
    map_pairs,
    runs_on_cpu,
)
from jaxreg.direct.align import align, align_near
from jaxreg.direct.settings import DirectOptions, Kernel, share_of_side
from jaxreg.geometry import RigidTransform, check_transform
from jaxreg.images import are_traced, check_grey_levels, check_pair, check_stacks
from jaxreg.methods import BUILT_IN, find_method
from jaxreg.result import Estimator, Registration

_DEFAULT = DirectOptions()


@functools.cache
def _aligner(far: bool, near: bool) -> OnePair:
    """`align` or `align_near`: the same object for equal settings, so that it compiles once."""
    return align_near if near else functools.partial(align, far=far)


@functools.cache
def _program(far: bool, near: bool, options: Options = ()) -> Any:
    """The same, jitted. With options it cannot be part of a larger program, which has its own."""
    return jax.jit(_aligner(far, near), compiler_options=dict(options) or None)


def register(
    fixed: ArrayLike,
    moving: ArrayLike,
    *,
    method: str = "direct",
    max_shift: float | None = None,
    max_rotation: float = 180.0,
    interpolation: Kernel = "auto",
    initial: RigidTransform | None = None,
    fixed_mask: ArrayLike | None = None,
    moving_mask: ArrayLike | None = None,
) -> Registration:
    """Find the rigid transform between two images.

    A pixel p of ``fixed`` appears at ``T(p)`` in ``moving``, so ``warp(fixed, T)`` looks like
    ``moving``; `jaxreg.geometry` says what the numbers of T mean. The direct method searches all
    rotations up to ``max_rotation`` and all shifts up to ``max_shift``. The images may differ in
    brightness and contrast, and may be partly hidden. Only their overlap is compared, so content
    that leaves the frame does not count against an alignment. A constant border that both images
    share, such as letterbox bars, does not count either; `jaxreg.scene_mask` finds what else stays
    with the sensor.

    A pair that cannot be registered raises no error: its ``success`` is False, its ``reasons`` say
    why, and all numbers are finite.

    Args:
      fixed: ``(H, W)`` or ``(H, W, C)``, any real dtype, sides of 8 to 2048 pixels (up to 600 for
        ``"fft"``), up to 16 channels. Use `register_batch` for stacks: a stack of narrow grey
        images looks like one image with channels. ``"direct"`` and the compact networks accept any
        unit, other methods need intensities in 0..255. Values are converted to float32, in which a
        contrast of 1 on a background of 1e8 disappears.
      moving: the same shape.
      method: ``"direct"`` or another name that `jaxreg.methods.find_method` accepts. The arguments
        below are for ``"direct"`` only; other methods have their own limits and refuse them.
      max_shift: largest translation searched along each axis, in pixels, up to half of the shorter
        side. None, the default, means a third of the shorter side. An answer clearly beyond the
        limit has ``success`` False. A limit above a third has a program of its own, with a larger
        search window.
      max_rotation: largest rotation searched in either direction, in degrees, up to 180. An answer
        clearly beyond it has ``success`` False. A tight limit also excludes the other answers that
        a symmetric image has. 0 holds the angle, and only the shift is estimated.
      interpolation: kernel with which the moving image was rendered, if known: ``"linear"`` or
        ``"spline"``. ``"auto"`` chooses by the residual.
      initial: approximate transform, accurate to 1/16 of the shorter side and 10 degrees. It
        replaces the global search, so ambiguity is only tested nearby: a disc is found to leave
        its angle open, but a square turned by 90 degrees is not noticed. It cannot be combined
        with limits, except that ``max_rotation=0`` keeps its angle.
      fixed_mask: ``(H, W)``, the pixels of ``fixed`` that count: True, or above zero. Exclude
        dust, text, dead pixels or objects that move by themselves. Excluded pixels may be NaN.
      moving_mask: the same for ``moving``.

    Returns:
      A `Registration`. For ``"direct"``, ``score`` is the normalised cross-correlation over the
      overlap, and ``covariance`` is the 3x3 covariance of ``(tx, ty, theta)`` in pixels and
      degrees.

    Raises:
      ValueError: an image, mask or setting is not valid; the message names the argument. NaN and
        infinite values in a pixel that counts are an error here, unless the call is traced; then
        ``success`` is False.

    With ``"direct"`` and the compact networks the call works under ``jit`` and ``vmap`` and is
    differentiable with respect to the images. ``max_shift`` and ``max_rotation`` must then be
    static.

    >>> import jaxreg
    >>> fixed = jax.random.uniform(jax.random.key(0), (128, 95))
    >>> truth = jaxreg.RigidTransform(2.25, -1.5, 100.0)
    >>> r = register(fixed, jaxreg.warp(fixed, truth))
    >>> [round(float(v), 2) for v in r.transform.as_array()], bool(r.success)
    ([2.25, -1.5, 100.0], True)
    """
    pair = check_pair(*map(_on_host, (fixed, moving, fixed_mask, moving_mask)))
    limits = share_of_side(max_shift, pair[0].shape), max_rotation
    options = _options(method, *limits, interpolation, initial, masked=len(pair) > 2)
    if method == "direct":
        known = _known(initial, ())
        kind = options.far, bool(known)
        arrays = [_float32(a) for a in (*pair[:2], options.settings, *known, *pair[2:])]
        if not are_traced(*arrays):
            try:
                compiler = compiler_options(pair[0].size)
                return _program(*kind, tuple(compiler.items()))(*arrays)
            except ValueError as error:
                # Constant images inside a traced program, which alone may have compiler options.
                if "compiler_options" not in str(error):
                    raise
        return _program(*kind)(*arrays)
    stacks = [image[None] for image in pair]
    result = _other(method, *stacks)(*(jnp.asarray(stack, jnp.float32) for stack in stacks))
    return jax.tree.map(lambda v: jnp.asarray(v)[0], result)


def register_batch(
    fixed: ArrayLike,
    moving: ArrayLike,
    *,
    method: str = "direct",
    max_shift: float | None = None,
    max_rotation: float = 180.0,
    interpolation: Kernel = "auto",
    initial: RigidTransform | None = None,
    fixed_mask: ArrayLike | None = None,
    moving_mask: ArrayLike | None = None,
) -> Registration:
    """Register many pairs of images of one size.

    Each pair is registered as by `register`. Pairs are processed in chunks of a fixed size, so
    memory does not grow with their number; but under ``jit`` an accelerator takes all pairs at
    once, and every device gathers all pairs of a sharded stack, unless `jax.shard_map` maps the
    call over the shards. NaN or infinite values in an image give ``success`` False for its own
    pair only.

    Args:
      fixed: ``(N, H, W)`` or ``(N, H, W, C)``, with the dtypes, sizes and units of `register`. Or
        one image without N, the reference for all of ``moving``.
      moving: the same shape; or one image for all of ``fixed``.
      method: as for `register`.
      max_shift: as for `register`, in pixels; one number for all pairs.
      max_rotation: as for `register`, in degrees; one number for all pairs.
      interpolation: as for `register`.
      initial: as for `register`: a batch of N transforms, or one for all pairs.
      fixed_mask: as for `register`: ``(N, H, W)``, or ``(H, W)`` for all pairs.
      moving_mask: the same for ``moving``.

    Returns:
      A `Registration` whose fields have a leading axis N.

    Raises:
      ValueError: an image, mask or setting is not valid; the message names the argument. Methods
        other than ``"direct"`` and the compact networks also refuse stacks with NaN or infinite
        values.

    >>> import jaxreg
    >>> reference = jax.random.uniform(jax.random.key(0), (32, 32, 3))
    >>> drift = jaxreg.RigidTransform.from_array([[1.0, 0.5, 0.0], [2.0, 1.0, 3.0]])
    >>> frames = jnp.stack([jaxreg.warp(reference, t) for t in drift])
    >>> rs = register_batch(reference, frames)
    >>> still = jaxreg.warp(frames, rs.transform.inverse())  # every frame onto the reference
    >>> [round(float(v), 2) for v in rs[1].transform.as_array()]
    [2.0, 1.0, 3.0]
    """
    stacks = check_stacks(fixed, moving, fixed_mask, moving_mask)
    limits = share_of_side(max_shift, stacks[0].shape[1:]), max_rotation
    options = _options(method, *limits, interpolation, initial, masked=len(stacks) > 2)
    if method == "direct":
        known = _known(initial, stacks[0].shape[:1])
        return _map_direct(options, stacks[0], stacks[1], known, stacks[2:])
    return map_batches(_other(method, *stacks), *stacks)


def direct_estimator(fixed: jax.Array, moving: jax.Array) -> Registration:
    """Register N pairs ``(N, H, W, C)`` by the direct method; a `jaxreg.result.Estimator`."""
    return _map_direct(_DEFAULT, fixed, moving)


def _map_direct(
    options: DirectOptions,
    fixed: jax.Array | np.ndarray,
    moving: jax.Array | np.ndarray,
    known: Sequence[jax.Array | np.ndarray] = (),
    masks: Sequence[jax.Array | np.ndarray] = (),
) -> Registration:
    """The direct method for stacks of pairs, with the initial transforms and masks if any."""
    # NumPy repeats without a copy; in a traced program it would become a constant of full length.
    xp: Any = jnp if are_traced(fixed, moving) else np
    settings = xp.broadcast_to(options.settings, (len(fixed), 3))
    one = _aligner(options.far, bool(known))
    return map_pairs(one, fixed, moving, settings, *known, *masks)


def _options(
    method: str,
    share: float,
    max_rotation: float,
    interpolation: Kernel,
    initial: RigidTransform | None,
    masked: bool,
) -> DirectOptions:
    """The direct method's settings, ``share`` being `share_of_side`.

    Raises:
      ValueError: a setting is not valid, is for another method, or contradicts ``initial``.
    """
    options = DirectOptions(share, interpolation, max_rotation)
    if method != "direct" and (masked or initial is not None or options != _DEFAULT):
        raise ValueError(
            "max_shift, max_rotation, interpolation, initial and masks are for method 'direct', "
            f"got them for method {method!r}; leave them out"
        )
    if initial is not None and options.bounds_search:
        raise ValueError(
            "max_shift and max_rotation limit the search, which initial replaces, got both; "
            "leave out one"
        )
    return options


def _float32(array: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """The array in float32. Even a conversion that changes nothing costs JAX a small kernel."""
    return array if array.dtype == np.float32 else array.astype(np.float32)


def _on_host(array: Any) -> Any:
    """A JAX array in the memory of one CPU as a NumPy view, anything else as it is.

    JAX would compile another program for each mixture of committed and other arrays.
    """
    if not isinstance(array, jax.Array) or are_traced(array) or not runs_on_cpu():
        return array
    first, *others = array.devices()
    return array if others or first.platform != "cpu" else np.asarray(array)


def _known(
    initial: RigidTransform | None, batch_shape: tuple[int, ...]
) -> list[jax.Array | np.ndarray]:
    """The initial transforms, ``batch_shape + (3,)``, in a list that is empty without any.

    Raises:
      ValueError: ``initial`` is no transform, not finite, or a batch of another shape.
    """
    if initial is None:
        return []
    check_transform(initial, "initial")
    if initial.batch_shape not in ((), batch_shape):
        wanted = f"one transform or a batch of {batch_shape[0]}" if batch_shape else "one transform"
        raise ValueError(f"initial must be {wanted}, got a batch of shape {initial.batch_shape}")
    fields = initial.tx, initial.ty, initial.theta
    traced = are_traced(*fields)
    # NumPy, because while a program is traced every new array of JAX's is traced too.
    xp: Any = jnp if traced else np
    parameters = xp.stack([xp.broadcast_to(xp.float32(v), batch_shape) for v in fields], axis=-1)
    if not traced and not np.isfinite(parameters).all():
        raise ValueError("initial must be finite, got NaN or infinite values")
    return [parameters]


def _other(method: str, fixed: jax.Array | np.ndarray, moving: jax.Array | np.ndarray) -> Estimator:
    """The estimator with this name; scalar fields of its result are repeated for every pair."""
    estimator = find_method(method)
    if method not in BUILT_IN:
        check_grey_levels(fixed, moving, f"method {method!r}")

    def complete(fixed: jax.Array, moving: jax.Array) -> Registration:
        result = estimator(fixed, moving)
        count = fixed.shape[:1]
        return jax.tree.map(lambda v: v if jnp.ndim(v) else jnp.broadcast_to(v, count), result)

    return complete
