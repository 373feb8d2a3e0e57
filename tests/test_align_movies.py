"""Corrected movies in one file, and tables that correct other pictures of the same views."""

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from jaxreg.alignment import movie
from jaxreg.alignment.files import read_picture, write_picture
from jaxreg.alignment.pictures import warp_pixels
from jaxreg.alignment.table import read_table
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
    numbers = (0, 2, 10)
    for folder, seed in (("red", 0), ("green", 5)):
        os.mkdir(folder)
        for k in numbers:
            write_picture(f"{folder}/f{k}.png", scene(seed=seed + k))
    os.mkdir("elsewhere")
    table = os.path.join("elsewhere", "t.csv")
    assert run("--fixed=red/f0.png", "--moving_dir=red", f"--out={table}") == 0
    calls.clear()
    assert run(f"--apply={table}", "--moving_dir=green", "--out_moving=moved") == 0
    moved = [warp_pixels(scene(seed=5 + k), TRUTH, back=True) for k in numbers]
    for k, expected in zip(numbers, moved, strict=True):
        np.testing.assert_array_equal(read_picture(f"moved/f{k}.png").pixels, expected)
    assert run(f"--apply={table}", "--moving_dir=green", "--out_moving=moved.tif") == 0
    np.testing.assert_array_equal(tifffile.imread("moved.tif"), moved)  # as they are numbered
    assert not calls


@pytest.mark.parametrize(
    ("which", "name"), [("--stack=movie.tif", "movie.tif[0]"), ("--moving_dir=b", "b/f.png")]
)
@pytest.mark.usefixtures("calls")
def test_a_table_of_two_references_does_not_tell_how_to_move(capsys, which, name):
    save_movie("movie.tif")
    os.mkdir("b")
    write_picture("b/f.png", scene())
    for fixed in ("movie.tif[1]", "movie.tif[3]"):
        run(f"--fixed={fixed}", which, "--out=t.csv")
    assert run("--apply=t.csv", which, "--out_moving=moved.tif") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"t.csv has two rows for an image named {name}" in error
    assert not os.path.exists("moved.tif")


@pytest.fixture
def channels():
    """Pages of two channels, of which the second shows nothing in its third."""
    both = [save_movie("spare.tif", seed) for seed in (0, 10)]
    both[0][2] = scene(channels=1, dtype=np.uint16, seed=9)
    return both


@pytest.mark.parametrize(
    ("kind", "axes", "pages"),
    [
        ("imagej", "TCYX", [1, 3, 5, 7]),
        ("ome", "TCYX", [1, 3, 5, 7]),
        ("ome", "CTYX", [4, 5, 6, 7]),
        ("imagej", "ZCYX", [1, 3, 5, 7]),
        ("truncate", "TCYX", [1, 3, 5, 7]),  # ImageJ's of more than 4 GB
    ],
)
def test_a_movie_is_registered_by_one_channel_and_all_are_moved(
    kind, axes, pages, capsys, calls, channels
):
    stack = functools.partial(np.stack, axis=axes.index("C"))
    how = {"ome": True} if kind == "ome" else {"imagej": True, "truncate": kind == "truncate"}
    tifffile.imwrite("movie.tif", stack(channels), metadata={"axes": axes}, **how)
    command = ("--stack=movie.tif", "--out=t.csv", "--out_moving=steady.tif")
    assert run(*command) == 2
    assert "movie.tif has 2 channels; say by which" in capsys.readouterr().err
    assert run(*command, "--channel=2") == 2
    assert "no channel 2, counted from 0; it has 2" in capsys.readouterr().err
    assert not calls
    assert run(*command, "--channel=1") == 1
    assert "3 of 4 pairs" in capsys.readouterr().out
    rows = read_table("t.csv")
    assert [row["moving"] for row in rows] == [f"movie.tif[{page}]" for page in pages]
    assert {row["fixed"] for row in rows} == {f"movie.tif[{pages[0]}]"}
    moved = stack([steady(channel) for channel in channels])
    np.testing.assert_array_equal(tifffile.imread("steady.tif").reshape(moved.shape), moved)
    with tifffile.TiffFile("steady.tif") as file:
        assert file.series[0].axes == axes
    # The same table moves the movie again.
    assert run("--apply=t.csv", "--stack=movie.tif", "--out_moving=again.tif") == 1
    np.testing.assert_array_equal(tifffile.imread("again.tif"), tifffile.imread("steady.tif"))


@pytest.mark.usefixtures("calls")
def test_a_table_of_one_channel_moves_a_file_of_another(channels):
    tifffile.imwrite("both.tif", np.stack(channels, 1), imagej=True, metadata={"axes": "TCYX"})
    tifffile.imwrite("one.tif", channels[0], photometric="minisblack")
    assert run("--stack=both.tif", "--channel=1", "--out=t.csv") == 1
    assert run("--apply=t.csv", "--stack=one.tif", "--out_moving=steady.tif") == 1
    np.testing.assert_array_equal(tifffile.imread("steady.tif"), steady(channels[0]))
    assert run("--stack=one.tif", "--out=u.csv") == 0
    assert run("--apply=u.csv", "--stack=both.tif", "--out_moving=steady.tif") == 0
    assert tifffile.imread("steady.tif").shape == (4, 2, 40, 48)


