"""Many pairs: in chunks, over threads and devices, with few compilations for any number.

A CPU is fastest pair by pair, which keeps the work of each in its caches, with a thread for every
core; an accelerator wants thousands of pairs at once, and the next ones on their way meanwhile.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxreg.images import are_traced
from jaxreg.result import Estimator, Registration

OnePair = Callable[..., Registration]  # of a fixed and a moving image, and what else there is
Options = tuple[tuple[str, bool | str], ...]  # items of `compiler_options`: hashable
_PAIRS = "pairs"  # the mesh axis
# Pairs of a chunk at most, for each device, and pixels of its fixed images: memory is bounded
# whatever the size of the images.
_CPU_CHUNK, _ACCELERATOR_CHUNK = 64, 16384
_CPU_PIXELS, _ACCELERATOR_PIXELS = 2**16, 2**24
# Values (pixels times channels) that a CPU's threads work on at a time; the direct method takes up
# to 1.5 KB for each.
_VALUES_AT_ONCE = 2**22
# What it takes at most for a value, compiled for a GPU, and with masks; two chunks may be under
# way, and half of the memory is the caller's.
_BYTES_A_VALUE, _BYTES_WITH_MASKS, _SHARE_OF_MEMORY = 300, 900, 4
_CONTEXT = (
    *("default_device", "default_matmul_precision", "enable_x64", "threefry_partitionable"),
    *("numpy_dtype_promotion", "numpy_rank_promotion", "debug_nans", "debug_infs"),
)
_CPU_BATCH, _ACCELERATOR_BATCH = 64, 1024  # pairs that an estimator is given at a time
# XLA makes a tree of kernels of every sum, for the sake of precision; a sum of few values needs
# none, and a program of small kernels takes a tenth less time without. Nor is it worth waking
# another thread for a part of a small loop: that is another tenth.
_FEW_VALUES = 2**16
_TREES, _THREADS = "tree_reduction_rewriter", "cpu-parallel-task-assigner"


def _devices() -> list[jax.Device]:
    """Those that work is spread over: the caller's `jax.default_device`, or all of this host."""
    chosen = jax.config.jax_default_device  # type: ignore[attr-defined]
    if chosen is None:
        return jax.local_devices()
    return [chosen] if isinstance(chosen, jax.Device) else jax.local_devices(backend=chosen)[:1]


def runs_on_cpu() -> bool:
    """Whether a program compiled now is for CPUs, which are fastest pair by pair."""
    return _devices()[0].platform == "cpu"


def compiler_options(values: int, threads: bool = True) -> dict[str, bool | str]:
    """How XLA is to compile a program for images of so many values (pixels times channels).

    Args:
      values: pixels times channels.
      threads: whether a CPU may split its loops over threads, if they are large.
    """
    if not runs_on_cpu():
        return {}
    few = values <= _FEW_VALUES
    left_out = [_TREES] * few + [_THREADS] * (few or not threads)
    return {"xla_disable_hlo_passes": ",".join(left_out)} if left_out else {}


