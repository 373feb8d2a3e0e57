"""The loop: same bits however it is cut up, stops where it must, logs what happened."""

import csv
import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreg.geometry import RigidTransform
from jaxreg.metrics import rotation_error
from jaxreg.training import loop, pictures
from jaxreg.training.batches import TrainingImages, draw_batch, load_training_images
from jaxreg.training.checkpoint import Best, CheckpointError, CheckpointStore, load_network
from jaxreg.training.configs import CONFIGS
from jaxreg.training.devices import data_mesh, place
from jaxreg.training.heldout import Errors, constant_predictor
from jaxreg.training.initial import initial_arrays
from jaxreg.training.loop import NonFiniteError, Summary, next_stop, train
from jaxreg.training.state import abstract_state, create_state
from jaxreg.training.step import compile_dispatch
from tests.compilation_support import quickly_compiled
from tests.training_support import (
    TINY_LSTM,
    assert_same_bits,
    register_normed,
    tiny_config,
    without_pictures,
    write_images,
)

MESH = data_mesh(1)


@pytest.fixture(autouse=True)
def _normed(monkeypatch):
    register_normed(monkeypatch)
    without_pictures(monkeypatch)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def uninterrupted(source, tmp_path_factory):
    """A finished run: its configuration, folder and summary."""
    with pytest.MonkeyPatch.context() as patch:
        register_normed(patch)
        config = tiny_config(source)
        folder = tmp_path_factory.mktemp("whole")
        yield config, folder, train(config, folder)


def final_state(folder, config):
    store = CheckpointStore(folder, read_only=True)
    try:
        return store.restore(abstract_state(config, MESH))
    finally:
        store.close()


