"""Files in and out of `python -m jaxreg.align`: bit depth, pages, orientation, limits."""

import json
import os
import resource

import cv2
import numpy as np
import PIL.Image
import pytest
import tifffile

import jaxreg
from jaxreg import RigidTransform
from jaxreg.alignment import files
from jaxreg.alignment.files import read_picture, write_picture
from jaxreg.alignment.pictures import warp_pixels
from jaxreg.alignment.table import Table
from jaxreg.atomic import replacing
from jaxreg.command_line import describe
from tests.align_support import TRUTH, run, save_pair, scene, stand_in
from tests.tolerances import OPENCV_WARP


@pytest.fixture
def calls(monkeypatch):
    return stand_in(monkeypatch)


@pytest.mark.parametrize(
    ("dtype", "channels", "suffix"),
    [
        (np.uint8, 1, ".png"), (np.uint8, 3, ".bmp"), (np.uint16, 1, ".png"),
        (np.uint16, 3, ".tif"), (np.float32, 3, ".tiff"), (np.float64, 1, ".tif"),
        (np.int8, 1, ".tif"), (np.int16, 3, ".tif"), (np.int32, 1, ".tif"), (np.uint32, 3, ".tif"),
    ],
)  # fmt: skip
def test_dtype_and_channels_are_kept(tmp_path, calls, dtype, channels, suffix):
    pair = save_pair(tmp_path, dtype=dtype, channels=channels, suffix=suffix)
    outs = [tmp_path / f"out{suffix}", tmp_path / f"back{suffix}"]
    assert run(*pair, f"--out={outs[0]}", f"--out_moving={outs[1]}") == 0
    for path, out, transform in zip(pair, outs, (TRUTH, TRUTH.inverse()), strict=True):
        image, aligned = read_picture(path).pixels, read_picture(out).pixels
        assert (aligned.dtype, aligned.shape) == (np.dtype(dtype), image.shape)
        top = image.max()
        expected = np.asarray(jaxreg.warp(image / top * 255, transform))
        rounding = 0.5 * 255 / top if np.dtype(dtype).kind != "f" else 0
        assert np.abs(aligned / top * 255 - expected).max() < rounding + OPENCV_WARP


def test_moving_is_brought_onto_fixed(tmp_path, capsys, calls):
    pair, back = save_pair(tmp_path, dtype=np.int16, suffix=".tif"), tmp_path / "back.tif"
    assert run(*pair, f"--out_moving={back}") == 0
    assert f"{back}: moving, warped to look like fixed" in capsys.readouterr().out
    fixed, moving, aligned = (cv2.imread(str(p), -1).astype(float) for p in (*pair, back))
    matrix = np.asarray(TRUTH.matrix(fixed.shape))[:2]  # an oracle of OpenCV's own
    expected = cv2.warpAffine(
        moving.astype(np.float32), matrix, (48, 40), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    )
    assert np.abs(aligned - expected).max() < 0.5 + OPENCV_WARP
    middle = (slice(12, 28), slice(16, 32))  # in both frames
    assert np.abs(aligned - fixed)[middle].mean() < 0.1 * np.abs(moving - fixed)[middle].mean()
    assert run(*pair, f"--out_moving={back}", "--json") == 0
    assert json.loads(capsys.readouterr().out)["out_moving"] == str(back)


def test_the_largest_integers_do_not_wrap_around():
    image = np.full((20, 20), np.iinfo(np.int32).max, np.int32)
    image[:, :10] = np.iinfo(np.int32).min
    warped = warp_pixels(image, RigidTransform(0.5, 0.0, 0.0))
    assert np.array_equal(np.unique(warped[:, 11:-1]), [image.max()])
    assert np.array_equal(np.unique(warped[:, 1:10]), [image.min()])


