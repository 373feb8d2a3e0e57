"""The command on a pair of files: answers, pictures, refusals."""

import json
import sys

import cv2
import numpy as np
import pytest
import tifffile

import jaxreg
from jaxreg import RigidTransform
from jaxreg.alignment.batch import Settings
from jaxreg.alignment.files import Picture, read_picture, write_picture
from jaxreg.alignment.pictures import overlay, warp_pixels
from jaxreg.alignment.working import downsample, make_working, scale_back
from jaxreg.direct.settings import DirectOptions, share_of_side
from jaxreg.result import Registration
from tests.align_support import TRUTH, VARIANCE, run, save_pair, scene, stand_in
from tests.tolerances import ALIGNED_FILES, DOWNSAMPLED_RAMP, FLOAT32_PIXELS, OPENCV_WARP


@pytest.fixture
def calls(monkeypatch):
    return stand_in(monkeypatch)


def test_a_real_pair_is_registered(tmp_path, capsys):
    pair = save_pair(tmp_path, height=128, width=95, channels=1)  # as in test_registration
    out, check = tmp_path / "out.png", tmp_path / "check.png"
    assert run(*pair, "--json", f"--out={out}", f"--overlay={check}") == 0
    report = json.loads(capsys.readouterr().out)
    answer = [report[name] for name in ("tx", "ty", "theta")]
    assert np.allclose(answer, [3, -2, 40], atol=ALIGNED_FILES)
    assert report["success"] is True
    assert report["score"] > 0.99
    assert len(report["standard_errors"]) == 3
    assert report["size"] == report["working_size"] == [95, 128]
    difference = read_picture(out).pixels.astype(float) - read_picture(pair[1]).pixels
    assert np.abs(difference).mean() < 1  # fixed now looks like moving
    assert read_picture(check).pixels.shape[2] == 3


