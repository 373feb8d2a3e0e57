"""Tables that correct other pictures of the same views."""

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile

from jaxreg.alignment.files import read_picture, write_picture
from jaxreg.alignment.pictures import warp_pixels
from tests.align_support import TRUTH, run, save_movie, scene, stand_in, steady


@pytest.fixture
def calls(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return stand_in(monkeypatch)


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
