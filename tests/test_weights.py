"""Trained networks in one file: what comes back, what the package holds, what is refused."""

import json
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jaxreg
from jaxreg import export
from jaxreg.methods import find_method
from jaxreg.models import trained
from jaxreg.models.weights import read_weights
from jaxreg.network_files import SHIPPED, SUFFIX, shipped_names
from jaxreg.training.checkpoint import Best, CheckpointStore, load_network, settle_config
from jaxreg.training.configs import CONFIGS
from jaxreg.training.devices import data_mesh
from jaxreg.training.initial import initial_arrays
from jaxreg.training.logs import METRICS_COLUMNS, METRICS_FILE
from jaxreg.training.state import create_state
from tests.training_support import assert_same_bits, register_normed, tiny_config, write_images

LARGEST = 10e6  # bytes of a file in the package


@pytest.fixture(autouse=True)
def _normed(monkeypatch):
    register_normed(monkeypatch)


@pytest.fixture
def run(tmp_path):
    """The folder of a run of a network with statistics, weights and an average of them."""
    folder, config = tmp_path / "run", tiny_config(write_images(tmp_path))
    settle_config(folder, config)
    store = CheckpointStore(folder)
    store.save(create_state(config, data_mesh(1)), Best())
    store.close()
    first = dict.fromkeys(METRICS_COLUMNS, 0) | {"seconds": 2.5}
    # The run was cut off before it saved.
    later = dict.fromkeys(METRICS_COLUMNS, 1) | {"seconds": 9.5}
    table = (first.keys(), first.values(), later.values())
    lines = (",".join(map(str, values)) for values in table)
    (folder / METRICS_FILE).write_text("\n".join(lines) + "\n")
    return folder


def test_the_files_folder_is_made(run, tmp_path):
    out = tmp_path / "nets" / "new" / "net.safetensors"
    assert export.main(["export", f"--workdir={run}", f"--out={out}"]) == 0
    assert jaxreg.load(str(out)).step == 0


def exported(run, *more):
    out = run.parent / "net.safetensors"
    assert export.main(["export", f"--workdir={run}", f"--out={out}", *more]) == 0
    return out


def test_a_file_holds_all_of_a_trained_network(run, capsys):
    network, original = jaxreg.load(str(exported(run))), load_network(run)
    assert "weights after 0 steps" in capsys.readouterr().out
    assert_same_bits(network.arrays, original.arrays)
    assert (network.config, network.step) == (original.config, original.step)
    assert network.training_seconds == original.training_seconds == 2.5
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3)).astype(np.float32)
    answers = [n.estimate(images, images[::-1]).transform for n in (network, original)]
    assert_same_bits(*answers)


def test_half_precision_rounds_and_is_read_as_float32(run):
    network = jaxreg.load(str(exported(run, "--dtype=float16")))
    kernel, original = (n.arrays[0]["first"]["kernel"] for n in (network, load_network(run)))
    assert kernel.dtype == np.float32
    np.testing.assert_allclose(kernel, original, rtol=1e-3, atol=1e-6)
    assert not np.array_equal(kernel, original)


def test_weights_too_large_for_half_precision_are_not_written(run, monkeypatch, capsys):
    network = load_network(run)
    network.arrays = jax.tree.map(lambda a: a + 7e4, network.arrays)  # its largest is 65,504
    monkeypatch.setattr("jaxreg.training.loading.load", lambda _: network)
    out = run.parent / "half.safetensors"
    arguments = ["export", f"--workdir={run}", f"--out={out}", "--dtype=float16"]
    assert export.main(arguments) == 2
    assert "first.bias is up to 70000, too large for float16" in capsys.readouterr().err
    assert not out.exists()
    assert export.main(arguments[:-1]) == 0


def test_folders_load_as_before(run):
    assert_same_bits(jaxreg.load(str(run)).arrays, load_network(run).arrays)


def test_the_first_load_may_be_in_a_program_that_is_being_traced(run):
    whole, loaded = load_network(run).arrays, []
    for source in (run, exported(run)):
        jax.eval_shape(lambda source=source: loaded.append(jaxreg.load(source)))
    for network in loaded:  # their arrays outlive the trace
        assert_same_bits(network.arrays, whole)


@pytest.mark.parametrize("name", ["compact32", "compact96"])
def test_shipped_networks_are_what_their_configuration_trains(name):
    assert name in shipped_names()
    assert (SHIPPED / f"{name}.safetensors").stat().st_size < LARGEST
    network = jaxreg.load(name)
    assert network.config == CONFIGS[name]
    assert network.step == network.config.steps
    assert network.training_seconds > 0


