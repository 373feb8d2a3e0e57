"""Figures are drawn from recorded rows, and left out with a word where there are none."""

import dataclasses

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from experiments import figures, plots
from experiments.records import save_record
from experiments.systems import find_system
from jaxreg.evaluation import protocol
from tests.test_tables import TRAINING, record


def drawn(path):
    """The picture, which must show something."""
    picture = imread(path)[..., :3]
    assert picture.std() > 0.05
    return picture


def test_scatter_of_every_number(tmp_path):
    save_record(tmp_path, "fft", record())
    save_record(tmp_path, "lstm", record("stl10", "runs/lstm_stl10", training=TRAINING))
    written, skipped = figures.write_figures(tmp_path, ["7", "8", "9"])
    assert [path.name for path in written] == ["figure_7.png", "figure_8.png"]
    for path in written:
        assert drawn(path).shape[1] > 800
        assert path.stat().st_size < 300_000
    assert skipped == [
        "figure 9 left out: no rows of resnext_lstm on stl10: "
        "python -m experiments.tables --run=resnext_lstm --suites=stl10"
    ]


def test_a_scatter_names_stand_ins(tmp_path, monkeypatch):
    training = TRAINING | {"images": {"stl10": 800}}
    save_record(tmp_path, "lstm", record("stl10", "runs/lstm_stl10", training=training))
    notes = []
    monkeypatch.setattr(plots, "scatter", lambda path, rows, title, note: notes.append(note))
    figures.write_figures(tmp_path, ["8"])
    assert "training images are stand-ins: stl10 (800 images, " in notes[0]


def test_a_scatter_without_answers_and_one_far_off(tmp_path):
    for name, rows in (
        ("none", record(found=0.0).rows),
        ("far", record(error=(1e3, -1e3, 90.0)).rows),
    ):
        drawn(plots.scatter(tmp_path / f"{name}.png", rows, name))


def test_a_figure_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = plots.scatter(tmp_path / "a.png", record().rows, "FFT")
    before = path.read_bytes()

    def half(figure, file, **_):
        file.write(b"half a picture")
        raise OSError("the disk is full")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError, match="full"):
        plots.scatter(path, record().rows, "FFT")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_error_curves(tmp_path):
    save_record(tmp_path, "sift", record(method="sift", found=0.5))
    save_record(tmp_path, "orb", record(method="orb", found=0.0))
    save_record(tmp_path, "direct", record(method="direct", error=(0.0, 0.0, 0.0)))
    written, skipped = figures.write_figures(tmp_path, ["cdf"])
    assert [path.name for path in written] == ["errors_cifar10.png"]
    assert len(skipped) == 3
    drawn(written[0])


def test_error_curves_below_the_least_value_are_off_the_frame(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(plots, "save", lambda figure, path: saved.append(figure))
    exact = record(error=(0.0, 0.0, 0.0)).rows
    plots.error_cdf(tmp_path / "a.png", {"direct": exact, "mine:good": exact}, "pairs")
    for axes in saved[0].axes:
        assert axes.get_xlim()[0] < min(axes.get_lines()[0].get_xdata())
    labels = [line.get_label() for line in saved[0].axes[0].get_lines()]
    assert labels == ["direct", "mine:good"]


def test_own_rows_that_share_a_label_are_all_drawn(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "error_cdf", lambda path, rows, title: drawn.extend(rows))
    for name in ("a%2Fref", "b%2Fref"):
        save_record(tmp_path, name, record(method="ref"))
    figures.write_figures(tmp_path, ["cdf"])
    assert drawn == ["ref", "ref (b%2Fref)"]


def test_risk_curves(tmp_path):
    rng = np.random.default_rng(0)
    made = record("scene32", "compact", error=(0.0, 0.0, 0.0))
    wrong = rng.uniform(size=len(made.rows.found)) < 0.1
    rows = dataclasses.replace(
        made.rows,
        estimate=made.rows.estimate + 20.0 * wrong[:, None],
        score=np.where(wrong, 0.2, rng.uniform(0.1, 1.0, len(wrong))),
    )
    save_record(tmp_path, "compact", dataclasses.replace(made, rows=rows))
    written, skipped = figures.write_figures(tmp_path, ["risk"])
    assert [path.name for path in written] == ["risk_scene32.png"]
    assert "--run=compact --suites=scene96" in skipped[0]
    alone = drawn(written[0])
    save_record(tmp_path, find_system("compact+refine").name, made)
    (path,), _ = figures.write_figures(tmp_path, ["risk"])
    assert not np.array_equal(drawn(path), alone)


def test_qualitative_rows(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    monkeypatch.setattr(protocol, "load_source", lambda suite: images)
    exact = record(error=(0.0, 0.0, 0.0), seed=0)
    save_record(tmp_path, "lstm", exact)
    written, skipped = figures.write_figures(tmp_path, ["3"])
    assert [path.name for path in written] == ["figure_3.png"]
    assert len(skipped) == 2
    drawn(written[0])


def test_qualitative_rows_are_of_the_images(tmp_path):
    images = np.zeros((8, 32, 32, 3), np.uint8)
    data = protocol.build_suite("cifar10", 2, seed=1, source=images)
    with pytest.raises(ValueError, match="other pairs"):
        plots.qualitative(tmp_path / "x.png", data, record().rows, "FFT")


def test_without_the_image_set_the_pictures_are_left_out(tmp_path, monkeypatch):
    def missing(suite):
        raise FileNotFoundError("cifar10 is not prepared")

    monkeypatch.setattr(protocol, "load_source", missing)
    save_record(tmp_path, "fft", record())
    written, skipped = figures.write_figures(tmp_path, ["3"])
    assert not written
    assert any("cifar10 is not prepared" in reason for reason in skipped)


def test_the_command(tmp_path, capsys):
    save_record(tmp_path, "fft", record())
    assert figures.main(["figures", f"--results={tmp_path}", "--figure=7,4"]) == 2
    out, err = capsys.readouterr()
    assert "figure_7.png" in out
    assert "--run=lstm --suites=cifar10" in err
    assert figures.main(["figures", f"--results={tmp_path}", "--figure=7"]) == 0
    assert capsys.readouterr().err == ""
    assert figures.main(["figures", "--figure=12"]) == 2
    assert "there are 3, 4" in capsys.readouterr().err


def test_what_is_left_out_is_an_error_only_where_it_was_asked_for(tmp_path, capsys):
    assert figures.main(["figures", f"--results={tmp_path}"]) == 0
    assert "figure risk (scene96) left out" in capsys.readouterr().err
    assert figures.main(["figures", f"--results={tmp_path}", "--figure=risk"]) == 2
    assert "figure risk (scene96) left out" in capsys.readouterr().err


def test_a_results_folder_that_is_not_there(tmp_path, capsys):
    missing = tmp_path / "typo"
    assert figures.main(["figures", f"--results={missing}"]) == 2
    assert f"--results={missing}: there is no such folder" in capsys.readouterr().err
    assert not missing.exists()
