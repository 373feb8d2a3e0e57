"""Checkpoints: what comes back, and what becomes of damaged ones."""

import dataclasses
import errno
import json
import shutil
import warnings

import jax
import numpy as np
import pytest

from jaxreg.training import checkpoint
from jaxreg.training.checkpoint import (
    Best,
    ChangedDataWarning,
    CheckpointError,
    CheckpointStore,
    DamagedCheckpointWarning,
    DamagedError,
    load_network,
    lock_workdir,
    read_config,
    settle_config,
)
from jaxreg.training.devices import data_mesh
from jaxreg.training.state import abstract_state, create_state
from tests.training_support import (
    TINY_LSTM,
    assert_same_bits,
    register_normed,
    tiny_config,
    write_images,
)

MESH = data_mesh(1)


@pytest.fixture(scope="module", autouse=True)
def _normed():
    with pytest.MonkeyPatch.context() as patch:
        register_normed(patch)
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny_config(write_images(tmp_path_factory.mktemp("images")))


def at_step(state, step):
    """The state with another step, and numbers that belong to that step alone."""

    weights = jax.tree.map(lambda w: w + step, state.weights)
    averages = jax.tree.map(lambda s: s + 2 * step, state.average_statistics)
    return dataclasses.replace(
        state, step=state.step * 0 + step, weights=weights, average_statistics=averages
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory, config):
    """A folder with checkpoints of steps 4 and 8, and the two states."""
    folder = tmp_path_factory.mktemp("saved")
    settle_config(folder, config)
    store = CheckpointStore(folder)
    states = {step: at_step(create_state(config, MESH), step) for step in (4, 8)}
    for step, state in states.items():
        store.save(state, Best(step, 1.5))
    store.close()
    return folder, states


@pytest.fixture
def run(tmp_path, saved):
    """A copy of the folder, and the two states."""
    folder, states = saved
    return shutil.copytree(folder, tmp_path / "run"), states


def restore(folder, config):
    store = CheckpointStore(folder)
    try:
        return store.restore(abstract_state(config, MESH)), store.steps()
    finally:
        store.close()


def test_a_state_comes_back_bit_for_bit(run, config):
    folder, states = run
    (state, best), steps = restore(folder, config)
    assert_same_bits(state, states[8])
    assert best == Best(8, 1.5)
    assert steps == [8, 4]


def test_two_are_kept(run, config):
    folder, states = run
    store = CheckpointStore(folder)
    store.save(at_step(states[4], 12), Best())
    assert store.steps() == [12, 8]
    store.close()
    assert restore(folder, config)[0][1] == Best()


def test_other_data_than_those_of_the_checkpoint_are_told(run, config):
    folder, states = run

    def restored(data):
        store = CheckpointStore(folder, data=data)
        try:
            return store.restore(abstract_state(config, MESH))
        finally:
            store.close()

    began = {"training images": [20, 5], "held-out images": [9, 6]}
    restored(began)  # warnings are errors: a checkpoint of an older version has no data
    store = CheckpointStore(folder, data=began)
    store.save(at_step(states[4], 12), Best())
    store.close()
    restored(began)
    restored(None)
    message = r"training images: 20 -> 1,018; held-out images: 9 -> 9 with other contents\)"
    with pytest.warns(ChangedDataWarning, match=message):
        state, _ = restored({"training images": [1018, 5], "held-out images": [9, 7]})
    assert_same_bits(state, at_step(states[4], 12))


