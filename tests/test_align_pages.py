"""Files of several pictures: pages of a TIFF by name, and stacks of them."""

import csv
import json
import os
import shutil

import cv2
import numpy as np
import PIL.Image
import pytest
import tifffile

import jaxreg
from jaxreg import RigidTransform
from jaxreg.alignment.files import read_picture, write_picture
from jaxreg.alignment.pages import page_names
from tests.align_support import run, save_pair, scene, stand_in
from tests.tolerances import ALIGNED_FILES

DRIFT = [(0.0, 0.0, 0.0), (1.5, -0.75, 4.0), (2.25, -1.5, -170.0)]


@pytest.fixture
def calls(monkeypatch):
    return stand_in(monkeypatch)


def save_movie(path, shape=(40, 48), **how):
    """A stack of pages of 16 bits a colour that drifts as `DRIFT` says."""
    image = scene(*shape).astype(np.float32)
    pages = [np.asarray(jaxreg.warp(image, RigidTransform(*motion))) for motion in DRIFT]
    pages = [np.round(page * 200).astype(np.uint16) for page in pages]
    tifffile.imwrite(path, np.stack(pages), photometric="rgb", **how)
    return pages


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("batch_program")
def test_a_movie_is_registered_to_its_first_page(tmp_path, capsys):
    movie, table, folder = tmp_path / "movie.tif", tmp_path / "t.csv", tmp_path / "moved"
    pages = save_movie(movie, (32, 32))  # the size that all tests register, compiled once
    assert run(f"--stack={movie}", f"--out={table}", f"--out_moving={folder}") == 0
    assert "3 of 3 pairs registered with success" in capsys.readouterr().out
    rows = rows_of(table)
    assert [row["fixed"] for row in rows] == [f"{movie}[0]"] * 3
    assert [row["moving"] for row in rows] == [f"{movie}[{k}]" for k in range(3)]
    found = [[float(row[name]) for name in ("tx", "ty", "theta")] for row in rows]
    assert found[0] == [0.0, 0.0, 0.0]
    assert np.allclose(found, DRIFT, atol=ALIGNED_FILES)
    assert sorted(os.listdir(folder)) == [f"movie_000{k}.tif" for k in range(3)]
    middle = (slice(9, 23), slice(9, 23))  # in all frames
    for k in range(3):
        steady = read_picture(folder / f"movie_000{k}.tif").pixels
        assert steady.dtype == np.uint16
        off = np.abs(steady.astype(float) - pages[0])[middle].mean()
        before = np.abs(pages[k].astype(float) - pages[0])[middle].mean()
        assert off <= 0.2 * before


@pytest.mark.parametrize("size", [1, 2, 4, 256])
def test_rows_of_a_movie_come_in_the_order_of_its_pages(tmp_path, calls, size):
    movie, table = tmp_path / "movie.tif", tmp_path / "t.csv"
    pages = np.stack([scene(channels=1, dtype=np.float32, seed=k) for k in range(8)])
    pages[[1, 3, 4, 7], 0, 0] = np.nan
    tifffile.imwrite(movie, pages, photometric="minisblack")
    assert run(f"--stack={movie}", f"--out={table}", f"--batch_size={size}") == 1
    rows = rows_of(table)
    assert [row["moving"] for row in rows] == [f"{movie}[{k}]" for k in range(8)]
    assert ["NaN" in row["error"] for row in rows] == [k in (1, 3, 4, 7) for k in range(8)]


def test_a_stack_may_have_another_reference_and_is_taken_up_again(tmp_path, capsys, calls):
    movie, table = tmp_path / "movie.tif", tmp_path / "t.csv"
    save_movie(movie, compression="zlib")
    command = (f"--stack={movie}", f"--fixed={movie}[1]", f"--out={table}")
    assert run(*command) == 0
    assert {row["fixed"] for row in rows_of(table)} == {f"{movie}[1]"}
    whole = table.read_bytes()
    table.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 1])
    assert run(*command) == 0
    assert "2 of 3 pairs are in" in capsys.readouterr().err
    assert table.read_bytes() == whole


