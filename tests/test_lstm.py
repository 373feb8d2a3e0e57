"""The LSTM network against Flax's own recurrent layers, torch's golden values and the paper."""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxreg.geometry import RigidTransform
from jaxreg.metrics import paper_loss
from jaxreg.models import NETWORKS
from jaxreg.models.fields import network_from_dict, network_to_dict
from jaxreg.models.lstm import LSTMConfig, TwoStepLSTM
from jaxreg.models.network import resize
from jaxreg.pairs import draw_pairs
from tests.golden import random_weights as golden
from tests.tolerances import FLOAT32_NETWORK


@nnx.jit
def run(network, *inputs):
    """Compiled as one: the networks are dozens of operations."""
    return network(*inputs)


def images(count=3, size=32, seed=0):
    pictures = np.random.default_rng(seed).uniform(0, 255, (count, size, size, 3))
    return jnp.asarray(pictures, jnp.float32)


def flax_stack(lstm, inputs, hidden):
    """The same weights in Flax's cells, which hold one kernel a gate, (in, out)."""
    cells = []
    for layer, size in zip(lstm.layers, [inputs, hidden, hidden], strict=True):
        cell = nnx.OptimizedLSTMCell(size, hidden, rngs=nnx.Rngs(0))
        cell.dense_i.kernel[...] = layer.input_kernel[...].T
        cell.dense_h.kernel[...] = layer.hidden_kernel[...].T
        cell.dense_h.bias[...] = layer.bias[...]
        cells.append(nnx.RNN(cell))
    return cells


def test_equals_flax_recurrent_layers():
    inputs, hidden = 20, 16
    lstm = TwoStepLSTM(inputs, hidden, 3, rngs=nnx.Rngs(1))
    for layer in lstm.layers:  # every bias distinct, so that none can be in the wrong place
        layer.bias[...] = jax.random.normal(jax.random.key(2), layer.bias.shape)
    steps = jax.random.normal(jax.random.key(3), (2, 5, inputs))
    expected = jnp.moveaxis(steps, 0, 1)
    for cell in flax_stack(lstm, inputs, hidden):
        expected = cell(expected)
    expected = expected[:, -1] @ lstm.kernel[...].T + lstm.bias[...]
    np.testing.assert_allclose(run(lstm, *steps), expected, atol=FLOAT32_NETWORK)


def test_equals_torch():
    size = golden.LSTM
    lstm = TwoStepLSTM(size["inputs"], size["hidden"], size["layers"], rngs=nnx.Rngs(0))
    gates = 4 * size["hidden"]
    for i, layer in enumerate(lstm.layers):
        inputs = layer.input_kernel.shape[1]
        weights = {  # torch has two biases a gate
            "input_kernel": golden.uniform(f"lstm.weight_ih_l{i}", (gates, inputs)),
            "hidden_kernel": golden.uniform(f"lstm.weight_hh_l{i}", (gates, size["hidden"])),
            "bias": golden.uniform(f"lstm.bias_ih_l{i}", (gates,))
            + golden.uniform(f"lstm.bias_hh_l{i}", (gates,)),
        }
        for name, value in weights.items():
            getattr(layer, name)[...] = jnp.asarray(value)
    lstm.kernel[...] = jnp.asarray(golden.uniform("linear.weight", (3, size["hidden"])))
    lstm.bias[...] = jnp.asarray(golden.uniform("linear.bias", (3,)))
    steps = golden.uniform("steps", (2, size["count"], size["inputs"]))
    values = np.load(pathlib.Path(golden.__file__).with_name("networks.npz"))
    np.testing.assert_allclose(run(lstm, *steps), values["lstm/outputs"], atol=FLOAT32_NETWORK)


def test_full_size_has_the_papers_parameters():
    network = nnx.eval_shape(lambda: LSTMConfig().build(nnx.Rngs(0)))
    count = sum(math.prod(p.shape) for p in jax.tree.leaves(nnx.state(network, nnx.Param)))
    gates = 4 * 3000
    layers = gates * (3072 + 3000 + 1) + 2 * gates * (3000 + 3000 + 1)
    assert count == layers + 3 * 3001 == 216_909_003


def test_initial_weights_have_variance_one_over_inputs():
    lstm = TwoStepLSTM(300, 64, 2, rngs=nnx.Rngs(0))
    for kernel in (lstm.layers[0].input_kernel, lstm.layers[1].hidden_kernel):
        inputs = kernel.shape[1]
        np.testing.assert_allclose(np.std(kernel[...]) * math.sqrt(inputs), 1, rtol=0.02)
    kernels = [np.asarray(p) for p in jax.tree.leaves(nnx.state(lstm, nnx.Param)) if p.ndim > 1]
    assert len({k.ravel()[0].item() for k in kernels}) == len(kernels), "a key was used twice"


