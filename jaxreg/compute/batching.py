"""Run a function of one pair on many pairs: in chunks, over threads and devices.

A CPU is fastest pair by pair, which keeps the data of each pair in its caches, with one thread per
core. An accelerator is fastest on thousands of pairs at once, while the next ones are transferred.
Any number of pairs needs only a few compilations.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxreg.images import are_traced
from jaxreg.result import Estimator, Registration

# A function of a fixed image, a moving image and, where given, settings, initial and masks.
OnePair = Callable[..., Registration]
Options = tuple[tuple[str, bool | str], ...]  # items of `compiler_options`: hashable
_PAIRS = "pairs"  # name of the mesh axis
# Largest chunk per device, in pairs and in pixels of its fixed images: this bounds the memory for
# images of any size.
_CPU_CHUNK = 64
_ACCELERATOR_CHUNK = 16384
_CPU_PIXELS = 2**16
_ACCELERATOR_PIXELS = 2**24
# Values (pixels times channels) that the threads of a CPU work on at the same time; the direct
# method needs up to 1.5 KB for each.
_VALUES_AT_ONCE = 2**22
# Bytes per value that the direct method needs at most when compiled for a GPU.
_BYTES_A_VALUE = 300
_BYTES_WITH_MASKS = 900
# A chunk may take 1 / _SHARE_OF_MEMORY of the device's memory: two chunks may be in progress, and
# half of the memory is left to the caller.
_SHARE_OF_MEMORY = 4
# Configuration of the caller's thread that the worker threads take over.
_CONTEXT = (
    *("default_device", "default_matmul_precision", "enable_x64", "threefry_partitionable"),
    *("numpy_dtype_promotion", "numpy_rank_promotion", "debug_nans", "debug_infs"),
)
# Pairs that an estimator gets per call.
_CPU_BATCH = 64
_ACCELERATOR_BATCH = 1024
# Two XLA passes cost more than they gain for images of at most so many values. One splits every sum
# into a tree of kernels, for precision, which a short sum does not need; the other splits loops
# over threads. Leaving out either one saves a tenth of the time.
_FEW_VALUES = 2**16
_TREES = "tree_reduction_rewriter"
_THREADS = "cpu-parallel-task-assigner"


def _devices() -> list[jax.Device]:
    """Devices that work is spread over: the caller's `jax.default_device`, or all of this host."""
    chosen = jax.config.jax_default_device  # type: ignore[attr-defined]
    if chosen is None:
        return jax.local_devices()
    return [chosen] if isinstance(chosen, jax.Device) else jax.local_devices(backend=chosen)[:1]


def runs_on_cpu() -> bool:
    """Return whether a program compiled now runs on CPUs, which are fastest pair by pair."""
    return _devices()[0].platform == "cpu"


def compiler_options(values: int, threads: bool = True) -> dict[str, bool | str]:
    """Return the XLA options for a program that works on images of a given size.

    Args:
      values: size of an image, pixels times channels.
      threads: whether a CPU may split large loops over threads.
    """
    if not runs_on_cpu():
        return {}
    few = values <= _FEW_VALUES
    left_out = [_TREES] * few + [_THREADS] * (few or not threads)
    return {"xla_disable_hlo_passes": ",".join(left_out)} if left_out else {}


def _cores() -> int:
    """Number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _threads(cores: int, values: int) -> int:
    """Number of threads for images of ``values`` values, limited to bound the memory.

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
    """Apply ``one`` to the first ``count`` pairs of a chunk that is spread over the devices."""
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
    """A mesh of all devices of this host along the axis of pairs."""
    devices = jax.local_devices()
    return jax.make_mesh((len(devices),), (_PAIRS,), devices=devices, axis_types=(AxisType.Auto,))


def _one_by_one(one: OnePair, count: int | jax.Array, *stacks: jax.Array) -> Registration:
    """Apply ``one`` to the first ``count`` pairs in a loop; the other results are zeros."""
    shapes = jax.eval_shape(one, *(images[0] for images in stacks))
    answers = jax.tree.map(lambda s: jnp.zeros_like(s, shape=(len(stacks[0]), *s.shape)), shapes)

    def step(i: jax.Array, answers: Registration) -> Registration:
        answer = one(*(images[i] for images in stacks))
        return jax.tree.map(lambda all_, a: all_.at[i].set(a), answers, answer)

    return jax.lax.fori_loop(0, count, step, answers)


