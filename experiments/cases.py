"""The benchmark's cases: the library's methods, and naive versions to compare them with."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from baselines.phase_correlation import fft, phase_correlation
from experiments import naive
from experiments.compilation import at_precision, compile_for, precisions, program_memory
from experiments.floor import Work, size_in_bytes, work_of
from experiments.timing import PairByPair, host_memory
from jaxreg.compute.batching import compiler_options
from jaxreg.data import photographs
from jaxreg.direct.align import align
from jaxreg.evaluation.protocol import build_suite
from jaxreg.models.compact import CompactConfig
from jaxreg.models.lstm import LSTMConfig, as_vectors
from jaxreg.models.network import network_structure
from jaxreg.registration import register, register_batch
from jaxreg.scenes import draw_tiles
from jaxreg.training.batches import TrainingImages
from jaxreg.training.configs import CONFIGS, TrainConfig
from jaxreg.training.devices import data_mesh, place
from jaxreg.training.state import abstract_state, create_state, make_optimizer
from jaxreg.training.step import compile_dispatch, train_step

_TRAINING_IMAGES = 2000
_MOST_SWEPT = 64  # largest batch of the sweep; larger ones only take longer


@dataclasses.dataclass(frozen=True)
class BenchmarkSettings:
    """The amount of work of the benchmark.

    Attributes:
      sizes: heights and widths of the images.
      batches: numbers of pairs in a call, to measure throughput.
      counts: numbers of pairs in a call, to measure the growth of the cost.
      hidden: units of the LSTM.
      training: configurations whose steps are timed.
      training_batches: numbers of pairs in a step; 0 for the configuration's own.
      checks: pairs on which the sweep and the naive loop are compared.
      pairs: number of different pairs, which are used in turn.
      rounds: turns of each function.
      turn: seconds of each turn.
    """

    sizes: Sequence[int] = (32, 96)
    batches: Sequence[int] = (1, 4, 16, 64, 256, 1024)
    counts: Sequence[int] = (100, 1000, 10_000)
    hidden: int = 3000
    training: Sequence[str] = ("lstm512_cifar10", "compact32")
    training_batches: Sequence[int] = (0,)
    checks: int = 20
    pairs: int = 96
    rounds: int = 7
    turn: float = 0.1


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of the benchmark.

    Attributes:
      method: name of the function.
      size: height and width of the images.
      batch: pairs in a call.
      call: makes one call and waits for its results.
      work: the least work of a call.
      precision: precision of matrix products, see `experiments.compilation.precisions`.
      compile_seconds: time to trace and compile; None if nothing is compiled.
      memory: bytes of arguments, results and temporaries of a compiled program, or growth of the
        host's memory; None if unknown.
      note: remarks for the reader.
    """

    method: str
    size: int
    batch: int
    call: Callable[[], Any]
    work: Work
    precision: str = ""
    compile_seconds: float | None = None
    memory: int | None = None
    note: str = ""


