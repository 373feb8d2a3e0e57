"""Tables from small recorded rows, the paper's numbers, and rows recomputed by the command."""

import csv
import dataclasses
import io
import json

import numpy as np
import pytest

from baselines.features import count_keypoints
from experiments import disturbances, notes, paper, rendering, running, tables
from experiments.records import (
    RESULTS,
    Keypoints,
    Record,
    load_keypoints,
    load_record,
    recorded_systems,
    save_keypoints,
    save_record,
)
from experiments.systems import FURTHER_SYSTEMS, PAPER_SYSTEMS, find_system, method_of
from jaxreg.evaluation.harness import Rows
from jaxreg.evaluation.protocol import build_suite, draw_parameters
from jaxreg.evaluation.suites import parse_suite
from jaxreg.methods import find_method
from jaxreg.training.checkpoint import Best, CheckpointStore, settle_config
from jaxreg.training.configs import CONFIGS
from jaxreg.training.devices import data_mesh
from jaxreg.training.state import create_state
from tests.training_support import TINY_LSTM, tiny_config

PAIRS = 384
ALL_PAIRS = 3840
HARDWARE = {"processor": "abacus", "cores": 2, "platform": "cpu", "device": "cpu"}
ABOUT = {
    "date": "2026-01-02T03:04:05+00:00",
    "command": "python -m experiments.tables --run=fft",
    "versions": {"jax": "0.10.2"},
    "hardware": HARDWARE,
    "commit": "abc",
    "pairs": PAIRS,
    "seed": 0,
    "images": 10_000,
    "training": None,
    "time": {
        "seconds": 0.0123,
        "pairs_per_second": 99.0,
        "best_batch": 16,
        "hardware": HARDWARE,
        "load_average": 0.41,
    },
}
TRAINING = {
    "pairs_seen": 1_000_000,
    "pairs_planned": 25_600_000,
    "seconds": 600.0,
    "parameters": 217_000_000,
    "network_changes": {},
    "images": {"cifar10": 50_000},
    "init_from": "",
    "init_planned": "",
}


def record(suite="cifar10", method="fft", error=(0.5, 0.25, 2.0), found=1.0, pairs=PAIRS, **about):
    """Rows whose every answer errs by ``error``; the last part of them has no answer."""
    truth, condition = draw_parameters(pairs, parse_suite(suite).max_shift, 0)
    answered = np.arange(pairs) < round(found * pairs)
    rows = Rows(
        suite=suite,
        method=method,
        condition=condition,
        truth=truth,
        estimate=truth + np.float32(error),
        score=np.full(pairs, 0.9, np.float32),
        success=answered.copy(),
        found=answered,
    )
    return Record(rows, ABOUT | {"pairs": pairs} | about)


def table(results, number):
    return rendering.render(results, paper.TABLES[number])


def line(text, label):
    """The cells of the first line of a Markdown table that starts with a label."""
    found = next(row for row in text.splitlines() if row.startswith(f"| {label} "))
    return [cell.strip() for cell in found.strip("|").split(" | ")]


def test_rows_survive_the_disk(tmp_path):
    made = record(found=0.5, time=None)
    variance = np.ones((PAIRS, 3), np.float32)
    made = dataclasses.replace(made, rows=dataclasses.replace(made.rows, variance=variance))
    path = save_record(tmp_path, "fft", made)
    read = load_record(tmp_path, "cifar10", "fft")
    for name in ("condition", "truth", "score", "success", "found", "variance"):
        np.testing.assert_array_equal(getattr(read.rows, name), getattr(made.rows, name))
    half = PAIRS // 2
    np.testing.assert_array_equal(read.rows.estimate[:half], made.rows.estimate[:half])
    assert not read.rows.estimate[half:].any()
    assert read.about.items() >= made.about.items()
    assert recorded_systems(tmp_path, "cifar10") == ["fft"]
    assert path.stat().st_size < 20_000
    assert load_record(tmp_path, "cifar10", "sift") is None


def of_other_pairs(made):
    return dataclasses.replace(made, rows=dataclasses.replace(made.rows, truth=made.rows.truth + 1))


def test_rows_of_other_pairs_are_refused(tmp_path):
    path = save_record(tmp_path / "here", "fft", record())
    elsewhere = save_record(tmp_path / "elsewhere", "fft", of_other_pairs(record()))
    path.write_bytes(elsewhere.read_bytes())
    with pytest.raises(ValueError, match="does not belong to the pairs"):
        load_record(tmp_path / "here", "cifar10", "fft")