def test_integers_of_16_bits_are_registered(tmp_path, capsys):
    pair = [tmp_path / "a.tif", tmp_path / "b.tif"]
    image = scene(128, 95, 1, np.int16)  # compiled once with the pair above
    image = image.astype(np.float64) - 20000  # most below zero
    moving = warp_pixels(image, TRUTH)
    for path, pixels in zip(pair, (image, moving), strict=True):
        cv2.imwrite(str(path), pixels.astype(np.int16))
    assert run(*pair, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    answer = [report[name] for name in ("tx", "ty", "theta")]
    assert np.allclose(answer, [3, -2, 40], atol=ALIGNED_FILES)


def test_text_says_what_was_done(tmp_path, capsys, calls):
    pair = save_pair(tmp_path)
    assert run(*pair, "--working_size=24", f"--out={tmp_path / 'o.png'}") == 0
    printed = capsys.readouterr().out
    assert "tx       6.0000 +- 0.2 px" in printed
    assert "theta    40.0000 +- 0.3 degrees" in printed
    assert "48x40, registered at 24x20" in printed
    assert "fixed, warped to look like moving" in printed
    assert calls == [((1, 20, 24, 3), "direct")]


def test_no_answer_is_a_negative_zero(tmp_path, capsys, monkeypatch):
    still = Registration(RigidTransform(-0.0, -1e-9, -0.0), 1.0, True)
    monkeypatch.setattr(jaxreg, "register", lambda *_, **__: still)
    assert run(*save_pair(tmp_path)) == 0
    printed = capsys.readouterr().out
    assert "-0.0000" not in printed
    assert "+-" not in printed  # this method measures no covariance


def test_an_answer_not_to_be_trusted_is_status_1(tmp_path, capsys, calls):
    a, _ = save_pair(tmp_path)
    flat = tmp_path / "flat.png"
    write_picture(flat, np.full((40, 48, 3), 9, np.uint8))
    assert run(a, flat) == 1
    printed = capsys.readouterr().out
    assert "do not trust" in printed
    assert "because  an image leaves a direction open" in printed
    assert run(a, flat, "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["success"] is False
    assert len(report["reasons"]) == 1


def test_numbers_that_are_not_finite_are_null(tmp_path, capsys, monkeypatch):
    unsure = Registration(TRUTH, 0.1, False, np.full((3, 3), np.inf))
    monkeypatch.setattr(jaxreg, "register", lambda *_, **__: unsure)
    assert run(*save_pair(tmp_path), "--json") == 1
    report = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert report["standard_errors"] == [None] * 3


@pytest.mark.parametrize("score", [0.9, np.nan])
def test_an_answer_that_is_not_finite_is_none(tmp_path, capsys, monkeypatch, score):
    lost = Registration(RigidTransform(np.nan, 1.0, np.inf), score, True, VARIANCE)
    monkeypatch.setattr(jaxreg, "register", lambda *_, **__: lost)
    pair = save_pair(tmp_path)
    assert run(*pair, f"--out={tmp_path / 'o.png'}") == 1
    assert "the method found no answer" in capsys.readouterr().out
    assert run(*pair, "--json") == 1
    report = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert [report[name] for name in ("tx", "ty", "theta")] == [0, 0, 0]
    assert (report["found"], report["success"], report["covariance"]) == (False, False, None)


@pytest.mark.parametrize("shape", [(100, 60), (61, 97), (128, 33)])
def test_downsampling_keeps_the_centre(shape):
    y, x = (np.arange(n) - (n - 1) / 2 for n in shape)
    ramp = np.broadcast_to(x, shape) + 2 * y[:, None]
    small = downsample(ramp.astype(np.float32), 2.7)
    height, width = small.shape
    expected = 2.7 * (np.arange(width) - (width - 1) / 2)[None, :]
    expected = expected + 5.4 * (np.arange(height) - (height - 1) / 2)[:, None]
    inside = (slice(3, -3), slice(3, -3))  # the blur bends a ramp at the borders
    assert np.abs(small - expected)[inside].max() < DOWNSAMPLED_RAMP


def test_large_images_are_registered_small_and_scaled_back():
    image = cv2.resize(scene(48, 64), (640, 480), interpolation=cv2.INTER_CUBIC)
    truth = RigidTransform(25.0, -13.0, 170.0)
    pair = make_working(Picture(image), Picture(warp_pixels(image, truth)), 96)
    assert pair.working_size == (96, 72)
    small = RigidTransform(25.0 / pair.scale, -13.0 / pair.scale, 170.0)

    def misfit(t):
        # Away from the rims, where the low-pass mixes in what is black or mirrored.
        inner = np.pad(np.ones((60, 84)), 6)
        mask = inner * np.asarray(jaxreg.warp(inner, t)) > 0.99
        return np.abs(np.asarray(jaxreg.warp(pair.fixed, t)) - pair.moving)[mask].mean()

    for off in ((0.1, 0, 0), (-0.1, 0, 0), (0, 0.1, 0), (0, -0.1, 0), (0, 0, 0.3), (0, 0, -0.3)):
        moved = RigidTransform.from_array(small.as_array() + np.array(off))
        assert misfit(small) < 0.5 * misfit(moved)
    answer = scale_back(Registration(small, 0.9, True, VARIANCE), pair.scale)
    assert np.allclose([answer.tx, answer.ty, answer.theta], [25, -13, 170], atol=FLOAT32_PIXELS)
    assert np.allclose(answer.standard_errors, [0.1 * 20 / 3, 0.2 * 20 / 3, 0.3])


def test_a_colour_image_is_made_grey_where_the_other_is():
    pair = make_working(Picture(scene()), Picture(scene(channels=1, dtype=np.uint16)), 512)
    assert pair.fixed.shape == pair.moving.shape == (40, 48)
    assert pair.notes == ("fixed made grey, as the other image is",)
    assert pair.moving.min() == 0
    assert pair.moving.max() == pytest.approx(255)


def test_crop_makes_sizes_agree(tmp_path, capsys, calls):
    a, _ = save_pair(tmp_path)
    other = tmp_path / "other.png"
    write_picture(other, scene(50, 44))
    assert run(a, other) == 2
    assert "48x40 (fixed) and 44x50 (moving); --crop" in capsys.readouterr().err
    out = tmp_path / "o.png"
    assert run(a, other, "--crop", f"--out={out}") == 0
    assert read_picture(out).size == (44, 40)
    assert "cropped from 48x40 and 44x50 to 44x40" in capsys.readouterr().out


def test_what_is_known_beforehand_is_in_pixels_of_the_files(tmp_path, monkeypatch):
    pair, seen = save_pair(tmp_path), []
    (tmp_path / "pairs.csv").write_text("fixed.png,moving.png\n")

    def register(fixed, moving, *, method, initial, **_):
        seen.append(np.asarray(initial.as_array()).reshape(-1).tolist())
        assert method == "direct"
        raise ValueError("that is enough")

    monkeypatch.setattr(jaxreg, "register", register)
    monkeypatch.setattr(jaxreg, "register_batch", register)
    flags = ["--initial=-6,4,40.5", "--working_size=24"]
    many = [f"--pairs={tmp_path / 'pairs.csv'}", f"--out={tmp_path / 't.csv'}"]
    assert run(*pair, *flags) == 2
    assert run(*many, *flags) == 1
    assert seen == [[-3.0, 2.0, 40.5]] * 2
    assert "--initial=-6,4,40.5" in (tmp_path / "t.csv").read_text()


@pytest.mark.parametrize("size", [(96, 72), (100, 61), (97, 23), (40, 48), (125, 33)])
def test_limits_are_in_pixels_of_the_files_at_any_working_size(size):
    width, height = size
    picture = Picture(scene(height, width))
    pair = make_working(picture, picture, 48)
    shape, side = pair.fixed.shape, min(size)
    assert Settings().limit(pair) is None
    assert Settings(max_shift=side / 4).limit(pair) == pytest.approx(side / 4 / pair.scale)
    assert share_of_side(Settings(max_shift=side / 3).limit(pair), shape) == DirectOptions.max_shift
    assert share_of_side(Settings(max_shift=side / 2).limit(pair), shape) <= 0.5
    with pytest.raises(ValueError, match=f"at most {side / 2:g} pixels"):
        Settings(max_shift=side / 2 + 0.1).limit(pair)


def test_pairs_of_one_working_shape_have_their_own_limits(tmp_path, monkeypatch):
    """Files of two sizes, downsampled to the same: one limit in their pixels is two in these."""
    asked = []

    def register_batch(fixed, moving, *, max_shift, **_):
        asked.append((fixed.shape, max_shift))
        n = len(fixed)
        nothing = RigidTransform(*np.zeros((3, n)))
        return Registration(nothing, np.ones(n), np.ones(n, bool), np.stack([VARIANCE] * n))

    monkeypatch.setattr(jaxreg, "register_batch", register_batch)
    for folder in ("fixed", "moving"):
        (tmp_path / folder).mkdir()
        for k, scale in enumerate((1, 2, 1, 2)):
            write_picture(tmp_path / folder / f"{k}.png", scene(48 * scale, 40 * scale))
    folders = [f"--{name}_dir={tmp_path / name}" for name in ("fixed", "moving")]
    out = f"--out={tmp_path / 't.csv'}"
    assert run(*folders, out, "--working_size=48", "--max_shift=12") == 0
    assert sorted(asked) == [((2, 48, 40, 3), 6.0), ((2, 48, 40, 3), 12.0)]


@pytest.mark.parametrize("theta", [0.0, 90.0, -180.0, 33.3])
def test_pictures_are_warped_as_the_library_warps(theta):
    image, t = scene(31, 44).astype(np.float32), RigidTransform(2.5, -1.25, theta)
    for back, transform in ((False, t), (True, t.inverse())):
        difference = warp_pixels(image, t, back) - np.asarray(jaxreg.warp(image, transform))
        assert np.abs(difference).max() < OPENCV_WARP


@pytest.mark.parametrize("shape", [(10, 1500), (32, 32), (300, 200)])
@pytest.mark.parametrize("style", ["checkerboard", "red-cyan"])
def test_overlays_show_agreement(style, shape):
    image = scene(*shape, channels=1)
    moving = warp_pixels(image, RigidTransform(0.0, 0.0, 180.0))
    picture = overlay(image, moving, RigidTransform(0.0, 0.0, 180.0), style)
    assert picture.dtype == np.uint8
    assert max(picture.shape[:2]) >= 256
    after = picture[28:, picture.shape[1] // 2 + 4 :]
    assert np.array_equal(after[..., 0], after[..., 2])  # grey: fixed and moving coincide
    before = picture[28:, : picture.shape[1] // 2 - 4]
    assert not np.array_equal(before, after)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_a_hot_pixel_does_not_darken_an_overlay(dtype):
    image = scene(channels=1).astype(dtype)
    hot, nothing = image.copy(), RigidTransform(0.0, 0.0, 0.0)
    hot[5, 7], hot[30, 40] = 60000, 0
    shown, plain = (overlay(i, i, nothing, "checkerboard")[28:] for i in (hot, image))
    assert plain.std() > 20
    close = np.abs(shown.astype(float) - plain) < 10
    assert close.mean() > 0.99


def test_an_overlay_shows_a_lone_spot():
    image = np.full((60, 60), 700, np.uint16)
    image[20, 30] = 900
    picture = overlay(image, image, RigidTransform(0.0, 0.0, 0.0), "checkerboard")
    assert set(np.unique(picture[40:, :200])) == {0, 255}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either two files"),
        (["fixed.png"], "two files are registered, FIXED MOVING; got 1"),
        (["fixed.png", "nothere.png"], "nothere.png: No such file or directory"),
        (["fixed.png", "."], ".: Is a directory"),
        (["shared", "none"], "folders are registered by --fixed_dir and --moving_dir"),
        (["fixed.png", "text.png"], "text.png is not a readable image"),
        (["fixed.png", "torn.jpg"], "torn.jpg is cut short"),
        (["fixed.png", "nan.tif"], "nan.tif has NaN or infinite pixels"),
        (["fixed.png", "integers.tif"], "integers.tif has uint64 pixels"),
        (["fixed.png", "moving.png", "--ot=x"], "Unknown command line flag 'ot'"),
        (["fixed.png", "moving.png", "--method=drect"], "did you mean direct?"),
        (["fixed.png", "moving.png", "--out=o.xyz"], "no suffix of an image format"),
        (["deep.png", "deep.png", "--out=o.jpg"], "uint16 pixels in colour; use .png"),
        (["signed.tif", "signed.tif", "--out=o.png"], "int16 pixels in colour; use .tif or"),
        (["fixed.png", "deep.png", "--out_moving=o.jpg"], "would not keep uint16 pixels"),
        (["fixed.png", "moving.png", "--out_moving=o.gif"], "would not keep uint8 pixels"),
        (["fixed.png", "moving.png", "--out=o.pgm"], "not keep uint8 pixels in colour; use .png"),
        (["fixed.png", "moving.png", "--out_moving=."], ". is a folder"),
        (["fixed.png", "moving.png", "--out_moving=./moving.png"], "one of the images"),
        (["fixed.png", "moving.png", "--out=o.png", "--out_moving=./o.png"], "the same file"),
        (["fixed.png", "moving.png", "--out_moving=o.png", "--overlay=o.png"], "the same file"),
        (["fixed.png", "moving.png", "--out=no/o.png"], "there is no folder no"),
        (["fixed.png", "moving.png", "--out=./fixed.png"], "one of the images to register"),
        (["fixed.png", "moving.png", "--out=o.png", "--overlay=./o.png"], "the same file"),
        (["fixed.png", "moving.png", "--out=o.png", "--overlay=link.png"], "the same file"),
        (["fixed.png", "moving.png", "--overlay_style=red"], "checkerboard|red-cyan"),
        (["fixed.png", "moving.png", "--working_size=2049"], "--working_size=2049"),
        (["--pairs=pair.csv", "--out=t.csv", "--max_shift=0"], "max_shift must be above 0 pixels"),
        (
            ["fixed.png", "moving.png", "--max_shift=21"],
            "at most 20 pixels, half of the shorter side of 40 x 48 images, got 21",
        ),
        (["fixed.png", "moving.png", "--max_shift=nan"], "max_shift must be above 0 pixels"),
        (
            ["--pairs=pair.csv", "--out=t.csv", "--method=orb", "--max_shift=8"],
            "of --method=direct",
        ),
        (["fixed.png", "moving.png", "--initial=1,2"], "three numbers, TX,TY,THETA, got '1,2'"),
        (["fixed.png", "moving.png", "--initial=1,nan,2"], "three numbers, TX,TY,THETA"),
        (["fixed.png", "moving.png", "--initial=1,2,3", "--max_shift=8"], "leave out one"),
        (["fixed.png", "moving.png", "--initial=1,2,3", "--method=orb"], "of --method=direct"),
        (["fixed.png", "moving.png", "--fixed_mask=no.png"], "no.png: No such file"),
        (["fixed.png", "moving.png", "--moving_mask=torn.jpg"], "torn.jpg is cut short"),
        (["fixed.png", "moving.png", "--moving_mask=black.png"], "black.png is black all over"),
        (
            ["fixed.png", "moving.png", "--moving_mask=fixed.png", "--out=./fixed.png"],
            "one of the images to register",
        ),
        (
            ["fixed.png", "moving.png", "--moving_mask=deep.png", "--out=./deep.png"],
            "is a mask of the images to register",
        ),
        (
            ["fixed.png", "moving.png", "--method=orb", "--moving_mask=fixed.png"],
            "of --method=direct",
        ),
        (["fixed.png", "moving.png", "--working_size=8"], "8x6 at working size"),
        (["fixed.png", "moving.png", "--pairs=list.csv"], "give either two files"),
        (["--pairs=list.csv"], "--out=TABLE.csv is needed"),
        (["--pairs=pair.csv", "--out=all.tif"], "of many pairs it is a table, such as drift.csv"),
        (["--pairs=pair.csv", "--out=t.json"], "--out=t.json: the table is CSV"),
        (
            ["--pairs=pair.csv", "--out=t.csv", "--out_moving=all.PNG"],
            "all.PNG is named like a picture; of many pairs it is a folder or one .tif",
        ),
        (["fixed.png", "moving.png", "--out="], "--out is empty"),
        (["fixed.png", "moving.png", "--fixed_mask="], "--fixed_mask is empty"),
        (["--pairs=list.csv", "--out=t.csv"], "list.csv, line 2: must be two paths"),
        (["--pairs=twice.csv", "--out=t.csv"], "line 2: the same pair as in line 1"),
        (["--pairs=quote.csv", "--out=t.csv"], "quote.csv, line 2: unexpected end of data; is a"),
        (["--pairs=endless.csv", "--out=t.csv"], "line 1: field larger than field limit"),
        (["--pairs=empty.csv", "--out=t.csv"], "holds no pairs"),
        (["--pairs=wide.csv", "--out=t.csv"], "wide.csv, line 1: not a text in UTF-8"),
        (["--pairs=no.csv", "--out=t.csv"], "no.csv: No such file or directory"),
        (["--pairs=pair.csv", "--out=t.csv", "--json"], "--json is for one pair"),
        (["--pairs=pair.csv", "--out=t.csv", "--overlay=o.png"], "of many pairs it is a folder"),
        (
            ["--pairs=pair.csv", "--out=t.csv", "--out_moving=o", "--overlay=./o"],
            "--out_moving and --overlay name the same folder",
        ),
        (["--fixed_dir=.", "--out=t.csv"], "--fixed_dir and --moving_dir go together"),
        (["--moving_dir=.", "--out=t.csv"], "--fixed_dir and --moving_dir go together"),
        (["--fixed=fixed.png", "--out=t.csv"], "--fixed and --moving_dir go together"),
        (["--fixed=a", "--fixed_dir=.", "--moving_dir=.", "--out=t.csv"], "not both"),
        (["--fixed=fixed.png", "--moving_dir=."], "--out=TABLE.csv is needed"),
        (["--fixed=fixed.png", "moving.png", "--out=o.png"], "give either two files"),
        (["--fixed=torn.jpg", "--moving_dir=.", "--out=t.csv"], "torn.jpg is cut short"),
        (["--fixed=fixed.png", "--moving_dir=none", "--out=t.csv"], "none holds no images"),
        (["--fixed=fixed.png", "--moving_dir=shared", "--out=t.csv"], "share the name 'x'"),
        (["--fixed_dir=.", "--moving_dir=no", "--out=t.csv"], "--moving_dir=no is no folder"),
        (["--fixed_dir=shared", "--moving_dir=.", "--out=t.csv"], "share the name 'x'"),
        (["--fixed_dir=.", "--moving_dir=none", "--out=t.csv"], "; list them in --pairs"),
    ],
)
def test_refusals_are_one_line_and_status_2(
    tmp_path, monkeypatch, capsys, calls, arguments, message
):
    monkeypatch.chdir(tmp_path)
    save_pair(tmp_path)
    write_picture("deep.png", scene(dtype=np.uint16))
    write_picture("black.png", np.zeros((40, 48), np.uint8))
    (tmp_path / "text.png").write_text("not an image")
    jpeg = cv2.imencode(".jpg", scene())[1].tobytes()
    (tmp_path / "torn.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    cv2.imwrite("nan.tif", np.full((40, 48), np.nan, np.float32))
    tifffile.imwrite("integers.tif", np.zeros((40, 48), np.uint64))
    write_picture("signed.tif", scene(dtype=np.int16))
    (tmp_path / "list.csv").write_text("fixed.png,moving.png\nfixed.png\n")
    (tmp_path / "pair.csv").write_text("fixed.png,moving.png\n")
    (tmp_path / "twice.csv").write_text("fixed.png,moving.png\nfixed.png,moving.png\n")
    (tmp_path / "quote.csv").write_text('fixed.png,moving.png\nfixed.png,"b.png\na,b\n')
    (tmp_path / "endless.csv").write_text(f'"fixed.png,{"x" * 2**18}\n')
    (tmp_path / "empty.csv").write_text("fixed,moving\n")
    (tmp_path / "wide.csv").write_text("fixed.png,moving.png\n", encoding="utf-16")
    (tmp_path / "link.png").symlink_to("o.png")
    for name in ("none", "shared"):
        (tmp_path / name).mkdir()
    for name in ("x.png", "x.bmp"):
        write_picture(tmp_path / "shared" / name, scene())
    before = sorted(p.name for p in tmp_path.iterdir())
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_an_error_of_the_program_is_not_an_untrusted_answer(tmp_path, monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(jaxreg, "register", broken)
    assert run(*save_pair(tmp_path)) == 3
    assert "out of memory" in capsys.readouterr().err


def test_a_missing_package_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    pair = save_pair(tmp_path)
    assert run(*pair, "--method=simpleitk") == 2
    assert "pip install 'jaxreg[peers]' brings it" in capsys.readouterr().err

    def lacking(*_, **__):
        raise ImportError("sonar is not installed")

    monkeypatch.setattr(jaxreg, "register", lacking)
    assert run(*pair) == 2
    assert capsys.readouterr().err == "jaxreg.align: sonar is not installed\n"


def test_an_opencv_that_does_not_load_is_told_in_one_line(monkeypatch, capsys):
    for name in [*sys.modules]:
        if name.startswith("jaxreg.alignment."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert run("a.png", "b.png") == 2
    error = capsys.readouterr().err
    assert "cv2" in error
    assert error.count("\n") == 1


def test_a_reader_that_has_seen_enough_is_no_error_to_tell(monkeypatch, capsys):
    def write(_):
        raise BrokenPipeError(32, "Broken pipe")

    with monkeypatch.context() as patch:
        patch.setattr(sys.stdout, "write", write)
        assert run("--help") != 0
    assert capsys.readouterr().err == ""


def test_help_tells_the_exit_status(capsys):
    assert run("--help") == 0
    printed = capsys.readouterr().out
    assert "Exit status" in printed
    assert "--overlay_style" in printed
    assert "in the range [0, 0.5]" not in printed  # 0 is refused
