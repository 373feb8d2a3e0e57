"""The command on folders: tables that can be taken up again."""

import csv
import os
import shutil
import sys

import cv2
import numpy as np
import PIL.Image
import pytest

from jaxreg import RigidTransform
from jaxreg.alignment import batch
from jaxreg.alignment.files import read_picture, write_picture
from jaxreg.alignment.pictures import warp_pixels
from jaxreg.alignment.table import COLUMNS, Table
from tests.align_support import TRUTH, run, save_pair, scene, stand_in
from tests.tolerances import ALIGNED_FILES, OPENCV_WARP


@pytest.fixture
def calls(monkeypatch):
    return stand_in(monkeypatch)


def folders(tmp_path, count=7):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    for i in range(count):
        shape = (40, 48) if i % 3 else (32, 32)
        write_picture(tmp_path / "a" / f"{i}.png", scene(*shape, seed=i))
        write_picture(tmp_path / "b" / f"{i}.bmp", scene(*shape, seed=i))
    return f"--fixed_dir={tmp_path / 'a'}", f"--moving_dir={tmp_path / 'b'}"


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_folders_go_into_a_table(tmp_path, capsys, calls):
    pair, out = folders(tmp_path), tmp_path / "t.csv"
    write_picture(tmp_path / "a" / "lonely.png", scene())
    assert run(*pair, f"--out={out}", "--batch_size=4") == 0
    rows = table(out)
    assert sorted(row["fixed"][-5] for row in rows) == list("0123456")
    assert all(row["fixed"][-5] == row["moving"][-5] for row in rows)
    assert {row["tx"] for row in rows} == {"3"}
    assert {row["se_theta"] for row in rows} == {"0.3"}
    assert [shape[0] for shape, _ in calls] == [4, 3]
    printed = capsys.readouterr()
    assert "7 of 7 pairs registered with success" in printed.out
    assert "no partner for" in printed.err


def test_bad_files_cost_nobody_else_the_answer(tmp_path, capsys, calls):
    pair, out = folders(tmp_path), tmp_path / "t.csv"
    (tmp_path / "a" / "1.png").write_bytes(b"garbage")
    (tmp_path / "a" / "2.png").write_bytes((tmp_path / "a" / "4.png").read_bytes()[:500])
    (tmp_path / "a" / "3.png").write_bytes(b"")
    for name, suffix in (("a", "png"), ("b", "bmp")):
        write_picture(tmp_path / name / f"9.{suffix}", scene(24, 24))
    assert run(*pair, f"--out={out}") == 1
    rows = {row["fixed"][-5]: row for row in table(out)}
    assert len(rows) == 8
    assert "not a readable image" in rows["1"]["error"]
    assert "cut short" in rows["2"]["error"]
    assert "is empty" in rows["3"]["error"]
    assert rows["9"]["error"] == "this method wants other images"
    assert sorted(k for k in rows if rows[k]["success"] == "true") == list("0456")
    assert "1.png is not a readable image" in capsys.readouterr().err


@pytest.mark.parametrize("cut", [0, 1, 30, 10**6])
def test_a_stopped_run_is_taken_up_again(tmp_path, capsys, calls, monkeypatch, cut):
    pair, out = folders(tmp_path), tmp_path / "t.csv"
    whole = batch._align_group

    def stop(group, settings):
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(group, settings)

    monkeypatch.setattr(batch, "_align_group", stop)
    assert run(*pair, f"--out={out}", "--batch_size=2") == 130
    assert "goes on" in capsys.readouterr().err
    data = out.read_bytes()
    assert data.count(b"\n") == 5
    out.write_bytes(data[: max(len(data) - cut, 20)])  # the last row, or even the header, torn
    done = out.read_bytes().count(b"\n") - 1
    monkeypatch.setattr(batch, "_align_group", whole)
    calls.clear()
    assert run(*pair, f"--out={out}", "--batch_size=1") == 0
    assert len(calls) == 7 - max(done, 0)
    assert sorted(row["fixed"][-5] for row in table(out)) == list("0123456")
    calls.clear()
    assert run(*pair, f"--out={out}") == 0
    assert calls == []


def test_a_list_of_pairs(tmp_path, calls):
    save_pair(tmp_path)
    listed, out = tmp_path / "list.csv", tmp_path / "t.csv"
    listed.write_text("Fixed,Moving\nfixed.png,moving.png\n\nmoving.png, fixed.png\n")
    assert run(f"--pairs={listed}", f"--out={out}") == 0
    assert [row["fixed"] for row in table(out)] == [
        str(tmp_path / name) for name in ("fixed.png", "moving.png")
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="files are not locked there")
def test_two_runs_do_not_write_one_table(tmp_path):
    path = tmp_path / "t.csv"
    with Table(path, "direct", ""), pytest.raises(ValueError, match="is being written by another"):
        Table(path, "direct", "")
    with Table(path, "direct", "") as table:
        assert not table.success_of


