"""`register` and `register_batch`: the one call for one pair or a million."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxreg.compute.batching import OnePair, Options, compiler_options, map_batches, map_pairs
from jaxreg.direct.align import align, align_near
from jaxreg.direct.settings import DirectOptions, Kernel
from jaxreg.geometry import RigidTransform, check_transform
from jaxreg.images import are_traced, check_grey_levels, check_pair, check_stacks
from jaxreg.methods import BUILT_IN, find_method
from jaxreg.result import Estimator, Registration

_DEFAULT = DirectOptions()


@functools.cache
def _aligner(far: bool, near: bool) -> OnePair:
    """`align`, or `align_near`: one object for equal settings, so that it is compiled once."""
    return align_near if near else functools.partial(align, far=far)


@functools.cache
def _program(far: bool, near: bool, options: Options = ()) -> Any:
    """Either compiled; without options also as part of a larger program, which has its own."""
    return jax.jit(_aligner(far, near), compiler_options=dict(options) or None)


def register(
    fixed: ArrayLike,
    moving: ArrayLike,
    *,
    method: str = "direct",
    max_shift: float = 1 / 3,
    max_rotation: float = 180.0,
    interpolation: Kernel = "auto",
    initial: RigidTransform | None = None,
    fixed_mask: ArrayLike | None = None,
    moving_mask: ArrayLike | None = None,
) -> Registration:
    """Find the rigid transform between two images.

    A pixel p of ``fixed`` is found at ``T(p)`` in ``moving``: ``warp(fixed, T)`` looks like
    ``moving``. The search covers the full circle, or ``max_rotation``, and shifts up to
    ``max_shift``. Brightness and contrast may differ, parts may be hidden, and what has left the
    frame does not speak against an alignment.

    Failure is data: a pair that cannot be registered gives ``success`` False, with finite numbers.

    Args:
      fixed: ``(H, W)`` or ``(H, W, C)``, any real dtype, 8 to 2048 pixels a side (up to 600 for
        ``"fft"``). A stack of narrow grey images would be taken for one of many channels:
        `register_batch` is for stacks. ``"direct"`` and ``"compact"`` take any unit, other methods
        want 0..255. Values are taken as float32: a contrast of 1 on a ground of 1e8 is flat.
      moving: the same shape.
      method: ``"direct"``; or any name that `jaxreg.methods.find_method` knows, whose settings are
        its own.
      max_shift: largest translation searched along an axis, as a share of the shorter side; at most
        0.5. An answer clearly beyond is not trusted. For ``"direct"`` alone.
      max_rotation: largest rotation searched, either way, in degrees; likewise. A tight limit also
        rules out the other answers that a symmetric image has, and 0 holds the angle: only a shift
        is looked for. For ``"direct"`` alone.
      interpolation: how the moving image was rendered, if known: ``"linear"`` or ``"spline"``;
        ``"auto"`` chooses by the residual. For ``"direct"`` alone.
      initial: an alignment known beforehand, within a sixteenth of the shorter side and 10 degrees,
        to be improved in place of the search. Whether another one fits as well is then asked of
        its neighbours alone: a disc has no angle, but a square turned by 90 degrees goes unnoticed.
        The limits are not asked, but ``max_rotation=0`` keeps its angle. For ``"direct"`` alone.
      fixed_mask: ``(H, W)``, False, or not above zero, where a pixel of fixed does not count: dust,
        text, dead pixels, what moves by itself. Its value may be NaN. For ``"direct"`` alone.
      moving_mask: likewise of moving.

    Returns:
      A `Registration`. For ``"direct"``: ``score`` is the normalised cross-correlation over the
      overlap, ``covariance`` the 3x3 covariance of ``(tx, ty, theta)`` in px and degrees.

    Raises:
      ValueError: the images or a setting are unfit; the argument is named.

    With ``"direct"`` and the compact networks the call works under ``jit`` and ``vmap`` and is
    differentiable with respect to the images.

    >>> import jaxreg
    >>> fixed = jax.random.uniform(jax.random.key(0), (128, 95))
    >>> truth = jaxreg.RigidTransform(2.25, -1.5, 100.0)
    >>> r = register(fixed, jaxreg.warp(fixed, truth))
    >>> [round(float(v), 2) for v in r.transform.as_array()], bool(r.success)
    ([2.25, -1.5, 100.0], True)
    """
    pair = check_pair(fixed, moving, fixed_mask, moving_mask)
    options = _options(method, max_shift, interpolation, max_rotation, initial, len(pair) > 2)
    if method == "direct":
        known = _known(initial, ())
        kind = options.far, bool(known)
        arrays = [_float32(a) for a in (*pair[:2], options.settings, *known, *pair[2:])]
        if not are_traced(*arrays):
            try:
                compiler = compiler_options(pair[0].size)
                return _program(*kind, tuple(compiler.items()))(*arrays)
            except ValueError as error:
                # Part of a program in spite of that, it may have no compiler options of its own.
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
    max_shift: float = 1 / 3,
    max_rotation: float = 180.0,
    interpolation: Kernel = "auto",
    initial: RigidTransform | None = None,
    fixed_mask: ArrayLike | None = None,
    moving_mask: ArrayLike | None = None,
) -> Registration:
    """Register many pairs of one size; see `register`.

    Pairs are handled in chunks of a fixed number, so memory is bounded however many there are; but
    in a program under ``jit`` an accelerator takes all at once. One bad image spoils its own pair
    alone: NaN or infinity in it gives ``success`` False there.

    Args:
      fixed: ``(N, H, W)`` or ``(N, H, W, C)``, in the dtype and unit that `register` takes. Or one
        image without N, a reference for all of ``moving``.
      moving: the same shape; or one image for all of ``fixed``.
      method: as for `register`.
      max_shift: as for `register`.
      max_rotation: as for `register`.
      interpolation: as for `register`.
      initial: as for `register`; a batch of N, or one for all.
      fixed_mask: as for `register`, ``(N, H, W)``; or ``(H, W)``, one for all.
      moving_mask: likewise.

    Returns:
      A `Registration` whose fields have a leading axis N.

    Raises:
      ValueError: the images or a setting are unfit; the argument is named. Methods other than
        ``"direct"`` and the compact ones refuse a stack with NaN or infinity in it.

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
    options = _options(method, max_shift, interpolation, max_rotation, initial, len(stacks) > 2)
    if method == "direct":
        known = _known(initial, stacks[0].shape[:1])
        return _map_direct(options, stacks[0], stacks[1], known, stacks[2:])
    return map_batches(_other(method, *stacks), *stacks)


