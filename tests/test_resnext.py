"""ResNeXt-50 and the extractor networks against torchvision's golden values and OpenCV."""

import functools
import math
import pathlib

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxreg.models.pretrained import from_torch_layout, load_state_dict, torch_key, torch_shape
from jaxreg.models.resnext import ResNeXt
from jaxreg.models.siamese import ResNeXtConfig, enlarge_and_normalise
from jaxreg.pairs import draw_pairs
from tests.compilation_support import quickly_compiled
from tests.golden.random_weights import (
    RESNEXT_INFERENCE,
    RESNEXT_TRAINING,
    STAGES,
    entry,
    sample,
    uniform,
)
from tests.tolerances import RESNEXT

GOLDEN = np.load(pathlib.Path(__file__).parent / "golden" / "networks.npz")
ONE_BLOCK = (1, 1, 1, 1)


@functools.cache
def random_state_dict():
    """A full state dict as torch would write it, every entry of its own random numbers."""
    abstract = nnx.eval_shape(lambda: ResNeXt(1000, rngs=nnx.Rngs(0)))
    entries = {}
    for path, variable in nnx.to_flat_state(nnx.state(abstract)):
        key = torch_key(path)
        entries[key] = entry(key, torch_shape(variable.shape))
        if key.endswith("running_mean"):
            key = key.replace("running_mean", "num_batches_tracked")
            entries[key] = entry(key, ())
    return entries


def full_network():
    network = nnx.eval_shape(lambda: ResNeXt(1000, rngs=nnx.Rngs(0)))
    load_state_dict(network, random_state_dict())
    return network


def filled(config):
    """A network with random numbers in every array; drawing them with JAX takes far longer."""
    network = nnx.eval_shape(lambda: config.build(nnx.Rngs(0)))
    for path, variable in nnx.to_flat_state(nnx.state(network)):
        values = entry(torch_key(path), torch_shape(variable.shape))
        variable.set_value(jnp.asarray(from_torch_layout(values)))
    return network


def pictures(count=4, size=32):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def test_state_dict_and_parameters_are_torchvisions():
    assert len(random_state_dict()) == GOLDEN["resnext/entries"] == 320
    network = nnx.eval_shape(lambda: ResNeXt(1000, rngs=nnx.Rngs(0)))
    count = sum(math.prod(p.shape) for p in jax.tree.leaves(nnx.state(network, nnx.Param)))
    assert count == 25_028_904


def test_inference_is_torchvisions_at_every_stage():
    network = full_network()
    network.eval()
    graph, state = nnx.split(network)
    with jax.default_matmul_precision("highest"):
        run = jax.jit(lambda state, x: nnx.merge(graph, state).stages(x))
        found = run(state, uniform("inference", RESNEXT_INFERENCE))
    for stage in STAGES:
        expected = GOLDEN[f"resnext/inference/{stage}"]
        np.testing.assert_allclose(sample(found[stage]), expected, atol=RESNEXT, err_msg=stage)


def test_training_mode_is_torchvisions():
    graph, state = nnx.split(full_network())

    @jax.jit
    def run(state, x):
        network = nnx.merge(graph, state, copy=True)
        return network.stages(x), nnx.state(network, nnx.BatchStat)

    with jax.default_matmul_precision("highest"):
        found, statistics = run(state, uniform("training", RESNEXT_TRAINING))
    for stage in STAGES:
        expected = GOLDEN[f"resnext/training/{stage}"]
        np.testing.assert_allclose(sample(found[stage]), expected, atol=RESNEXT, err_msg=stage)
    for path, variable in nnx.to_flat_state(statistics):
        key = torch_key(path)
        ours = sample(variable[...], 16)
        if key.endswith("running_var"):  # torch scales the batch's variance by n / (n - 1)
            before = 0.9 * sample(random_state_dict()[key], 16)
            n = GOLDEN["resnext/count/" + key.removesuffix(".running_var")]
            ours = before + (ours - before) * n / (n - 1)
        np.testing.assert_allclose(
            ours, GOLDEN[f"resnext/after/{key}"], atol=RESNEXT, rtol=RESNEXT, err_msg=key
        )


def test_small_images_are_enlarged_as_opencv_does():
    small = pictures(2)
    large = [cv2.resize(p, (64, 64), interpolation=cv2.INTER_LINEAR) for p in small.astype("f4")]
    expected = (np.stack(large) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(enlarge_and_normalise(jnp.asarray(small)), expected, atol=1e-4)
    assert enlarge_and_normalise(jnp.asarray(pictures(1, 96))).shape == (1, 96, 96, 3)


@pytest.mark.parametrize("head", ["fc", "lstm"])
def test_heads_have_the_papers_parameters(head):
    network = nnx.eval_shape(lambda: ResNeXtConfig(head=head).build(nnx.Rngs(0)))
    sizes = {
        name: sum(math.prod(p.shape) for p in jax.tree.leaves(nnx.state(part, nnx.Param)))
        for name, part in (("extractor", network.extractor), ("head", network.head))
    }
    assert sizes["extractor"] == 25_028_904 + 2049 * (3072 - 1000)
    assert sizes["head"] == {"fc": 6145 * 3, "lstm": 216_909_003}[head]


@quickly_compiled()
@pytest.mark.parametrize(("head", "size"), [("fc", 32), ("lstm", 96)])
def test_a_pure_training_step_learns_and_moves_the_statistics(head, size):
    config = ResNeXtConfig(head=head, image_size=size, blocks=ONE_BLOCK, hidden=8, layers=2)
    graph, params, rest = nnx.split(filled(config), nnx.Param, ...)
    pairs = draw_pairs(jax.random.key(0), jnp.asarray(pictures(4, size)), 2, 5.0)

    @jax.jit
    def step(params, rest):
        def loss(params):
            network = nnx.merge(graph, params, rest, copy=True)
            value, estimate = network.loss(pairs)
            return value, (estimate, nnx.split(network, nnx.Param, ...)[2])

        return jax.value_and_grad(loss, has_aux=True)(params)

    (value, (estimate, moved)), gradient = step(params, rest)
    assert np.isfinite(value)
    assert estimate.tx.shape == (2,)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradient))
    for before, after in zip(jax.tree.leaves(rest), jax.tree.leaves(moved), strict=True):
        assert np.abs(before - after).max() > 0


def test_inference_is_one_by_one_and_changes_nothing():
    network = filled(ResNeXtConfig(blocks=ONE_BLOCK))
    network.eval()
    graph, state = nnx.split(network)

    @jax.jit  # the weights as an argument: they would be part of the program
    def estimate(state, fixed, moving):
        merged = nnx.merge(graph, state, copy=True)
        return merged(fixed, moving).as_array(), nnx.state(merged, nnx.BatchStat)

    images = jnp.asarray(pictures(), jnp.float32)
    together, statistics = estimate(state, images, images[::-1])
    same, _ = estimate(state, *(jnp.stack([i] * len(images)) for i in (images[0], images[-1])))
    np.testing.assert_allclose(together[:1], same[:1], atol=RESNEXT)
    for before, after in zip(
        jax.tree.leaves(nnx.state(network, nnx.BatchStat)), jax.tree.leaves(statistics), strict=True
    ):
        np.testing.assert_array_equal(before, after)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="head must be one of fc, lstm, got 'mlp'"):
        ResNeXtConfig(head="mlp")
    with pytest.raises(ValueError, match=r"blocks must be four positive numbers, got \(3, 4\)"):
        ResNeXtConfig(blocks=(3, 4))
    with pytest.raises(ValueError, match="image_size must be at least 1, got 0"):
        ResNeXtConfig(image_size=0)