def test_batch_is_one_by_one():
    network = LSTMConfig(hidden=16).build(nnx.Rngs(0))
    fixed, moving = images(seed=1), images(seed=2)
    together = run(network, fixed, moving).as_array()
    for i in range(3):
        alone = run(network, fixed[i : i + 1], moving[i : i + 1]).as_array()[0]
        np.testing.assert_allclose(together[i], alone, atol=FLOAT32_NETWORK)


def test_order_of_the_images_matters():
    network = LSTMConfig(hidden=16).build(nnx.Rngs(0))
    a, b = images(seed=1), images(seed=2)
    assert np.abs(run(network, a, b).as_array() - run(network, b, a).as_array()).max() > 1e-3


def test_large_images_go_in_as_block_means():
    small = images(2, 32)
    large = (
        jnp.repeat(jnp.repeat(small, 3, 1), 3, 2) + jnp.tile(jnp.array([-9.0, 4, 5]), 32)[:, None]
    )
    network = LSTMConfig(hidden=16).build(nnx.Rngs(0))
    wide = LSTMConfig(hidden=16, image_size=96).build(nnx.Rngs(0))
    np.testing.assert_allclose(
        run(wide, large, large[::-1]).as_array(),
        run(network, small, small[::-1]).as_array(),
        atol=FLOAT32_NETWORK,
    )


def test_resize_keeps_a_constant_and_centres():
    ramp = jnp.broadcast_to(jnp.arange(48.0)[:, None], (1, 48, 48))[..., None]
    np.testing.assert_allclose(resize(jnp.full((1, 48, 48, 3), 7.0), 32), 7.0, rtol=1e-6)
    expected = (np.arange(32) + 0.5) * 1.5 - 0.5
    # The antialiasing kernel itself is off a ramp by 0.03 px; misplaced centres would be by 0.25.
    np.testing.assert_allclose(resize(ramp, 32)[0, 2:-2, 0, 0], expected[2:-2], atol=0.05)


def test_outputs_are_scaled_and_the_angle_wrapped():
    plain = LSTMConfig(hidden=16).build(nnx.Rngs(0))
    scaled = LSTMConfig(hidden=16, output_scale=(5.0, 2.0, 1e4)).build(nnx.Rngs(0))
    raw, got = (run(n, images(seed=1), images(seed=2)) for n in (plain, scaled))
    np.testing.assert_allclose(got.tx, 5 * raw.tx, rtol=1e-5)
    np.testing.assert_allclose(got.ty, 2 * raw.ty, rtol=1e-5)
    turns = (np.asarray(got.theta, np.float64) - 1e4 * np.asarray(raw.theta)) / 360
    np.testing.assert_allclose(turns, np.round(turns), atol=1e-3)
    assert np.abs(got.theta).max() <= 180


def test_loss_is_the_papers():
    network = LSTMConfig(hidden=16).build(nnx.Rngs(0))
    pairs = draw_pairs(jax.random.key(0), images(8).astype(jnp.uint8), 6, 5.0)
    loss, estimate = nnx.jit(lambda n: n.loss(pairs, 3.0))(network)
    assert isinstance(estimate, RigidTransform)
    np.testing.assert_allclose(loss, paper_loss(estimate, pairs.transform, 3.0), rtol=1e-6)


def test_every_weight_has_a_gradient():
    network = LSTMConfig(hidden=8, output_scale=(5.0, 5.0, 180.0)).build(nnx.Rngs(0))
    pairs = draw_pairs(jax.random.key(0), images(8).astype(jnp.uint8), 6, 5.0)
    gradient = nnx.jit(nnx.grad(lambda n: n.loss(pairs)[0]))(network)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", list(NETWORKS))
def test_configurations_survive_json(name):
    config = NETWORKS[name]()
    assert network_from_dict(json.loads(json.dumps(network_to_dict(config)))) == config


def test_bad_input_is_named():
    network = LSTMConfig(hidden=8).build(nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"fixed must be \(N, 32, 32, 3\).*\(3, 96, 96, 3\)"):
        network(images(size=96), images())
    with pytest.raises(ValueError, match="as many images, got 3 and 2"):
        network(images(3), images(2))
    with pytest.raises(ValueError, match="hidden must be at least 1, got 0"):
        LSTMConfig(hidden=0)
    with pytest.raises(ValueError, match=r"network must be one of .*lstm.*got 'gru'"):
        network_from_dict({"network": "gru"})
    with pytest.raises(ValueError, match=r"unknown field 'width'; known: hidden, layers"):
        network_from_dict({"network": "lstm", "width": 3})
    with pytest.raises(ValueError, match=r"hidden must be a whole number, got '512'"):
        network_from_dict({"network": "lstm", "hidden": "512"})
    with pytest.raises(ValueError, match=r"output_scale must be 3 values, got \[1, 2\]"):
        network_from_dict({"network": "lstm", "output_scale": [1, 2]})
    with pytest.raises(ValueError, match="config must be one of LSTMConfig"):
        network_to_dict(RigidTransform.identity())