def test_copies_of_a_network_share_one_program():
    """Loaded again, or sent to another process."""
    file = SHIPPED / f"compact32{SUFFIX}"
    first, again = read_weights(file), read_weights(file)
    copy = pickle.loads(pickle.dumps(first))
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32)).astype(np.float32)
    answer = first.register(*images)
    size = trained._registration._cache_size()
    for network in (again, copy):
        jax.tree.map(np.testing.assert_array_equal, network.register(*images), answer)
    assert trained._registration._cache_size() == size
    gradient = jax.grad(lambda image: first.register(image, images[1]).transform.tx)
    with jax.numpy_rank_promotion("raise"):
        jax.eval_shape(gradient, images[0])


def test_trainings_start_from_what_load_takes(run):
    config, whole = load_network(run).config, load_network(run).arrays
    for source in (run, exported(run)):
        arrays = initial_arrays(config.override([f"--init_from={source}"]))
        assert_same_bits(tuple(arrays), whole)
    config = CONFIGS["compact32"].override(["--init_from=compact32"])
    assert_same_bits(tuple(initial_arrays(config)), jaxreg.load("compact32").arrays)


def test_trainings_start_from_published_weights_where_the_network_has_them(run, tmp_path):
    config = load_network(run).config
    save_file({"conv1.weight": np.zeros(3)}, tmp_path / "torch.safetensors")
    config = config.override([f"--init_from={tmp_path / 'torch.safetensors'}"])
    with pytest.raises(ValueError, match="use the network 'resnext'"):
        initial_arrays(config)


def test_files_that_are_none_are_told(run, tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"broken\.safetensors is no file of a trained network"):
        jaxreg.load(str(broken))
    config = load_network(run).config.to_dict()
    for metadata, message in (
        (None, r"it has no jaxreg metadata; was it written by jaxreg\.export\?"),
        ({"jaxreg": "{}"}, "its metadata lack config, seconds, step"),
        ({"jaxreg": "3"}, "its metadata lack config, seconds, step"),
        ({"jaxreg": '{"config": {}, "step": 0, "seconds": 1}'}, "network is missing"),
        (
            {"jaxreg": json.dumps({"config": config | {"new": 1}, "step": 0, "seconds": 1})},
            "unknown field 'new'",
        ),
    ):
        save_file({"a": np.zeros(3)}, broken, metadata)
        about = rf"broken\.safetensors is no file of a trained network: {message}"
        with pytest.raises(ValueError, match=about):
            jaxreg.load(str(broken))
    whole = exported(run)
    arrays = load_file(whole)
    arrays.pop("weights.last.bias")
    about = {"config": load_network(run).config.to_dict(), "step": 0, "seconds": None}
    save_file(arrays, broken, {"jaxreg": json.dumps(about)})
    with pytest.raises(ValueError, match="does not hold the weights of NormedConfig"):
        jaxreg.load(str(broken))


def test_paths_may_begin_at_ones_home(run, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(run.parent))
    assert export.main(["export", "--workdir=~/run", "--out=~/net.safetensors"]) == 0
    whole = load_network(run).arrays
    for name in ("~/run", "~/net.safetensors"):
        assert_same_bits(jaxreg.load(name).arrays, whole)
        assert_same_bits(find_method(name).__self__.arrays, whole)


@pytest.mark.parametrize("name", ["compact33", "runs/nowhere", "nowhere.safetensors"])
def test_unknown_names_list_the_shipped_ones(name):
    with pytest.raises(ValueError, match=f"no trained network '{name}': expected compact32, "):
        jaxreg.load(name)


@pytest.mark.parametrize("name", [3, None, b"compact32"])
def test_what_is_no_name_is_told(name):
    with pytest.raises(ValueError, match="name must be a network's name, file or folder, got"):
        jaxreg.load(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir=/nowhere", "--out=x.safetensors"], "no trained network '/nowhere'"),
        (["--workdir=compact32", "--out=x.npz"], "must end in .safetensors"),
        (["--workdir=compact32"], "--out is missing"),
        (["stray"], "unexpected argument 'stray'"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, message, capsys):
    assert export.main(["export", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxreg.export: ")
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_shipped_network_needs_no_checkpoint_library():
    script = (
        "import sys, jaxreg; before = set(sys.modules); jaxreg.load('compact32');"
        "print('flax' in before, 'orbax.checkpoint' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.split() == ["False", "False"], result.stderr


def test_the_compact_method_needs_nothing_that_trained_it():
    script = "import sys; from jaxreg.methods import find_method; find_method('compact');"
    script += "print(sum(module.startswith('jaxreg.training') for module in sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.split() == ["0"], result.stderr