def rows(folder):
    """The rows of the metrics without the times."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in r.items() if k != "seconds"} for r in csv.DictReader(file)]


def test_a_run_leaves_what_it_promises(uninterrupted):
    _, folder, summary = uninterrupted
    for name in ("config.json", "metrics.csv", "examples.png", "curve.png", "summary.json"):
        assert (folder / name).stat().st_size > 100
    assert list((folder / "tensorboard").iterdir())
    assert [int(r["step"]) for r in rows(folder)] == [1, 4, 6, 8, 12]
    assert [int(r["step"]) for r in rows(folder) if r["eval_loss"]] == [1, 6, 12]
    assert summary.step == 12
    assert json.loads((folder / "summary.json").read_text())["trained"]["loss"] == pytest.approx(
        summary.trained.loss
    )
    assert summary.best.loss <= summary.trained.loss
    assert "best constant" in str(summary)


def test_the_loaded_network_is_the_one_evaluated(uninterrupted):
    from jaxreg.training.batches import load_held_out_images
    from jaxreg.training.heldout import errors_of, held_out_pairs

    config, folder, summary = uninterrupted
    pairs = held_out_pairs(config, load_held_out_images(config), MESH)
    answer = load_network(folder).estimate(pairs.fixed, pairs.moving)
    errors = errors_of(answer.transform, pairs.transform, config.translation_weight)
    assert errors.loss == pytest.approx(summary.trained.loss, rel=1e-5)


@pytest.mark.parametrize("together", [1, 12])
def test_grouping_of_steps_changes_no_bit(uninterrupted, tmp_path, together):
    config, folder, _ = uninterrupted
    other = config.override(
        ["--save_every=12", "--eval_every=5", f"--steps_per_dispatch={together}"]
    )
    train(other, tmp_path)
    assert_same_bits(final_state(tmp_path, other)[0], final_state(folder, config)[0])


@pytest.mark.parametrize("leaves_after", [1, 9])
def test_a_killed_run_goes_on_bit_for_bit(uninterrupted, tmp_path, monkeypatch, leaves_after):
    """The run dies right after a dispatch, without a word to anyone."""
    config, folder, _ = uninterrupted
    config = config.override(["--steps_per_dispatch=1"])
    write = loop.MetricsLog.write

    def die(self, step, values, seconds):
        write(self, step, values, seconds)
        if step == leaves_after:
            raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(loop.MetricsLog, "write", die)
        with pytest.raises(SystemExit):
            train(config, tmp_path)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("9,cut sho")
    train(config, tmp_path)
    state, best = final_state(tmp_path, config)
    whole, whole_best = final_state(folder, config)
    assert_same_bits(state, whole)
    assert best == whole_best
    assert [int(r["step"]) for r in rows(tmp_path)] == list(range(1, 13))
    evaluated = [[r for r in rows(f) if r["eval_loss"]] for f in (folder, tmp_path)]
    for column in ("eval_loss", "eval_translation", "eval_rotation"):
        assert [r[column] for r in evaluated[0]] == [r[column] for r in evaluated[1]]


def test_a_damaged_newest_checkpoint_costs_steps_but_no_bits(uninterrupted, tmp_path):
    config, folder, _ = uninterrupted
    train(config.override(["--steps=8"]), tmp_path)
    biggest = max((tmp_path / "checkpoints/8").rglob("*"), key=lambda p: p.stat().st_size)
    biggest.write_bytes(biggest.read_bytes()[:100])
    with pytest.warns(UserWarning, match="step 8.*using step 4"):
        train(config, tmp_path)
    assert_same_bits(final_state(tmp_path, config)[0], final_state(folder, config)[0])


def test_a_finished_run_is_left_as_it_is(uninterrupted):
    config, folder, summary = uninterrupted
    before = rows(folder)
    again = train(config, folder)
    assert (again.trained, again.best) == (summary.trained, summary.best)
    assert rows(folder) == before


def test_the_pictures_show_the_last_evaluation(uninterrupted, monkeypatch):
    config, folder, _ = uninterrupted
    estimates, shown = [], []
    make = loop.make_estimate

    def recording(*arguments):
        estimate = make(*arguments)

        def recorded(state, pairs):
            estimates.append(estimate(state, pairs))
            return estimates[-1]

        return recorded

    monkeypatch.setattr(loop, "make_estimate", recording)
    monkeypatch.setattr(pictures, "write_examples", lambda *drawn: shown.extend(drawn[1:]))
    train(config, folder)
    (estimate,) = estimates  # of other numbers of pairs the network would be compiled again
    few, answers = shown
    np.testing.assert_array_equal(answers.as_array(), estimate.as_array()[:6])
    assert few.fixed.shape[0] == 6


def test_another_configuration_is_refused(uninterrupted):
    config, folder, _ = uninterrupted
    with pytest.raises(CheckpointError, match=r"learning_rate: 0\.001 -> 0\.1"):
        train(config.override(["--learning_rate=0.1"]), folder)


def test_two_runs_do_not_train_in_one_folder(uninterrupted, tmp_path, monkeypatch):
    config, folder, _ = uninterrupted
    write = loop.MetricsLog.write

    def meanwhile(self, step, values, seconds):
        write(self, step, values, seconds)
        with pytest.raises(CheckpointError, match=f"another run is training in {tmp_path}"):
            train(config, tmp_path)

    monkeypatch.setattr(loop.MetricsLog, "write", meanwhile)
    train(config, tmp_path)
    assert rows(tmp_path) == rows(folder)
    assert_same_bits(final_state(tmp_path, config)[0], final_state(folder, config)[0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", r"config\.json is none of a jaxreg\.train run: unknown field 'mine'"),
        ("metrics.csv", r"holds metrics\.csv without a config\.json"),
        ("summary.json", r"holds summary\.json without a config\.json"),
        ("curve.png", r"holds curve\.png without a config\.json"),
    ],
)
def test_files_of_others_are_not_overwritten(source, tmp_path, name, message):
    text = '{"mine": 1}'
    (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        train(tiny_config(source), tmp_path)
    assert (tmp_path / name).read_text() == text
    assert [path.name for path in tmp_path.glob("[!.]*")] == [name]


def test_the_folder_may_be_below_ones_home(source, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = tiny_config(source, steps=1)
    train(config, "~/run")
    assert int(final_state(tmp_path / "run", config)[0].step) == 1


def test_a_picture_that_cannot_be_drawn_costs_none_that_is_there(tmp_path):
    class Failing:
        def savefig(self, file, **_):
            file.write(b"half")
            raise OSError("full")

    path = tmp_path / "curve.png"
    path.write_bytes(b"whole")
    with pytest.raises(OSError, match="full"):
        pictures._write(path, Failing())
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


def test_it_learns(source, tmp_path):
    config = tiny_config(
        source, steps=400, learning_rate=3e-3, eval_every=400, save_every=400, data=(source,)
    )
    config = config.override(["--steps_per_dispatch=100", "--max_shift=3"])
    summary = train(config, tmp_path)
    first, last = rows(tmp_path)[0], rows(tmp_path)[-1]
    assert float(last["train_loss"]) < 0.8 * float(first["train_loss"])
    assert summary.trained.loss < summary.constant.loss


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_non_finite_stops_with_the_step_and_keeps_the_last_good_state(
    source, tmp_path, monkeypatch, average
):
    config = tiny_config(source, average_decay=average)

    def poisoned(key, images, settings):
        pairs = draw_batch(key, images, settings)
        bad = jax.random.key_data(key)[0] == jax.random.key_data(bad_key)[0]
        return jax.tree.map(lambda x: jnp.where(bad, jnp.nan, x), pairs)

    bad_key = jax.random.fold_in(create_state(config, MESH).key, 6)
    monkeypatch.setattr("jaxreg.training.step.draw_batch", poisoned)
    good = config.override(["--steps=6"])
    train(good, tmp_path / "good")
    with pytest.raises(NonFiniteError, match=r"at step 7: loss nan.*after step 6 is saved"):
        train(config, tmp_path / "bad")
    kept = final_state(tmp_path / "bad", config)[0]
    assert int(kept.step) == 6
    assert_same_bits(kept, final_state(tmp_path / "good", good)[0])


def test_starts_from_another_runs_weights(uninterrupted, source, tmp_path):
    _, folder, _ = uninterrupted
    other = tiny_config(source, steps=1, learning_rate=1e-12, init_from=str(folder))
    train(other, tmp_path / "next")
    started = final_state(tmp_path / "next", other)[0]
    np.testing.assert_allclose(
        started.weights["first"]["kernel"],
        load_network(folder).arrays[0]["first"]["kernel"],
        atol=1e-11,
    )
    misfit = tiny_config(source, network=TINY_LSTM, init_from=str(folder))
    with pytest.raises(ValueError, match="do not fit"):
        train(misfit, tmp_path / "misfit")


def test_weights_whose_answers_mean_something_else_are_told(source, tmp_path, capsys):
    plain = dataclasses.replace(TINY_LSTM, output_scale=(1.0, 1.0, 1.0))
    train(tiny_config(source, network=plain, steps=1), tmp_path)
    change = "network.output_scale: (1.0, 1.0, 1.0) -> (5.0, 5.0, 180.0)"
    for network, told in ((plain, False), (TINY_LSTM, True)):
        initial_arrays(tiny_config(source, network=network, init_from=str(tmp_path)))
        assert (change in capsys.readouterr().out) == told


def test_stops_cover_every_step():
    config = CONFIGS["lstm_cifar10"].override(
        ["--steps=50", "--steps_per_dispatch=7", "--eval_every=10", "--save_every=15"]
    )
    step, stops = 0, []
    while step < config.steps:
        step = next_stop(step, config)
        stops.append(step)
    assert stops[0] == 1
    assert stops[-1] == 50
    assert {10, 15, 20, 30, 40, 45} <= set(stops)
    assert max(b - a for a, b in itertools.pairwise(stops)) <= 7


@quickly_compiled()
def test_scene_pairs_and_disturbances_join_the_batch(source):
    config = tiny_config(source, scene_share=0.25, scene_tiles=3)
    config = config.override(["--disturbance.noise=10"])
    images = load_training_images(config)
    assert images.tiles.shape[0] == 3
    draw = jax.jit(draw_batch, static_argnums=2)
    pairs = draw(jax.random.key(0), images, config)
    assert pairs.fixed.shape == pairs.moving.shape == (8, 8, 8, 3)
    clean = config.override(["--disturbance.noise=0"])
    undisturbed = draw(jax.random.key(0), images, clean)
    assert_same_bits(pairs.transform, undisturbed.transform)
    noise = np.asarray(pairs.fixed - undisturbed.fixed).std((1, 2, 3))
    assert (noise > 0.05).sum() >= 6
    assert noise.max() < 13
    # Only warped pictures have the exact zeros of what lies outside.
    zeros = (np.asarray(undisturbed.moving) == 0).all(-1).any((1, 2))
    assert not zeros[:2].any()
    assert zeros[2:].any()


def test_pictures_that_no_pair_is_drawn_from_are_not_loaded(source):
    config = tiny_config(source, scene_share=1.0, scene_tiles=3)
    images = load_training_images(config)
    assert images.pictures is None
    assert str(images) == "3 places of photographs"
    pairs = jax.eval_shape(lambda key: draw_batch(key, images, config), jax.random.key(0))
    assert pairs.fixed.shape == (8, 8, 8, 3)
    pictures = np.zeros((2000, 8, 8, 3), np.uint8)
    assert str(TrainingImages(pictures, images.tiles)) == "2,000 images and 3 places of photographs"


def test_a_constant_without_error_has_no_share():
    none, some = Errors(0.0, 30.0, 3.0), Errors(0.5, 10.0, 2.0)
    assert "(- and 33% of it)" in str(Summary(7, some, none, Best(), 1.0))


def test_the_constant_predictor_is_the_best_constant():
    rng = np.random.default_rng(0)
    truth = RigidTransform(*jnp.asarray(rng.normal(170, 40, (3, 200)), jnp.float32))
    best = constant_predictor(truth)
    error = rotation_error(best.theta, truth.theta).mean()
    for angle in range(0, 360, 7):
        assert error <= rotation_error(float(angle), truth.theta).mean() + 1e-4
    assert float(best.tx[0]) == pytest.approx(np.median(truth.tx), rel=1e-5)


def test_images_are_an_argument_and_the_state_is_donated(source):
    config = tiny_config(source)
    images = place(MESH, TrainingImages(np.zeros((5, 8, 8, 3), np.uint8)))
    state = create_state(config, MESH)
    program = compile_dispatch(config, MESH, state, images)
    new, report = program(state, images, place(MESH, np.int32(3)))
    assert int(new.step) == 3
    assert bool(report.finite)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.weights))


def test_every_step_draws_pairs_of_its_own(source):
    """The loss tells, of weights that stay as they are."""
    config = tiny_config(source, learning_rate=1e-12)
    images = place(MESH, load_training_images(config))
    state = create_state(config, MESH)
    program = compile_dispatch(config, MESH, state, images, loops=False)
    losses = []
    for _ in range(3):
        state, report = program(state, images, place(MESH, np.int32(1)))
        losses.append(float(report.sums.loss))
    assert all(a != pytest.approx(b, rel=1e-3) for a, b in itertools.combinations(losses, 2))


def test_weights_and_statistics_are_averaged_alike(source):
    config = tiny_config(source)
    images = place(MESH, load_training_images(config))
    state = create_state(config, MESH)
    old = jax.device_get((state.weights, state.statistics))
    program = compile_dispatch(config, MESH, state, images, loops=False)
    new, _ = program(state, images, place(MESH, np.int32(1)))
    averages = (new.average, new.average_statistics)
    assert jax.tree.leaves(new.statistics)
    for leaf in range(len(jax.tree.leaves(old))):
        before, after, average = (
            np.asarray(jax.tree.leaves(tree)[leaf])
            for tree in (old, (new.weights, new.statistics), averages)
        )
        np.testing.assert_allclose(average, 0.1 * before + 0.9 * after, rtol=1e-5, atol=1e-7)


def test_steps_are_the_same_whether_the_program_or_the_host_makes_them(source):
    config = tiny_config(source)
    images = place(MESH, load_training_images(config))
    results = []
    for loops in (True, False):
        state = create_state(config, MESH)
        program = compile_dispatch(config, MESH, state, images, loops)
        results.append(program(state, images, place(MESH, np.int32(3))))
    (state, report), (other, other_report) = results
    assert int(state.step) == int(other.step) == 3
    assert float(report.sums.loss) == pytest.approx(float(other_report.sums.loss), rel=1e-5)
