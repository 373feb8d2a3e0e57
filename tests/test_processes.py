"""Two real processes train as one does."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxreg import train as command
from jaxreg.training.checkpoint import (
    CheckpointStore,
    DamagedCheckpointWarning,
    read_config,
)
from jaxreg.training.devices import data_mesh, join_processes
from jaxreg.training.logs import read_metrics
from jaxreg.training.state import abstract_state
from tests.training_support import smallest_run, without_pictures, write_images

STEPS = 2


def arguments(source, workdir):
    return smallest_run(source, workdir, f"--steps={STEPS}", "--steps_per_dispatch=1")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """Of this process alone."""
    without_pictures(monkeypatch)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), size=32)


@pytest.fixture(scope="module")
def begun(source, tmp_path_factory):
    """The folder of a run of one process, which left a damaged checkpoint besides a whole one."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        without_pictures(patch)
        assert command.main(["train", *arguments(source, folder)]) == 0
    damaged = shutil.copytree(folder / f"checkpoints/{STEPS}", folder / "checkpoints/99")
    (damaged / "checksums.json").write_text("{")
    return folder


def free_port():
    try:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            return s.getsockname()[1]
    except OSError as error:
        pytest.skip(f"no port on this machine: {error}")


def run_processes(more, meanwhile=lambda processes: None, statuses=(0, 0), own=((), ())):
    """What two processes print, ``meanwhile`` called with both once they are started.

    Both get the arguments ``more``, each further ones of its ``own``.
    """
    port = free_port()
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command_line = [sys.executable, "-m", "jaxreg.train", *more, "--processes=2"]
    processes = [
        subprocess.Popen(
            [*command_line, f"--coordinator=127.0.0.1:{port}", f"--process_id={i}", *own[i]],
            cwd=Path(__file__).parent.parent,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    try:
        meanwhile(processes)
        outputs = [p.communicate(timeout=300)[0] for p in processes]
    finally:
        for p in processes:
            p.kill()
    text = "\n".join(outputs)
    if tuple(p.returncode for p in processes) != statuses:
        if re.search(r"gloo.*\b(not|unknown|unavailable)\b|address already in use", text, re.I):
            pytest.skip("no gloo, or the port was taken meanwhile")
        raise AssertionError(text)
    return outputs


def test_two_processes_do_as_one_and_their_checkpoint_restores_on_one(source, tmp_path, begun):
    initial = f"--init_from={begun}"
    first, second = run_processes([*arguments(source, tmp_path / "two"), initial])
    assert "2 cpu device(s)" in first
    assert f"weights from {begun}" in first
    assert "held out" not in second  # one of them speaks
    passed_over = "step 99: checksums.json cannot be read"
    assert passed_over in first
    assert passed_over in second  # to whom the first said so
    with pytest.warns(DamagedCheckpointWarning, match=passed_over):
        assert command.main(["train", *arguments(source, tmp_path / "one"), initial]) == 0
    two, one = (read_metrics(tmp_path / name) for name in ("two", "one"))
    assert [row["step"] for row in two] == [str(i + 1) for i in range(STEPS)]
    for a, b in zip(two, one, strict=True):
        for name in ("train_loss", "gradient_norm", "eval_loss"):
            if a[name] or b[name]:
                assert float(a[name]) == pytest.approx(float(b[name]), rel=1e-5), name
    summaries = [json.loads((tmp_path / n / "summary.json").read_text()) for n in ("two", "one")]
    assert summaries[0]["trained"] == pytest.approx(summaries[1]["trained"], rel=1e-5)
    config = read_config(tmp_path / "two")
    store = CheckpointStore(tmp_path / "two")
    state, _ = store.restore(abstract_state(config, data_mesh(1)))
    store.close()
    assert int(state.step) == STEPS


def test_a_signal_to_either_process_ends_both_with_their_state_saved(source, tmp_path, begun):
    """They go on with what one process began."""
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)

    def interrupt_second(processes):
        deadline = time.monotonic() + 200
        while not (tmp_path / "checkpoints/4/checksums.json").exists():
            if any(p.poll() is not None for p in processes) or time.monotonic() > deadline:
                return
            time.sleep(0.05)
        processes[1].send_signal(signal.SIGTERM)

    many = ["--steps=100000", "--save_every=2", "--eval_every=100000"]
    ended = (128 + signal.SIGTERM,) * 2
    first, _ = run_processes([*arguments(source, tmp_path), *many], interrupt_second, ended)
    saved = int(re.search(r"SIGTERM: saved at step (\d+)", first)[1])
    assert f"going on from step {STEPS}" in first
    assert 4 <= saved < 100000
    config = read_config(tmp_path)
    store = CheckpointStore(tmp_path, read_only=True)
    state, _ = store.restore(abstract_state(config, data_mesh(1)))
    store.close()
    assert int(state.step) == saved


def test_two_processes_of_different_flags_do_not_train(source, tmp_path):
    own = (["--learning_rate=1e-3"], ["--learning_rate=1e-4"])
    outputs = run_processes(arguments(source, tmp_path), statuses=(2, 2), own=own)
    assert all("the processes were given different flags" in output for output in outputs)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("localhost", 2, 0), "coordinator must be host:port, got 'localhost'"),
        (("localhost:1234", None, 0), "processes must say how many"),
        (("localhost:1234", 2, 2), "process_id which this is, from 0; got 2 and 2"),
        ((None, 2, 0), "need the coordinator"),
    ],
)
def test_mistakes_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        join_processes(*given)