def _cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _threads(cores: int, values: int) -> int:
    """How many of a CPU's cores get pairs of so many values an image: memory is bounded.

    >>> [_threads(32, side * side) for side in (32, 512, 2048)]
    [32, 16, 1]
    """
    return min(cores, max(_VALUES_AT_ONCE // values, 1))


@functools.cache
def _compiled_chunk(options: Options) -> Any:
    static = ("one", "on_cpu", "devices")
    return jax.jit(_chunk, static_argnames=static, compiler_options=dict(options) or None)


def _chunk(
    *stacks: jax.Array, one: OnePair, count: jax.Array, on_cpu: bool, devices: int
) -> Registration:
    """The first ``count`` pairs of a chunk, which is spread over the devices."""
    if not on_cpu:
        run = jax.vmap(one)
    else:
        run = functools.partial(
            _one_by_one, one, count if devices == 1 else len(stacks[0]) // devices
        )
    if devices > 1:
        spec = PartitionSpec(_PAIRS)
        run = jax.shard_map(run, mesh=_mesh(), in_specs=spec, out_specs=spec)
    return run(*stacks)


def _mesh() -> Mesh:
    """All devices of this host, along the axis of pairs."""
    devices = jax.local_devices()
    return jax.make_mesh((len(devices),), (_PAIRS,), devices=devices, axis_types=(AxisType.Auto,))


def _one_by_one(one: OnePair, count: int | jax.Array, *stacks: jax.Array) -> Registration:
    """The first ``count`` pairs, in a loop; zeros for the rest."""
    shapes = jax.eval_shape(one, *(images[0] for images in stacks))
    answers = jax.tree.map(lambda s: jnp.zeros_like(s, shape=(len(stacks[0]), *s.shape)), shapes)

    def step(i: jax.Array, answers: Registration) -> Registration:
        answer = one(*(images[i] for images in stacks))
        return jax.tree.map(lambda all_, a: all_.at[i].set(a), answers, answer)

    return jax.lax.fori_loop(0, count, step, answers)


@functools.partial(jax.jit, static_argnums=0)
def each_pair(one: OnePair, *stacks: Any) -> Registration:
    """A function of one pair for all pairs of a program that is being traced.

    Args:
      one: hashable.
      *stacks: pytrees of arrays with a leading axis N.
    """
    if runs_on_cpu():
        return jax.lax.map(lambda pair: one(*pair), stacks)
    return jax.vmap(one)(*stacks)


def _in_program(*stacks: jax.Array | np.ndarray) -> bool:
    """Whether a program is being traced, even if none of these takes part in it.

    Under jit every new array is traced.
    """
    return are_traced(*stacks, jnp.zeros(()))


def map_pairs(one: OnePair, *stacks: jax.Array | np.ndarray) -> Registration:
    """Apply a function of one pair to many; memory is bounded however many there are.

    Under a transformation, which asks for one program, a CPU loops over the pairs and an
    accelerator takes all at once.

    Args:
      one: from an image of each stack, float32, to a `Registration`; hashable, for it is compiled
        once.
      *stacks: fixed and moving images ``(N, H, W, C)``, and what else there is of each pair: what
        is asked and what is known of it ``(N, 3)``, both masks ``(N, H, W)``; any real dtype, on
        the host or a device.

    Returns:
      A `Registration` whose fields have a leading axis N.
    """
    if _in_program(*stacks):
        return each_pair(one, *(jnp.asarray(images, jnp.float32) for images in stacks))
    stacks = tuple(map(_gathered, stacks))
    count, devices, on_cpu = len(stacks[0]), len(_devices()), runs_on_cpu()
    lone_cpu = on_cpu and devices == 1
    height, width, channels = stacks[0].shape[1:]
    # On an accelerator the second brings the next pairs meanwhile.
    values = height * width * channels
    threads = _threads(_cores(), values) if lone_cpu else 2
    masked = any(stack.ndim == 3 for stack in stacks)
    area = _CPU_PIXELS if on_cpu else _accelerator_pixels(channels, masked)
    step, size = _sizes(count, height * width, devices, on_cpu, threads, area)
    # Every core has pairs of its own: splitting a pair's small loops over threads would only cost.
    options = compiler_options(values, threads=False)
    program = _compiled_chunk(tuple(options.items()))
    settings = {name: getattr(jax.config, f"jax_{name}") for name in _CONTEXT}

    def part(start: int) -> Registration:
        with _as_the_caller(settings, devices):
            # A loop stops before what fills up.
            fill = _zero_filled if lone_cpu else _filled_up
            some = [fill(images[start : start + step], size) for images in stacks]
            if devices > 1:  # wherever they were, even committed to one of them
                some = jax.device_put(some, NamedSharding(_mesh(), PartitionSpec(_PAIRS)))
            number = min(step, count - start)
            many = jnp.int32(number)
            answers = program(*some, one=one, count=many, on_cpu=on_cpu, devices=devices)
            return jax.tree.map(lambda v: np.asarray(v)[:number], answers)

    starts = range(0, max(count, 1), step)
    if len(starts) == 1:
        return jax.tree.map(jnp.asarray, part(0))
    # The first call compiles, once and not in every thread. On a lone CPU it is that of an empty
    # part, for its program takes any number of pairs.
    first, *others = [count, *starts] if lone_cpu else starts
    parts = [part(first)]
    with ThreadPoolExecutor(threads) as pool:
        parts += pool.map(part, others)
    # On the host: a concatenation on the device would be compiled anew for every number of parts.
    return jax.tree.map(lambda *v: jnp.asarray(np.concatenate(v)), *parts)


@contextlib.contextmanager
def _as_the_caller(settings: Mapping[str, Any], devices: int) -> Iterator[None]:
    """The caller's settings, which a thread begins without; all devices where a mesh is set."""
    with contextlib.ExitStack() as stack:
        for name, value in settings.items():
            stack.enter_context(getattr(jax, name)(value))
        if devices > 1 and not jax.sharding.get_abstract_mesh().empty:
            stack.enter_context(jax.set_mesh(_mesh()))
        yield


def _accelerator_pixels(channels: int, masked: bool) -> int:
    """Pixels of a chunk's fixed images at most, less where the device's memory asks for it."""
    memory = (_devices()[0].memory_stats() or {}).get("bytes_limit")
    if not memory or memory < 0:  # it does not say
        return _ACCELERATOR_PIXELS
    each = channels * (_BYTES_WITH_MASKS if masked else _BYTES_A_VALUE)
    return min(_ACCELERATOR_PIXELS, memory // (_SHARE_OF_MEMORY * each))


def _images_in(area: int, pixels: int) -> int:
    """How many images of so many pixels an area holds: one at least, a power of two."""
    return 1 << max(area // pixels, 1).bit_length() - 1


def _sizes(
    count: int,
    pixels: int,
    devices: int,
    on_cpu: bool,
    threads: int = 1,
    area: int = _ACCELERATOR_PIXELS,
) -> tuple[int, int]:
    """Pairs of a call, and of the program it runs, which is compiled for few different numbers.

    >>> [_sizes(count, 32 * 32, 1, True, 2, _CPU_PIXELS) for count in (1, 7, 1000)]
    [(1, 64), (4, 64), (64, 64)]
    >>> [_sizes(count, 32 * 32, 8, on_cpu=False) for count in (1, 1000, 100_000)]
    [(8, 8), (2048, 2048), (131072, 131072)]
    >>> _sizes(1000, 512 * 512, 1, on_cpu=False)
    (64, 64)
    """
    most = _CPU_CHUNK if on_cpu else _ACCELERATOR_CHUNK
    chunk = min(most, _images_in(area, pixels))
    if on_cpu and devices == 1:  # a loop of any length
        return min(chunk, max(-(-count // threads), 1)), chunk
    # Powers of four, for each device: to work on what fills up takes far less than to compile.
    each = -(-count // devices)
    size = devices * min(4 ** -(-max(each - 1, 0).bit_length() // 2), chunk)
    return size, size


def pairs_that_fit(shape: tuple[int, ...]) -> int:
    """Pairs of images ``(H, W, C)`` for which an accelerator has memory at once, a power of two."""
    height, width, channels = shape
    return _images_in(_accelerator_pixels(channels, masked=False), height * width)


def _batch(shape: tuple[int, ...]) -> int:
    """Pairs of images ``(H, W, C)`` that an estimator is given at a time, a power of two."""
    return _CPU_BATCH if runs_on_cpu() else min(_ACCELERATOR_BATCH, pairs_that_fit(shape))


def map_batches(
    estimator: Estimator, fixed: jax.Array | np.ndarray, moving: jax.Array | np.ndarray
) -> Registration:
    """Apply an estimator, a function of batches, to many pairs; memory is bounded likewise.

    Args:
      estimator: given 64 pairs at a time, on an accelerator 1,024 or what fits, or less by powers
        of two, float32.
      fixed: ``(N, H, W, C)``, any real dtype.
      moving: the same shape.

    Returns:
      A `Registration` whose fields have a leading axis N.
    """
    if _in_program(fixed, moving):
        return _traced_batches(estimator, fixed, moving)
    stacks, count = (_gathered(fixed), _gathered(moving)), len(fixed)
    # Powers of two: few compilations, of an estimator that is compiled.
    size = min(_batch(stacks[0].shape[1:]), 1 << max(count - 1, 0).bit_length())

    def part(start: int) -> Registration:
        some = (_filled_up(images[start : start + size], size) for images in stacks)
        answers = estimator(*map(jnp.asarray, some))
        return jax.tree.map(lambda v: np.asarray(v)[: count - start], answers)

    parts = [part(start) for start in range(0, max(count, 1), size)]
    return jax.tree.map(lambda *v: jnp.asarray(np.concatenate(v)), *parts)


def _traced_batches(
    estimator: Estimator, fixed: jax.Array | np.ndarray, moving: jax.Array | np.ndarray
) -> Registration:
    """`map_batches` in a program that is being traced, which holds the estimator twice at most."""
    stacks = [jnp.asarray(images, jnp.float32) for images in (fixed, moving)]
    size = _batch(stacks[0].shape[1:])
    blocks, rest = divmod(len(fixed), size)
    if not len(fixed):
        nothing = estimator(*(jnp.zeros((1, *images.shape[1:]), jnp.float32) for images in stacks))
        return jax.tree.map(lambda v: v[:0], nothing)
    if not blocks:
        return estimator(*stacks)
    split = [images[: blocks * size].reshape(-1, size, *images.shape[1:]) for images in stacks]
    results = jax.lax.map(lambda pair: estimator(*pair), tuple(split))
    results = jax.tree.map(lambda v: v.reshape(-1, *v.shape[2:]), results)
    if not rest:
        return results
    last = estimator(*(images[-rest:] for images in stacks))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), results, last)


def _gathered(images: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """The same, on the host if spread over a mesh of explicit axes, of which no part can be had."""
    if isinstance(images, jax.Array) and any(jax.typeof(images).sharding.spec):
        return np.asarray(images)
    return images


def _filled_up(images: jax.Array | np.ndarray, size: int) -> np.ndarray | jax.Array:
    """``size`` images as float32, repeated where there are fewer: zeros would be doubtful pairs."""
    if not len(images):
        return _zero_filled(images, size)
    if len(images) < size:
        images = images[np.arange(size) % len(images)]
    return images.astype(np.float32)


def _zero_filled(images: jax.Array | np.ndarray, size: int) -> np.ndarray:
    """``size`` images as float32, zeros where there are fewer."""
    filled = np.zeros((size, *images.shape[1:]), np.float32)
    filled[: len(images)] = images
    return filled