def test_what_is_no_file_is_neither_read_nor_replaced(tmp_path, capsys, calls):
    pair, pipe = folders(tmp_path), tmp_path / "t.csv"
    os.mkfifo(pipe)
    assert run(*pair, f"--out={pipe}") == 2
    assert "t.csv is no regular file" in capsys.readouterr().err
    assert pipe.is_fifo()


def test_a_table_of_something_else_is_left_alone(tmp_path, capsys, calls):
    pair, out = folders(tmp_path), tmp_path / "t.csv"
    out.write_text("name,price\nbread,2\n")
    assert run(*pair, f"--out={out}") == 2
    assert out.read_text() == "name,price\nbread,2\n"
    out.unlink()
    assert run(*pair, f"--out={out}") == 0
    assert run(*pair, f"--out={out}", "--method=constant") == 2
    assert "was begun with --method=direct" in capsys.readouterr().err
    header, whole = out.read_text().split("\n", 1)
    # The second, as a spreadsheet in German saves it, would count as failures.
    for text in (header + "\na,b\nc,d\n", header + "\n" + whole.replace(",true,", ",WAHR,")):
        out.write_text(text)
        with pytest.raises(ValueError, match="line 2: not a row"):
            Table(out, "direct", "")


@pytest.mark.parametrize(
    "other", ["--working_size=24", "--max_shift=8", "--max_rotation=20", "--crop"]
)
def test_a_table_holds_answers_of_one_setting(tmp_path, capsys, calls, other):
    pair, out = folders(tmp_path, count=2), tmp_path / "t.csv"
    assert run(*pair, f"--out={out}") == 0
    whole = out.read_bytes()
    assert run(*pair, f"--out={out}", other) == 2
    assert "begun with --method=direct --working_size=512 --nocrop" in (capsys.readouterr().err)
    assert out.read_bytes() == whole
    assert run(*pair, f"--out={out}", "--batch_size=7") == 0


def test_many_shapes_do_not_pile_up(tmp_path, calls, monkeypatch):
    monkeypatch.setattr(batch, "_WAITING_PIXELS", 3000)
    monkeypatch.setattr(batch, "_AHEAD", 2)
    pair, out = folders(tmp_path), tmp_path / "t.csv"
    assert run(*pair, f"--out={out}") == 0
    assert len(table(out)) == 7
    assert len(calls) > 2


def sequence(tmp_path):
    """A reference and a folder of three drifted frames and one that has nothing to do with it."""
    (tmp_path / "frames").mkdir()
    image, drift = (
        scene(32, 32),
        [RigidTransform(*t) for t in ((0, 0, 0), (2, -1, 5), (-3, 2, -20))],
    )
    for i, t in enumerate(drift):
        write_picture(tmp_path / "frames" / f"{i}.png", warp_pixels(image, t))
    write_picture(tmp_path / "frames" / "flat.png", np.full((32, 32, 3), 9, np.uint8))
    arguments = f"--fixed={tmp_path / 'frames' / '0.png'}", f"--moving_dir={tmp_path / 'frames'}"
    return arguments, drift


@pytest.mark.usefixtures("batch_program")
def test_a_sequence_is_brought_onto_its_reference(tmp_path, capsys):
    arguments, drift = sequence(tmp_path)
    out, folder = tmp_path / "t.csv", tmp_path / "aligned"
    assert run(*arguments, f"--out={out}", f"--out_moving={folder}") == 1
    assert (
        f"3 of 4 pairs registered with success; table: {out}; pictures" in capsys.readouterr().out
    )
    rows = {row["moving"].rsplit("/")[-1]: row for row in table(out)}
    for i, t in enumerate(drift):
        answer = [float(rows[f"{i}.png"][name]) for name in ("tx", "ty", "theta")]
        assert np.allclose(answer, [t.tx, t.ty, t.theta], atol=ALIGNED_FILES)
    assert [rows[name]["success"] for name in ("0.png", "flat.png")] == ["true", "false"]
    assert rows["0.png"]["reasons"] == ""
    assert "an image leaves a direction open" in rows["flat.png"]["reasons"]
    assert sorted(p.name for p in folder.iterdir()) == ["0.png", "1.png", "2.png"]
    middle = (slice(9, 23), slice(9, 23))  # in all frames
    for i in (1, 2):
        frame, aligned = (
            cv2.imread(str(f / f"{i}.png"))[middle] for f in (tmp_path / "frames", folder)
        )
        fixed = cv2.imread(str(tmp_path / "frames" / "0.png"))[middle].astype(float)
        assert np.abs(aligned - fixed).mean() < 0.1 * np.abs(frame - fixed).mean()