def data_files(folder):
    """The files of a checkpoint with numbers in them, the largest first."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size > 100]
    return sorted(files, key=lambda p: (-p.stat().st_size, str(p)))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def remove(path):
    path.unlink()


@pytest.mark.parametrize("damage", [truncate, flip, remove])
@pytest.mark.parametrize("which", [0, 1, -1])
def test_a_damaged_newest_one_is_passed_over(run, config, damage, which):
    folder, states = run
    damage(data_files(folder / "checkpoints/8")[which])
    with pytest.warns(DamagedCheckpointWarning, match="step 8.*using step 4"):
        (state, _), steps = restore(folder, config)
    assert_same_bits(state, states[4])
    assert steps == [4]  # so that step 8 can be saved again


def test_no_damage_to_any_file_goes_unnoticed_and_harms(run, config, tmp_path):
    """Whatever file is cut: either the state is still right, or the one before is used."""
    folder, states = run
    files = [p.relative_to(folder) for p in (folder / "checkpoints/8").rglob("*") if p.is_file()]
    for number, name in enumerate(files):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(folder, copy)
        truncate(copy / name)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DamagedCheckpointWarning)
            (state, _), _ = restore(copy, config)
        assert_same_bits(state, states[int(state.step)])
        shutil.rmtree(copy)


def test_the_first_process_says_which_ones_are_whole(run, config, monkeypatch):
    """A network file system may show the others different files."""
    folder, states = run
    said = iter([DamagedError("as the first sees it"), None])
    monkeypatch.setattr(checkpoint, "value_of_first_process", lambda _: next(said))
    with pytest.warns(DamagedCheckpointWarning, match=r"step 8: as the first.*using step 4"):
        (state, _), _ = restore(folder, config)
    assert_same_bits(state, states[4])


def test_all_damaged_is_an_error_and_nothing_is_deleted(run, config):
    folder, _ = run
    for step in (4, 8):
        truncate(data_files(folder / f"checkpoints/{step}")[0])
    with pytest.raises(CheckpointError, match=r"no checkpoint .* can be read \(step 8.*step 4"):
        restore(folder, config)
    assert (folder / "checkpoints/8").exists()


def test_a_first_one_that_was_cut_off_is_begun_anew(run, config):
    folder, states = run
    shutil.rmtree(folder / "checkpoints/8")
    (folder / "checkpoints/4/checksums.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        load_network(folder)
    assert (folder / "checkpoints/4").exists()
    assert restore(folder, config) == (None, [])
    store = CheckpointStore(folder)
    store.save(states[4], Best())
    store.close()
    assert_same_bits(restore(folder, config)[0][0], states[4])


def test_several_without_checksums_are_not_thrown_away(run, config):
    folder, _ = run
    for seal in folder.rglob("checksums.json"):
        seal.unlink()
    with pytest.raises(CheckpointError, match=r"step 8: it was never finished; step 4"):
        restore(folder, config)
    assert (folder / "checkpoints/8").exists()


def test_a_half_written_one_is_not_seen(run, config):
    folder, states = run
    whole = folder / "checkpoints/8"
    whole.rename(folder / "checkpoints/8.orbax-checkpoint-tmp-123")
    (state, _), _ = restore(folder, config)
    assert_same_bits(state, states[4])


def test_one_that_is_not_sealed_yet_is_no_damage_to_a_reader(run):
    folder, states = run
    (folder / "checkpoints/8/checksums.json").unlink()
    network = load_network(folder)  # warnings are errors
    assert network.step == 4
    assert_same_bits(network.arrays, (states[4].average, states[4].average_statistics))


def moved(folder, steps, by):
    """The same checkpoints as those of later steps, as a run leaves that went on meanwhile."""
    for step in steps:
        (folder / f"checkpoints/{step}").rename(folder / f"checkpoints/{step + by}")


def test_what_a_run_that_goes_on_drops_is_looked_for_anew(run, config):
    folder, states = run
    store = CheckpointStore(folder, read_only=True)
    abstract = abstract_state(config, MESH)
    moved(folder, (8, 4), 8)
    assert store.restore_network(abstract)[0] == 16
    # The newest of those listed vanishes while it is read: the one before it serves.
    real = store._manager.restore

    def restore(step, args):
        if step == 16:
            raise FileNotFoundError("gone")
        return real(step, args=args)

    store._manager.restore = restore
    with pytest.warns(DamagedCheckpointWarning, match="step 16: it was removed.*using step 12"):
        step, weights, _ = store.restore_network(abstract)
    store.close()
    assert step == 12
    assert_same_bits(weights, states[4].average)


def test_another_configuration_is_refused(run, config):
    folder, _ = run
    settle_config(folder, config)
    settle_config(folder, config.override(["--steps=99", "--save_every=3"]))
    assert read_config(folder).steps == 99
    with pytest.raises(CheckpointError, match=r"batch_size: 8 -> 9; .*\bseed: 0 -> 1\b"):
        settle_config(folder, config.override(["--seed=1", "--batch_size=9"]))

    other = dataclasses.replace(config, network=TINY_LSTM)
    with pytest.raises(CheckpointError, match=r"network: normed -> lstm"):
        settle_config(folder, other)


def test_a_configuration_that_trained_nothing_is_replaced(tmp_path, config):
    settle_config(tmp_path, config)
    CheckpointStore(tmp_path).close()
    settle_config(tmp_path, config.override(["--seed=1"]))
    assert read_config(tmp_path).seed == 1


def test_checkpoints_without_a_configuration_are_refused(run, config):
    folder, _ = run
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds checkpoints without a config\.json"):
        settle_config(folder, config)


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    with lock_workdir(tmp_path), pytest.raises(CheckpointError, match="another run"):
        lock_workdir(tmp_path).__enter__()

    def flock(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock_workdir(tmp_path), lock_workdir(tmp_path):
        pass


def test_load_network_uses_the_averages_and_reads_no_optimiser(run, config):
    folder, states = run
    for part in ("optimizer", "weights", "statistics"):
        shutil.rmtree(folder / "checkpoints/8" / part)
    network = load_network(folder)
    assert (network.step, network.config) == (8, config)
    assert_same_bits(network.arrays, (states[8].average, states[8].average_statistics))


def test_load_network_registers(run):
    network = load_network(run[0])
    rng = np.random.default_rng(0)
    fixed, moving = rng.uniform(0, 255, (2, 3, 8, 8, 3)).astype(np.float32)
    batch = network.estimate(fixed, moving)
    assert batch.transform.tx.shape == batch.score.shape == batch.success.shape == (3,)
    assert_same_bits(network.register_batch(fixed, moving), batch)
    one = network.register(fixed[1], moving[1])
    np.testing.assert_allclose(one.transform.theta, batch.transform.theta[1], rtol=1e-4)
    assert one.score.shape == ()
    grey = network.register(fixed[0, ..., 0].astype(np.uint8), moving[0, ..., 0].astype(np.uint8))
    assert np.isfinite(grey.transform.as_array()).all()
    assert "step=8" in repr(network)
    assert network.parameter_count == 384 * 12 + 12 + 24 + 36 + 3


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((9, 8, 3), "fixed and moving must be 8x8 with 1 or 3 channels"),
        ((8, 8, 2), "fixed and moving must be 8x8 with 1 or 3 channels"),
        ((8,), r"fixed must be \(H, W\) or \(H, W, C\), got shape \(8,\)"),
    ],
)
def test_bad_images_are_named(run, shape, message):
    network = load_network(run[0])
    with pytest.raises(ValueError, match=message):
        network.register(np.zeros(shape), np.zeros(shape))
    with pytest.raises(ValueError, match="finite"):
        network.register(np.full((8, 8), np.nan), np.zeros((8, 8)))


def test_folders_without_a_network(tmp_path, config):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_network(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        load_network(tmp_path / "empty")
    settle_config(tmp_path / "begun", config)
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        load_network(tmp_path / "begun")
    (tmp_path / "begun/config.json").write_text('{"batch')
    with pytest.raises(CheckpointError, match=r"is none of a jaxreg\.train run"):
        load_network(tmp_path / "begun")


def test_the_configuration_is_plain_json(run, config):
    text = json.loads((run[0] / "config.json").read_text())
    assert text["network"] == {"network": "normed", "image_size": 8, "width": 12}
    assert text["data"] == list(config.data)