def test_the_truth_is_written_once_for_all_systems(tmp_path):
    save_record(tmp_path, "fft", record())
    (pairs,) = (tmp_path / "rows" / "cifar10").glob("pairs_*")

    def written():  # when it was read last is no matter
        stat = pairs.stat()
        return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns

    first = written()
    save_record(tmp_path, "sift", record(method="sift"))
    assert written() == first
    with pytest.raises(ValueError, match=r"pairs_384_0\.npz holds other pairs"):
        save_record(tmp_path, "orb", of_other_pairs(record(method="orb")))
    assert written() == first
    assert recorded_systems(tmp_path, "cifar10") == ["fft", "sift"]


def test_the_papers_numbers_beside_ours(tmp_path):
    save_record(tmp_path, "fft", record(pairs=ALL_PAIRS))
    made = table(tmp_path, 1)
    cells = line(made.markdown, "FFT")
    assert cells[:2] == ["FFT", "1.4542 ± 0.6620"]
    assert cells[2] == "0.7500 ± 0.0000"
    assert cells[3:7] == ["7.9713 ± 5.1973", "2.0000 ± 0.0000", "2.4132 ± 0.0896", "0.0123"]
    more = line(made.markdown.partition("More of ours:")[2], "FFT")
    assert more[2:6] == ["0.7500", "0.7500", "2.0000", "2.0000"]
    assert more[-1] == "abacus, 2 cores, load 0.4"
    flat = {row["system"]: row for row in csv.DictReader(io.StringIO(made.csv))}
    assert float(flat["fft"]["paper_rotation_spread"]) == 5.1973
    np.testing.assert_allclose(float(flat["fft"]["translation_median"]), 0.75, atol=1e-5)
    assert flat["lstm"]["translation_mean"] == ""
    assert list(flat) == [system.name for system in PAPER_SYSTEMS]


def test_a_few_large_errors_raise_the_mean_alone(tmp_path):
    made = record(error=(0.25, 0.0, 1.0), pairs=ALL_PAIRS)
    off = (np.arange(ALL_PAIRS) < 30)[:, None]
    estimate = made.rows.estimate + np.float32((8.0, 0.0, 0.0)) * off
    rows = dataclasses.replace(made.rows, estimate=estimate, condition=np.zeros(ALL_PAIRS, int))
    save_record(tmp_path, "fft", dataclasses.replace(made, rows=rows))
    text = table(tmp_path, 1).markdown
    assert line(text, "FFT")[2] == "0.3125 ± 0.0000"  # 8 px in 30 of 3,840 pairs: 1/16
    assert line(text.partition("More of ours:")[2], "FFT")[2] == "0.2500"


def test_failures_in_brackets_and_not_available(tmp_path):
    save_record(tmp_path, "akaze", record(method="akaze", found=0.0))
    lost = record(method="sift", error=(20.0, 0.0, 0.0), found=0.25)  # gross, which is an answer
    save_record(tmp_path, "sift", lost)
    text = table(tmp_path, 1).markdown
    assert line(text, "AKAZE")[:7] == ["AKAZE (1; 1)", *["N.A."] * 6]
    assert line(text, "SIFT")[0] == "SIFT (0.9505; 0.7500)"
    assert line(text, "ORB")[:4] == ["ORB (1; –)", "N.A.", "–", "N.A."]


def test_missing_rows_say_how_to_get_them(tmp_path):
    text = table(tmp_path, 5).markdown
    assert "not trained yet" in line(text, "LSTM")[-1]
    assert line(text, "FFT")[-1] == f"not recorded: `{notes.RUN}=fft --suites=random96`"
    assert line(text, "FFT")[1] == "0.4982 ± 0.0618"


def test_further_rows_follow_once_they_are_recorded(tmp_path):
    errors = (2e-4, 1e-4, 1e-3)
    save_record(tmp_path, "direct", record(method="direct", error=errors, pairs=ALL_PAIRS))
    save_record(tmp_path, "my-network", record(method="runs/my-network", pairs=ALL_PAIRS))
    text = table(tmp_path, 1).markdown
    cells = line(text, "direct (jaxreg)")
    assert cells[1:4] == ["–", "0.00030 ± 0.00000", "–"]
    assert line(text, "runs/my-network")[2] == "0.7500 ± 0.0000"