def test_the_reference_is_not_decoded_for_every_pair(tmp_path, calls, monkeypatch):
    arguments, _ = sequence(tmp_path)
    reference, read = tmp_path / "reference.png", []
    shutil.copy(tmp_path / "frames" / "0.png", reference)
    monkeypatch.setattr(batch, "read_picture", lambda p: (read.append(str(p)), read_picture(p))[1])
    monkeypatch.setattr(batch, "_READERS", 1)
    run(f"--fixed={reference}", arguments[1], f"--out={tmp_path / 't.csv'}")
    assert read.count(str(reference)) == 1
    assert len(read) == 5


def test_pictures_keep_their_pixels_and_their_names(tmp_path, calls):
    (tmp_path / "b").mkdir()
    kinds = {"a.tif": np.int16, "b.jpg": np.uint8, "c.gif": np.uint8, "d.png": np.uint16}
    for name, dtype in kinds.items():
        write_picture(tmp_path / "d.tif", scene(dtype=dtype))
        (tmp_path / "d.tif").rename(tmp_path / "b" / name)  # OpenCV goes by the content
    PIL.Image.fromarray(scene()).save(tmp_path / "b" / "c.gif")
    write_picture(tmp_path / "d.tif", scene(dtype=np.float32))
    (tmp_path / "d.tif").rename(tmp_path / "b" / "e.jp2")
    write_picture(tmp_path / "fixed.png", scene(50, 60))
    arguments = f"--fixed={tmp_path / 'fixed.png'}", f"--moving_dir={tmp_path / 'b'}", "--crop"
    folder = tmp_path / "aligned"
    assert run(*arguments, f"--out={tmp_path / 't.csv'}", f"--out_moving={folder}") == 0
    written = {path.name: read_picture(path).pixels for path in folder.iterdir()}
    assert sorted(written) == ["a.tif", "b.jpg", "c.png", "d.png", "e.tif"]
    assert [written[name].dtype for name in sorted(written)] == [
        *(np.int16, np.uint8, np.uint8, np.uint16, np.float32)
    ]
    moving = read_picture(tmp_path / "b" / "d.png").pixels
    matrix = np.asarray(TRUTH.matrix(moving.shape))[:2]
    expected = cv2.warpAffine(
        moving, matrix, (48, 40), flags=cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR
    )
    assert np.abs(written["d.png"] / 257 - expected / 257.0).max() < OPENCV_WARP


def test_a_row_comes_after_its_picture(tmp_path, calls, monkeypatch, capsys):
    arguments, out = folders(tmp_path), tmp_path / "t.csv"
    folder = tmp_path / "aligned"
    whole = Table.add

    def stop(self, rows):
        if len(self.success_of) >= 2:
            raise KeyboardInterrupt
        whole(self, rows)

    monkeypatch.setattr(Table, "add", stop)
    command = (*arguments, f"--out={out}", f"--out_moving={folder}", "--batch_size=1")
    assert run(*command) == 130
    assert len(table(out)) == 2
    assert len(list(folder.iterdir())) == 3  # of one the row was still to come
    monkeypatch.setattr(Table, "add", whole)
    calls.clear()
    assert run(*command) == 0
    assert len(calls) == 5
    assert sorted(p.name for p in folder.iterdir()) == [f"{i}.bmp" for i in range(7)]
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    shutil.rmtree(folder)  # or never asked for
    calls.clear()
    assert run(*command) == 0
    assert calls == []
    assert "7 of them have no picture" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_pairs_that_failed_have_no_picture(tmp_path, calls):
    arguments, folder = folders(tmp_path, count=4), tmp_path / "aligned"
    names = [f"{i}.bmp" for i in range(4)]

    def pictures(out):
        run(*arguments, f"--out={tmp_path / out}", f"--out_moving={folder}")
        return sorted(path.name for path in folder.iterdir())

    assert pictures("t.csv") == names
    (folder / "0.png").touch()  # somebody else's
    write_picture(tmp_path / "b" / "0.bmp", np.full((32, 32, 3), 9, np.uint8))
    (tmp_path / "b" / "1.bmp").write_bytes(b"garbage")
    assert pictures("t2.csv") == ["0.png", *names[2:]]
    (folder / "1.bmp").touch()  # as a run with another table leaves it
    assert pictures("t2.csv") == ["0.png", *names[2:]]