@functools.partial(jax.jit, static_argnums=0)
def each_pair(one: OnePair, *stacks: Any) -> Registration:
    """Apply a function of one pair to N pairs inside a traced program.

    Args:
      one: the function; hashable.
      *stacks: its arguments, pytrees of arrays with a leading axis N.
    """
    if runs_on_cpu():
        return jax.lax.map(lambda pair: one(*pair), stacks)
    return jax.vmap(one)(*stacks)


def _in_program(*stacks: jax.Array | np.ndarray) -> bool:
    """Return whether a program is being traced, even if none of the stacks is a traced value.

    A new array tells: under `jit` every one is traced.
    """
    return are_traced(*stacks, jnp.zeros(()))


def map_pairs(one: OnePair, *stacks: jax.Array | np.ndarray) -> Registration:
    """Apply a function of one pair to many pairs, with bounded memory for any number.

    Inside a traced program, which must be one program, a CPU loops over the pairs and an
    accelerator takes all of them at once.

    Args:
      one: function of one float32 element of each stack that returns a `Registration`; hashable,
        so that it is compiled once.
      *stacks: fixed and moving images ``(N, H, W, C)``; then, where given, settings ``(N, 3)``,
        initial alignments ``(N, 3)`` and both masks ``(N, H, W)``. Any real dtype, on the host or
        on a device.

    Returns:
      A `Registration` whose fields have a leading axis N.
    """
    if _in_program(*stacks):
        return each_pair(one, *(jnp.asarray(images, jnp.float32) for images in stacks))
    stacks = tuple(map(_gathered, stacks))
    count = len(stacks[0])
    plan = _plan(stacks[0].shape, masked=any(stack.ndim == 3 for stack in stacks))
    settings = {name: getattr(jax.config, f"jax_{name}") for name in _CONTEXT}
    run = functools.partial(_run_chunk, one, stacks, plan, settings)
    starts = range(0, max(count, 1), plan.step)
    if len(starts) == 1:
        return jax.tree.map(jnp.asarray, run(0))
    # The first call compiles, once instead of in every thread. On a lone CPU, whose program takes
    # any number of pairs, it gets none.
    first, *others = [count, *starts] if plan.lone_cpu else starts
    parts = [run(first)]
    with ThreadPoolExecutor(plan.threads) as pool:
        parts += pool.map(run, others)
    # On the host: a concatenation on the device would be compiled for every number of chunks.
    return jax.tree.map(lambda *v: jnp.asarray(np.concatenate(v)), *parts)


class _Plan(NamedTuple):
    """How `map_pairs` divides its work.

    Attributes:
      step: pairs per call of the program.
      size: pairs that the program is compiled for, ``step`` or more.
      threads: calls in progress at the same time.
      devices: devices that each call is spread over.
      on_cpu: whether these are CPUs.
      options: of the compiler.
    """

    step: int
    size: int
    threads: int
    devices: int
    on_cpu: bool
    options: Options

    @property
    def lone_cpu(self) -> bool:
        """Whether the program is a loop on one CPU device, over any number of pairs."""
        return self.on_cpu and self.devices == 1


def _plan(shape: tuple[int, ...], masked: bool) -> _Plan:
    """Choose chunk size, threads and devices for images ``(N, H, W, C)``."""
    count, height, width, channels = shape
    devices, on_cpu = len(_devices()), runs_on_cpu()
    values = height * width * channels
    # On an accelerator the second thread transfers the next pairs while the first one computes.
    threads = _threads(_cores(), values) if on_cpu and devices == 1 else 2
    area = _CPU_PIXELS if on_cpu else _accelerator_pixels(channels, masked)
    step, size = _sizes(count, height * width, devices, on_cpu, threads, area)
    # Every core has pairs of its own: splitting the small loops of a pair as well would only cost.
    options = tuple(compiler_options(values, threads=False).items())
    return _Plan(step, size, threads, devices, on_cpu, options)


def _run_chunk(
    one: OnePair,
    stacks: tuple[jax.Array | np.ndarray, ...],
    plan: _Plan,
    settings: Mapping[str, Any],
    start: int,
) -> Registration:
    """Run the pairs from ``start`` on, at most ``plan.step`` of them; results are on the host."""
    with _caller_context(settings, plan.devices):
        # The loop of a lone CPU stops before the padding, so zeros will do.
        fill = _zero_filled if plan.lone_cpu else _filled_up
        some = [fill(images[start : start + plan.step], plan.size) for images in stacks]
        if plan.devices > 1:  # even if they were committed to one device
            some = jax.device_put(some, NamedSharding(_mesh(), PartitionSpec(_PAIRS)))
        number = min(plan.step, len(stacks[0]) - start)
        program = _compiled_chunk(plan.options)
        answers = program(
            *some, one=one, count=jnp.int32(number), on_cpu=plan.on_cpu, devices=plan.devices
        )
        return jax.tree.map(lambda v: np.asarray(v)[:number], answers)


