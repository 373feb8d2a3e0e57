"""Loading published weights: what is taken, what is refused, and what happens offline."""

import pickle
import time

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from huggingface_hub import constants
from safetensors.numpy import save_file

from jaxreg.models import pretrained
from jaxreg.models.lstm import LSTMConfig
from jaxreg.models.pretrained import load_pretrained
from jaxreg.models.resnext import ResNeXt
from jaxreg.models.siamese import ResNeXtConfig
from tests.golden.random_weights import entry
from tests.test_resnext import random_state_dict


def blank(config=None):
    """A network of zeros, the extractor network by default; cheap to make."""
    network = nnx.eval_shape(lambda: (config or ResNeXtConfig()).build(nnx.Rngs(0)))
    for _, variable in nnx.to_flat_state(nnx.state(network)):
        variable.set_value(jnp.zeros(variable.shape))
    return network


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file as timm publishes it: the whole state dict, a 1,000-way classifier among it."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(random_state_dict(), path)
    return path


def written(tmp_path, entries):
    path = tmp_path / "changed.safetensors"
    save_file(entries, path)
    return str(path)


def test_loads_all_but_the_classifier(weights):
    network = blank()
    assert load_pretrained(network, str(weights)) is network
    entries = random_state_dict()
    block = network.extractor.layer2[0]
    for ours, key in (
        (network.extractor.conv1.kernel, "conv1.weight"),
        (block.conv2.kernel, "layer2.0.conv2.weight"),
        (block.downsample[0].kernel, "layer2.0.downsample.0.weight"),
    ):
        np.testing.assert_array_equal(ours[...].transpose(3, 2, 0, 1), entries[key])
    np.testing.assert_array_equal(block.bn2.var[...], entries["layer2.0.bn2.running_var"])
    np.testing.assert_array_equal(block.bn2.scale[...], entries["layer2.0.bn2.weight"])
    assert not network.extractor.fc.kernel[...].any()
    assert not network.head.fc.kernel[...].any()
    unset = [
        pretrained.torch_key(path)
        for path, variable in nnx.to_flat_state(nnx.state(network.extractor))
        if not np.any(variable[...])
    ]
    assert sorted(unset) == ["fc.bias", "fc.weight"]


def test_takes_a_classifier_of_its_own_shape():
    network = nnx.eval_shape(lambda: ResNeXt(1000, rngs=nnx.Rngs(0)))
    pretrained.load_state_dict(network, random_state_dict())
    np.testing.assert_array_equal(network.fc.kernel[...].T, random_state_dict()["fc.weight"])


def test_takes_a_file_without_classifier_or_counters(tmp_path):
    entries = {
        k: v for k, v in random_state_dict().items() if "fc." not in k and "tracked" not in k
    }
    network = load_pretrained(blank(), written(tmp_path, entries))
    assert np.any(network.extractor.conv1.kernel[...])


def changed(change):
    entries = dict(random_state_dict())
    change(entries)
    return entries


REFUSED = {
    "missing": (
        lambda d: [d.pop("layer3.4.conv2.weight"), d.pop("bn1.running_mean")],
        r"it lacks bn1.running_mean, layer3.4.conv2.weight$",
    ),
    "unexpected": (
        lambda d: d.update({"layer1.3.conv1.weight": np.zeros((128, 256, 1, 1), np.float32)}),
        r"has besides layer1.3.conv1.weight$",
    ),
    "wider groups": (
        lambda d: d.update({"layer1.0.conv2.weight": np.zeros((128, 8, 3, 3), np.float32)}),
        r"layer1.0.conv2.weight \(128, 8, 3, 3\) instead of \(128, 4, 3, 3\)",
    ),
    "another network": (
        lambda d: [d.clear(), d.update({"features.0.weight": np.zeros(3, np.float32)})],
        r"no state dict of resnext50_32x4d: it lacks .* and 257 more$",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_files_are_refused_with_their_keys(case, tmp_path):
    change, message = REFUSED[case]
    network = blank()
    with pytest.raises(ValueError, match=message):
        load_pretrained(network, written(tmp_path, changed(change)))
    assert not any(np.any(v[...]) for _, v in nnx.to_flat_state(nnx.state(network)))


def test_wrong_networks_and_paths_are_refused(tmp_path, weights):
    with pytest.raises(ValueError, match="which LSTMNetwork has not; use the network 'resnext'"):
        load_pretrained(LSTMConfig(hidden=4).build(nnx.Rngs(0)), str(weights))
    with pytest.raises(ValueError, match=r"lacks|has besides"):
        load_pretrained(blank(ResNeXtConfig(blocks=(1, 1, 1, 1))), str(weights))
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        load_pretrained(blank(), str(tmp_path / "nothing.safetensors"))
    with pytest.raises(ValueError, match=r"must be 'imagenet' or a .safetensors.*got 'imgnet'"):
        load_pretrained(blank(), "imgnet")
    (tmp_path / "text.safetensors").write_text("no weights at all")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load_pretrained(blank(), str(tmp_path / "text.safetensors"))


class Harmful:
    def __reduce__(self):
        return (print, ("code from the file ran",))


def test_pth_never_runs_code(tmp_path, capsys):
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps({"conv1.weight": Harmful()}, protocol=2))
    with pytest.raises((ImportError, ValueError), match=r"needs torch|holds more than arrays"):
        load_pretrained(blank(), str(path))
    assert "ran" not in capsys.readouterr().out


def test_pth_loads_where_torch_is_installed(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pth"
    torch.save({k: torch.from_numpy(np.asarray(v)) for k, v in random_state_dict().items()}, path)
    network = load_pretrained(blank(), str(path))
    np.testing.assert_array_equal(
        network.extractor.bn1.scale[...], random_state_dict()["bn1.weight"]
    )


def test_imagenet_offline_says_where_to_get_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match=r"https://huggingface.co/timm/.*--init_from=PATH"):
        load_pretrained(blank(), "imagenet")


def test_imagenet_without_a_connection_gives_up_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"https://huggingface.co/timm/.*--init_from=PATH"):
        pretrained.download()
    assert time.monotonic() - start < 2 * pretrained.CONNECT_SECONDS


def test_imagenet_is_taken_from_the_cache(tmp_path, monkeypatch, weights):
    import huggingface_hub

    asked = []

    def cached(repository, name, **options):
        asked.append((repository, name, options["local_files_only"]))
        return str(weights)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", cached)
    network = load_pretrained(blank(), "imagenet")
    assert asked == [("timm/resnext50_32x4d.tv_in1k", "model.safetensors", True)]
    np.testing.assert_array_equal(network.extractor.bn1.scale[...], entry("bn1.weight", (64,)))
