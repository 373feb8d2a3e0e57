"""One process with several devices trains as with one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxreg.training.checkpoint import CheckpointStore
from jaxreg.training.devices import data_mesh
from jaxreg.training.state import abstract_state
from tests.training_support import register_normed, tiny_config, write_images

DEVICES_SCRIPT = """
import sys
import jax, numpy as np, pytest
from jaxreg.training.batches import load_training_images
from jaxreg.training.checkpoint import Best, CheckpointStore
from jaxreg.training.devices import data_mesh, place
from jaxreg.training.state import abstract_state, create_state
from jaxreg.training.step import compile_dispatch
from pathlib import Path
from tests.training_support import register_normed, tiny_config

register_normed(pytest.MonkeyPatch())
config = tiny_config(sys.argv[1])
assert len(jax.devices()) == 8
losses, work = [], []
for count in (8, 1):
    mesh = data_mesh(config.batch_size)
    assert mesh.size == 8
    if count == 1:
        mesh = jax.sharding.Mesh(mesh.devices[:1], mesh.axis_names)
    state = create_state(config, mesh)
    images = place(mesh, load_training_images(config))
    program = compile_dispatch(config, mesh, state, images)
    state, report = program(state, images, place(mesh, np.int32(1)))
    losses.append([float(report.sums.loss), float(report.sums.gradient_norm)])
    work.append(program.program.cost_analysis()["flops"])
    if count == 8:
        store = CheckpointStore(Path(sys.argv[2]))
        store.save(state, Best())
        store.close()
print(*losses[0], *losses[1], *work)
"""


def test_eight_devices_do_as_one_and_their_checkpoint_restores_on_one(tmp_path, monkeypatch):
    register_normed(monkeypatch)
    source = write_images(tmp_path)
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    result = subprocess.run(
        [sys.executable, "-c", DEVICES_SCRIPT, source, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parent.parent,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    loss, norm, one_loss, one_norm, work, all_work = map(float, result.stdout.split())
    assert work < 0.6 * all_work, "the work is not spread"  # a tiny network: much is drawing
    assert loss == pytest.approx(one_loss, rel=1e-5)
    assert norm == pytest.approx(one_norm, rel=1e-4)
    store = CheckpointStore(tmp_path, read_only=True)
    state, _ = store.restore(abstract_state(tiny_config(source), data_mesh(1)))
    store.close()
    assert int(state.step) == 1
    assert len(state.weights["first"]["kernel"].devices()) == 1
