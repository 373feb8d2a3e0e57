"""Corrected movies in one file."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from jaxreg.alignment import movie
from jaxreg.alignment.files import write_picture
from jaxreg.alignment.pictures import warp_pixels
from tests.align_support import TRUTH, run, save_movie, scene, stand_in, steady


@pytest.fixture
def calls(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return stand_in(monkeypatch)


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
def test_a_corrected_movie_keeps_what_ome_says_of_it():
    told = {"axes": "TYX", "PhysicalSizeX": 0.11, "PhysicalSizeXUnit": "\N{MICRO SIGN}m"}
    pages = save_movie("movie.tif", ome=True, metadata=told)
    assert run("--stack=movie.tif", "--out=t.csv", "--out_moving=steady.tif") == 1
    with tifffile.TiffFile("movie.tif") as before, tifffile.TiffFile("steady.tif") as after:
        assert after.series[0].axes == "TYX"
        pixels, moved = (
            tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
            for file in (before, after)
        )
        assert moved == pixels
        assert pixels["PhysicalSizeXUnit"] == told["PhysicalSizeXUnit"]
        np.testing.assert_array_equal(after.asarray(), steady(pages))


@pytest.mark.usefixtures("calls")
def test_a_cropped_movie_is_not_said_to_be_as_large_as_before():
    pages = save_movie("movie.tif", ome=True, metadata={"axes": "TYX"})
    write_picture("small.tif", scene(36, 40, channels=1, dtype=np.uint16))
    command = ("--stack=movie.tif", "--fixed=small.tif", "--crop", "--out=t.csv")
    assert run(*command, "--out_moving=steady.tif") == 1
    with tifffile.TiffFile("steady.tif") as file:
        assert not file.is_ome
        np.testing.assert_array_equal(file.asarray(), steady(pages[:, 2:38, 4:44]))


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize(
    ("tag", "place", "number"),
    [
        ("SamplesPerPixel", 2, 1),  # the type of its elements: bytes
        ("ImageWidth", 2, 1),
        ("XResolution", 2, 2),  # text
        ("XResolution", None, 0),  # pixels by no length
        ("ResolutionUnit", 2, 1),
    ],
)
def test_a_movie_is_moved_though_tags_of_it_are_damaged(tag, place, number):
    pages = save_movie("movie.tif", resolution=(9.25, 9.25))
    with tifffile.TiffFile("movie.tif") as file:
        found = file.pages.first.tags[tag]
    place = found.valueoffset + 4 if place is None else found.offset + place
    data = bytearray(Path("movie.tif").read_bytes())
    data[place] = number
    Path("movie.tif").write_bytes(data)
    assert run("--stack=movie.tif", "--out=t.csv", "--out_moving=steady.tif") == 1
    np.testing.assert_array_equal(tifffile.imread("steady.tif"), steady(pages))


@pytest.mark.parametrize("kind", ["imagej", "ome"])
@pytest.mark.usefixtures("calls")
def test_some_pages_of_a_movie_are_not_said_to_be_all(kind):
    pages = save_movie("movie.tif", metadata={"axes": "TYX"}, **{kind: True})
    Path("pairs.csv").write_text(
        "fixed,moving\nmovie.tif[0],movie.tif[1]\nmovie.tif[0],movie.tif[3]\n"
    )
    assert run("--pairs=pairs.csv", "--out=t.csv", "--out_moving=steady.tif") == 0
    with tifffile.TiffFile("steady.tif") as file:
        assert not file.is_imagej
        assert not file.is_ome
        np.testing.assert_array_equal(file.asarray(), steady(pages)[[1, 3]])


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


@pytest.mark.parametrize("pictures", ["--out_moving=steady.tif", "--out_moving=pages", None])
def test_the_rows_of_a_movie_that_is_newer_are_not_taken_for_its_own(capsys, calls, pictures):
    save_movie("movie.tif")
    command = ["--stack=movie.tif", "--out=t.csv", *[pictures] * (pictures is not None)]
    assert run(*command) == 1
    there = sorted(os.listdir())
    later = os.stat("t.csv").st_mtime + 5
    os.utime("movie.tif", (later, later))
    capsys.readouterr()
    assert run(*command) == 2
    error = capsys.readouterr().err
    assert "movie.tif[0] is newer than t.csv" in error
    assert error.count("\n") == 1
    assert sorted(os.listdir()) == there


def test_rows_of_files_that_are_gone_are_kept(calls):
    write_picture("a.png", scene())
    Path("pairs.csv").write_text("a.png,a.png\na.png,none.png\n")
    assert run("--pairs=pairs.csv", "--out=t.csv") == 1
    os.remove("a.png")
    calls.clear()
    assert run("--pairs=pairs.csv", "--out=t.csv") == 1
    assert not calls


@pytest.mark.usefixtures("calls")
def test_a_movie_whose_writing_is_ended_leaves_nothing_behind():
    save_movie("movie.tif")
    assert run("--stack=movie.tif", "--out=t.csv") == 1
    there = sorted(os.listdir())
    program = """if True:
        import itertools, runpy, time
        from jaxreg.alignment import movie

        def frame(row, whole=movie._frame, numbers=itertools.count()):
            if next(numbers) == 2:
                print("half of it is written", flush=True)
                time.sleep(60)
            return whole(row)

        movie._frame = frame
        runpy.run_module("jaxreg.align", run_name="__main__", alter_sys=True)
    """
    flags = ["--apply=t.csv", "--stack=movie.tif", "--out_moving=steady.tif"]
    command = [sys.executable, "-c", program, *flags]
    path = {"PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | path) as process:
        assert process.stdout.readline() == b"half of it is written\n"
        assert len(os.listdir()) == len(there) + 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert sorted(os.listdir()) == there
