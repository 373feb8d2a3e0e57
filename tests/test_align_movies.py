"""Corrected movies in one file, and tables that correct other pictures of the same views."""

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile

from jaxreg.alignment import movie
from jaxreg.alignment.files import read_picture, write_picture
from jaxreg.alignment.pictures import warp_pixels
from tests.align_support import TRUTH, run, scene, stand_in


@pytest.fixture
def calls(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return stand_in(monkeypatch)


def save_movie(path, seed=0, dtype=np.uint16, **how):
    """Four pages, of which the third shows nothing and cannot be registered."""
    pages = np.stack([scene(channels=1, dtype=dtype, seed=seed + k) for k in range(4)])
    pages[2] = 50
    tifffile.imwrite(path, pages, **({"photometric": "minisblack"} | how))
    return pages


def steady(pages):
    """What the stand-in's answer makes of them."""
    moved = np.stack([warp_pixels(page, TRUTH, back=True) for page in pages])
    moved[2] = 0
    return moved


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_corrected_movie_has_all_pages_and_black_where_a_pair_failed(capsys, dtype):
    pages = save_movie("movie.tif", dtype=dtype)
    if dtype == np.float32:
        pages[...] *= 255  # the stand-in trusts what varies by more than 10
        pages[2] = 50
        tifffile.imwrite("movie.tif", pages, photometric="minisblack")
    command = ("--stack=movie.tif", "--out=t.csv", "--out_moving=steady.tif")
    assert run(*command) == 1
    assert "3 of 4 pairs" in (out := capsys.readouterr().out)
    assert "steady.tif" in out
    np.testing.assert_array_equal(tifffile.imread("steady.tif"), steady(pages))
    with tifffile.TiffFile("steady.tif") as file:
        assert not file.is_bigtiff
    # A table that is complete gives the movie again, though nothing is registered.
    whole = Path("steady.tif").read_bytes()
    os.remove("steady.tif")
    assert run(*command) == 1
    assert Path("steady.tif").read_bytes() == whole
    assert sorted(os.listdir()) == ["movie.tif", "steady.tif", "t.csv"]


@pytest.mark.usefixtures("calls")
def test_a_large_movie_is_a_bigtiff(monkeypatch):
    monkeypatch.setattr(movie, "_LARGEST", 4 * 40 * 48 * 2 - 1)  # bytes, one less than it has
    pages = save_movie("movie.tif")
    assert run("--stack=movie.tif", "--out=t.csv", "--out_moving=steady.tif") == 1
    with tifffile.TiffFile("steady.tif") as file:
        assert file.is_bigtiff
        np.testing.assert_array_equal(file.asarray(), steady(pages))


@pytest.mark.usefixtures("calls")
def test_a_corrected_movie_keeps_the_size_of_its_pixels():
    told = {"unit": "um", "finterval": 0.5, "axes": "TYX"}
    pages = save_movie("movie.tif", imagej=True, resolution=(9.25, 9.25), metadata=told)
    assert run("--stack=movie.tif", "--out=t.csv", "--out_moving=steady.tif") == 1
    with tifffile.TiffFile("steady.tif") as file:
        assert file.imagej_metadata["unit"] == "um"
        assert file.imagej_metadata["finterval"] == 0.5
        assert file.pages[3].resolution == (9.25, 9.25)
        assert file.series[0].axes == "TYX"
        np.testing.assert_array_equal(file.asarray(), steady(pages))


@pytest.mark.usefixtures("calls")
def test_a_folder_becomes_a_movie_in_colour(tmp_path, capsys):
    os.mkdir("frames")
    images = [scene(seed=k) for k in range(3)]
    for k, image in enumerate(images):
        write_picture(f"frames/f{k + 9}.png", image)
    (tmp_path / "frames" / "f11.png").write_bytes(b"torn")
    command = ("--fixed=frames/f9.png", "--moving_dir=frames", "--out=t.csv")
    assert run(*command, "--out_moving=steady.tiff") == 1
    assert "f11.png" in capsys.readouterr().err
    moved = tifffile.imread("steady.tiff")
    for k in range(2):  # in the order of their numbers
        np.testing.assert_array_equal(moved[k], warp_pixels(images[k], TRUTH, back=True))
    np.testing.assert_array_equal(moved[2], np.zeros_like(images[0]))


def test_a_movie_takes_the_place_of_nothing_that_is_read(capsys, calls):
    save_movie("movie.tif")
    os.link("movie.tif", "same.tif")
    for name in ("movie.tif", "same.tif"):
        assert run("--stack=movie.tif", "--out=t.csv", f"--out_moving={name}") == 2
        assert f"{name} is one of the images to register" in capsys.readouterr().err
    assert run("--stack=movie.tif", "--out=t.csv", "--out_moving=none/steady.tif") == 2
    assert "there is no folder none" in capsys.readouterr().err
    assert run("--stack=movie.tif", "--out=t.csv", "--out_moving=steady.png") == 2
    assert "of many pairs it is a folder or one .tif" in capsys.readouterr().err
    assert not calls


def test_a_movie_newer_than_its_rows_is_not_moved_by_them(capsys, calls):
    save_movie("movie.tif")
    assert run("--stack=movie.tif", "--out=t.csv") == 1
    later = os.stat("t.csv").st_mtime + 5
    os.utime("movie.tif", (later, later))
    assert run("--stack=movie.tif", "--out=t.csv", "--out_moving=steady.tif") == 2
    assert "is newer than t.csv" in capsys.readouterr().err
    assert not os.path.exists("steady.tif")


def test_a_table_moves_another_channel(capsys, calls):
    save_movie("movie.tif")
    other = save_movie("other.tif", seed=10, dtype=np.uint8)
    assert run("--stack=movie.tif", "--out=t.csv") == 1
    calls.clear()
    assert run("--apply=t.csv", "--stack=other.tif", "--out_moving=other_steady.tif") == 1
    assert "3 of 4 pictures moved" in capsys.readouterr().out
    np.testing.assert_array_equal(tifffile.imread("other_steady.tif"), steady(other))
    assert run("--apply=t.csv", "--stack=other.tif", "--out_moving=pages") == 1
    assert sorted(os.listdir("pages")) == [f"other_000{k}.tif" for k in (0, 1, 3)]
    assert not calls  # nothing was registered


def test_a_table_moves_another_folder(calls, tmp_path):
    for folder, seed in (("red", 0), ("green", 5)):
        os.mkdir(folder)
        for k in range(2):
            write_picture(f"{folder}/f{k}.png", scene(seed=seed + k))
    os.mkdir("elsewhere")
    table = os.path.join("elsewhere", "t.csv")
    assert run("--fixed=red/f0.png", "--moving_dir=red", f"--out={table}") == 0
    calls.clear()
    assert run(f"--apply={table}", "--moving_dir=green", "--out_moving=moved") == 0
    for k in range(2):
        expected = warp_pixels(scene(seed=5 + k), TRUTH, back=True)
        np.testing.assert_array_equal(read_picture(f"moved/f{k}.png").pixels, expected)
    assert not calls


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stack=short.tif"], "short.tif has 3 pages, but the rows of t.csv are of 4 pages"),
        (["--stack=wide.tif"], "wide.tif[0] is of another size than when it was registered"),
        (["--moving_dir=."], "must have an image for each row of t.csv"),
        (["--stack=movie.tif", "--out=u.csv"], "--apply goes with"),
        (["--stack=movie.tif", "movie.tif"], "--apply goes with"),
        (["--stack=movie.tif", "--moving_dir=."], "--apply needs"),
        ([], "--apply needs"),
        (["--apply=movie.tif", "--stack=movie.tif"], "movie.tif exists and is not a table"),
        (["--apply=none.csv", "--stack=movie.tif"], "none.csv: No such file"),
    ],
)
@pytest.mark.usefixtures("calls")
def test_a_table_moves_nothing_but_pictures_like_its_own(capsys, arguments, message):
    pages = save_movie("movie.tif")
    tifffile.imwrite("short.tif", pages[:3], photometric="minisblack")
    tifffile.imwrite("wide.tif", np.repeat(pages, 2, 2), photometric="minisblack")
    assert run("--stack=movie.tif", "--out=t.csv") == 1
    assert run("--apply=t.csv", "--out_moving=moved.tif", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not os.path.exists("moved.tif")