@pytest.mark.parametrize(
    ("words", "coding", "ends"),  # pandas, a spreadsheet
    [(("True", "False", ".0"), "utf-8", "\n"), (("TRUE", "FALSE", ""), "utf-8-sig", "\r\n")],
)
def test_a_table_may_have_been_saved_elsewhere(tmp_path, calls, capsys, words, coding, ends):
    arguments, out, folder = folders(tmp_path, count=4), tmp_path / "t.csv", tmp_path / "aligned"
    write_picture(tmp_path / "b" / "0.bmp", np.full((32, 32, 3), 9, np.uint8))
    command = (*arguments, f"--out={out}", f"--out_moving={folder}")
    assert run(*command) == 1
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    rows = [row for row in table(out) if row["fixed"][-5] != "1"]  # deleted, to be tried anew
    for row in rows:
        row["success"] = words[row["success"] != "true"]
        row["width"], row["height"] = row["width"] + words[2], row["height"] + words[2]
    with open(out, "w", newline="", encoding=coding) as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator=ends)
        writer.writeheader()
        writer.writerows(rows)
    shutil.rmtree(folder)
    calls.clear()
    assert run(*command) == 1
    assert (len(calls), capsys.readouterr().out.count("3 of 4 pairs")) == (1, 2)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_picture_is_not_made_of_an_image_that_has_changed(tmp_path, calls, capsys):
    arguments, out, folder = folders(tmp_path, count=2), tmp_path / "t.csv", tmp_path / "aligned"
    command = (*arguments, f"--out={out}", f"--out_moving={folder}")
    assert run(*command[:3]) == 0
    changed = tmp_path / "b" / "1.bmp"
    for _ in range(2):
        write_picture(changed, scene(50, 48, seed=9))
        os.utime(changed, (2**31, 2**31))
        assert run(*command) == 2
        assert f"{changed} is newer than {out}" in capsys.readouterr().err
    os.utime(changed, (0, 0))
    assert run(*command) == 2
    assert f"{changed} is of another size than when it was registered" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("b", "b/0.bmp is one of the images to register"),
        ("a", "a/0.png is one of the images to register"),
        ("a/0.png", "is no folder; many pairs need one"),
        ("no/aligned", "there is no folder no"),
    ],
)
def test_folders_of_pictures_that_are_refused(
    tmp_path, capsys, calls, monkeypatch, folder, message
):
    monkeypatch.chdir(tmp_path)
    folders(tmp_path, count=2)
    shutil.copy("a/0.png", "b/1.bmp")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.*")}
    command = ("--fixed_dir=a", "--moving_dir=b", "--out=t.csv", f"--out_moving={folder}")
    assert run(*command) == 2
    assert message in capsys.readouterr().err
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.*")} == before
    assert calls == []


def test_two_pairs_do_not_write_one_picture(tmp_path, capsys, calls, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders(tmp_path, count=2)
    (tmp_path / "list.csv").write_text("a/0.png,b/1.bmp\na/1.png,b/1.bmp\n")
    command = ("--pairs=list.csv", "--out=t.csv", "--out_moving=aligned")
    assert run(*command) == 2
    assert "a/0.png, b/1.bmp and of a/1.png, b/1.bmp would both be named 1" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "t.csv").exists()
    assert run(*command[:2]) == 1
    (tmp_path / "b" / "0.bmp").rename(tmp_path / "b" / "0.raw")
    (tmp_path / "list.csv").write_text("a/0.png,b/0.raw\n")
    assert run("--pairs=list.csv", "--out=c/0.raw", "--out_moving=c") == 2
    assert "would be overwritten by a picture" in capsys.readouterr().err
    (tmp_path / "c").mkdir()
    (tmp_path / "link").symlink_to("c")
    assert run("--pairs=list.csv", "--out=link/0.raw", "--out_moving=c") == 2
    assert "would be overwritten by a picture" in capsys.readouterr().err
    (tmp_path / "t.csv").touch()
    (tmp_path / "c" / "0.png").symlink_to("../t.csv")
    assert run("--pairs=list.csv", "--out=t.csv", "--out_moving=c") == 2
    assert (
        "c/0.png is one of the images to register, a mask or the table" in capsys.readouterr().err
    )


def test_a_file_of_several_pages_has_a_row_that_says_so(tmp_path, calls):
    arguments, out = folders(tmp_path, count=3), tmp_path / "t.csv"
    pages = [PIL.Image.fromarray(scene(seed=i)) for i in range(4)]
    pages[0].save(tmp_path / "b" / "1.bmp", "tiff", save_all=True, append_images=pages[1:])
    assert run(*arguments, f"--out={out}") == 1
    errors = {row["fixed"][-5]: row["error"] for row in table(out)}
    assert "1.bmp has 4 pages; say which" in errors["1"]
    assert (errors["0"], errors["2"]) == ("", "")
