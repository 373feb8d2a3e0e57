"""Grouped convolution: its values and gradients against XLA's native ones."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from experiments import grouped_convolution_benchmark
from jaxreg.models.grouped_convolution import convolution, grouped_convolution, kernel_gradient
from tests.tolerances import FLOAT32_NETWORK

# size, kernel, stride, padding, groups, inputs and outputs of a group
CASES = [
    ((8, 8), (3, 3), 1, ((1, 1), (1, 1)), 4, 2, 2),
    ((8, 8), (3, 3), 2, ((1, 1), (1, 1)), 4, 2, 2),
    ((7, 10), (3, 3), 2, ((1, 1), (1, 1)), 2, 3, 5),
    ((9, 8), (3, 2), 3, ((0, 2), (1, 0)), 3, 1, 4),
    ((6, 6), (1, 1), 1, ((0, 0), (0, 0)), 8, 2, 1),
    ((2, 2), (3, 3), 1, ((1, 1), (1, 1)), 32, 2, 2),
    ((1, 1), (3, 3), 2, ((1, 1), (1, 1)), 2, 2, 2),
    ((6, 5), (3, 3), 1, ((1, 1), (1, 1)), 1, 4, 3),
]


def arrays(case):
    size, kernel, _, _, groups, inputs, outputs = case
    rng = np.random.default_rng(0)
    return (
        jnp.asarray(rng.normal(size=(3, *size, groups * inputs)), jnp.float32),
        jnp.asarray(rng.normal(size=(*kernel, inputs, groups * outputs)), jnp.float32),
    )


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_the_native_ones(case):
    _, _, stride, padding, groups, _, _ = case
    images, kernel = arrays(case)

    @jax.jit
    def both(images, kernel):
        ours, our_vjp = jax.vjp(
            lambda x, k: grouped_convolution(x, k, stride, padding, groups), images, kernel
        )
        native, native_vjp = jax.vjp(
            lambda x, k: convolution(x, k, stride, padding, groups), images, kernel
        )
        weights = jnp.cos(jnp.arange(native.size, dtype=jnp.float32)).reshape(native.shape)
        by_taps = kernel_gradient(images, weights, kernel.shape, stride, padding, groups)
        return (
            (ours, *our_vjp(weights), by_taps),
            (native, *native_vjp(weights), native_vjp(weights)[1]),
        )

    for ours, native in zip(*both(images, kernel), strict=True):
        assert ours.shape == native.shape
        np.testing.assert_allclose(ours, native, atol=FLOAT32_NETWORK, rtol=FLOAT32_NETWORK)


def test_works_without_jit_and_under_vmap():
    case = CASES[0]
    images, kernel = arrays(case)

    def loss(images, kernel):
        return jnp.sum(jnp.sin(grouped_convolution(images, kernel, *case[2:5])))

    expected = jax.jit(jax.grad(loss, 1))(images, kernel)
    np.testing.assert_allclose(jax.grad(loss, 1)(images, kernel), expected, atol=FLOAT32_NETWORK)
    one_by_one = jax.vmap(jax.grad(loss, 1), (0, None))(images[:, None], kernel)
    np.testing.assert_allclose(one_by_one.sum(0), expected, atol=5 * FLOAT32_NETWORK)


DEVICES_SCRIPT = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxreg.training.devices import data_mesh, replicated
from tests.test_grouped_convolution import CASES, arrays, grouped_convolution

images, kernel = arrays(CASES[1])
images = jnp.tile(images, (16, 1, 1, 1))
loss = lambda x, k: jnp.sin(grouped_convolution(x, k, *CASES[1][2:5])).sum()
mesh = data_mesh(len(images))
assert mesh.size == 8
places = NamedSharding(mesh, PartitionSpec("data")), replicated(mesh)
work = []
for where in (places, None):
    gradients = jax.jit(jax.grad(loss, (0, 1)), in_shardings=where, out_shardings=where)
    with jax.set_mesh(mesh if where else data_mesh(1)):
        program = gradients.lower(images, kernel).compile()
        arguments = jax.device_put((images, kernel), where)
    work.append((program(*arguments), program.cost_analysis()["flops"]))
(shared, part), (alone, whole) = work
assert part < 1.05 / 8 * whole, (part, whole)
for ours, expected in zip(shared, alone):
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)
"""


def test_each_device_convolves_its_own_part():
    result = subprocess.run(
        [sys.executable, "-c", DEVICES_SCRIPT],
        capture_output=True,
        text=True,
        env=os.environ
        | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        cwd=Path(__file__).parent.parent,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr


def test_groups_do_not_mix():
    images, kernel = arrays(CASES[0])
    changed = images.at[..., 0].add(1.0)
    moved = grouped_convolution(changed, kernel, *CASES[0][2:5]) - grouped_convolution(
        images, kernel, *CASES[0][2:5]
    )
    assert np.abs(moved[..., :2]).max() > 0.1
    np.testing.assert_array_equal(moved[..., 2:], 0)


@pytest.mark.parametrize(("platform", "convolutions"), [("cpu", 2), ("cuda", 3)])
def test_weight_gradient_is_native_except_on_cpu(platform, convolutions):
    images, kernel = arrays(CASES[0])

    def loss(images, kernel):
        return jnp.sum(jnp.sin(grouped_convolution(images, kernel, *CASES[0][2:5])))

    gradient = jax.jit(jax.grad(loss, (0, 1)))
    program = export.export(gradient, platforms=[platform])(images, kernel).mlir_module()
    assert program.count("stablehlo.convolution") == convolutions
    assert ("stablehlo.dot_general" in program) == (platform == "cpu")


def test_help_of_the_benchmark_lists_its_flags(capsys):
    assert grouped_convolution_benchmark.main(["benchmark", "--help"]) == 0
    assert "--rounds" in capsys.readouterr().out
    assert grouped_convolution_benchmark.main(["benchmark", "--rounds=0"]) == 2
    assert "--rounds=0" in capsys.readouterr().err
