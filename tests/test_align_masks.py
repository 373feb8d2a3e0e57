"""The command with masks: they go along with their images, cropped and downsampled like these."""

import csv
import functools
import zlib

import cv2
import numpy as np
import pytest

import jaxreg
from jaxreg.alignment.files import read_mask, read_picture, write_picture
from tests.align_support import run, save_pair, scene, stand_in

SHAPE = (40, 48)


@pytest.fixture
def calls(monkeypatch):
    """Images and masks of each call of `register` and `register_batch`."""
    stand_in(monkeypatch)
    seen = []

    def recorded(answer, fixed, moving, **options):
        seen.append({"fixed": fixed, "moving": moving} | options)
        return answer(fixed, moving, **options)

    for name in ("register", "register_batch"):
        monkeypatch.setattr(jaxreg, name, functools.partial(recorded, getattr(jaxreg, name)))
    return seen


def save_mask(path, shape=SHAPE, top=20):
    """The upper left quarter does not count."""
    mask = np.full(shape, 255, np.uint8)
    mask[:top, : shape[1] // 2] = 0
    write_picture(path, mask)
    return mask > 0


def test_a_mask_is_downsampled_with_its_image(tmp_path, calls):
    pair, file = save_pair(tmp_path), tmp_path / "mask.png"
    save_mask(file)
    assert run(*pair, f"--moving_mask={file}", "--working_size=36") == 0
    (call,) = calls
    assert "fixed_mask" not in call
    mask = call["moving_mask"]
    assert mask.shape == call["moving"].shape[:2] == (30, 36)
    assert not mask[:14, :17].any()
    assert mask[16:].all()
    assert mask[:, 19:].all()


def test_what_does_not_count_does_not_stretch_the_contrast(tmp_path, calls):
    pictures = [scene(dtype=np.uint16) // 64] * 2
    files = [tmp_path / name for name in ("a.png", "b.png")]
    mask = save_mask(tmp_path / "mask.png")
    spoilt = np.where(mask[..., None], pictures[1], 65535).astype(np.uint16)
    for path, image in zip(files, (pictures[0], spoilt), strict=True):
        write_picture(path, image)
    assert run(*files, f"--moving_mask={tmp_path / 'mask.png'}") == 0
    (call,) = calls
    np.testing.assert_allclose(call["moving"][mask], call["fixed"][mask])
    assert np.ptp(call["fixed"]) > 250


def test_a_mask_is_cropped_with_its_image(tmp_path, calls):
    for name, shape in (("a.png", SHAPE), ("b.png", (40, 44))):
        write_picture(tmp_path / name, scene(*shape))
    mask = save_mask(tmp_path / "mask.png")
    pair = [tmp_path / name for name in ("a.png", "b.png")]
    assert run(*pair, f"--fixed_mask={tmp_path / 'mask.png'}", "--crop") == 0
    np.testing.assert_array_equal(calls[0]["fixed_mask"], mask[:, 2:-2])


def test_one_mask_serves_all_pairs_and_belongs_to_the_table(tmp_path, calls, capsys, monkeypatch):
    save_pair(tmp_path)
    frames, out, file = tmp_path / "frames", tmp_path / "t.csv", tmp_path / "mask.png"
    frames.mkdir()
    for k in range(3):
        write_picture(frames / f"{k}.png", scene(seed=k))
    mask = save_mask(file)
    command = [f"--fixed={tmp_path / 'fixed.png'}", f"--moving_dir={frames}", f"--out={out}"]
    masks = [f"--fixed_mask={file}", f"--moving_mask={file}"]
    assert run(*command, *masks) == 0
    for name in ("fixed_mask", "moving_mask"):
        np.testing.assert_array_equal(calls[0][name], np.stack([mask] * 3))
    with open(out) as lines:
        settings = {row["settings"].partition(" --nocrop")[2] for row in csv.DictReader(lines)}
    digest = f"#{zlib.crc32(mask.tobytes()):08x}"
    assert settings == {f" --fixed_mask=mask.png{digest} --moving_mask=mask.png{digest}"}
    monkeypatch.chdir(tmp_path)
    assert run(*command, "--fixed_mask=mask.png", "--moving_mask=./mask.png") == 0
    save_mask(file, top=30)
    for other in ([], masks):  # answers of other settings do not go into one table
        assert run(*command, *other) == 2
        assert "was begun with" in capsys.readouterr().err


def test_a_mask_of_the_scene_is_found_and_kept(tmp_path, calls, capsys):
    """A black frame that every image has, and one pixel that is white in all."""
    frames, out, file = tmp_path / "frames", tmp_path / "t.csv", tmp_path / "mask.png"
    frames.mkdir()
    inner = np.pad(np.ones((30, 38), bool), 5)
    for k in range(12):
        image = np.where(inner[..., None], np.maximum(scene(seed=k), 30), 0).astype(np.uint8)
        image[20, 20] = 255
        write_picture(frames / f"{k}.png", image)
    expected = np.pad(np.ones((28, 36), bool), 6)
    expected[20, 20] = False
    command = [f"--fixed={frames / '0.png'}", f"--moving_dir={frames}", f"--out={out}"]
    for _ in range(2):  # the second run finds all rows, and the same mask
        assert run(*command, f"--scene_mask={file}") == 0
        np.testing.assert_array_equal(read_mask(file), expected)
    (call,) = calls
    for name in ("fixed_mask", "moving_mask"):
        np.testing.assert_array_equal(call[name], np.stack([expected] * 12))
    unfit = {
        f"--moving_mask={file}": "takes the place of",
        f"--fixed={tmp_path / 'small.png'}": "for images of one size, got 32x24",
    }
    write_picture(tmp_path / "small.png", scene(24, 32))
    for flag, message in unfit.items():
        assert run(*command, f"--scene_mask={file}", flag) == 2
        assert message in capsys.readouterr().err
    for k in range(12):  # those that it is not found by, too
        assert run(*command, f"--scene_mask={frames / f'{k}.png'}") == 2
        assert "is one of the images to register" in capsys.readouterr().err


def test_a_mask_is_not_overwritten_by_a_picture(tmp_path, calls, capsys):
    save_pair(tmp_path)
    frames, moved = tmp_path / "frames", tmp_path / "moved"
    for folder in (frames, moved):
        folder.mkdir()
    write_picture(frames / "a.png", scene())
    mask = save_mask(moved / "a.png")
    command = [f"--fixed={tmp_path / 'fixed.png'}", f"--moving_dir={frames}"]
    command += [f"--out={tmp_path / 't.csv'}", f"--moving_mask={moved / 'a.png'}"]
    assert run(*command, f"--out_moving={moved}") == 2
    assert "a mask or the table; let --out_moving be another folder" in capsys.readouterr().err
    np.testing.assert_array_equal(read_mask(moved / "a.png"), mask)


def test_a_mask_of_another_size_is_refused(tmp_path, calls, capsys):
    pair, file = save_pair(tmp_path), tmp_path / "mask.png"
    save_mask(file, (10, 20))
    assert run(*pair, f"--fixed_mask={file}") == 2
    assert f"--fixed_mask {file} must be of its image's size, 48x40, got 20x10" in (
        capsys.readouterr().err
    )
    assert not calls


@pytest.mark.parametrize("white", [1, 255])
def test_white_is_what_counts(tmp_path, white):
    mask = np.zeros(SHAPE, np.uint8)
    mask[8:24, 16:40] = white
    cv2.imwrite(str(tmp_path / "m.png"), mask)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), mask > 0)
    if white == 255:  # black that JPEG has left not quite black
        cv2.imwrite(str(tmp_path / "m.jpg"), np.stack([mask] * 3, -1))
        np.testing.assert_array_equal(read_mask(tmp_path / "m.jpg"), mask > 0)