def test_orientation_is_obeyed_and_alpha_dropped(tmp_path, capsys, calls):
    image = scene()
    turned = cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE)
    exif = bytes.fromhex("49492a000800000001001201030001000000060000000000000000")
    if not hasattr(cv2, "imencodeWithMetadata"):
        pytest.skip("this OpenCV writes no EXIF")
    done, data = cv2.imencodeWithMetadata(
        ".png", turned, [cv2.IMAGE_METADATA_EXIF], [np.frombuffer(exif, np.uint8)]
    )
    assert done
    data.tofile(tmp_path / "turned.png")
    assert np.array_equal(read_picture(tmp_path / "turned.png").pixels, image[..., ::-1])
    cv2.imwrite(str(tmp_path / "alpha.png"), np.dstack([image, image[..., :1]]))
    assert np.array_equal(read_picture(tmp_path / "alpha.png").pixels, image[..., ::-1])
    PIL.Image.fromarray(image[..., :2].copy()).save(tmp_path / "grey.png")
    grey = read_picture(tmp_path / "grey.png")
    assert np.array_equal(grey.pixels, image[..., 0])
    assert grey.transparent
    assert run(tmp_path / "turned.png", tmp_path / "alpha.png") == 0
    assert "alpha channel of moving dropped" in capsys.readouterr().out


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_is_read_as_its_header_says(tmp_path, order, big):
    def read(pixels, **how):
        tifffile.imwrite(tmp_path / "a.tif", pixels, byteorder=order, bigtiff=big, **how)
        return read_picture(tmp_path / "a.tif").pixels

    for dtype in (np.uint8, np.uint16, np.int16, np.uint32):
        grey, top, low = scene(channels=1, dtype=dtype), np.iinfo(dtype).max, np.iinfo(dtype).min
        assert np.array_equal(read(grey, photometric="miniswhite"), top - (grey - low))
    for dtype in (np.uint8, np.uint16):
        alpha = [scene(dtype=dtype, seed=1)[..., :1], scene(dtype=dtype)]
        found = read(np.dstack(alpha[::-1]), photometric="rgb", extrasamples=["unassalpha"])
        assert np.array_equal(found, alpha[1])
    planes = {"photometric": "rgb", "planarconfig": "separate"}
    assert np.array_equal(read(np.moveaxis(scene(), -1, 0), **planes), scene())
    for dtype in (np.uint16, np.float32):
        with pytest.raises(ValueError, match=r"a\.tif has its colours in planes"):
            read(np.moveaxis(scene(dtype=dtype), -1, 0), **planes)
    two = scene(dtype=np.uint16)[..., :2]
    with pytest.raises(ValueError, match="2 samples of 16 bits a pixel, which would be cut to 8"):
        read(two, photometric="minisblack", planarconfig="contig")