def test_two_pages_are_a_pair(tmp_path, capsys, calls):
    movie = tmp_path / "movie.tif"
    save_movie(movie)
    assert run(f"{movie}[0]", f"{movie}[2]", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["fixed"], report["moving"]) == (f"{movie}[0]", f"{movie}[2]")
    assert run(f"{movie}[0]", f"{movie}[2]", f"--out={movie}") == 2
    assert "is one of the images to register" in capsys.readouterr().err


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize(
    "how", [{}, {"compression": "zlib"}, {"rowsperstrip": 7}, {"tile": (16, 32)}]
)
def test_each_page_is_read_by_its_name(tmp_path, order, big, how):
    path = tmp_path / "movie.tif"
    pages = save_movie(path, byteorder=order, bigtiff=big, **how)
    before = path.read_bytes()
    for k, page in enumerate(pages):
        assert np.array_equal(read_picture(f"{path}[{k}]").pixels, page)
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="has 3 pages, counted from 0; there is no page 3"):
        read_picture(f"{path}[3]")


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_stack_that_imagej_describes_by_its_first_page_has_them_all(tmp_path, order):
    """As it does beyond 4 GB."""
    path, pages = tmp_path / "movie.tif", np.stack([scene(channels=1, seed=k) for k in range(3)])
    how = {"imagej": True, "truncate": True, "byteorder": order, "rowsperstrip": 7}
    tifffile.imwrite(path, pages.astype(np.uint16), metadata={"axes": "TYX"}, **how)
    with tifffile.TiffFile(path) as tiff:
        assert len(tiff.pages) == 1
    assert page_names(path) == [f"{path}[{k}]" for k in range(3)]
    for k, page in enumerate(pages):
        assert np.array_equal(read_picture(f"{path}[{k}]").pixels, page)
    with pytest.raises(ValueError, match="has 3 pages; say which"):
        read_picture(path)
    path.write_bytes(path.read_bytes()[:-1])
    assert page_names(path) == [f"{path}[0]"]  # what is said of the others is not so
    assert np.array_equal(read_picture(path).pixels, pages[0])


def test_a_file_of_more_than_two_gigabytes_is_read_page_by_page(tmp_path):
    """Nearly all of it is a hole, which takes no room on the disk."""
    path, last = tmp_path / "movie.tif", scene(1024, 1024, channels=1).astype(np.uint16)
    movie = tifffile.memmap(path, shape=(1100, 1024, 1024), dtype=np.uint16, bigtiff=True)
    movie[-1] = last
    movie.flush()
    assert path.stat().st_size > 2**31
    assert len(page_names(path)) == 1100
    assert np.array_equal(read_picture(f"{path}[1099]").pixels, last)
    assert not read_picture(f"{path}[1]").pixels.any()
    with pytest.raises(ValueError, match="has 1100 pages; say which"):
        read_picture(path)


def test_a_page_that_is_cut_short_is_told_from_those_before(tmp_path):
    path = tmp_path / "movie.tif"
    pages = save_movie(path, metadata=None, contiguous=False)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        second = tiff.pages[1].tags["StripByteCounts"]
    data[second.valueoffset : second.valueoffset + 4] = (2**31 - 2).to_bytes(4, "little")
    path.write_bytes(data)
    assert np.array_equal(read_picture(f"{path}[0]").pixels, pages[0])
    with pytest.raises(ValueError, match=r"movie.tif\[1\] is cut short"):
        read_picture(f"{path}[1]")


def test_a_page_need_not_say_how_long_its_strips_are(tmp_path):
    path = tmp_path / "movie.tif"
    pages = save_movie(path, metadata=None, contiguous=False)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        for page in tiff.pages:
            place = page.tags["StripByteCounts"].offset
            data[place : place + 2] = (281).to_bytes(2, "little")  # MaxSampleValue, of no meaning
    path.write_bytes(data)
    for k, page in enumerate(pages):
        assert np.array_equal(read_picture(f"{path}[{k}]").pixels, page)


def test_pages_in_colour_and_of_another_writer(tmp_path):
    colour, path = [scene(seed=k) for k in range(3)], tmp_path / "c.tif"
    cv2.imwritemulti(str(path), [image[..., ::-1] for image in colour])
    for k, image in enumerate(colour):
        assert np.array_equal(read_picture(f"{path}[{k}]").pixels, image)
    pages = [PIL.Image.fromarray(image) for image in colour]
    pages[0].save(path, save_all=True, append_images=pages[1:], compression="tiff_lzw")
    assert np.array_equal(read_picture(f"{path}[2]").pixels, colour[2])


def test_a_file_may_be_named_like_a_page(tmp_path):
    image = scene()
    write_picture(tmp_path / "a[1].png", image)
    shutil.copy(tmp_path / "a[1].png", tmp_path / "b.tif[1]")
    assert np.array_equal(read_picture(tmp_path / "a[1].png").pixels, image)
    assert np.array_equal(read_picture(tmp_path / "b.tif[1]").pixels, image)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("a.png[0]", r"a\.png is no TIFF file"), ("empty.tif[0]", r"empty\.tif is no TIFF file"),
        ("none.tif[0]", "No such file"), ("torn.tif[2]", "has 1 pages|has 2 pages"),
        ("m.tif[01]", "No such file"),
    ],
)  # fmt: skip
def test_pages_that_are_not_there(tmp_path, name, error):
    write_picture(tmp_path / "a.png", scene())
    (tmp_path / "empty.tif").touch()
    save_movie(tmp_path / "torn.tif", metadata=None)
    data = (tmp_path / "torn.tif").read_bytes()
    (tmp_path / "torn.tif").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises((ValueError, OSError), match=error):
        read_picture(tmp_path / name)


