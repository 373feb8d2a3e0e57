"""The command's table: names begin at its folder, and overlays go along with it."""

import csv
import glob
import os
import shutil

import numpy as np
import pytest
import tifffile

from jaxreg.alignment.files import read_picture, write_picture
from tests.align_support import run, save_pair, scene, stand_in


@pytest.fixture
def calls(monkeypatch):
    return stand_in(monkeypatch)


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def save_movie(folder, seed):
    folder.mkdir()
    pages = np.stack([scene(channels=1, seed=seed + k) for k in range(3)])
    tifffile.imwrite(folder / "movie.tif", pages, photometric="minisblack")


def test_another_spelling_of_a_folder_is_the_same_run(tmp_path, calls, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_picture(tmp_path / name / "0.png", scene())
    monkeypatch.chdir(tmp_path)
    assert run("--fixed_dir=a", "--moving_dir=./b/", "--out=t.csv") == 0
    calls.clear()
    assert run("--fixed_dir=./a", "--moving_dir=b", "--out=./t.csv") == 0
    assert run(f"--fixed_dir={tmp_path / 'a'}", "--moving_dir=b", "--out=t.csv") == 0
    assert calls == []
    assert [(row["fixed"], row["moving"]) for row in table("t.csv")] == [("a/0.png", "b/0.png")]


def test_another_folder_with_the_same_names_is_another_data_set(tmp_path, calls, monkeypatch):
    command = ("--stack=movie.tif", "--out=../drift.csv")
    for seed, name in ((0, "exp1"), (9, "exp2")):
        save_movie(tmp_path / name, seed)
        monkeypatch.chdir(tmp_path / name)
        assert run(*command) == 0
    assert [row["moving"] for row in table(tmp_path / "drift.csv")] == [
        f"{name}/movie.tif[{k}]" for name in ("exp1", "exp2") for k in range(3)
    ]
    calls.clear()
    for name in ("exp1", "exp2"):  # pictures of the rows of its own, made of its own images
        monkeypatch.chdir(tmp_path / name)
        assert run(*command, "--out_moving=own") == 0
        shutil.copytree("own", f"../{name}_before")
        shutil.rmtree("own")
        assert run(*command, "--out_moving=own", "--out=anew.csv") == 0
        for page in os.listdir("own"):
            pixels = read_picture(f"own/{page}").pixels
            assert np.array_equal(pixels, read_picture(f"../{name}_before/{page}").pixels)
    assert [shape[0] for shape, _ in calls] == [3, 3]  # of anew.csv


def test_the_same_files_are_known_from_another_folder(tmp_path, calls, monkeypatch, capsys):
    save_movie(tmp_path / "exp", 0)
    (tmp_path / "tables").mkdir()
    (tmp_path / "link").symlink_to("tables")
    monkeypatch.chdir(tmp_path / "exp")
    assert run("--stack=movie.tif", "--out=../link/t.csv") == 0
    calls.clear()
    for folder, movie, out in (
        (".", "exp/movie.tif", "tables/t.csv"),
        ("tables", "../exp/movie.tif", "t.csv"),
        ("link", tmp_path / "exp" / "movie.tif", "t.csv"),
    ):
        monkeypatch.chdir(tmp_path / folder)
        assert run(f"--stack={movie}", f"--out={out}", "--out_moving=moved") == 0
        assert "3 of 3 pairs are in" in capsys.readouterr().err
        assert len(os.listdir("moved")) == 3
    assert calls == []
    rows = table(tmp_path / "tables" / "t.csv")
    assert [row["moving"] for row in rows] == [f"../exp/movie.tif[{k}]" for k in range(3)]


def test_names_from_the_root_stay_so(tmp_path, calls, monkeypatch):
    pair = save_pair(tmp_path)
    (tmp_path / "list.csv").write_text(f"fixed.png,{pair[1]}\n")
    monkeypatch.chdir(tmp_path)
    assert run("--pairs=list.csv", "--out=t.csv") == 0
    shutil.copy("t.csv", "other.csv")
    assert run("--pairs=list.csv", "--out=other.csv") == 0
    assert [(row["fixed"], row["moving"]) for row in table("other.csv")] == [("fixed.png", pair[1])]


def test_a_table_whose_names_begin_elsewhere_is_refused(tmp_path, calls, monkeypatch, capsys):
    save_movie(tmp_path / "exp", 0)
    monkeypatch.chdir(tmp_path / "exp")
    assert run("--stack=movie.tif", "--out=t.csv") == 0
    whole = (tmp_path / "exp" / "t.csv").read_bytes()
    os.rename("t.csv", "../t.csv")  # as an earlier version would have written it there
    assert run("--stack=movie.tif", "--out=../t.csv") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "../t.csv names movie.tif, which is not in its folder but in the current one" in error
    assert (tmp_path / "t.csv").read_bytes() == whole


def test_a_folder_whose_name_breaks_a_line_is_refused(tmp_path, calls, monkeypatch, capsys):
    save_movie(tmp_path / "a\nb", 0)
    monkeypatch.chdir(tmp_path / "a\nb")
    assert run("--stack=movie.tif", "--out=../t.csv") == 2
    assert "a line break in a file's name" in capsys.readouterr().err
    assert run("--stack=movie.tif", "--out=t.csv") == 0


def test_overlays_show_all_pairs_that_could_be_read(tmp_path, calls, monkeypatch, capsys):
    (tmp_path / "b").mkdir()
    write_picture(tmp_path / "fixed.png", scene())
    for name, image in (("good", scene()), ("flat", np.full((40, 48, 3), 9, np.uint8))):
        write_picture(tmp_path / "b" / f"{name}.jpg", image)
    write_picture(tmp_path / "b" / "larger.tif", scene(44, 50, dtype=np.uint16))
    (tmp_path / "b" / "torn.png").write_bytes(b"garbage")
    monkeypatch.chdir(tmp_path)
    command = ("--fixed=fixed.png", "--moving_dir=b", "--crop", "--out=t.csv", "--overlay=checks")
    assert run(*command, "--out_moving=moved", "--overlay_style=red-cyan") == 1
    assert "; pictures of these: moved; overlays: checks" in capsys.readouterr().out
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "checks").iterdir()}
    assert sorted(pictures) == ["flat.png", "good.png", "larger.png"]
    assert sorted(os.listdir("moved")) == ["good.jpg", "larger.tif"]
    for name in pictures:
        assert run("fixed.png", *glob.glob(f"b/{name[:-4]}.*"), "--crop", "--overlay=one.png",
                   "--overlay_style=red-cyan") in (0, 1)  # fmt: skip
        assert (tmp_path / "one.png").read_bytes() == pictures[name]
    (tmp_path / "checks" / "flat.png").unlink()
    shutil.copy("one.png", "checks/torn.png")
    calls.clear()
    assert run(*command, "--overlay_style=red-cyan") == 1
    assert calls == []
    assert "1 of them have no picture in checks yet; written now" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "checks").iterdir()} == pictures