def test_fewer_pairs_have_no_spread_and_the_caption_says_so(tmp_path):
    save_record(tmp_path, "fft", record(pairs=ALL_PAIRS))
    text = table(tmp_path, 1).markdown
    assert "Ours: 3,840 pairs over 384 conditions," in text
    assert "no ±" not in text
    save_record(tmp_path, "sift", record(method="sift"))
    made = table(tmp_path, 1)
    assert line(made.markdown, "SIFT (0.9505; 0)")[2] == "0.7500"
    assert "Ours: 384 or 3,840 pairs over 384 conditions," in made.markdown
    assert "no ± for fewer than 3,840 pairs" in made.markdown
    flat = {row["system"]: row for row in csv.DictReader(io.StringIO(made.csv))}
    assert (flat["sift"]["translation_spread"], flat["sift"]["pairs"]) == ("", "384")
    save_record(tmp_path, "orb", record(method="orb", pairs=100, seed=3))
    text = table(tmp_path, 1).markdown
    assert "Ours: 100 or 384 or 3,840 pairs over up to 384 conditions," in text
    assert line(text, "ORB (1; 0)")[-1] == "100 pairs; seed 3"


def test_rows_of_ones_own_keep_their_names_and_do_not_overwrite_each_other(tmp_path):
    methods = ["mymethod:good", "runs/a-b", "runs/a/b", "runs-a-b", "runs/a b"]
    systems = [find_system(method) for method in methods]
    assert len({system.name for system in systems}) == len(methods)
    for system, method in zip(systems, methods, strict=True):
        assert not set("/: ") & set(system.name)
        save_record(tmp_path, system.name, record(method=method))
        save_record(tmp_path, system.name, record("scene32", method=method))
    assert find_system("runs/a/b/").name == find_system("runs/a/b").name
    for text in (table(tmp_path, 1).markdown, disturbances.table(tmp_path)):
        for method in methods:
            assert f"| {method} | " in text
    for system in FURTHER_SYSTEMS:
        assert find_system(system.name) is find_system(system.method or system.name) is system


def test_networks_say_how_far_they_are_trained(tmp_path):
    save_record(tmp_path, "lstm", record(method="runs/lstm_cifar10", training=TRAINING))
    note = line(table(tmp_path, 1).markdown, "LSTM")[-1]
    assert note == (
        "384 pairs; **under-trained**: 1 of 25.6 million pairs seen in 10 min; 217,000,000 weights"
    )
    whole = TRAINING | {"pairs_seen": 25_600_000, "network_changes": {"hidden": 512}}
    whole |= {"init_planned": "imagenet"}
    note = notes.training_note(whole)
    assert "under-trained" not in note
    assert "with hidden=512" in note
    assert "random weights, not from imagenet" in note


def test_the_caption_names_stand_ins_and_few_images(tmp_path):
    training = TRAINING | {"images": {"stl10": 800, "folder:photos96": 3600}}
    save_record(tmp_path, "lstm", record("stl10", images=256, training=training))
    text = table(tmp_path, 4).markdown
    assert "partly stand-ins" in text
    assert "stl10 (800 images, where the set itself has 5,000)" in text
    assert "folder:photos96 (3,600 images)" in text
    assert "256 test images; the genuine set has 8,000" in text
    whole = TRAINING | {"images": {"stl10": 800}}
    save_record(tmp_path, "lstm", record("stl10", images=256, training=whole))
    text = table(tmp_path, 4).markdown
    assert "training images are stand-ins: stl10 (800 images, where" in line(text, "LSTM")[-1]
    assert "Stand-ins: other photographs of the same size" in text
    assert "partly" not in text
    own = TRAINING | {"images": {"folder:own": 90}}
    save_record(tmp_path, "lstm", record("stl10", images=8000, training=own))
    text = table(tmp_path, 4).markdown
    assert line(text, "LSTM")[-1].endswith("; trained on folder:own (90 images)")
    assert "tand-ins" not in text
    genuine = TRAINING | {"images": {"stl10": 5000}}
    save_record(tmp_path, "lstm", record("stl10", images=8000, training=genuine))
    text = table(tmp_path, 4).markdown
    assert "stand-ins" not in text
    assert "genuine" not in text