def test_a_stack_that_is_cut_short_is_refused(tmp_path, capsys, calls):
    movie, table = tmp_path / "movie.tif", f"--out={tmp_path / 't.csv'}"
    cv2.imwritemulti(str(movie), [scene(seed=k) for k in range(3)])  # each page ends in its header
    data = movie.read_bytes()
    movie.write_bytes(data[: len(data) * 9 // 10])
    assert run(f"--stack={movie}", table) == 2
    assert "is cut short: it goes on after the 2 pages that are left" in capsys.readouterr().err
    assert read_picture(f"{movie}[1]").size == (48, 40)


@pytest.mark.parametrize("place", [8, "entries"])
def test_numbers_beyond_any_file_end_a_tiff(tmp_path, calls, place):
    pair, movie = save_pair(tmp_path), tmp_path / "movie.tif"
    save_movie(movie, bigtiff=True)
    data = bytearray(movie.read_bytes())
    if place == "entries":
        place = int.from_bytes(data[8:16], "little")
    data[place : place + 8] = (2**64 - 5).to_bytes(8, "little")
    movie.write_bytes(data)
    assert run(pair[0], movie) == 2
    assert run(f"--stack={movie}", f"--out={tmp_path / 't.csv'}") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stack=movie.tif[1]"], "give the whole file, movie.tif"),
        (["--stack=movie.tif", "--fixed="], "--fixed is empty"),
        (["--stack=complex.tif"], "complex.tif[0] is not a readable image"),
        (["--stack=movie.tif", "--moving_dir=."], "give either two files"),
        (["--stack=."], "Is a directory"),
    ],
)
def test_stacks_are_refused_at_once(tmp_path, monkeypatch, capsys, calls, arguments, message):
    monkeypatch.chdir(tmp_path)
    save_movie("movie.tif")
    tifffile.imwrite("complex.tif", np.zeros((3, 40, 48), np.complex64), photometric="minisblack")
    assert run(*arguments, "--out=t.csv") == 2
    assert message in capsys.readouterr().err
    assert not os.path.exists("t.csv")


def test_a_tiff_whose_pages_go_in_circles_has_an_end(tmp_path):
    path = tmp_path / "a.tif"
    save_movie(path)
    with tifffile.TiffFile(path) as file:
        last, first = file.pages[-1], file.pages[0].offset
        place = last.offset + 2 + 12 * len(last.tags)
    data = bytearray(path.read_bytes())
    data[place : place + 4] = first.to_bytes(4, "little")
    path.write_bytes(data)
    assert read_picture(f"{path}[2]").size == (48, 40)
    with pytest.raises(ValueError, match="has 3 pages"):
        read_picture(path)


@pytest.mark.parametrize("suffix", ["tif", "gif", "webp", "png"])
def test_files_of_several_pages_are_refused(tmp_path, capsys, calls, suffix):
    fixed, many = save_pair(tmp_path)[0], tmp_path / f"many.{suffix}"
    pages = [PIL.Image.fromarray(scene(seed=i)) for i in range(3)]
    pages[0].save(many, save_all=True, append_images=pages[1:])
    assert run(fixed, many) == 2
    error = capsys.readouterr().err
    if suffix == "tif":
        assert f"{many} has 3 pages; say which, such as {many}[0], or --stack={many}" in error
    else:
        assert "has 3 frames; split it" in error
        assert "--fixed=REFERENCE --moving_dir=FOLDER" in error
    odd = shutil.copy(many, tmp_path / os.fsdecode(b"m\xff"))  # OpenCV's count would crash
    with pytest.raises(ValueError, match=r"has 3 (pages|frames)"):
        read_picture(odd)
    one = tmp_path / f"one.{suffix}"
    pages[0].save(one)
    assert read_picture(one).size == (48, 40)


def test_a_file_whose_pages_cannot_be_counted_is_refused(tmp_path, monkeypatch):
    def fail(_):
        raise cv2.error("std::bad_alloc")  # what a damaged GIF can bring about

    path = save_pair(tmp_path)[0]
    monkeypatch.setattr(cv2, "imcount", fail)
    with pytest.raises(ValueError, match=r"fixed\.png cannot be decoded"):
        read_picture(path)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_a_preview_is_no_page(tmp_path, order, big):
    image, path = scene(), tmp_path / "a.tif"
    for extra, fit in ((0, True), (1, False)):
        with tifffile.TiffWriter(path, byteorder=order, bigtiff=big) as file:
            for pixels, kind in ((image, 0), (image[::2, ::2], 1), *[(image, 0)] * extra):
                file.write(pixels, photometric="rgb", subfiletype=kind)
        if fit:
            assert np.array_equal(read_picture(path).pixels, image)
        else:
            with pytest.raises(ValueError, match="has 2 pages"):
                read_picture(path)
