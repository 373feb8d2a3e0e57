"""The command on folders: tables that can be taken up again."""

import csv
import shutil

import numpy as np
import pytest

from jaxreg import RigidTransform
from jaxreg.alignment import batch
from jaxreg.alignment.files import read_picture, write_picture
from jaxreg.alignment.pictures import warp_pixels
from jaxreg.alignment.table import COLUMNS, Table
from tests.align_support import run, save_pair, scene, stand_in
from tests.tolerances import ALIGNED_FILES


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
    assert [shape[0] for shape, _ in calls] == [4, 4]  # three pairs are filled up to four
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
    listed.write_text("fixed,moving\nfixed.png,moving.png\n\nmoving.png, fixed.png\n")
    assert run(f"--pairs={listed}", f"--out={out}") == 0
    assert [row["fixed"] for row in table(out)] == [
        str(tmp_path / name) for name in ("fixed.png", "moving.png")
    ]


def test_a_table_of_something_else_is_left_alone(tmp_path, capsys, calls):
    pair, out = folders(tmp_path), tmp_path / "t.csv"
    out.write_text("name,price\nbread,2\n")
    assert run(*pair, f"--out={out}") == 2
    assert out.read_text() == "name,price\nbread,2\n"
    out.unlink()
    assert run(*pair, f"--out={out}") == 0
    assert run(*pair, f"--out={out}", "--method=constant") == 2
    assert "was begun with --method=direct" in capsys.readouterr().err
    out.write_text(",".join(COLUMNS) + "\na,b\nc,d\n")
    with pytest.raises(ValueError, match="line 2: not a row"):
        Table(out, "direct", "")


@pytest.mark.parametrize("other", ["--working_size=24", "--max_shift=0.2", "--crop"])
def test_a_table_holds_answers_of_one_setting(tmp_path, capsys, calls, other):
    pair, out = folders(tmp_path, count=2), tmp_path / "t.csv"
    assert run(*pair, f"--out={out}") == 0
    whole = out.read_bytes()
    assert run(*pair, f"--out={out}", other) == 2
    assert "begun with --method=direct --working_size=512 --max_shift=0.333333 --nocrop" in (
        capsys.readouterr().err
    )
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
    image, drift = scene(), [RigidTransform(*t) for t in ((0, 0, 0), (2, -1, 5), (-3, 2, -20))]
    for i, t in enumerate(drift):
        write_picture(tmp_path / "frames" / f"{i}.png", warp_pixels(image, t))
    write_picture(tmp_path / "frames" / "flat.png", np.full((40, 48, 3), 9, np.uint8))
    arguments = f"--fixed={tmp_path / 'frames' / '0.png'}", f"--moving_dir={tmp_path / 'frames'}"
    return arguments, drift


def test_a_sequence_is_registered_with_its_reference(tmp_path, capsys):
    arguments, drift = sequence(tmp_path)
    out = tmp_path / "t.csv"
    assert run(*arguments, f"--out={out}") == 1
    assert "3 of 4 pairs registered with success" in capsys.readouterr().out
    rows = {row["moving"].rsplit("/")[-1]: row for row in table(out)}
    for i, t in enumerate(drift):
        answer = [float(rows[f"{i}.png"][name]) for name in ("tx", "ty", "theta")]
        assert np.allclose(answer, [t.tx, t.ty, t.theta], atol=ALIGNED_FILES)
    assert rows["flat.png"]["success"] == "false"


def test_the_reference_is_not_decoded_for_every_pair(tmp_path, calls, monkeypatch):
    arguments, _ = sequence(tmp_path)
    reference, read = tmp_path / "reference.png", []
    shutil.copy(tmp_path / "frames" / "0.png", reference)
    monkeypatch.setattr(batch, "read_picture", lambda p: (read.append(str(p)), read_picture(p))[1])
    monkeypatch.setattr(batch, "_READERS", 1)
    run(f"--fixed={reference}", arguments[1], f"--out={tmp_path / 't.csv'}")
    assert read.count(str(reference)) == 1
    assert len(read) == 5
