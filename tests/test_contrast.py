"""Keypoints in images of lower contrast: the command and its table."""

import numpy as np
import pytest

from experiments import contrast
from jaxreg.evaluation import protocol


def test_fewer_keypoints_in_images_of_lower_contrast(tmp_path, monkeypatch, capsys):
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    monkeypatch.setattr(protocol, "load_source", lambda suite: images)
    command = ["contrast", "--suites=cifar10", "--gains=1,0.01", "--pairs=4"]
    assert contrast.main([*command, f"--results={tmp_path}"]) == 0
    text = (tmp_path / "tables" / "keypoint_contrast.md").read_text()
    assert text.endswith(capsys.readouterr().out)
    printed, full, faint = (
        [cell.strip() for cell in row.strip("|").split(" | ")]
        for row in text.splitlines()
        if row.startswith("| cifar10")
    )
    assert (printed[1], full[1], faint[1]) == ("paper", "1", "0.01")
    sift = [float(cells[6].split()[0]) for cells in (full, faint)]
    assert sift[0] > sift[1] == 0.0
    assert faint[7] == "1"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--suites=scene32", "--suites=scene32: there are cifar10"),
        ("--gains=much", "--gains must be numbers in (0, 1], got 'much'"),
        ("--gains=0", "got '0'"),
        ("--pairs=0", "--pairs=0"),
        ("cifar10", "unexpected argument"),
    ],
)
def test_refusals_are_one_line_and_status_2(tmp_path, argument, message, capsys):
    assert contrast.main(["contrast", f"--results={tmp_path}", argument]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_help_lists_the_flags(capsys):
    assert contrast.main(["contrast", "--help"]) == 0
    assert "--gains" in capsys.readouterr().out
