"""The grammar of image sources, and those that need nothing but NumPy."""

import subprocess
import sys
import zipfile

import cv2
import hypothesis
import hypothesis.extra.numpy
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxreg.data import load_images
from jaxreg.data.square import to_square


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def save(tmp_path, array, name="images.npy"):
    np.save(tmp_path / name, array)
    return f"arrays:{tmp_path / name}"


def test_importing_is_light():
    heavy = "cv2", "tensorflow_datasets", "skimage", "tensorflow", "matplotlib"
    code = f"import sys, jaxreg.data; print([m for m in {heavy} if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert printed.strip() == b"[]"


@pytest.mark.parametrize("size", [0, -3, 2.5, "32", None])
def test_bad_size_is_named(size):
    with pytest.raises(ValueError, match="size: "):
        load_images("random", "train", size)


@pytest.mark.parametrize("source", ["", "directory:/some/where", "huggingface:cifar10", "a b"])
def test_bad_source_says_what_would_work(source):
    with pytest.raises(ValueError, match="other sources: photos, random, folder:PATH, arrays:PATH"):
        load_images(source, "train", 32)


@pytest.mark.parametrize("source", ["folder:", "arrays:"])
def test_missing_path_is_named(source):
    with pytest.raises(ValueError, match=f"write {source}PATH"):
        load_images(source, "train", 32)


@pytest.mark.parametrize("source", ["random", "photos", "folder:.", "arrays:x.npy"])
def test_unknown_split_lists_the_known(source):
    with pytest.raises(ValueError, match="has train and test, got 'validation'"):
        load_images(source, "validation", 32)


def test_random_is_uniform_and_fixed():
    images = load_images("random", "test", 8)
    assert images.shape == (4096, 8, 8, 3)
    assert images.dtype == np.uint8
    counts = np.bincount(images.ravel(), minlength=256)
    expected = images.size / 256
    # Chi-squared with 255 degrees of freedom: mean 255, standard deviation 22.6.
    assert abs(((counts - expected) ** 2 / expected).sum() - 255) < 5 * 22.6
    np.testing.assert_array_equal(images, load_images("random", "test", 8))
    # Golden: the stream must not change from machine to machine, nor from NumPy to NumPy.
    assert images.ravel()[:6].tolist() == [193, 88, 107, 214, 72, 3]
    assert not np.array_equal(images, load_images("random", "train", 8))


@hypothesis.given(
    st.integers(1, 12), st.integers(1, 12), st.integers(1, 3), st.integers(1, 20), st.integers(0, 9)
)
@hypothesis.settings(deadline=None, max_examples=60)
def test_square_has_the_size_and_stays_in_range(height, width, channels, size, seed):
    image = noise((height, width, channels), seed)
    square = to_square(image, size)
    assert square.shape == (size, size, channels)
    assert square.dtype == np.uint8
    assert image.min() <= square.min() <= square.max() <= image.max()


def test_square_takes_the_centre_and_averages_areas():
    image = noise((8, 13, 3))
    central = image[:, 2:10]
    np.testing.assert_array_equal(to_square(image, 8), central)
    means = central.reshape(4, 2, 4, 2, 3).mean((1, 3))
    np.testing.assert_allclose(to_square(image, 4), means, atol=0.5)
    np.testing.assert_array_equal(to_square(np.swapaxes(image, 0, 1), 8), central.swapaxes(0, 1))


