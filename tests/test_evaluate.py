"""The command: results on disk, and clear refusals."""

import json
import sys

import numpy as np
import pytest

import jaxreg.data
from jaxreg.evaluate import main
from jaxreg.evaluation.harness import figures
from jaxreg.evaluation.report import read_rows
from jaxreg.methods import constant


@pytest.fixture(autouse=True)
def sources(monkeypatch):
    def load_images(source, split, size):
        if source == "cifar10":
            raise FileNotFoundError("cifar10 is not prepared;\nset TFDS_DATA_DIR")
        return np.random.default_rng(0).integers(0, 256, (40, size, size, 3), np.uint8)

    monkeypatch.setattr(jaxreg.data, "load_images", load_images)


def run(*arguments):
    return main(["evaluate", *arguments])


def only_32(fixed, moving):
    if fixed.shape[1] != 32:
        raise ValueError(f"images must be 32x32, got {fixed.shape[1]}x{fixed.shape[2]}")
    return constant(fixed, moving)


def lacking(fixed, moving):
    raise ImportError("sonar is not installed; pip install sonar")


def broken(fixed, moving):
    return fixed[100.5]


def stopped(fixed, moving):
    raise KeyboardInterrupt


def test_results_are_printed_and_written(tmp_path, capsys):
    out = tmp_path / "new" / "results.json"
    assert run(
        "--suites=random32,random32+noise5",
        "--methods=constant",
        "--pairs=30",
        "--batch_size=16",
        "--no_timing",
        f"--out={out}",
    ) == 0  # fmt: skip
    printed = capsys.readouterr().out
    assert "random32+noise5" in printed
    document = json.loads(out.read_text())
    assert document["provenance"]["seed"] == 0
    assert document["provenance"]["pairs"] == 30
    assert [r["suite"] for r in document["results"]] == ["random32", "random32+noise5"]
    assert document["results"][1]["cramer_rao"] is None  # no pair is right
    back = [figures(r) for r in read_rows(out.with_suffix(".csv"))]
    assert json.loads(json.dumps(back)) == document["results"]


def test_suites_of_a_folder_with_a_plus_share_its_images(tmp_path, monkeypatch):
    loaded = []
    load = jaxreg.data.load_images
    monkeypatch.setattr(
        jaxreg.data, "load_images", lambda *spec: loaded.append(spec) or load(*spec)
    )
    out = tmp_path / "r.json"
    suites = "folder:/data/a+b@8,folder:/data/a+b@8+jpeg"
    arguments = ("--methods=constant", "--pairs=3", "--no_timing", f"--out={out}")
    assert run(f"--suites={suites}", *arguments) == 0
    assert [r["suite"] for r in json.loads(out.read_text())["results"]] == suites.split(",")
    assert loaded == [("folder:/data/a+b", "test", 8)]


def test_timing_is_part_of_a_row(tmp_path):
    out = tmp_path / "r.json"
    assert run("--suites=random@8", "--methods=constant", "--pairs=3", f"--out={out}") == 0
    assert json.loads(out.read_text())["results"][0]["time"]["seconds"] > 0


def test_a_method_that_refuses_a_suite_does_not_stop_the_others(tmp_path, capsys):
    out = tmp_path / "r.json"
    methods = ",".join(f"tests.test_evaluate:{name}" for name in ("only_32", "broken"))
    methods = f"--methods={methods},constant"
    assert run("--suites=random@16", methods, "--pairs=4", "--no_timing", f"--out={out}") == 2
    error = capsys.readouterr().err
    assert "only_32 on random@16: ValueError: images must be 32x32, got 16x16" in error
    assert "broken on random@16: IndexError: " in error
    assert error.count("\n") == 2
    assert [r["method"] for r in json.loads(out.read_text())["results"]] == ["constant"]


def test_a_missing_package_is_told_before_the_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    out = tmp_path / "r.json"
    assert run("--suites=random@16", "--methods=constant,simpleitk", f"--out={out}") == 2
    assert "pip install 'jaxreg[peers]' brings it" in capsys.readouterr().err
    assert not out.exists()


def test_a_package_that_is_missed_late_does_not_stop_the_others(tmp_path, capsys):
    out = tmp_path / "r.json"
    methods = "--methods=tests.test_evaluate:lacking,constant"
    assert run("--suites=random@16", methods, "--pairs=4", "--no_timing", f"--out={out}") == 2
    assert "lacking on random@16: ImportError: sonar is not installed" in capsys.readouterr().err
    assert [r["method"] for r in json.loads(out.read_text())["results"]] == ["constant"]


def test_a_suite_that_cannot_be_made_does_not_stop_the_others(tmp_path, capsys):
    out = tmp_path / "r.json"
    suites = "--suites=random@16+unrelated,random@16"
    assert run(suites, "--methods=constant", "--pairs=1", "--no_timing", f"--out={out}") == 2
    assert "'random@16+unrelated' takes two pairs or more" in capsys.readouterr().err
    assert [r["suite"] for r in json.loads(out.read_text())["results"]] == ["random@16"]


@pytest.mark.parametrize("before", ["", "constant,"])
def test_a_stopped_run_says_what_there_is(tmp_path, capsys, before):
    out = tmp_path / "r.json"
    out.write_text("of another run")
    methods = f"--methods={before}tests.test_evaluate:stopped"
    assert run("--suites=random@16", methods, "--pairs=4", "--no_timing", f"--out={out}") == 130
    said = f"what was done is in {out}" if before else "nothing was written"
    assert said in capsys.readouterr().err
    assert (out.read_text() == "of another run") == (not before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suites=rndom32"], "unknown suite 'rndom32', did you mean random32?"),
        (["--methods=constnt"], "unknown method 'constnt', did you mean constant?"),
        (["--suites=cifar10"], "cifar10 is not prepared; set TFDS_DATA_DIR"),
        (["--suits=random32"], "Unknown command line flag 'suits'"),
        (["--pairs=0"], "--pairs=0"),
        (["--pairs=many"], "--pairs=many"),
        (["--suites="], "--suites is empty"),
        (["random32"], "unexpected argument 'random32'"),
        (["--out=x.csv"], "the figures are JSON"),
        (["--out=."], ". is a folder"),
        (["--out=/dev/null"], "/dev/null is no regular file"),
        (["--out=full/r.json"], "full/r.csv is a folder"),
    ],
)
def test_refusals_are_one_line_and_status_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full" / "r.csv").mkdir(parents=True)
    assert run("--suites=random32", "--methods=constant", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_help_lists_the_flags(capsys):
    assert run("--help") == 0
    assert "--suites" in capsys.readouterr().out


def test_results_may_go_below_ones_home(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    quick = ["--suites=random@16", "--methods=constant", "--pairs=4", "--no_timing"]
    assert run(*quick, "--out=~/deep/r.json") == 0
    assert f"figures: {tmp_path}/home/deep/r.json" in capsys.readouterr().out
    assert (tmp_path / "home/deep/r.csv").exists()
    assert not (tmp_path / "~").exists()
