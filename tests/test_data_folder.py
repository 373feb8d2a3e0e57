"""A user's own image files, sound and broken."""

import io
import logging
import os

import cv2
import numpy as np
import PIL.Image
import pytest

from jaxreg.data import folder as module
from jaxreg.data import load_images


def picture(value=100, shape=(8, 8, 3)):
    return np.full(shape, value, np.uint8)


def write(path, rgb):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), rgb[..., ::-1] if rgb.ndim == 3 else rgb)


@pytest.fixture
def pictures(tmp_path):
    """30 files, some in subfolders, each of its own grey level."""
    for i in range(30):
        write(tmp_path / f"{'deep/er/' if i % 3 else ''}{i:02d}.png", picture(8 * i))
    return tmp_path


def levels(path, split):
    return load_images(f"folder:{path}", split, 8)[:, 0, 0, 0].tolist()


def test_splits_are_a_partition_and_deterministic(pictures):
    train, test = levels(pictures, "train"), levels(pictures, "test")
    assert sorted(train + test) == [8 * i for i in range(30)]
    assert len(test) == 3
    assert (train, test) == (levels(pictures, "train"), levels(pictures, "test"))


def test_split_does_not_depend_on_where_the_folder_is(pictures, tmp_path_factory):
    before = levels(pictures, "test")
    moved = pictures.rename(tmp_path_factory.mktemp("elsewhere") / "moved")
    assert levels(moved, "test") == before


def test_a_new_file_hardly_moves_the_others(pictures):
    before = levels(pictures, "train")
    write(pictures / "new.png", picture(255))
    assert len(set(before) - set(levels(pictures, "train"))) <= 1


def test_names_need_not_be_utf8(pictures):
    write(pictures / "plain.png", picture(8))
    try:
        (pictures / "plain.png").rename(pictures / os.fsdecode(b"m\xff.png"))
    except OSError:
        pytest.skip("this file system wants names of UTF-8")
    assert len(levels(pictures, "train") + levels(pictures, "test")) == 31


def test_links_are_followed_and_each_folder_is_read_once(tmp_path, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write(elsewhere / "x.png", picture(10))
    write(elsewhere / "more/y.png", picture(20))
    write(tmp_path / "train/own/z.png", picture(30))
    (tmp_path / "test").mkdir()
    (elsewhere / "back").symlink_to(tmp_path / "train", target_is_directory=True)
    for name in ("linked", "again"):
        (tmp_path / "train" / name).symlink_to(elsewhere, target_is_directory=True)
    (tmp_path / "train/inner").symlink_to(tmp_path / "train/own", target_is_directory=True)
    assert sorted(levels(tmp_path, "train")) == [10, 20, 30]
    names = [file.as_posix() for file in module.image_files(tmp_path / "train")]
    assert names[-1].endswith("train/own/z.png")


def test_order_is_that_of_the_paths(tmp_path):
    for name, level in (("b/1", 30), ("a", 10), ("c", 40), ("a-b", 20), ("d", 50)):
        write(tmp_path / "train" / f"{name}.png", picture(level))
    (tmp_path / "test").mkdir()
    assert levels(tmp_path, "train") == [20, 10, 30, 40, 50]  # '-' sorts before '.'


def test_subfolders_named_as_splits_are_the_splits(tmp_path):
    write(tmp_path / "train/a.png", picture(10))
    write(tmp_path / "test/x/b.png", picture(20))
    write(tmp_path / "c.png", picture(30))
    assert (levels(tmp_path, "train"), levels(tmp_path, "test")) == ([10], [20])


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".bmp", ".tif", ".webp", ".ppm"])
def test_reads_common_formats_in_rgb(tmp_path, suffix):
    for part in ("train", "test"):
        write(tmp_path / part / f"red{suffix}", picture((250, 40, 10), (8, 8, 3)))
    loaded = load_images(f"folder:{tmp_path}", "train", 8)
    np.testing.assert_allclose(loaded[0].mean((0, 1)), (250, 40, 10), atol=4)