def direct_estimator(fixed: jax.Array, moving: jax.Array) -> Registration:
    """The direct method as an estimator: batches ``(N, H, W, C)`` to a batched `Registration`."""
    return _map_direct(_DEFAULT, fixed, moving)


def _map_direct(
    options: DirectOptions,
    fixed: jax.Array | np.ndarray,
    moving: jax.Array | np.ndarray,
    known: Sequence[jax.Array | np.ndarray] = (),
    masks: Sequence[jax.Array | np.ndarray] = (),
) -> Registration:
    """The direct method for stacks of pairs; what is known of each and both masks, if any."""
    # On the host nothing is copied; in a program it would be a constant as long as the stack.
    xp: Any = jnp if are_traced(fixed, moving) else np
    settings = xp.broadcast_to(options.settings, (len(fixed), 3))
    one = _aligner(options.far, bool(known))
    return map_pairs(one, fixed, moving, settings, *known, *masks)


def _options(
    method: str,
    max_shift: float,
    interpolation: Kernel,
    max_rotation: float,
    initial: RigidTransform | None,
    masked: bool,
) -> DirectOptions:
    """The direct method's settings; ValueError where they, or masks, are for another one."""
    options = DirectOptions(max_shift, interpolation, max_rotation)
    if method != "direct" and (masked or initial is not None or options != _DEFAULT):
        raise ValueError(
            "max_shift, max_rotation, interpolation, initial and masks are for method 'direct', "
            f"got them for method {method!r}; leave them out"
        )
    if initial is not None and options.bounds_search:
        raise ValueError(
            "max_shift and max_rotation bound the search, of which initial takes the "
            "place, got both; leave either out"
        )
    return options


def _float32(array: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """The same in float32: to ask JAX for what is so already takes as long as a small kernel."""
    return array if array.dtype == np.float32 else array.astype(np.float32)


def _known(
    initial: RigidTransform | None, batch_shape: tuple[int, ...]
) -> list[jax.Array | np.ndarray]:
    """An alignment of each pair, ``batch_shape + (3,)``, or none; ValueError if it is unfit."""
    if initial is None:
        return []
    check_transform(initial, "initial")
    if initial.batch_shape not in ((), batch_shape):
        wanted = f"one alignment or a batch of {batch_shape[0]}" if batch_shape else "one alignment"
        raise ValueError(f"initial must be {wanted}, got a batch of shape {initial.batch_shape}")
    fields = initial.tx, initial.ty, initial.theta
    traced = are_traced(*fields)
    # On the host, for in a program that is being traced every new array of a device is traced.
    xp: Any = jnp if traced else np
    parameters = xp.stack([xp.broadcast_to(xp.float32(v), batch_shape) for v in fields], axis=-1)
    if not traced and not np.isfinite(parameters).all():
        raise ValueError("initial must be finite, got NaN or infinite values")
    return [parameters]


def _other(method: str, fixed: jax.Array | np.ndarray, moving: jax.Array | np.ndarray) -> Estimator:
    """The estimator with a name; a scalar field of its result is repeated for every pair."""
    estimator = find_method(method)
    if method not in BUILT_IN:
        check_grey_levels(fixed, moving, f"method {method!r}")

    def complete(fixed: jax.Array, moving: jax.Array) -> Registration:
        result = estimator(fixed, moving)
        count = fixed.shape[:1]
        return jax.tree.map(lambda v: v if jnp.ndim(v) else jnp.broadcast_to(v, count), result)

    return complete
