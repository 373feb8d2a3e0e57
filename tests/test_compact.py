"""The compact network: its geometry against SciPy and NumPy, its invariances, its learning."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.ndimage
from flax import nnx

from jaxreg.compute.small_systems import inverse
from jaxreg.geometry import RigidTransform
from jaxreg.metrics import rotation_error, translation_error
from jaxreg.models.compact import CompactConfig, shrink
from jaxreg.models.fields import network_from_dict, network_to_dict
from jaxreg.models.gauss_newton import blur, gauss_newton_step
from jaxreg.models.volume import (
    GRID,
    correlate,
    disc,
    quarter_turns,
    rotations,
    visible,
    window_sums,
    windows,
)
from jaxreg.pairs import draw_pairs, warp_pairs
from jaxreg.warping import warp
from tests.compilation_support import quickly_compiled
from tests.tolerances import FLOAT32_INTENSITY, FLOAT32_NETWORK
from tests.training_support import TINY_COMPACT


def pictures(count, size=32, sigma=1.5, seed=0):
    noise = np.random.default_rng(seed).uniform(0, 255, (count, size, size, 3))
    smooth = scipy.ndimage.gaussian_filter(noise, (0, sigma, sigma, 0))
    low, high = smooth.min(), smooth.max()
    return ((smooth - low) / (high - low) * 255).astype(np.float32)


def feature_maps(count=2, channels=3, seed=0):
    maps = np.random.default_rng(seed).normal(size=(count, channels, GRID, GRID))
    return maps.astype(np.float32)


@functools.cache
def program(config):
    graph = nnx.graphdef(config.build(nnx.Rngs(0)))
    return jax.jit(lambda state, f, m: nnx.merge(graph, state).predict(f, m))


def predict(network, fixed, moving):
    """Compiled once for all networks of a configuration, and four pairs at a time."""
    run, state = program(network.config), nnx.state(network)
    parts = [slice(k, k + 4) for k in range(0, len(fixed), 4)]
    results = [run(state, fixed[some], moving[some]) for some in parts]
    return jax.tree.map(lambda *v: jnp.concatenate(v), *results)


def on_disc(maps, window):
    """Values of maps (..., GRID, GRID) at the points of the disc in their middle."""
    x, y = (np.rint(v + (GRID - 1) / 2).astype(int) for v in disc(window))
    return maps[..., y, x]


def test_quarter_rotations_agree_with_the_warp():
    maps = feature_maps()
    turned = rotations(24, 14)(maps.reshape(2, 3, -1)).reshape(2, 3, 6, -1)
    for k in range(6):
        t = RigidTransform(0.0, 0.0, 15.0 * k)
        expected = np.stack([np.moveaxis(warp(m.transpose(1, 2, 0), t), -1, 0) for m in maps])
        np.testing.assert_allclose(turned[:, :, k], on_disc(expected, 14), atol=FLOAT32_NETWORK)


def test_quarter_turns_agree_with_numpy():
    maps = feature_maps(2, 3 * 5).reshape(2, 3, 5, GRID, GRID)  # 5 templates of 3 channels
    turned = quarter_turns(3, 20, 12)(on_disc(maps, 12).reshape(2, -1)).reshape(2, 4, 5, 3, -1)
    for k in range(4):
        expected = on_disc(np.rot90(maps, -k, (3, 4)), 12).swapaxes(1, 2)
        np.testing.assert_array_equal(turned[:, k], expected)


def test_windows_are_slices_of_the_padded_map():
    maps, reach = feature_maps(), 4
    cut = np.asarray(windows(14, reach)(maps.reshape(2, 3, -1))).reshape(2, 3, -1, 9, 9)
    padded = np.pad(maps, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    for dy, dx in [(-4, -4), (0, 0), (3, -2), (4, 1)]:
        shifted = padded[:, :, reach + dy :, reach + dx :][:, :, :GRID, :GRID]
        np.testing.assert_array_equal(cut[..., dy + reach, dx + reach], on_disc(shifted, 14))
    sums = (maps.reshape(2, 3, -1) @ window_sums(14, reach)).reshape(2, 3, 9, 9)
    np.testing.assert_allclose(sums, cut.sum(2), atol=1e-4)
    assert visible(14, reach).reshape(-1, 9, 9)[:, 4, 4].all()
    assert not visible(14, reach)[:, 0].all()


@pytest.mark.parametrize(
    ("sparse", "inputs"),
    [(rotations(24, 12), GRID**2), (quarter_turns(2, 8, 14), 4 * 156), (windows(12, 3), GRID**2)],
)
def test_maps_are_linear_with_exact_derivatives(sparse, inputs):
    x = jax.random.normal(jax.random.key(0), (2, inputs))
    out, pull = jax.vjp(sparse, x)
    slope = jax.random.normal(jax.random.key(1), out.shape)
    # <A x, s> = <x, A^T s> for every linear map A.
    assert jnp.vdot(out, slope) == pytest.approx(float(jnp.vdot(x, pull(slope)[0])), rel=1e-4)


def test_correlation_peaks_at_the_true_rotation_and_shift():
    size, reach = GRID, 4
    smooth = scipy.ndimage.gaussian_filter(feature_maps(4, 3), (0, 0, 1.0, 1.0))
    truth = [(0.0, 0.0, 0), (3.0, -2.0, 5), (-4.0, 4.0, 12), (1.0, 3.0, 23)]
    moving = np.stack(
        [
            np.moveaxis(warp(m.transpose(1, 2, 0), RigidTransform(x, y, 15.0 * k)), -1, 0)
            for m, (x, y, k) in zip(smooth, truth, strict=True)
        ]
    )
    flat = (maps.reshape(4, 3, size * size) for maps in (smooth, moving))
    volume = np.asarray(correlate(*flat, 24, 14, reach)).reshape(4, 24, 9, 9)
    for v, (x, y, k) in zip(volume, truth, strict=True):
        assert np.unravel_index(v.argmax(), v.shape) == (k, y + reach, x + reach)
        assert 0.8 < v.max() < 1.2


def test_blur_agrees_with_scipy():
    images = pictures(1, 16)
    kernel = np.outer([1, 2, 1], [1, 2, 1])[None, :, :, None] / 16
    expected = scipy.ndimage.convolve(images, kernel, mode="nearest")
    np.testing.assert_allclose(blur(images), expected, atol=FLOAT32_INTENSITY)


def test_inverse_agrees_with_numpy():
    half = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)
    matrices = half @ half.transpose(0, 2, 1)
    np.testing.assert_allclose(inverse(matrices), np.linalg.inv(matrices), rtol=1e-3, atol=1e-4)


improve = jax.jit(gauss_newton_step)  # one, so that it is compiled once


def test_gauss_newton_step_moves_an_estimate_to_the_truth():
    truth = RigidTransform(*(jnp.array(v) for v in ([3.2, -1.0], [-2.4, 0.3], [100.0, -37.0])))
    pairs = warp_pairs(pictures(2), truth, "cubic")
    start = RigidTransform(truth.tx + 0.6, truth.ty - 0.5, truth.theta + 3.0)
    images = blur(pairs.fixed), blur(1.2 * pairs.moving - 10.0)  # gain and bias are fitted
    estimate = start
    for _ in range(4):
        estimate, precision = improve(*images, estimate, jnp.zeros((2, 3, 3)), jnp.float32(1.0))
    assert translation_error(estimate, truth).max() < 0.06
    assert rotation_error(estimate.theta, truth.theta).max() < 0.2
    assert jnp.linalg.eigvalsh(precision).min() > 0


def test_gauss_newton_step_stays_where_the_images_say_nothing():
    flat = jnp.full((2, 32, 32, 3), 90.0)
    start = RigidTransform.from_array(jnp.float32([[1.0, 2.0, 30.0], [-3.0, 0.5, 200.0 - 360.0]]))
    estimate, _ = improve(flat, flat, start, jnp.stack([jnp.eye(3)] * 2), jnp.float32(1.0))
    np.testing.assert_allclose(estimate.as_array(), start.as_array(), atol=1e-3)


@quickly_compiled()
def test_is_small_and_takes_other_sizes():
    network = CompactConfig().build(nnx.Rngs(0))
    weights = jax.tree.leaves(nnx.state(network, nnx.Param))
    assert sum(w.size for w in weights) < 50_000
    large = dataclasses.replace(TINY_COMPACT, image_size=96).build(nnx.Rngs(0))
    small = TINY_COMPACT.build(nnx.Rngs(0))
    images = pictures(4, 96, 4.5)
    fixed, moving = images, images[:, ::-1]
    t32, c32, p32 = predict(small, shrink(fixed), shrink(moving))
    t96, c96, p96 = predict(large, fixed, moving)
    np.testing.assert_allclose(t96.tx, 3 * t32.tx, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(t96.theta, t32.theta, atol=1e-2)
    np.testing.assert_allclose(c96[:, 0, 0], 9 * c32[:, 0, 0], rtol=1e-2)
    np.testing.assert_allclose(c96[:, 2, 2], c32[:, 2, 2], rtol=1e-2)
    np.testing.assert_allclose(p96, p32, rtol=1e-2)


def test_shrinking_keeps_ramps_and_means():
    y, x = np.mgrid[:96, :96].astype(np.float32)
    small = np.asarray(shrink((2 * x - y)[None, :, :, None]))[0, 1:-1, 1:-1, 0]
    rows = 3 * np.arange(1, 31) + 1
    np.testing.assert_allclose(small, (2 * rows[None] - rows[:, None]), atol=1e-3)
    assert shrink(jnp.ones((1, 50, 50, 3))).shape == (1, 32, 32, 3)
    np.testing.assert_allclose(shrink(jnp.ones((1, 50, 50, 3))), 1.0, atol=1e-5)


def test_gain_and_bias_change_nothing():
    network = TINY_COMPACT.build(nnx.Rngs(0))
    pairs = draw_pairs(jax.random.key(0), jnp.asarray(pictures(4), jnp.uint8), 4, 5.0)
    plain, *_ = predict(network, pairs.fixed, pairs.moving)
    lit, *_ = predict(network, pairs.fixed, 0.8 * pairs.moving + 12.0)
    np.testing.assert_allclose(lit.as_array(), plain.as_array(), atol=0.05)


def test_batches_are_one_by_one_and_finite():
    network = TINY_COMPACT.build(nnx.Rngs(0))
    images = np.concatenate([pictures(2), np.full((1, 32, 32, 3), 128.0, np.float32)])
    images = np.concatenate([images, np.zeros((1, 32, 32, 3), np.float32)])
    transform, covariance, certainty = predict(network, images, images[::-1])
    assert bool(jnp.isfinite(transform.as_array()).all() & jnp.isfinite(covariance).all())
    assert float(jnp.diagonal(covariance, axis1=1, axis2=2).min()) > 0
    assert bool(((certainty >= 0) & (certainty <= 1 + 1e-5)).all())
    np.testing.assert_allclose(covariance, covariance.swapaxes(1, 2), rtol=1e-3, atol=1e-6)
    for i in range(2):
        alone, *_ = predict(network, images[i : i + 1], images[::-1][i : i + 1])
        np.testing.assert_allclose(alone.as_array()[0], transform.as_array()[i], atol=1e-2)


def test_learns_to_register_in_seconds():
    network = TINY_COMPACT.build(nnx.Rngs(0))
    graph, weights, rest = nnx.split(network, nnx.Param, ...)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(5e-3))
    images = jnp.asarray(pictures(64), jnp.uint8)

    @jax.jit
    def step(weights, state, key):
        pairs = draw_pairs(key, images, 16, 5.0)

        def loss(weights):
            return nnx.merge(graph, weights, rest).loss(pairs)[0]

        value, slope = jax.value_and_grad(loss)(weights)
        update, state = optimiser.update(slope, state)
        return optax.apply_updates(weights, update), state, value

    state, losses = optimiser.init(weights), []
    for i in range(60):
        weights, state, value = step(weights, state, jax.random.key(i))
        losses.append(float(value))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 3
    pairs = draw_pairs(jax.random.key(1000), jnp.asarray(pictures(64, seed=1), jnp.uint8), 64, 5.0)
    trained = nnx.merge(graph, weights, rest)
    transform, _, certainty = predict(trained, pairs.fixed, pairs.moving)
    shift = np.asarray(translation_error(transform, pairs.transform))
    turn = np.asarray(rotation_error(transform.theta, pairs.transform.theta))
    assert np.median(shift) < 0.2
    assert np.median(turn) < 0.5
    # It is far less sure of two images that have nothing to do with each other.
    _, _, unrelated = predict(trained, pairs.fixed, pairs.moving[::-1])
    assert np.median(unrelated) < 0.5 * np.median(certainty)


def test_loss_judges_its_own_estimate():
    network = TINY_COMPACT.build(nnx.Rngs(0))
    pairs = draw_pairs(jax.random.key(3), jnp.asarray(pictures(6), jnp.uint8), 6, 5.0)
    value, estimate = jax.eval_shape(network.loss, pairs)
    assert value.shape == ()
    assert estimate.tx.shape == (6,)


def test_configuration_survives_json():
    config = dataclasses.replace(TINY_COMPACT, image_size=96)
    assert network_to_dict(config)["network"] == "compact"
    assert network_from_dict(network_to_dict(config)) == config


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image_size", 16, "at least 32, got 16"),
        ("angles", 30, "multiple of 4"),
        ("window", 13, "even"),
        ("window", 16, "even, from 2 to 14"),
        ("features", 0, "at least 1"),
        ("steps", -1, "negative"),
    ],
)
def test_bad_settings_are_named(field, value, message):
    with pytest.raises(ValueError, match=f"{field} must.*{message}"):
        CompactConfig(**{field: value})


def test_bad_images_are_named():
    network = TINY_COMPACT.build(nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"moving must be \(N, 32, 32, 3\)"):
        network(jnp.zeros((2, 32, 32, 3)), jnp.zeros((2, 32, 32)))
