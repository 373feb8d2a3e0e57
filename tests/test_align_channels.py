"""Movies of several channels: one is registered, all are moved."""

import functools

import numpy as np
import pytest
import tifffile

from jaxreg.alignment.table import read_table
from tests.align_support import run, save_movie, scene, stand_in, steady


@pytest.fixture
def calls(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return stand_in(monkeypatch)


@pytest.fixture
def channels():
    """Pages of two channels, of which the second shows nothing in its third."""
    both = [save_movie("spare.tif", seed) for seed in (0, 10)]
    both[0][2] = scene(channels=1, dtype=np.uint16, seed=9)
    return both


@pytest.mark.parametrize(
    ("kind", "axes", "pages"),
    [
        ("imagej", "TCYX", [1, 3, 5, 7]),
        ("ome", "TCYX", [1, 3, 5, 7]),
        ("ome", "CTYX", [4, 5, 6, 7]),
        ("imagej", "ZCYX", [1, 3, 5, 7]),
        ("truncate", "TCYX", [1, 3, 5, 7]),  # ImageJ's of more than 4 GB
    ],
)
def test_a_movie_is_registered_by_one_channel_and_all_are_moved(
    kind, axes, pages, capsys, calls, channels
):
    stack = functools.partial(np.stack, axis=axes.index("C"))
    how = {"ome": True} if kind == "ome" else {"imagej": True, "truncate": kind == "truncate"}
    tifffile.imwrite("movie.tif", stack(channels), metadata={"axes": axes}, **how)
    command = ("--stack=movie.tif", "--out=t.csv", "--out_moving=steady.tif")
    assert run(*command) == 2
    assert "movie.tif has 2 channels; say by which" in capsys.readouterr().err
    assert run(*command, "--channel=2") == 2
    assert "no channel 2, counted from 0; it has 2" in capsys.readouterr().err
    assert not calls
    assert run(*command, "--channel=1") == 1
    assert "3 of 4 pairs" in capsys.readouterr().out
    rows = read_table("t.csv")
    assert [row["moving"] for row in rows] == [f"movie.tif[{page}]" for page in pages]
    assert {row["fixed"] for row in rows} == {f"movie.tif[{pages[0]}]"}
    moved = stack([steady(channel) for channel in channels])
    np.testing.assert_array_equal(tifffile.imread("steady.tif").reshape(moved.shape), moved)
    with tifffile.TiffFile("steady.tif") as file:
        assert file.series[0].axes == axes
    # The same table moves the movie again.
    assert run("--apply=t.csv", "--stack=movie.tif", "--out_moving=again.tif") == 1
    np.testing.assert_array_equal(tifffile.imread("again.tif"), tifffile.imread("steady.tif"))


@pytest.mark.usefixtures("calls")
def test_a_table_of_one_channel_moves_a_file_of_another(channels):
    tifffile.imwrite("both.tif", np.stack(channels, 1), imagej=True, metadata={"axes": "TCYX"})
    tifffile.imwrite("one.tif", channels[0], photometric="minisblack")
    assert run("--stack=both.tif", "--channel=1", "--out=t.csv") == 1
    assert run("--apply=t.csv", "--stack=one.tif", "--out_moving=steady.tif") == 1
    np.testing.assert_array_equal(tifffile.imread("steady.tif"), steady(channels[0]))
    assert run("--stack=one.tif", "--out=u.csv") == 0
    assert run("--apply=u.csv", "--stack=both.tif", "--out_moving=steady.tif") == 0
    assert tifffile.imread("steady.tif").shape == (4, 2, 40, 48)


@pytest.mark.usefixtures("calls")
def test_channels_of_one_frame_are_registered_with_one_another(channels):
    pages = np.stack([channel[0] for channel in channels])
    tifffile.imwrite("channels.tif", pages, imagej=True, metadata={"axes": "CYX"})
    assert run("--stack=channels.tif", "--out=t.csv") == 0
    assert len(read_table("t.csv")) == 2


def save_stopped(path, pages, count, **how):
    """So many pages, with the text that all of these would have."""
    tifffile.imwrite(path, pages, **how)
    with tifffile.TiffFile(path) as file:
        text, pages = file.pages.first.description, [page.asarray() for page in file.pages]
    with tifffile.TiffWriter(path) as file:
        for k, page in enumerate(pages[:count]):
            told = text.encode() if k == 0 else None
            file.write(page, photometric=how["photometric"], description=told, metadata=None)


@pytest.mark.parametrize("kind", ["imagej", "ome"])
def test_pages_that_do_not_fit_their_channels_are_refused(kind, capsys, calls, channels):
    """As of an acquisition that was stopped, or at several places."""
    how = {"photometric": "minisblack", "metadata": {"axes": "TCYX"}}
    save_stopped("movie.tif", np.stack(channels, 1), 7, **{kind: True}, **how)
    for more in ([], ["--channel=0"]):
        assert run("--stack=movie.tif", "--out=t.csv", *more) == 2
        error = capsys.readouterr().err
        assert "movie.tif tells of 2 channels, which its 7 pages do not fit" in error
        assert error.count("\n") == 1
    with tifffile.TiffWriter("places.tif", ome=True) as file:
        for _ in range(2):
            file.write(np.stack(channels, 1), **how)
    assert run("--stack=places.tif", "--out=t.csv") == 2
    assert "2 channels, which its 16 pages do not fit" in capsys.readouterr().err
    assert not calls


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("kind", ["imagej", "ome"])
@pytest.mark.parametrize(("axes", "photometric"), [("TYX", "minisblack"), ("TYXS", "rgb")])
def test_a_movie_of_one_channel_may_have_been_stopped(kind, axes, photometric):
    pages = np.stack([scene(channels=3 if "S" in axes else 1, seed=k) for k in range(4)])
    how = {kind: True, "photometric": photometric, "metadata": {"axes": axes}}
    save_stopped("movie.tif", pages, 3, **how)
    for more in ([], ["--channel=0"]):
        assert run("--stack=movie.tif", "--out=t.csv", *more) == 0
        assert len(read_table("t.csv")) == 3


@pytest.mark.usefixtures("calls")
def test_a_channel_is_one_of_those_that_are_told_of(capsys, channels):
    pages = np.stack(channels, 1)
    tifffile.imwrite("plain.tif", pages.reshape(8, 40, 48), photometric="minisblack", metadata=None)
    tifffile.imwrite("channels.tif", pages[0], imagej=True, metadata={"axes": "CYX"})
    for name in ("plain.tif", "channels.tif"):
        assert run(f"--stack={name}", "--channel=0", "--out=t.csv") == 2
        error = capsys.readouterr().err
        assert f"--channel=0: {name} does not say which of its pages are frames" in error
    # Of channels in files of their own each file has but one.
    files = "".join(f'<UUID FileName="{name}.tif">' for name in ("one", "other"))
    text = f'<OME><Pixels SizeC="2" SizeT="4">{files}</Pixels></OME>'
    tifffile.imwrite("one.tif", channels[0], photometric="minisblack", description=text)
    assert run("--stack=one.tif", "--out=t.csv") == 0


def test_slices_at_several_times_are_no_frames(capsys, calls, channels):
    pages = np.stack(channels, 1)
    tifffile.imwrite("volumes.tif", pages, imagej=True, metadata={"axes": "TZYX"})
    assert run("--stack=volumes.tif", "--out=t.csv") == 2
    assert "volumes.tif has 2 slices at each of 4 times" in capsys.readouterr().err
    assert run("--pairs=t.csv", "--channel=0", "--out=u.csv") == 2
    assert "--channel is one of a --stack" in capsys.readouterr().err
    assert not calls