@pytest.mark.usefixtures("calls")
def test_channels_of_one_frame_are_registered_with_one_another(channels):
    pages = np.stack([channel[0] for channel in channels])
    tifffile.imwrite("channels.tif", pages, imagej=True, metadata={"axes": "CYX"})
    assert run("--stack=channels.tif", "--out=t.csv") == 0
    assert len(read_table("t.csv")) == 2


def save_stopped(path, pages, count, **how):
    """So many pages, with the text that all of these would have."""
    tifffile.imwrite(path, pages, **how)
    with tifffile.TiffFile(path) as file:
        text, pages = file.pages.first.description, [page.asarray() for page in file.pages]
    with tifffile.TiffWriter(path) as file:
        for k, page in enumerate(pages[:count]):
            told = text.encode() if k == 0 else None
            file.write(page, photometric=how["photometric"], description=told, metadata=None)


@pytest.mark.parametrize("kind", ["imagej", "ome"])
def test_pages_that_do_not_fit_their_channels_are_refused(kind, capsys, calls, channels):
    """As of an acquisition that was stopped, or at several places."""
    how = {"photometric": "minisblack", "metadata": {"axes": "TCYX"}}
    save_stopped("movie.tif", np.stack(channels, 1), 7, **{kind: True}, **how)
    for more in ([], ["--channel=0"]):
        assert run("--stack=movie.tif", "--out=t.csv", *more) == 2
        error = capsys.readouterr().err
        assert "movie.tif tells of 2 channels, which its 7 pages do not fit" in error
        assert error.count("\n") == 1
    with tifffile.TiffWriter("places.tif", ome=True) as file:
        for _ in range(2):
            file.write(np.stack(channels, 1), **how)
    assert run("--stack=places.tif", "--out=t.csv") == 2
    assert "2 channels, which its 16 pages do not fit" in capsys.readouterr().err
    assert not calls


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("kind", ["imagej", "ome"])
@pytest.mark.parametrize(("axes", "photometric"), [("TYX", "minisblack"), ("TYXS", "rgb")])
def test_a_movie_of_one_channel_may_have_been_stopped(kind, axes, photometric):
    pages = np.stack([scene(channels=3 if "S" in axes else 1, seed=k) for k in range(4)])
    how = {kind: True, "photometric": photometric, "metadata": {"axes": axes}}
    save_stopped("movie.tif", pages, 3, **how)
    for more in ([], ["--channel=0"]):
        assert run("--stack=movie.tif", "--out=t.csv", *more) == 0
        assert len(read_table("t.csv")) == 3


@pytest.mark.usefixtures("calls")
def test_a_channel_is_one_of_those_that_are_told_of(capsys, channels):
    pages = np.stack(channels, 1)
    tifffile.imwrite("plain.tif", pages.reshape(8, 40, 48), photometric="minisblack", metadata=None)
    tifffile.imwrite("channels.tif", pages[0], imagej=True, metadata={"axes": "CYX"})
    for name in ("plain.tif", "channels.tif"):
        assert run(f"--stack={name}", "--channel=0", "--out=t.csv") == 2
        error = capsys.readouterr().err
        assert f"--channel=0: {name} does not say which of its pages are frames" in error
    # Of channels in files of their own each file has but one.
    files = "".join(f'<UUID FileName="{name}.tif">' for name in ("one", "other"))
    text = f'<OME><Pixels SizeC="2" SizeT="4">{files}</Pixels></OME>'
    tifffile.imwrite("one.tif", channels[0], photometric="minisblack", description=text)
    assert run("--stack=one.tif", "--out=t.csv") == 0


def test_slices_at_several_times_are_no_frames(capsys, calls, channels):
    pages = np.stack(channels, 1)
    tifffile.imwrite("volumes.tif", pages, imagej=True, metadata={"axes": "TZYX"})
    assert run("--stack=volumes.tif", "--out=t.csv") == 2
    assert "volumes.tif has 2 slices at each of 4 times" in capsys.readouterr().err
    assert run("--pairs=t.csv", "--channel=0", "--out=u.csv") == 2
    assert "--channel is one of a --stack" in capsys.readouterr().err
    assert not calls


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stack=short.tif"], "short.tif has 3 pages, but the rows of t.csv are of 4 pages"),
        (
            ["--stack=movie.tif", "--apply=part.csv"],
            "but the rows of part.csv are of 3 pages, 0 to 3",
        ),
        (["--stack=movie.tif", "--apply=uneven.csv"], "uneven.csv are of 4 pages, 0 to 9"),
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
    text = Path("t.csv").read_text()
    Path("part.csv").write_text(
        "".join(line for line in text.splitlines(True) if "[1]" not in line)
    )
    Path("uneven.csv").write_text(text.replace("[3]", "[9]"))
    assert run("--apply=t.csv", "--out_moving=moved.tif", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not os.path.exists("moved.tif")
