"""The command line: what the named configurations stand for, mistakes are told in one line."""

import dataclasses
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxreg import train as command
from jaxreg.models import NETWORKS
from jaxreg.models.network import network_structure
from jaxreg.network_files import SHIPPED
from jaxreg.training.batches import TrainingImages
from jaxreg.training.checkpoint import ChangedDataWarning, CheckpointStore
from jaxreg.training.configs import CONFIGS
from jaxreg.training.devices import data_mesh, place
from jaxreg.training.loading import load
from jaxreg.training.state import (
    abstract_state,
    create_state,
    make_optimizer,
)
from jaxreg.training.step import compile_dispatch, train_step
from tests.compilation_support import quickly_compiled
from tests.training_support import (
    TINY_COMPACT,
    assert_same_bits,
    smallest_run,
    without_pictures,
    write_images,
)

REPOSITORY = Path(__file__).parent.parent
# Small networks of each kind, to take a step with a configuration made for a large one.
REDUCED = {
    "lstm": {"hidden": 8, "layers": 1},
    "resnext": {"hidden": 8, "layers": 1, "blocks": (1, 1, 1, 1)},
    "compact": dataclasses.asdict(TINY_COMPACT),
}


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    without_pictures(monkeypatch)


def image_set(config):
    """Images of a configuration's size, and what is cut from for scene pairs, if it has any."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (3, config.image_size, config.image_size, 3), np.uint8)
    tiles = rng.integers(0, 256, (2, 400, 400, 3), np.uint8) if config.scene_pairs else None
    return TrainingImages(pictures, tiles)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_named_configuration_fits_its_step(name):
    """At full size but for ResNeXt's depth, without a number worked out: it stays what it is."""
    config = CONFIGS[name]
    if "resnext" in name:
        shallow = dataclasses.replace(config.network, blocks=(1, 1, 1, 1))
        config = dataclasses.replace(config, network=shallow)
    mesh = data_mesh(1)
    step = functools.partial(
        train_step,
        config=config,
        structure=network_structure(config.network)[0],
        optimizer=make_optimizer(config),
        mesh=mesh,
    )
    state = abstract_state(config, mesh)
    after, metrics = jax.eval_shape(step, state, image_set(config))
    assert metrics.loss.shape == ()
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        assert (new.shape, new.dtype) == (old.shape, old.dtype)


@quickly_compiled()
@pytest.mark.parametrize("name", ["quickstart", "lstm_cifar10", "resnext_lstm_stl10"])
def test_a_configuration_of_each_kind_takes_a_step(name):
    config = CONFIGS[name]
    kind = next(k for k, v in NETWORKS.items() if type(config.network) is v)
    network = dataclasses.replace(config.network, **REDUCED[kind])
    config = dataclasses.replace(config, network=network, batch_size=2, scene_tiles=2)
    mesh = data_mesh(config.batch_size)
    state, images = create_state(config, mesh), place(mesh, image_set(config))
    program = compile_dispatch(config, mesh, state, images)
    state, report = program(state, images, place(mesh, np.int32(1)))
    assert int(state.step) == 1
    assert bool(report.finite)
    assert 0 < float(report.sums.rotation) <= 180


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), size=32)


def arguments(source, workdir, *more):
    return ["train", *smallest_run(source, workdir, "--steps=6", "--steps_per_dispatch=3", *more)]


def test_trains_into_the_workdir(source, tmp_path, capsys):
    assert command.main(arguments(source, tmp_path / "run")) == 0
    assert (tmp_path / "run/checkpoints/6").exists()
    out, error = capsys.readouterr()
    assert "after 6 steps: trained" in out
    assert "6/6" not in error  # the bar is for terminals


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batchsize=4"], "unknown field 'batchsize'; did you mean batch_size?"),
        (["--batch_size=x"], "batch_size must be a whole number, got 'x'"),
        (["--config=lstm_cifar"], "config must be one of"),
        (["stray"], "expected --field=value, got 'stray'"),
        (["--data=arrays:/nowhere.npz"], "/nowhere.npz"),
        (["--init_from=/nowhere"], "no trained network '/nowhere'"),
        (["--init_from=/nowhere.safetensors"], "/nowhere.safetensors: there is no such file"),
    ],
)
def test_mistakes_are_told_in_one_line(source, tmp_path, capsys, more, message):
    assert command.main(arguments(source, tmp_path / "run", *more)) == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxreg.train: ")
    assert message in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1


def test_images_that_changed_are_told_when_a_run_goes_on(tmp_path, capsys):
    source = write_images(tmp_path, size=32)
    assert command.main(arguments(source, tmp_path / "run")) == 0
    assert command.main(arguments(source, tmp_path / "run", "--steps=7")) == 0
    write_images(tmp_path, size=32, count=18)
    with pytest.warns(ChangedDataWarning, match=r"training images: 20 -> 18; held-out.* 20 -> 18"):
        assert command.main(arguments(source, tmp_path / "run", "--steps=8")) == 0


