"""Many pairs in chunks: order, number of compilations, threads, several devices."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.compute import batching
from jaxreg.geometry import RigidTransform
from jaxreg.result import Registration


def first_pixels(fixed, moving):
    """A cheap function of a pair that tells which one it saw."""
    a, b = fixed[0, 0, 0], moving[0, 0, 0]
    transform = RigidTransform(a, b, a - b)
    return Registration(transform, a, a < b, jnp.full((3, 3), a), jnp.bool_(True))


def numbered(count, dtype=np.float32):
    return (np.arange(count)[:, None, None, None] % 200 * np.ones((count, 8, 8, 1))).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_any_number_keeps_its_order_and_compiles_once(monkeypatch, dtype):
    monkeypatch.setattr(batching, "_CPU_CHUNK", 8)
    options = batching.compiler_options(64, threads=False)
    program = batching._compiled_chunk(tuple(options.items()))
    program.clear_cache()
    for count in (0, 1, 7, 8, 9, 40, 203):
        images = numbered(count, dtype)
        answer = batching.map_pairs(first_pixels, images, images + 1)
        np.testing.assert_array_equal(answer.transform.tx, np.arange(count) % 200)
        np.testing.assert_array_equal(answer.transform.ty, np.arange(count) % 200 + 1)
        assert isinstance(answer.score, jax.Array)
        assert answer.covariance.shape == (count, 3, 3)
        assert np.asarray(answer.success).all()
    assert program._cache_size() == 1


def test_arrays_on_the_device_and_under_vmap():
    images = jnp.asarray(numbered(70))
    answer = batching.map_pairs(first_pixels, images, images)
    np.testing.assert_array_equal(answer.transform.tx, np.arange(70))
    stacked = jax.jit(jax.vmap(lambda v: batching.map_pairs(first_pixels, v, v)))(images[None])
    np.testing.assert_array_equal(stacked.transform.tx[0], np.arange(70))


def test_few_pairs_keep_every_device_busy_and_large_ones_few_at_once():
    most = batching._ACCELERATOR_CHUNK
    for count in (1, 8, 9, 1000, 200_000):
        each = -(-count // 8)
        step, size = batching._sizes(count, 32 * 32, 8, on_cpu=False)
        assert step == size
        assert size // 8 == most or each <= size // 8 < 4 * each
    for on_cpu, area in ((True, 2**16), (False, 2**24)):
        step, size = batching._sizes(10**6, 512 * 512, 1, on_cpu, area=area)
        assert 1 <= step <= size <= 64
        assert batching._sizes(10**6, 8 * 8, 1, on_cpu, area=area)[1] <= most
    assert batching._sizes(10, 512 * 512, 1, on_cpu=False, area=10) == (1, 1)


@pytest.mark.parametrize("channels", [1, 3, 16])
def test_a_chunk_leaves_most_of_the_devices_memory(monkeypatch, channels):
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 2**30}

    monkeypatch.setattr(batching, "_devices", lambda: [Device()])
    area = batching._accelerator_pixels(channels, masked=False)
    # What the program took, compiled for a GPU: bytes a pixel.
    assert 2**24 < area * {1: 273, 3: 524, 16: 3409}[channels] < 2**28
    assert batching._accelerator_pixels(channels, masked=True) < area / 2


def test_what_fills_a_chunk_up_are_pairs_again():
    images = numbered(3)
    for module in (np, jnp):
        filled = batching._filled_up(module.asarray(images), 8)
        np.testing.assert_array_equal(filled[:, 0, 0, 0], [0, 1, 2, 0, 1, 2, 0, 1])


SPREAD = """
import jax
import numpy as np
from jaxreg.compute.batching import map_batches, map_pairs
from tests.test_batching import first_pixels, numbered
assert jax.local_device_count() == 8
images = numbered(1200)
answer = map_pairs(first_pixels, images, images + 1)
np.testing.assert_array_equal(answer.transform.tx, np.arange(1200) % 200)
np.testing.assert_array_equal(answer.transform.ty, np.arange(1200) % 200 + 1)
with jax.default_device(jax.local_devices()[3]):
    answer = map_pairs(first_pixels, images[:70], images[:70])
np.testing.assert_array_equal(answer.transform.ty, np.arange(70))
committed = jax.device_put(images, jax.local_devices()[3])
answer = map_pairs(first_pixels, committed, images + 1)
np.testing.assert_array_equal(answer.transform.tx, np.arange(1200) % 200)
for kind in jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit:
    mesh = jax.make_mesh((8,), ("theirs",), axis_types=(kind,))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("theirs"))
    spread = jax.device_put(images, spec)
    with jax.set_mesh(mesh):
        answer = map_pairs(first_pixels, images, images + 1)
        np.testing.assert_array_equal(answer.transform.tx, np.arange(1200) % 200)
    for call, one in (map_pairs, first_pixels), (map_batches, jax.vmap(first_pixels)):
        answer = call(one, spread, spread)
        np.testing.assert_array_equal(answer.transform.tx, np.arange(1200) % 200)
"""


def test_pairs_are_spread_over_several_devices():
    flags = "--xla_force_host_platform_device_count=8"
    run = subprocess.run(
        [sys.executable, "-c", SPREAD],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]


def test_estimators_are_asked_for_few_different_numbers():
    asked = set()

    def estimator(fixed, moving):
        asked.add(len(fixed))
        return jax.vmap(first_pixels)(fixed, moving)

    for count in (0, 1, 5, 7, 8, 60, 64, 65, 130):
        images = numbered(count)
        answer = batching.map_batches(estimator, images, images + 1)
        np.testing.assert_array_equal(answer.transform.ty, np.arange(count) + 1)
    assert asked == {1, 8, 64}


def test_an_accelerator_is_given_many_at_once_but_no_more_than_fit(monkeypatch):
    class Device:
        platform, memory = "gpu", 2**30

        def memory_stats(self):
            return {"bytes_limit": self.memory}

    device, asked = Device(), set()
    monkeypatch.setattr(batching, "_devices", lambda: [device])

    def estimator(fixed, moving):
        asked.add(len(fixed))
        return jax.vmap(first_pixels)(fixed, moving)

    images = numbered(1500)
    for memory, expected in ((2**30, 1024), (2**24, 128), (2**10, 1)):
        device.memory = memory
        answer = batching.map_batches(estimator, images[: expected + 3], images[: expected + 3] + 1)
        np.testing.assert_array_equal(answer.transform.ty, np.arange(expected + 3) % 200 + 1)
        assert asked == {expected}
        asked.clear()
        jax.eval_shape(lambda f: batching.map_batches(estimator, f, f), images)
        assert asked == {expected, 1500 % expected} - {0}
        asked.clear()