@functools.cache
def image_pairs(size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Make fixed and moving images: pairs of views of photographs, without black corners."""
    data = build_suite(f"scene{size}" if size in (32, 96) else f"scene@{size}", count)
    return data.fixed, data.moving


def batch_of(settings: BenchmarkSettings, size: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ``batch`` pairs; they repeat if there are fewer different ones."""
    fixed, moving = image_pairs(size, settings.pairs)
    index = np.arange(batch) % len(fixed)
    return fixed[index], moving[index]


def _pair_by_pair(
    settings: BenchmarkSettings, size: int, call: Callable[[np.ndarray, np.ndarray], Any]
) -> PairByPair:
    return PairByPair(call, *image_pairs(size, settings.pairs))


def direct(settings: BenchmarkSettings) -> Iterator[Case]:
    """`register` and `register_batch`, from NumPy images to parameters."""
    default = next(iter(precisions()))
    for size in settings.sizes:
        one = jax.ShapeDtypeStruct((size, size, 3), jnp.float32)
        work = work_of(align, one, one)
        program = compile_for(align, one, one, options=compiler_options(one.size))
        about: dict[str, Any] = {"compile_seconds": program.seconds, "memory": program.memory}

        def single(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
            return np.asarray(register(fixed, moving).transform.as_array())

        one_pair = _pair_by_pair(settings, size, single)
        yield Case("register", size, 1, one_pair, work, default, **about)
        run = lambda *pair, program=program: jax.block_until_ready(program.run(*pair))  # noqa: E731
        on_device = (list(map(jnp.asarray, images)) for images in image_pairs(size, settings.pairs))
        one_pair, about["note"] = PairByPair(run, *on_device), "the program alone, on the device"
        yield Case("register, program", size, 1, one_pair, work, default, **about)
        for batch in settings.batches:
            fixed, moving = batch_of(settings, size, batch)
            for precision in precisions():
                call = functools.partial(_registered, fixed, moving, precision)
                call()  # compiles
                memory = host_memory(call) if jax.default_backend() == "cpu" else None
                yield Case(
                    "register_batch", size, batch, call, work * batch, precision, None, memory
                )


def _registered(fixed: np.ndarray, moving: np.ndarray, precision: str) -> np.ndarray:
    with at_precision(precision):
        return np.asarray(register_batch(fixed, moving).transform.as_array())


def growth(settings: BenchmarkSettings) -> Iterator[Case]:
    """`register_batch` of more and more pairs: the time should grow with them, not the memory."""
    size, default = settings.sizes[0], next(iter(precisions()))
    one = jax.ShapeDtypeStruct((size, size, 3), jnp.float32)
    work = work_of(align, one, one)
    for count in settings.counts:
        fixed, moving = batch_of(settings, size, count)
        call = functools.partial(_registered, fixed, moving, default)
        call()  # compiles
        memory = host_memory(call)
        note = "memory: what the host's grew by, the images apart"
        yield Case(
            "register_batch, growth", size, count, call, work * count, default, None, memory, note
        )


def sweep(settings: BenchmarkSettings) -> Iterator[Case]:
    """The 360-angle sweep of phase correlations, and the naive loop."""
    default = next(iter(precisions()))
    for size in settings.sizes:
        one = jax.ShapeDtypeStruct((size, size, 3), jnp.float32)
        work = work_of(phase_correlation, one, one)
        for batch in sorted({1, *(b for b in settings.batches if b <= _MOST_SWEPT)}):
            images = batch_of(settings, size, batch)
            program = compile_for(fft, *images)
            call = functools.partial(_swept, *images)
            yield Case("fft sweep", size, batch, call, work * batch, default,
                       program.seconds, program.memory)  # fmt: skip
        note = _same_answers(settings, size)
        loop = _pair_by_pair(settings, size, naive.sweep)
        memory = host_memory(loop)
        yield Case("naive fft loop", size, 1, loop, work, default, None, memory, note)


def _swept(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    return np.asarray(fft(jnp.asarray(fixed), jnp.asarray(moving)).transform.as_array())


def _same_answers(settings: BenchmarkSettings, size: int) -> str:
    fixed, moving = batch_of(settings, size, min(settings.checks, settings.pairs))
    loop = np.stack([naive.sweep(f, m) for f, m in zip(fixed, moving, strict=True)])
    same = (_swept(fixed, moving) == loop).all(axis=1)
    return f"the sweep's answers on {same.sum()} of {len(same)} pairs"


def lstm(settings: BenchmarkSettings) -> Iterator[Case]:
    """The LSTM in its two-step form, as scanned cells, and one read of its weights."""
    network = LSTMConfig(settings.hidden).build(nnx.Rngs(0))
    network.eval()
    graph, weights = nnx.split(network)
    scanned = nnx.split(naive.ScannedLSTM(network))
    del network
    yield _weights_read(weights)

    def two_step(state: Any, fixed: jax.Array, moving: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(fixed, moving).as_array()

    for batch in sorted({1, *settings.batches}):
        images = batch_of(settings, 32, batch)
        work = work_of(two_step, weights, *images)
        for precision in precisions():
            yield _network_case("LSTM", two_step, (weights, *images), work, precision)
    pair = batch_of(settings, 32, 1)
    yield from _other_lstms(pair, work_of(two_step, weights, *pair), (graph, weights), scanned)


def _weights_read(weights: Any) -> Case:
    """One read of all weights, by their sum."""
    read = size_in_bytes(weights)
    summed = compile_for(lambda w: sum(jnp.sum(x) for x in jax.tree.leaves(w)), weights)
    note = "the sum of all weights, as the compiler does it"
    return Case("LSTM, sum of weights", 32, 1, summed.on(weights), Work(read / 4, read),
                next(iter(precisions())), summed.seconds, summed.memory, note)  # fmt: skip


def _other_lstms(
    pair: tuple[np.ndarray, np.ndarray], work: Work, network: tuple, scanned: tuple
) -> Iterator[Case]:
    """One pair by scanned cells, and on accelerators with weights in bfloat16.

    Args:
      pair: fixed and moving images, a batch of one.
      work: the work of the two-step form on it.
      network: graph and state of the LSTM network.
      scanned: graph and state of its scanned form.
    """
    (graph, weights), (scanned_graph, scanned_weights) = network, scanned

    def steps(state: Any, first: jax.Array, second: jax.Array) -> jax.Array:
        return nnx.merge(graph, state).lstm(first, second)

    def scan(state: Any, fixed: jax.Array, moving: jax.Array) -> jax.Array:
        return nnx.merge(scanned_graph, state)(as_vectors(fixed), as_vectors(moving))

    vectors = [as_vectors(jnp.asarray(image)) for image in pair]
    reference = jax.jit(steps)(weights, *vectors)
    note = f"flax's scanned cell; {_difference(jax.jit(scan)(scanned_weights, *pair), reference)}"
    arguments, default = (scanned_weights, *pair), next(iter(precisions()))
    yield _network_case("LSTM, scanned", scan, arguments, work, default, note=note)
    if jax.default_backend() != "cpu":
        half, *half_vectors = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (weights, *vectors))
        note = f"weights in bfloat16; {_difference(jax.jit(steps)(half, *half_vectors), reference)}"
        work = Work(work.operations, size_in_bytes((half, half_vectors)))
        arguments = (half, *half_vectors)
        yield _network_case("LSTM, half weights", steps, arguments, work, "bfloat16", note=note)


def _difference(value: jax.Array, reference: jax.Array) -> str:
    off = jnp.abs(value.astype(jnp.float32) - reference).max() / jnp.abs(reference).max()
    return f"largest difference {100 * float(off):.2g}% of the largest output"


def _network_case(
    method: str,
    function: Callable[..., Any],
    arguments: tuple,
    work: Work,
    precision: str,
    size: int = 32,
    note: str = "",
) -> Case:
    program = compile_for(function, *arguments, precision=precision)
    call, batch = program.on(*arguments), arguments[1].shape[0]
    return Case(method, size, batch, call, work, precision, program.seconds, program.memory, note)


def compact(settings: BenchmarkSettings) -> Iterator[Case]:
    """The compact network with random weights: transforms, covariances and certainties."""
    for size in settings.sizes:
        network = CompactConfig(size).build(nnx.Rngs(0))
        network.eval()
        graph, weights = nnx.split(network)

        def predict(state: Any, fixed: jax.Array, moving: jax.Array, graph: Any = graph) -> Any:
            return nnx.merge(graph, state).predict(fixed, moving)

        for batch in sorted({1, *settings.batches}):
            images = batch_of(settings, size, batch)
            work = work_of(predict, weights, *images)
            for precision in precisions():
                arguments = (weights, *images)
                yield _network_case("compact", predict, arguments, work, precision, size)


def training(settings: BenchmarkSettings) -> Iterator[Case]:
    """Training steps: drawing pairs, loss, gradient and optimiser."""
    for name in settings.training:
        for batch in settings.training_batches:
            config = CONFIGS[name]
            config = dataclasses.replace(config, batch_size=batch or config.batch_size)
            for precision in precisions():
                yield _training_case(name, config, precision)


def _training_case(name: str, config: TrainConfig, precision: str) -> Case:
    mesh = data_mesh(config.batch_size)
    images = place(mesh, _training_images(config))
    structure = network_structure(config.network)[0]
    step = functools.partial(
        train_step,
        config=config,
        structure=structure,
        optimizer=make_optimizer(config),
        mesh=mesh,
    )
    shapes = abstract_state(config, mesh)
    # The state is read and written once for any batch; the drawn images are few bytes beside it.
    work = Work(work_of(step, shapes, images).operations, 2.0 * size_in_bytes(shapes))
    start = time.perf_counter()
    with at_precision(precision):
        compiled = compile_dispatch(config, mesh, shapes, images)
    seconds = time.perf_counter() - start
    # The state is made at the first call. Each call donates it, and keeps the new one for the next.
    states: list[Any] = []

    def call() -> None:
        state = states.pop() if states else create_state(config, mesh)
        states.append(jax.block_until_ready(compiled(state, images, place(mesh, np.int32(1))))[0])

    return Case(f"training, {name}", config.image_size, config.batch_size, call, work, precision,
                seconds, program_memory(compiled.program))  # fmt: skip


def _training_images(config: TrainConfig) -> TrainingImages:
    """Make random pictures: the cost of a step does not depend on their contents."""
    size = config.image_size
    shape = (_TRAINING_IMAGES, size, size, 3)
    pictures = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    tiles = None
    if config.scene_pairs:
        tiles = draw_tiles(photographs("train"), 100, size, config.max_shift, 0)
    return TrainingImages(pictures, tiles)


GROUPS: dict[str, Callable[[BenchmarkSettings], Iterator[Case]]] = {
    "direct": direct,
    "growth": growth,
    "sweep": sweep,
    "lstm": lstm,
    "compact": compact,
    "training": training,
}