def test_keypoints(tmp_path):
    counts = np.array([0, 2, 4])
    save_keypoints(tmp_path, "cifar10", "sift", Keypoints(counts, counts + 1, counts // 2, ABOUT))
    text = table(tmp_path, 3).markdown
    cells = line(text, "SIFT")
    assert cells[1:5] == [
        "0.9010 ± 1.5595",
        "2.0000 ± 1.6330",
        "3.0000 ± 1.6330",
        "1.0000 ± 0.8165",
    ]
    assert cells[5:7] == ["0.0764 ± 0.2988", "–"]
    assert line(text, "AKAZE")[1] == "0 ± 0"
    assert "Missing counts" in text


def test_keypoints_are_those_of_the_first_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "KEYPOINT_IMAGES", 2)
    first = build_suite("random96", 2)
    job, sift = running.Job(tmp_path, pairs=4), find_system("sift")
    running.run_keypoints(sift, "random96", running.load_suite(job, "random96"), job)
    counts = load_keypoints(tmp_path, "random96", "sift")
    for made, images in ((counts.fixed, first.fixed), (counts.moving, first.moving)):
        np.testing.assert_array_equal(made, count_keypoints(find_method("sift"), images))
    assert counts.about["images"] == 2


@pytest.mark.parametrize(
    ("number", "system", "quantity", "mean", "spread"),
    [
        (1, "lstm", "translation", 0.6641, 0.4848),
        (1, "resnext_lstm", "rotation", 5.6407, 6.1125),
        (2, "lstm", "rotation", 12.1091, 17.8267),
        (4, "orb", "seconds", 0.0128, 0.0412),
        (4, "resnext_fc", "translation", 3.0326, 2.6558),
        (5, "fft", "rotation", 0.2494, 0.0448),
    ],
)
def test_numbers_of_the_paper(number, system, quantity, mean, spread):
    assert getattr(paper.TABLES[number].rows[system], quantity) == paper.Value(mean, spread)


def test_the_paper_is_consistent():
    assert list(paper.TABLES) == [1, 2, 3, 4, 5, 6]
    for t in paper.ERROR_TABLES:
        assert list(t.rows) == [system.name for system in PAPER_SYSTEMS]
        for row in t.rows.values():
            if row.failure is not None:  # PROTOCOL: multiples of 1/768
                np.testing.assert_allclose(row.failure * 768, round(row.failure * 768), atol=0.05)
    for t in paper.KEYPOINT_TABLES:
        for name, pair in t.rows.items():
            for value in pair:  # means over as many images as here, but for one that is over 384
                count = 384 if value.mean == 0.9010 else running.KEYPOINT_IMAGES
                total = value.mean * count
                np.testing.assert_allclose(total, round(total), atol=0.03, err_msg=name)
    assert paper.SUITES == ("cifar10", "random32", "stl10", "random96")


def test_every_row_is_a_method_of_the_harness():
    for system in PAPER_SYSTEMS + FURTHER_SYSTEMS:
        if system.configs:
            assert set(system.configs.values()) <= set(CONFIGS)
            assert all(CONFIGS[c].image_size == size for size, c in system.configs.items())
        elif system.name != "direct":
            assert callable(find_method(method_of(system, "cifar10")))
    folders = {"lstm_cifar10": "elsewhere"}
    assert method_of(find_system("lstm"), "random32", folders) == "elsewhere"
    with pytest.raises(ValueError, match="no network for 96x96"):
        method_of(find_system("lstm512"), "stl10")


def test_the_command_recomputes_rows(tmp_path, capsys):
    arguments = [f"--results={tmp_path}", "--suites=random32", "--pairs=24", "--batch_size=16"]
    run = ["tables", "--run=constant,sift,lstm,keypoints", "--table=2,3", "--no_timing", *arguments]
    missing = f"--checkpoints=lstm_cifar10:{tmp_path / 'none'}"
    assert tables.main([*run, missing]) == 2
    out, err = capsys.readouterr()
    assert "lstm on random32" in err
    assert "no trained network" in err
    assert line(out, "SIFT")[0].startswith("SIFT (1; ")
    assert line(out, "constant")[6] == "not timed"
    about = load_record(tmp_path, "random32", "sift").about
    assert {"date", "command", "versions", "hardware", "commit", "training"} <= set(about)
    assert (about["pairs"], about["seed"], about["images"]) == (24, 0, 4096)
    assert str(tmp_path) not in json.dumps(about)
    provenance = (tmp_path / "tables" / "provenance.md").read_text()
    assert "keypoints of orb" in provenance
    assert about["commit"] in provenance
    assert sorted(p.name for p in (tmp_path / "tables").iterdir()) == [
        *("provenance.md", "table_2.csv", "table_2.md", "table_3.csv", "table_3.md")
    ]


def test_a_suite_whose_images_are_missing_does_not_stop_the_others(tmp_path, capsys, monkeypatch):
    def missing(suite):
        raise FileNotFoundError("stl10 is not prepared")

    there = running.load_source
    monkeypatch.setattr(
        running, "load_source", lambda suite: (missing if suite.name == "stl10" else there)(suite)
    )
    arguments = [f"--results={tmp_path}", "--suites=stl10,random32", "--pairs=8", "--no_timing"]
    assert tables.main(["tables", "--run=constant", "--table=2", *arguments]) == 2
    out, error = capsys.readouterr()
    assert error == "experiments.tables: stl10: stl10 is not prepared\n"
    assert line(out, "constant")


def failing(fixed, moving):
    raise RuntimeError("no licence")


def test_a_method_that_fails_does_not_stop_the_others(tmp_path, capsys):
    arguments = [f"--results={tmp_path}", "--suites=random32", "--pairs=8", "--no_timing"]
    run = "--run=tests.test_tables:failing,constant"
    assert tables.main(["tables", run, "--table=2", *arguments]) == 2
    out, error = capsys.readouterr()
    name = "tests.test_tables:failing"
    assert error == f"experiments.tables: {name} on random32: RuntimeError: no licence\n"
    assert line(out, "constant")


def test_a_networks_row_comes_from_its_checkpoint(tmp_path, capsys):
    config = tiny_config("random", network=TINY_LSTM, average_decay=0.0)
    folder = tmp_path / "run"
    settle_config(folder, config)
    store = CheckpointStore(folder)
    store.save(create_state(config, data_mesh(1)), Best())
    store.close()
    arguments = [f"--results={tmp_path}", "--pairs=8", "--no_timing", "--table=2,5"]
    arguments += ["--suites=random32", f"--checkpoints=lstm_cifar10:{folder}"]
    assert tables.main(["tables", "--run=lstm", *arguments]) == 0
    note = line(capsys.readouterr().out, "LSTM")[-1]
    assert note.startswith("8 pairs; **under-trained**: 0 of 25.6 million pairs seen")
    assert "hidden=8, layers=1" in note
    training = load_record(tmp_path, "random32", "lstm").about["training"]
    assert training["images"] == {"random": 4096}
    arguments[-2:] = ["--suites=random96", f"--checkpoints=lstm_stl10:{folder}"]
    assert tables.main(["tables", "--run=lstm", *arguments]) == 2
    assert "run takes images of 32 pixels" in capsys.readouterr().err


def test_timing_can_come_later(tmp_path, monkeypatch, capsys):
    time = {"seconds": 0.5, "pairs_per_second": 2.0, "best_batch": 1}
    monkeypatch.setattr(running, "measure_time", lambda *_: time)
    arguments = [f"--results={tmp_path}", "--suites=random32", "--pairs=16", "--table=2"]
    command = ["tables", "--run=constant", *arguments]
    assert tables.main([*command, "--no_timing", "--commit=then"]) == 0
    before = load_record(tmp_path, "random32", "constant")
    assert tables.main([*command, "--only_timing", "--commit=later"]) == 0
    after = load_record(tmp_path, "random32", "constant")
    assert after.about["time"]["seconds"] == 0.5
    assert (after.about["commit"], after.about["time"]["commit"]) == ("then", "later")
    assert {"hardware", "load_average"} <= set(after.about["time"])
    np.testing.assert_array_equal(before.rows.estimate, after.rows.estimate)
    assert before.about["date"] == after.about["date"]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table=7"], "there are 1 to 6 and disturbances"),
        (["--run=fft", "--suites=nothing"], "unknown suite"),
        (["--checkpoints=lstm=runs/x"], "CONFIGURATION:FOLDER"),
        (["--no_timing", "--only_timing"], "exclude each other"),
        (["fft"], "unexpected argument"),
        (["--rnu=fft"], "rnu"),
    ],
)
def test_bad_arguments(arguments, message, tmp_path, capsys):
    assert tables.main(["tables", f"--results={tmp_path}", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_results_folder_that_is_not_there_is_made_by_a_run_alone(tmp_path, capsys):
    missing = tmp_path / "typo"
    assert tables.main(["tables", f"--results={missing}"]) == 2
    assert f"--results={missing}: there is no such folder" in capsys.readouterr().err
    assert not missing.exists()
    small = ["--suites=random32", "--pairs=8", "--no_timing", "--table=2"]
    assert tables.main(["tables", "--run=constant", f"--results={missing}", *small]) == 0
    assert line(capsys.readouterr().out, "constant")


def noisy(bound=0.04, **about):
    """Rows on a suite with a bound, and variances a quarter of the squared errors."""
    made = record("cifar10+noise10", "direct", error=(0.2, 0.4, 0.2), **about)
    rows = dataclasses.replace(
        made.rows,
        variance=np.tile(np.float32([0.01, 0.04, 0.01]), (PAIRS, 1)),
        bound=np.full((PAIRS, 3), bound, np.float32),
    )
    return dataclasses.replace(made, rows=rows)


def bound_of(results, system):
    return load_record(results, "cifar10+noise10", system).rows.bound


def test_the_bound_is_kept_with_the_pairs(tmp_path):
    made = noisy()
    save_record(tmp_path, "direct", made)
    read = load_record(tmp_path, "cifar10+noise10", "direct")
    np.testing.assert_array_equal(read.rows.bound, made.rows.bound)
    ratio = read.figures()["cramer_rao"]
    assert ratio == made.figures()["cramer_rao"]
    np.testing.assert_allclose([ratio["tx"], ratio["ty"]], [1.0, 2.0], rtol=1e-5)


def test_rows_from_before_the_bound_get_it_with_the_next_ones(tmp_path):
    made = noisy()
    old = dataclasses.replace(made, rows=dataclasses.replace(made.rows, bound=None))
    save_record(tmp_path, "compact", old)
    read = load_record(tmp_path, "cifar10+noise10", "compact")
    assert read.rows.bound is None
    assert read.figures()["cramer_rao"] is None
    save_record(tmp_path, "direct", made)
    np.testing.assert_array_equal(bound_of(tmp_path, "compact"), made.rows.bound)
    save_record(tmp_path, "compact", old)  # as when it is only timed anew
    assert bound_of(tmp_path, "direct") is not None
    save_record(tmp_path, "direct", noisy(bound=0.09))  # another version computes it otherwise
    assert bound_of(tmp_path, "compact")[0, 0] == np.float32(0.09)


def test_disturbances(tmp_path):
    save_record(tmp_path, "compact", record("scene32", "compact", error=(9.0, 0.0, 0.0)))
    save_record(tmp_path, "direct", record("scene32", "direct"))
    save_record(tmp_path, "direct", noisy())
    save_record(tmp_path, "direct", record("cifar10+unrelated", "direct"))
    save_record(tmp_path, "direct", record("photos32+blur", "direct"))
    text = tables.write_tables(tmp_path, ["disturbances"])
    assert (tmp_path / "tables" / "disturbances.md").read_text() == text
    body = [row.strip("| ").split(" | ") for row in text.splitlines() if row.startswith("| ")][2:]
    assert [row[:2] for row in body] == [
        ["scene32", "direct (jaxreg)"],
        ["scene32", "compact network"],
        ["cifar10+noise10", "direct (jaxreg)"],
        ["cifar10+unrelated", "direct (jaxreg)"],
        ["photos32+blur", "direct (jaxreg)"],
    ]
    direct, compact, noise, unrelated, _ = (row[2:] for row in body)
    assert direct[:5] == ["384", "0.7500", "0.7500", "2.0000", "2.0000"]
    assert direct[5:] == ["0.00%", "0.00%", "–", "0.00%", "–", "–"]
    assert compact[5:9] == ["0.00%", "100.00%", "0.00%", "–"]
    assert noise[9:] == ["1 2 1", "4 4 4"]
    assert unrelated[1:5] == ["–"] * 4
    assert "--run=direct,compact --suites=scene96,scene32+noise10,cifar10+noise2," in text


def test_disturbed_suites_are_recorded_by_the_command(tmp_path, capsys, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    monkeypatch.setattr(running, "load_source", lambda suite: images)
    arguments = [f"--results={tmp_path}", "--pairs=8", "--no_timing", "--table=disturbances"]
    suites = [suite for suite in disturbances.SUITES if suite.startswith("cifar10+")]
    run = ["tables", "--run=constant", f"--suites={','.join(suites)}", *arguments]
    assert tables.main(run) == 0
    text = capsys.readouterr().out
    assert text.count("| constant |") == len(suites)
    for suite in suites:
        bounded = load_record(tmp_path, suite, "constant").rows.bound is not None
        assert bounded == ("noise" in suite)


def test_what_is_recorded_can_be_read():
    for suite in (*paper.SUITES, *disturbances.SUITES):
        for system in recorded_systems(RESULTS, suite):
            made = load_record(RESULTS, suite, system)
            assert made.about["pairs"] == len(made.rows.found)
            assert {"date", "command", "versions", "hardware", "seed", "commit"} <= set(made.about)
