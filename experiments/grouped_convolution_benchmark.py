"""Time a ResNeXt-50 training step with XLA's native grouped convolution and with ours.

Both steps run in turn in one process, so that other load affects both equally::

    python -m experiments.grouped_convolution_benchmark --batch=16 --size=64 --rounds=2
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from jaxreg.command_line import run_command
from jaxreg.models import resnext
from jaxreg.models.grouped_convolution import convolution


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_integer("batch", 16, "Images in a batch.", 1, flag_values=values)
    flags.DEFINE_integer("size", 64, "Height and width of the images.", 1, flag_values=values)
    flags.DEFINE_integer("rounds", 2, "Times that each step is timed.", 1, flag_values=values)
    flags.DEFINE_bool("help", False, "Show this help.", short_name="h", flag_values=values)
    return values


def training_step(network: resnext.ResNeXt, images: jax.Array) -> Callable[[], object]:
    """Compile a step: loss, gradients, batch statistics and the updated weights."""
    graph = nnx.graphdef(network)
    params, stats = nnx.state(network, nnx.Param), nnx.state(network, nnx.BatchStat)

    def loss(params: nnx.State, stats: nnx.State, images: jax.Array) -> tuple[jax.Array, nnx.State]:
        merged = nnx.merge(graph, params, stats, copy=True)
        value = jnp.mean(merged(images) ** 2)
        return value, nnx.state(merged, nnx.BatchStat)

    def step(params: nnx.State, stats: nnx.State, images: jax.Array) -> tuple[object, ...]:
        (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(params, stats, images)
        return value, stats, jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradient)

    compiled = jax.jit(step).lower(params, stats, images).compile()
    return lambda: jax.block_until_ready(compiled(params, stats, images))


def seconds(step: Callable[[], object]) -> float:
    """Measure the wall-clock time of one call."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 where it cannot do what was asked for."""
    name = "experiments.grouped_convolution_benchmark"
    return run_command(name, _flags(), argv, __doc__, _compare)


def _compare(options: flags.FlagValues) -> int:
    """Print the times of both steps and their ratio."""
    rng = np.random.default_rng(0)
    shape = (options.batch, options.size, options.size, 3)
    images = jnp.asarray(rng.normal(size=shape), jnp.float32)
    network = resnext.ResNeXt(3072, rngs=nnx.Rngs(0))
    steps = {"ours": training_step(network, images)}
    with mock.patch.object(resnext, "grouped_convolution", convolution):
        steps["native"] = training_step(network, images)
    seconds(steps["ours"])  # the first call warms the allocator
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _round in range(options.rounds):
        for name, step in steps.items():
            times[name].append(seconds(step))
            print(f"{name:>6}: {times[name][-1]:.2f} s", flush=True)
    ratio = np.median(times["native"]) / np.median(times["ours"])
    print(f"native / ours, medians: {ratio:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
