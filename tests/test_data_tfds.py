"""Sets of tensorflow-datasets on disk: no TensorFlow, no network."""

import json
import logging
import os

import numpy as np
import pytest

from jaxreg.data import cache, load_images, tfds
from tests.tfds_support import (
    empty_folders,
    example,
    images,
    squares,
    write_set,
    write_shard,
)

REAL_DATA_DIR = os.environ.get("TFDS_DATA_DIR", "")


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    return empty_folders(tmp_path, monkeypatch)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_reads_a_prepared_copy(folders, file_format, shards):
    train, test = images(7), images(4, seed=1)
    write_set(folders, {"train": train, "test": test}, file_format=file_format, shards=shards)
    np.testing.assert_array_equal(load_images("tiny", "train", 12), squares(train, 12))
    np.testing.assert_array_equal(load_images("tiny", "test", 5), squares(test, 5))


def test_reads_in_chunks(folders, monkeypatch):
    monkeypatch.setattr(tfds, "_CHUNK", 2)
    pictures = images(45, (4, 4, 3))
    write_set(folders, {"train": pictures})
    np.testing.assert_array_equal(load_images("tiny", "train", 4), pictures)


def test_grey_sets_become_rgb(folders):
    pictures = images(3, (8, 8, 1))
    write_set(folders, {"train": pictures})
    np.testing.assert_array_equal(load_images("tiny", "train", 8), pictures.repeat(3, -1))


def test_versions_can_be_asked_for(folders):
    old, new = images(2, seed=1), images(3, seed=2)
    write_set(folders, {"train": old}, version="1.0.0")
    write_set(folders, {"train": new}, version="1.1.0")
    assert len(load_images("tiny", "train", 8)) == 3
    assert len(load_images("tiny:1.0.0", "train", 8)) == 2


def test_any_split_of_the_set_and_no_other(folders):
    write_set(folders, {"train": images(2), "unlabelled": images(5)})
    assert len(load_images("tiny", "unlabelled", 8)) == 5
    with pytest.raises(ValueError, match="has train, unlabelled, got 'unlabeled'"):
        load_images("tiny", "unlabeled", 8)
    with pytest.raises(ValueError, match="has train, unlabelled, got 'test'"):
        load_images("tiny", "test", 8)


def test_validation_serves_as_test(folders):
    write_set(folders, {"train": images(2), "validation": images(5)})
    assert len(load_images("tiny", "test", 8)) == 5


def cache_files(root):
    return sorted(root.rglob("jaxreg-*.npy"))


def test_second_start_reads_the_cache(folders, monkeypatch):
    folder = write_set(folders, {"train": images()})
    first = load_images("tiny", "train", 8)
    monkeypatch.setattr(tfds, "_decode", lambda *_: pytest.fail("decoded again"))
    np.testing.assert_array_equal(load_images("tiny", "train", 8), first)
    assert [file.parent for file in cache_files(folders)] == [folder]


def test_each_size_and_split_has_its_own_cache(folders):
    write_set(folders, {"train": images(), "test": images(seed=1)})
    wanted = [("train", 8), ("train", 4), ("test", 8)]
    first = [load_images("tiny", *w) for w in wanted]
    assert len(cache_files(folders)) == 3
    for w, expected in zip(wanted, first, strict=True):
        np.testing.assert_array_equal(load_images("tiny", *w), expected)


def test_changed_files_make_the_cache_stale(folders):
    folder = write_set(folders, {"train": images()})
    load_images("tiny", "train", 8)
    (stale,) = cache_files(folders)
    other = images(seed=5)
    shard = next(folder.glob("*array_record*"))
    shard.unlink()
    write_shard(shard, [example(image, 0) for image in other], "array_record")
    # Even where the size stays the same and the clock is coarse.
    os.utime(shard, ns=(0, shard.stat().st_mtime_ns + 10**9))
    np.testing.assert_array_equal(load_images("tiny", "train", 8), squares(other, 8))
    assert stale not in cache_files(folders)
    assert len(cache_files(folders)) == 1


def test_changed_decoding_makes_the_cache_stale(folders, monkeypatch):
    write_set(folders, {"train": images()})
    load_images("tiny", "train", 8)
    before = cache_files(folders)
    monkeypatch.setattr(tfds, "_DECODING", tfds._DECODING + 1)
    load_images("tiny", "train", 8)
    assert cache_files(folders) != before


@pytest.mark.parametrize("damage", ["cut", "text", "shape", "empty"])
def test_damaged_cache_is_built_anew(folders, damage, caplog):
    write_set(folders, {"train": images()})
    expected = load_images("tiny", "train", 8)
    (file,) = cache_files(folders)
    if damage == "shape":
        np.save(file, expected[:-1])
    else:
        whole = file.read_bytes()
        file.write_bytes({"cut": whole[:-100], "text": b"text", "empty": b""}[damage])
    with caplog.at_level(logging.WARNING, "absl"):
        np.testing.assert_array_equal(load_images("tiny", "train", 8), expected)
    assert "Passing over the" in caplog.text
    np.testing.assert_array_equal(np.load(file), expected)