@contextlib.contextmanager
def _caller_context(settings: Mapping[str, Any], devices: int) -> Iterator[None]:
    """Apply the caller's settings, which a new thread lacks, and its mesh over all devices."""
    with contextlib.ExitStack() as stack:
        for name, value in settings.items():
            stack.enter_context(getattr(jax, name)(value))
        if devices > 1 and not jax.sharding.get_abstract_mesh().empty:
            stack.enter_context(jax.set_mesh(_mesh()))
        yield


def _accelerator_pixels(channels: int, masked: bool) -> int:
    """Largest number of pixels in a chunk's fixed images, as far as the device's memory allows."""
    memory = (_devices()[0].memory_stats() or {}).get("bytes_limit")
    if not memory or memory < 0:  # unknown
        return _ACCELERATOR_PIXELS
    each = channels * (_BYTES_WITH_MASKS if masked else _BYTES_A_VALUE)
    return min(_ACCELERATOR_PIXELS, memory // (_SHARE_OF_MEMORY * each))


def _images_in(area: int, pixels: int) -> int:
    """Number of images of ``pixels`` pixels in ``area`` pixels: a power of two, at least 1."""
    return 1 << max(area // pixels, 1).bit_length() - 1


def _sizes(
    count: int,
    pixels: int,
    devices: int,
    on_cpu: bool,
    threads: int = 1,
    area: int = _ACCELERATOR_PIXELS,
) -> tuple[int, int]:
    """Pairs per call, and pairs that the program is compiled for, which takes few values.

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
    # Powers of four per device: computing the padding costs far less than a compilation.
    each = -(-count // devices)
    size = devices * min(4 ** -(-max(each - 1, 0).bit_length() // 2), chunk)
    return size, size


def pairs_that_fit(shape: tuple[int, ...]) -> int:
    """Number of pairs ``(H, W, C)`` that an accelerator's memory holds at once, a power of two."""
    height, width, channels = shape
    return _images_in(_accelerator_pixels(channels, masked=False), height * width)


def _batch(shape: tuple[int, ...]) -> int:
    """Number of pairs ``(H, W, C)`` that an estimator gets per call, a power of two."""
    return _CPU_BATCH if runs_on_cpu() else min(_ACCELERATOR_BATCH, pairs_that_fit(shape))


def map_batches(
    estimator: Estimator, fixed: jax.Array | np.ndarray, moving: jax.Array | np.ndarray
) -> Registration:
    """Apply an estimator, a function of batches, to many pairs, with bounded memory.

    Args:
      estimator: gets 64 float32 pairs per call, or on an accelerator 1,024 or what its memory
        holds; smaller numbers are rounded up to a power of two.
      fixed: ``(N, H, W, C)``, any real dtype.
      moving: the same shape.

    Returns:
      A `Registration` whose fields have a leading axis N.
    """
    if _in_program(fixed, moving):
        return _traced_batches(estimator, fixed, moving)
    stacks, count = (_gathered(fixed), _gathered(moving)), len(fixed)
    # Powers of two: a compiled estimator needs few compilations.
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
    """Do as `map_batches` inside a traced program, which holds the estimator at most twice."""
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
    """Fetch an array that is spread over a mesh of explicit axes, since it cannot be sliced."""
    if isinstance(images, jax.Array) and any(jax.typeof(images).sharding.spec):
        return np.asarray(images)
    return images


def _filled_up(images: jax.Array | np.ndarray, size: int) -> np.ndarray | jax.Array:
    """Pad to ``size`` float32 images by repetition; zeros would be costly, doubtful pairs."""
    if not len(images):
        return _zero_filled(images, size)
    if len(images) < size:
        images = images[np.arange(size) % len(images)]
    return images.astype(np.float32)


def _zero_filled(images: jax.Array | np.ndarray, size: int) -> np.ndarray:
    """Pad to ``size`` float32 images with zeros."""
    filled = np.zeros((size, *images.shape[1:]), np.float32)
    filled[: len(images)] = images
    return filled
