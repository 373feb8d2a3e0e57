"""Crops of the photographs inside the scikit-image wheel."""

import hashlib

import numpy as np
import pytest
import skimage.data

from jaxreg.data import load_images, photographs
from jaxreg.data import photos as module

# Mean level of the first 256 crops.
GOLDEN_MEANS = {("train", 32): 104.6291, ("test", 32): 109.0790, ("test", 96): 107.4819}


@pytest.fixture(scope="module", params=[("train", 32), ("test", 32), ("test", 96)], ids=str)
def crops(request):
    split, size = request.param
    return split, size, load_images("photos", split, size)


def test_photographs_are_what_scikit_image_reads():
    test = photographs("test")
    np.testing.assert_array_equal(test["chelsea"], skimage.data.chelsea())
    np.testing.assert_array_equal(test["camera"], np.repeat(skimage.data.camera()[..., None], 3, 2))
    assert all(p.dtype == np.uint8 and p.shape[2:] == (3,) for p in test.values())


def test_splits_share_no_photograph_and_no_scene():
    train, test = photographs("train"), photographs("test")
    assert not train.keys() & test.keys()
    assert {"motorcycle_left", "motorcycle_right"} <= train.keys()
    digests = [hashlib.sha256(p).digest() for p in (*train.values(), *test.values())]
    assert len(set(digests)) == len(digests)


def test_a_caller_cannot_spoil_the_photographs():
    photographs("test")["moon"][:] = 0
    assert photographs("test")["moon"].any()


def test_crops_have_shape_and_texture(crops):
    split, size, images = crops
    assert images.shape == (module.COUNT[split], size, size, 3)
    assert images.dtype == np.uint8
    grey = images.astype(np.float64) @ [0.299, 0.587, 0.114]
    assert grey.std((1, 2)).min() > 12 - 1e-3


def test_crops_are_the_same_on_every_machine(crops):
    split, size, images = crops
    # JPEG decoders may differ by one grey level here and there, hence a mean.
    np.testing.assert_allclose(images[:256].mean(), GOLDEN_MEANS[split, size], atol=0.02)


def test_crops_are_deterministic():
    np.testing.assert_array_equal(*(load_images("photos", "test", 16) for _ in range(2)))


def test_crops_are_varied(crops):
    _, _, images = crops
    distinct = {image.tobytes() for image in images}
    assert len(distinct) > 0.8 * len(images)


@pytest.mark.parametrize("scale", [1, 3, 7])
def test_a_crop_is_a_mean_over_squares(scale):
    picture = np.random.default_rng(0).integers(0, 256, (56, 60, 3), np.uint8)
    # The draw that gives this scale at the top left corner.
    share = np.log(scale + 0.5) / np.log(56 // 8 + 1)
    crop = module._crop(module._integral(picture), np.array([share, 0.0, 0.0]), 8)
    window = picture[: 8 * scale, : 8 * scale].reshape(8, scale, 8, scale, 3)
    np.testing.assert_allclose(crop, window.mean((1, 3)), atol=0.5)


def test_crops_reach_all_corners():
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    last = module._crop(module._integral(picture), np.array([0.0, 1 - 1e-9, 1 - 1e-9]), 8)
    np.testing.assert_array_equal(last, picture[-8:, -8:])


@pytest.mark.parametrize("size", [4, 301])
def test_sizes_that_cannot_be_are_refused(size):
    with pytest.raises(ValueError, match="size: photos test gives 8 to 300 pixels"):
        load_images("photos", "test", size)


def test_missing_photograph_is_named(monkeypatch):
    monkeypatch.setitem(module.PHOTOGRAPHS, "test", ("gone.png",))
    with pytest.raises(FileNotFoundError, match=r"lacks the photograph gone\.png"):
        photographs("test")
