"""The command that compares libraries: measuring, recording, and the table from the record."""

import json
import sys

import numpy as np
import pytest

from experiments import peers
from experiments.timing import PairByPair
from jaxreg.methods import find_method

# Quick ones: what is tested here is the command.
METHODS = "fft,orb_x4,ecc"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    assert peers.main(command(folder, "--run", f"--methods={METHODS}")) == 0
    return folder


def command(folder, *flags):
    small = ["--suites=scene@32", "--pairs=4", "--batch_size=4", "--rounds=2", "--turn=0"]
    return ["peers", *small, f"--results={folder}", *flags]


def test_a_run_records_accuracy_time_and_where_they_come_from(recorded):
    text = (recorded / "peers.json").read_text()
    part = json.loads(text)["suites"]["scene@32"]
    assert list(part["results"]) == METHODS.split(",")
    for figures in part["results"].values():
        assert figures["pairs"] == 4
        assert 0 < figures["time"]["minimum"] <= figures["time"]["quiet"]
    about = part["provenance"]
    assert about["pairs"] == 4
    assert about["packages"].keys() == {"cv2"}
    assert "--run" in about["command"]
    assert str(recorded) not in text


def test_the_table_is_made_again_from_the_record(recorded, capsys):
    table = recorded / "peers.md"
    before = table.read_text()
    table.unlink()
    assert peers.main(command(recorded)) == 0
    assert table.read_text() == before == capsys.readouterr().out[:-1]
    assert "ORB, enlarged 4x" in before
    assert before.count("| scene@32 |") == 4  # three methods and the provenance


def test_direct_is_compared_with_each_peer():
    errors = {"median": 0.5, "mean": 0.6, "p95": 0.7}
    figures = {"translation": errors, "rotation": errors, "no_answer": 0.25, "gross": 0.0}
    about = {"pairs": 4, "seed": 0, "date": "2026-01-01T00:00:00", "commit": "0", "versions": {},
             "packages": {}, "hardware": {"platform": "gpu", "device": "A"}, "command": "c",
             "load_average": None}  # fmt: skip
    results = {
        "direct": figures | {"time": {"median": 0.001, "quiet": 0.0005, "minimum": 0.0004}},
        "simpleitk": figures | {"time": {"median": 0.15, "quiet": 0.1, "minimum": 0.05}},
    }
    part = {"provenance": about, "results": results, "left_out": ["sift_x4 is left out"]}
    text = peers.render({"suites": {"scene32": part}})
    assert "| 150 (100) | 150 (200) |" in text
    assert "| 1 (0.5) | – |" in text
    assert "sift_x4 is left out." in text


def test_a_peer_whose_package_is_missing_is_named_and_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    assert peers.main(command(tmp_path, "--run", "--methods=simpleitk,orb_x4")) == 0
    said = "simpleitk is left out: SimpleITK is not installed"
    assert said in capsys.readouterr().err
    assert said in (tmp_path / "peers.md").read_text()
    results = json.loads((tmp_path / "peers.json").read_text())["suites"]["scene@32"]["results"]
    assert list(results) == ["orb_x4"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "nothing is recorded"),
        (["--run", "--suites=nothing"], "unknown suite"),
        (["--run", "--methods=nothing"], "unknown method"),
        (["--run", "--methods="], "--methods is empty"),
        (["much"], "unexpected argument"),
    ],
)
def test_what_cannot_be_done_is_said(flags, said, tmp_path, capsys):
    assert peers.main(command(tmp_path, *flags)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("method", ["orb_x4", "ecc", "skimage_polar", "fft"])
def test_the_timed_call_gives_the_estimators_answer(method):
    rng = np.random.default_rng(0)
    image = np.kron(rng.uniform(0, 255, (8, 8, 3)), np.ones((4, 4, 1))).astype(np.float32)
    moving = np.roll(image, (1, -2), (0, 1))
    answer = peers.pair_call(method)(image, moving)
    estimate = find_method(method)(image[None], moving[None]).transform.as_array()[0]
    np.testing.assert_allclose(answer, np.asarray(estimate), atol=1e-4)


def test_pairs_come_in_turn():
    pairs = PairByPair(lambda f, m: (f, m), np.arange(2), np.arange(2, 4))
    answers = []
    for _ in range(3):
        pairs.next_turn()
        answers.append(pairs())
    assert answers == [(0, 2), (1, 3), (0, 2)]