def test_square_enlarges_bilinearly():
    image = noise((5, 5, 3))
    expected = cv2.resize(image, (11, 11), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(to_square(image, 11), expected)


def test_arrays_split_every_tenth(tmp_path):
    images = noise((25, 6, 6, 3))
    source = save(tmp_path, images)
    test, train = load_images(source, "test", 6), load_images(source, "train", 6)
    np.testing.assert_array_equal(test, images[[9, 19]])
    np.testing.assert_array_equal(train, np.delete(images, [9, 19], 0))


@pytest.mark.parametrize("shape", [(10, 6, 6), (10, 6, 6, 1)])
def test_grey_arrays_become_rgb(tmp_path, shape):
    images = noise(shape)
    loaded = load_images(save(tmp_path, images), "test", 6)
    np.testing.assert_array_equal(loaded[0], np.repeat(images[9].reshape(6, 6, 1), 3, 2))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_arrays_are_rounded(tmp_path, dtype):
    images = noise((10, 6, 6, 3)).astype(dtype)
    shifted = np.clip(images + dtype(0.25), 0, 255)
    np.testing.assert_array_equal(load_images(save(tmp_path, shifted), "test", 6)[0], images[9])


def test_arrays_are_resized(tmp_path):
    images = noise((10, 8, 12, 3))
    loaded = load_images(save(tmp_path, images), "test", 4)
    np.testing.assert_array_equal(loaded[0], to_square(images[9], 4))


def test_npz_names_its_splits(tmp_path):
    train, test = noise((3, 6, 6, 3)), noise((2, 6, 6, 3), 1)
    np.savez(tmp_path / "both.npz", train=train, test=test, labels=np.zeros(3))
    source = f"arrays:{tmp_path / 'both.npz'}"
    np.testing.assert_array_equal(load_images(source, "train", 6), train)
    np.testing.assert_array_equal(load_images(source, "test", 6), test)


@pytest.mark.parametrize("name", ["images", "whatever"])
def test_npz_with_one_array_is_split(tmp_path, name):
    np.savez_compressed(tmp_path / "one.npz", **{name: noise((20, 6, 6, 3))})
    assert len(load_images(f"arrays:{tmp_path / 'one.npz'}", "test", 6)) == 2


def test_npz_without_the_split_lists_its_arrays(tmp_path):
    np.savez(tmp_path / "odd.npz", train=noise((3, 6, 6, 3)), labels=np.zeros(3))
    with pytest.raises(ValueError, match="has arrays train, labels; the split needs one named te"):
        load_images(f"arrays:{tmp_path / 'odd.npz'}", "test", 6)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((32, 32, 3), np.uint8), "single picture.*leading axis"),
        (np.zeros((32, 32), np.uint8), r"expected \(N, H, W\).*got \(32, 32\)"),
        (np.zeros((5, 32, 32, 4), np.uint8), "drop the alpha channel"),
        (np.zeros((5, 3, 32, 32), np.uint8), "move the channels last"),
        (np.zeros((0, 32, 32, 3), np.uint8), "has no images"),
        (np.zeros((20, 32, 32, 3), np.int16), "expected uint8 or float in 0..255, got int16"),
        (np.full((20, 4, 4, 3), 256.0), "floats must lie in 0..255, got 256..256"),
        (np.full((20, 4, 4, 3), np.nan), "floats must lie in 0..255, got nan"),
        (np.full((20, 4, 4, 3), 0.5), "multiply by 255"),
        (np.zeros((5, 4, 4, 3), np.uint8), "there are 5; give 10 or more"),
    ],
)
def test_bad_arrays_are_named(tmp_path, array, message):
    with pytest.raises(ValueError, match=message):
        load_images(save(tmp_path, array), "test", 4)


def test_absent_and_broken_array_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_images(f"arrays:{tmp_path / 'none.npy'}", "train", 4)
    (tmp_path / "broken.npy").write_bytes(b"not numbers")
    whole, pictures = tmp_path / "whole.npz", tmp_path / "pictures.npz"
    np.savez(whole, images=noise((20, 6, 6, 3)))
    (tmp_path / "short.npz").write_bytes(whole.read_bytes()[:-40])
    spoilt = bytearray(whole.read_bytes())
    spoilt[1000] ^= 1
    (tmp_path / "spoilt.npz").write_bytes(spoilt)
    np.savez(pictures, images=np.array([noise((4, 4)), None], object))
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as file:
        file.writestr("images", "no numbers")
    for name in ("broken.npy", "short.npz", "spoilt.npz", "pictures.npz", "text.npz"):
        with pytest.raises(ValueError, match=rf"{name}: not a .npy or .npz file of numbers"):
            load_images(f"arrays:{tmp_path / name}", "train", 4)