def test_read_only_set_is_cached_for_the_user(folders, tmp_path, monkeypatch):
    folder = write_set(folders, {"train": images()})
    folder.chmod(0o555)
    try:
        first = load_images("tiny", "train", 8)
        assert not cache_files(folders)
        assert cache_files(tmp_path / "cache")
        monkeypatch.setattr(tfds, "_decode", lambda *_: pytest.fail("decoded again"))
        np.testing.assert_array_equal(load_images("tiny", "train", 8), first)
    finally:
        folder.chmod(0o755)


def test_nowhere_to_write_is_only_a_warning(tmp_path, caplog):
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING, "absl"):
        built = cache.cached([tmp_path / "file" / "x"], "a", "b", (1,), lambda: np.ones(1, "u1"))
    assert built.tolist() == [1]
    assert "No folder can be written" in caplog.text


def test_cache_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    def half_written(file, array):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", half_written)
    with pytest.raises(KeyboardInterrupt):
        cache.cached([tmp_path / "x"], "a", "b", (1,), lambda: np.ones(1, np.uint8))
    assert not list((tmp_path / "x").iterdir())


@pytest.mark.parametrize("name", ["cifar-10", "CIFAR10", "cifr10", "huggingface:cifar10"])
def test_unknown_set_suggests_names(name):
    with pytest.raises(ValueError, match=f"knows no set '{name}'; did you mean .*cifar10"):
        load_images(name, "train", 32)


def test_set_unlike_any_other_names_the_other_sources():
    with pytest.raises(ValueError, match="other sources: photos, random, folder:PATH"):
        load_images("zzzzzzzzzz", "train", 32)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cifar10:9.9.9", "cannot be loaded at version 9.9.9"),
        ("cifar10/no", "Config no not"),
    ],
)
def test_unknown_version_and_config_are_named(name, reason):
    with pytest.raises(ValueError, match=f"refuses '{name}': .*{reason}"):
        load_images(name, "train", 32)


def test_set_without_images_lists_its_features(folders):
    folder = write_set(folders, {"train": images(2)})
    features = json.loads((folder / "features.json").read_text())
    del features["featuresDict"]["features"]["image"]
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(ValueError, match=r"tiny/1.0.0 is no image set; its features: label"):
        load_images("tiny", "train", 8)


def test_missing_shard_is_named(folders):
    folder = write_set(folders, {"train": images(4)}, shards=2)
    gone = next(folder.glob("*00001-of-00002"))
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=f"incomplete: .*{gone.name} is missing"):
        load_images("tiny", "train", 8)


@pytest.mark.parametrize("lost", [1, 100])
def test_truncated_tfrecord_is_named(folders, lost):
    folder = write_set(folders, {"train": images()}, file_format="tfrecord")
    shard = next(folder.glob("*.tfrecord*"))
    shard.write_bytes(shard.read_bytes()[:-lost])
    with pytest.raises(ValueError, match="ends inside a record"):
        load_images("tiny", "train", 8)
    assert not cache_files(folders)


def test_too_few_and_broken_images_are_named(folders):
    folder = write_set(folders, {"train": images()}, file_format="tfrecord")
    shard = next(folder.glob("*.tfrecord*"))
    records = list(tfds.tfrecord_records(shard))
    write_shard(shard, records[:5], "tfrecord")
    with pytest.raises(ValueError, match="has 5 of 7 images"):
        load_images("tiny", "train", 8)
    write_shard(shard, [*records[:6], records[6].replace(b"PNG", b"XXX")], "tfrecord")
    with pytest.raises(ValueError, match="image 6 cannot be decoded"):
        load_images("tiny", "train", 8)


def test_other_formats_say_what_to_do(folders):
    folder = write_set(folders, {"train": images()})
    info = (folder / "dataset_info.json").read_text().replace("array_record", "riegeli")
    (folder / "dataset_info.json").write_text(info)
    for file in folder.glob("*array_record*"):
        file.rename(folder / file.name.replace("array_record", "riegeli"))
    with pytest.raises(ValueError, match=r"stored as riegeli .*download_and_prepare"):
        load_images("tiny", "train", 8)


@pytest.mark.skipif(
    not os.environ.get("TFDS_DATA_DIR"), reason="set TFDS_DATA_DIR to read a prepared cifar10"
)
def test_reads_the_real_cifar10(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", REAL_DATA_DIR)
    try:
        loaded = load_images("cifar10", "test", 32)
    except FileNotFoundError:
        pytest.skip("no cifar10 in TFDS_DATA_DIR")
    assert loaded.shape[1:] == (32, 32, 3)
    assert len(loaded) > 0
    # Channel means of CIFAR-10 are known: red, green, blue.
    np.testing.assert_allclose(loaded.mean((0, 1, 2)), (126.0, 123.7, 114.9), atol=1.0)