@pytest.mark.parametrize("kind", ["grey", "alpha", "deep"])
def test_other_pixels_become_rgb_bytes(tmp_path, kind):
    level = 0x5500 if kind == "deep" else 0x55
    shape = (8, 8, 4) if kind == "alpha" else (8, 8)
    for part in ("train", "test"):
        image = np.full(shape, level, np.uint16 if kind == "deep" else np.uint8)
        write(tmp_path / part / "image.png", image)
    np.testing.assert_array_equal(load_images(f"folder:{tmp_path}", "train", 8), 0x55)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_deep_files_keep_their_grey_levels(tmp_path, bits, suffix):
    """Cameras leave the upper bits of 16 unused."""
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for part in ("train", "test"):
        write(tmp_path / part / f"image{suffix}", levels.astype(np.uint16) << (bits - 8))
    loaded = load_images(f"folder:{tmp_path}", "train", 16)
    np.testing.assert_array_equal(loaded[0], np.dstack([levels] * 3))


@pytest.mark.parametrize("dtype", ["int16", "int32", "float32", "float64"])
def test_pixels_of_other_types_are_named(tmp_path, caplog, dtype):
    for part in ("train", "test"):
        write(tmp_path / part / "fine.png", picture(50))
        write(tmp_path / part / "other.tif", picture(50).astype(dtype))
    with caplog.at_level(logging.WARNING, "absl"):
        assert levels(tmp_path, "train") == [50]
    expected = f"Skipping train/other.tif: {dtype} pixels, 8- and 16-bit files are read"
    assert [record.getMessage() for record in caplog.records] == [expected]
    (tmp_path / "test/fine.png").unlink()
    with pytest.raises(ValueError, match=rf"none of .* is usable: test/other\.tif: {dtype} pixels"):
        levels(tmp_path, "test")


def test_orientation_tags_are_obeyed(tmp_path):
    upright = picture(20)
    upright[:4] = 230  # bright above
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to see it upright"
    stored = io.BytesIO()
    PIL.Image.fromarray(np.rot90(upright)).save(stored, "jpeg", quality=95, exif=exif)
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "photo.jpg").write_bytes(stored.getvalue())
    np.testing.assert_allclose(load_images(f"folder:{tmp_path}", "test", 8)[0], upright, atol=8)


def test_unreadable_files_are_named_and_skipped(pictures, caplog):
    (pictures / "empty.png").touch()
    (pictures / "text.jpg").write_text("no image")
    (pictures / "cut.png").write_bytes((pictures / "00.png").read_bytes()[:40])
    (pictures / "notes.txt").write_text("ignored")
    (pictures / ".hidden.png").write_text("ignored")
    with caplog.at_level(logging.WARNING, "absl"):
        loaded = levels(pictures, "train") + levels(pictures, "test")
    assert len(loaded) == 30
    named = [record.getMessage() for record in caplog.records]
    assert sorted(line.split()[1].rstrip(":") for line in named) == [
        "cut.png",
        "empty.png",
        "text.jpg",
    ]


def test_many_unreadable_files_are_counted(pictures, caplog):
    for i in range(40):
        (pictures / f"broken{i}.png").write_text("no image")
    with caplog.at_level(logging.WARNING, "absl"):
        count = len(levels(pictures, "train"))
    skipped = 63 - count
    assert len(caplog.records) == module._MAX_NAMED + 1
    assert f"{skipped - module._MAX_NAMED} more" in caplog.records[-1].getMessage()


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_images(f"folder:{tmp_path / 'none'}", "train", 8)
    with pytest.raises(ValueError, match=r"no image files; expected .*\.png"):
        load_images(f"folder:{tmp_path}", "train", 8)
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(ValueError, match="one image file cannot be split"):
        load_images(f"folder:{tmp_path}", "train", 8)
    (tmp_path / "b.png").write_text("no image")
    with pytest.raises(ValueError, match="none of the 1 image files of the test split is usable"):
        load_images(f"folder:{tmp_path}", "test", 8)