def test_a_tiff_that_cannot_be_read_says_how_it_is_stored(tmp_path):
    channels = np.zeros((40, 48, 5), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", channels, photometric="minisblack", planarconfig="contig")
    with pytest.raises(ValueError, match="a TIFF of 5 samples of 16 bits a pixel; save it as grey"):
        read_picture(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((40, 48), np.float16))
    with pytest.raises(ValueError, match="a TIFF of 1 sample of 16-bit floats a pixel; save"):
        read_picture(tmp_path / "b.tif")
    (tmp_path / "c.tif").write_bytes(b"II*\0" + bytes(9))
    with pytest.raises(ValueError, match=r"not a readable image$"):
        read_picture(tmp_path / "c.tif")


def test_a_tiff_that_is_cut_short_is_told_from_one_of_another_kind(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, scene(), photometric="rgb")
    path.write_bytes(path.read_bytes()[:-1000])
    for name in (path, f"{path}[0]"):
        with pytest.raises(ValueError, match="is cut short"):
            read_picture(name)


def test_black_ink_is_no_alpha(tmp_path):
    PIL.Image.fromarray(scene()).convert("CMYK").save(tmp_path / "a.tif")
    picture = read_picture(tmp_path / "a.tif")
    assert not picture.transparent
    assert np.array_equal(picture.pixels, scene())


@pytest.mark.parametrize("progressive", [0, 1])
def test_a_jpeg_ends_where_its_picture_does(tmp_path, progressive):
    path, random = tmp_path / "a.jpg", np.random.default_rng(0)
    kind = [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive]
    jpeg = cv2.imencode(".jpg", random.integers(0, 256, (60, 80, 3), np.uint8), kind)[1].tobytes()
    preview = b"\xff\xe1\x00\x08\xff\xd8\xff\xda\xff\xd9"  # in a segment of its own
    for _ in range(20):
        film = random.bytes(50_000)  # as phones append one
        path.write_bytes(jpeg[:2] + preview + jpeg[2:] + film)
        assert read_picture(path).size == (80, 60)
    for rest in (b"", film, b"\xff\xd8\xff\xd9"):
        path.write_bytes(jpeg[:2] + preview + jpeg[2 : len(jpeg) // 2] + rest)
        with pytest.raises(ValueError, match=r"a\.jpg is cut short"):
            read_picture(path)


def test_names_that_are_not_utf8(tmp_path, calls, capsys):
    frames, moved = tmp_path / "frames", tmp_path / "moved"
    frames.mkdir()
    odd = os.fsdecode(b"\xffa.png")
    pair = save_pair(tmp_path)
    os.link(pair[1], frames / odd)
    assert run(*pair, f"--out={tmp_path / odd}") == 0
    assert "\\udcffa.png: fixed, warped" in capsys.readouterr().out
    assert read_picture(tmp_path / odd).size == (48, 40)
    many = f"--fixed={pair[0]}", f"--moving_dir={frames}", f"--out={tmp_path / 't.csv'}"
    assert run(*many, f"--out_moving={moved}") == 0
    assert os.listdir(moved) == [odd]
    assert run(*pair, f"--out={tmp_path / os.fsdecode(b'a.p' + bytes([255]))}") == 2
    assert "no suffix of an image format" in capsys.readouterr().err


def test_nothing_is_half_written(tmp_path, monkeypatch):
    path = tmp_path / "o.png"
    write_picture(path, scene())
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_picture(path, scene(seed=1))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["o.png"]


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path):
    path = tmp_path / f"{'x' * 251}.png"
    write_picture(path, scene())
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_an_error_of_writing_names_the_file(tmp_path):
    path, table = tmp_path / "o.png", tmp_path / "t.csv"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as picture:
            write_picture(path, scene())
        with pytest.raises(OSError, match="File too large") as rows, Table(table, "direct", ""):
            pass
        with pytest.raises(OSError, match="is the disk full") as array, replacing(path) as file:
            scene().tofile(file)  # of which NumPy tells but the number of bytes
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [describe(error.value) for error in (picture, rows)] == [
        f"{file}: File too large" for file in (path, table)
    ]
    assert describe(array.value).startswith(f"{path}: ")
    with pytest.raises(FileNotFoundError) as error, replacing(tmp_path / "no" / "file"):
        pass
    assert error.value.filename == str(tmp_path / "no" / "file")


def test_images_past_the_limit_are_refused(tmp_path, monkeypatch, capsys, calls):
    pair = save_pair(tmp_path)
    monkeypatch.setattr(files, "LARGEST_AREA", 1000)
    assert run(*pair) == 2
    assert "48x40, over the limit" in capsys.readouterr().err


def test_links_stay_links_and_devices_devices(tmp_path):
    path, link, pipe = (tmp_path / name for name in ("o.png", "link.png", "pipe.png"))
    link.symlink_to(path.name)
    write_picture(link, scene())
    assert link.is_symlink()
    np.testing.assert_array_equal(read_picture(path).pixels, scene())
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match=r"pipe.png is no regular file"):
        write_picture(pipe, scene())
    assert pipe.is_fifo()