def test_dead_pixels_do_not_darken_or_blind_a_downsampled_image(tmp_path, calls):
    image = cv2.resize(scene(), (192, 160), interpolation=cv2.INTER_CUBIC)
    alive = np.random.default_rng(0).uniform(size=image.shape[:2]) > 0.1
    for name, pixels in {"a": image, "b": image * alive[..., None], "m": alive}.items():
        cv2.imwrite(str(tmp_path / f"{name}.png"), pixels.astype(np.uint8))
    files = [tmp_path / f"{name}.png" for name in "abm"]
    assert run(*files[:2], f"--moving_mask={files[2]}", "--working_size=48") == 0
    (call,) = calls
    assert call["moving_mask"].mean() > 0.95
    difference = np.abs(call["moving"] - call["fixed"])[call["moving_mask"]]
    assert difference.mean() < 2.0


def test_what_is_masked_need_not_be_finite(tmp_path, calls, capsys):
    mask = save_mask(tmp_path / "mask.png")
    pair, out = [tmp_path / name for name in ("a.tif", "b.tif")], tmp_path / "out.tif"
    picture = scene(dtype=np.float32)
    for path in pair:
        write_picture(path, np.where(mask[..., None], picture, np.nan).astype(np.float32))
    masks = [f"--{name}_mask={tmp_path / 'mask.png'}" for name in ("fixed", "moving")]
    assert run(*pair, masks[0]) == 2
    assert "b.tif has NaN or infinite pixels; fill, crop or mask" in capsys.readouterr().err
    assert run(*pair, *masks, f"--out={out}", f"--overlay={tmp_path / 'over.png'}") == 0
    (call,) = calls
    assert np.isfinite(call["fixed"]).all()
    assert np.isfinite(call["moving"]).all()
    kept = np.isfinite(read_picture(out).pixels).mean()
    assert 0.6 < kept < 1.0
