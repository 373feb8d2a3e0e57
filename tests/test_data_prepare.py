"""Sets of tensorflow-datasets that are not on disk: what is said, and what is downloaded."""

import importlib.util
import sys
import threading
import time
import types

import numpy as np
import pytest
import requests

from jaxreg.data import load_images, prepare
from tests.tfds_support import empty_folders, images, squares, write_set


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    return empty_folders(tmp_path, monkeypatch)


def without_tensorflow(monkeypatch, missing=True):
    found = None if missing else object()
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: found if n == "tensorflow" else real(n, *a)
    )


def test_absent_without_tensorflow(folders, monkeypatch):
    without_tensorflow(monkeypatch)
    with pytest.raises(FileNotFoundError) as error:
        load_images("cifar10", "train", 32)
    message = str(error.value)
    assert f"cifar10 is not prepared: no {folders}/cifar10" in message
    assert "pip install 'jaxreg[prepare]'" in message
    assert "tfds.builder('cifar10', file_format='array_record').download_and_prepare()" in message
    assert "TFDS_DATA_DIR" in message
    assert "photos" in message


def test_absent_and_offline(monkeypatch):
    without_tensorflow(monkeypatch, missing=False)
    with pytest.raises(FileNotFoundError, match=r"no network.*copy the folder.*photos"):
        load_images("cifar10", "train", 32)


def test_absent_and_fetched_by_hand(monkeypatch):
    without_tensorflow(monkeypatch, missing=False)
    with pytest.raises(FileNotFoundError, match=r"fetched by hand: .*ILSVRC2012_img_train\.tar"):
        load_images("imagenet2012", "train", 32)


def test_other_version_on_disk_is_offered(folders, monkeypatch):
    without_tensorflow(monkeypatch)
    write_set(folders, {"train": images()}, name="cifar10", version="1.0.1")
    with pytest.raises(FileNotFoundError, match=r"is version 1\.0\.1: ask for cifar10:1\.0\.1"):
        load_images("cifar10", "train", 32)


def fake_download(monkeypatch, action):
    """TensorFlow and a network; what tfds does then is `action(builder)`."""
    import tensorflow_datasets

    without_tensorflow(monkeypatch, missing=False)
    config = types.SimpleNamespace(set_visible_devices=lambda devices, kind: None)
    monkeypatch.setitem(sys.modules, "tensorflow", types.SimpleNamespace(config=config))
    monkeypatch.setattr(prepare, "network_reachable", lambda urls, seconds: True)
    monkeypatch.setattr(
        tensorflow_datasets.core.DatasetBuilder, "download_and_prepare", lambda self: action(self)
    )


def test_absent_set_is_prepared(folders, monkeypatch):
    from tensorflow_datasets.core.download import downloader

    retries, pictures = [], images()

    def action(builder):
        retries.append(downloader.MAX_RETRIES)
        write_set(folders, {"train": pictures}, "cifar10", str(builder.version))

    before = downloader.MAX_RETRIES
    fake_download(monkeypatch, action)
    np.testing.assert_array_equal(load_images("cifar10", "train", 8), squares(pictures, 8))
    assert retries == [prepare.DOWNLOAD_RETRIES]
    assert before == downloader.MAX_RETRIES


def test_failed_download_says_what_to_do(monkeypatch):
    def action(builder):
        raise requests.ConnectionError("name not resolved")

    fake_download(monkeypatch, action)
    with pytest.raises(FileNotFoundError, match=r"it failed: .*name not resolved.*photos"):
        load_images("cifar10", "train", 32)


class TestNetwork:
    @pytest.fixture(autouse=True)
    def real_check(self, folders, monkeypatch):
        monkeypatch.undo()

    @pytest.mark.parametrize("answers", [{"a": True, "b": False}, {"a": False, "b": False}])
    def test_any_answer_will_do(self, monkeypatch, answers):
        def head(url, timeout):
            if not answers[url]:
                raise requests.ConnectionError
            return types.SimpleNamespace(status_code=404)

        monkeypatch.setattr(requests, "head", head)
        assert prepare.network_reachable(list(answers), 5.0) == any(answers.values())

    def test_a_resolver_that_hangs_is_not_waited_for(self, monkeypatch):
        release = threading.Event()

        def head(url, timeout):
            release.wait(60)
            raise requests.ConnectionError

        monkeypatch.setattr(requests, "head", head)
        start = time.monotonic()
        assert not prepare.network_reachable(["a", "b"], 0.1)
        waited = time.monotonic() - start
        release.set()
        assert waited < 30  # not the 60 s of the resolver