def test_initial_weights_that_cannot_be_read_are_told(source, tmp_path, capsys):
    path = tmp_path / "cut.safetensors"
    path.write_bytes((SHIPPED / "compact32.safetensors").read_bytes()[:-1000])
    assert command.main(arguments(source, tmp_path / "run", f"--init_from={path}")) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"jaxreg.train: init_from: '{path}' is not a safetensors file: ")
    save_file({"conv1.weight": np.zeros(3, np.float32)}, path)
    assert command.main(arguments(source, tmp_path / "run", f"--init_from={path}")) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"jaxreg.train: init_from: '{path}': published weights are those of ")


def test_a_systems_error_is_told_as_by_every_command(source, tmp_path, capsys):
    taken = tmp_path / "run"
    taken.write_text("")
    assert command.main(arguments(source, taken)) == 2
    assert capsys.readouterr().err == f"jaxreg.train: {taken}: File exists\n"


def test_a_damaged_log_is_told_and_the_network_can_still_be_used(source, tmp_path, capsys):
    assert command.main(arguments(source, tmp_path)) == 0
    assert load(tmp_path).training_seconds > 0
    log = tmp_path / "metrics.csv"
    log.write_text("a,b,c\n1,2,3\n")
    assert load(tmp_path).training_seconds is None
    capsys.readouterr()
    assert command.main(arguments(source, tmp_path)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"jaxreg.train: {log} is not as")
    assert len(error.splitlines()) == 1
    log.unlink()
    assert command.main(arguments(source, tmp_path)) == 0


def test_help_names_the_fields(capsys):
    assert command.main(["train", "--config=lstm_cifar10", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--network." in text
    assert "lstm_cifar10" in text


def test_non_finite_is_status_one(source, tmp_path, capsys):
    status = command.main(arguments(source, tmp_path, "--learning_rate=1e38", "--steps=50"))
    assert status == 1
    assert "non-finite at step" in capsys.readouterr().err


def test_weights_that_overflow_are_told_where_loss_and_gradient_do_not(source, tmp_path, capsys):
    assert command.main(arguments(source, tmp_path, "--learning_rate=1e30")) == 1
    assert "the norm of the weights after it is not finite" in capsys.readouterr().err


def test_numbers_stay_of_32_bits_where_jax_defaults_to_float64(source, tmp_path):
    answers = []
    for name, wide in (("plain", False), ("wide", True)):
        with jax.enable_x64(wide):
            assert command.main(arguments(source, tmp_path / name)) == 0
            network = load(tmp_path / name)
            assert {leaf.dtype for leaf in jax.tree.leaves(network.arrays)} == {np.dtype("float32")}
            images = np.full((2, 32, 32, 3), 70.0, np.float32)
            answers.append((network.arrays, network.estimate(images, images).transform))
    assert_same_bits(*answers)


@pytest.mark.skipif(sys.platform == "win32", reason="no limit to set")
def test_a_full_disk_is_told(source, tmp_path):
    """A limit on the size of files, smaller than the weights, stands for it."""
    run = [sys.executable, "-m", "jaxreg.train", *arguments(source, tmp_path)[1:]]
    result = subprocess.run(
        ["sh", "-c", 'ulimit -f 150 && exec "$@"', "sh", *run],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0"},
        timeout=120,
    )
    assert result.returncode == 2
    # Threads of tensorstore's may say more behind it.
    assert "\njaxreg.train: no checkpoint written at step 6: " in "\n" + result.stderr
    assert "_SignalingThread" not in result.stderr  # orbax's own report


MANY = ["--steps=4000", "--save_every=500", "--eval_every=4000", "--steps_per_dispatch=20"]


def final_state(source, workdir):
    config = CONFIGS["lstm_cifar10_paper"].override(arguments(source, workdir, *MANY)[3:])
    store = CheckpointStore(workdir, read_only=True)
    try:
        return store.restore(abstract_state(config, data_mesh(config.batch_size)))[0]
    finally:
        store.close()


@pytest.fixture(scope="module")
def uninterrupted(source, tmp_path_factory):
    """The last state of a run of `MANY` steps."""
    folder = tmp_path_factory.mktemp("whole")
    assert command.main(arguments(source, folder, *MANY)) == 0
    return final_state(source, folder)


def saved_step(workdir):
    """The newest checkpoint that is whole."""
    whole = workdir.glob("checkpoints/*/checksums.json")
    return max((int(path.parent.name) for path in whole), default=0)


def test_signalled_processes_go_on_to_the_same_weights(source, tmp_path, uninterrupted):
    run = [sys.executable, "-m", "jaxreg.train", *arguments(source, tmp_path, *MANY)[1:]]
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        before = saved_step(tmp_path)
        process = subprocess.Popen(
            run, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 120
        while saved_step(tmp_path) == before:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        out, error = process.communicate(timeout=60)
        assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
        if number != signal.SIGKILL:
            assert f"{number.name}: saved at step" in error
            assert "Traceback" not in out + error
    assert saved_step(tmp_path) < 4000
    assert command.main(arguments(source, tmp_path, *MANY)) == 0
    state = final_state(source, tmp_path)
    assert int(state.step) == 4000
    assert_same_bits(state, uninterrupted)
