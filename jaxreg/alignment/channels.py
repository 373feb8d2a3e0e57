"""Find the channels and frames of a TIFF's pages from the metadata of ImageJ or OME."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import tifffile

from jaxreg.alignment.pages import page_names
from jaxreg.alignment.table import Job, one_line_name

_T = TypeVar("_T")


def frames_of(stack: str | os.PathLike[str]) -> np.ndarray:
    """Arrange the names of a TIFF's pages as ``(frames, channels)``.

    Slices in depth count as frames if there is only one time. Channels of a single frame count as
    frames, too.

    Raises:
      OSError: the file cannot be opened.
      ValueError: the file is no TIFF, is cut short, has metadata of channels that its pages do not
        fit, or has several slices at each of several times; or ``stack`` names a page.
    """
    names = np.array(page_names(stack), object)
    one_channel = names.reshape(-1, 1)
    axes, numbers = read_metadata(stack, _numbers) or ("", np.zeros(0, int))
    fits = sorted(numbers.ravel()) == list(range(len(names)))
    count = read_metadata(stack, _channels) or 1
    if count > 1 and not (fits and "C" in axes):
        raise ValueError(
            f"{stack} tells of {count} channels, which its {len(names)} pages do not fit, as of "
            "several places or a movie that was stopped; list those of one channel in --pairs"
        )
    if not fits:
        return one_channel
    length = dict(zip(axes, numbers.shape, strict=True))
    if length.get("T", 1) > 1 and length.get("Z", 1) > 1:
        raise ValueError(
            f"{stack} has {length['Z']} slices at each of {length['T']} times; project them to one "
            "first, or register the slices of each time by themselves"
        )
    if "C" not in axes or numbers.size == length["C"]:
        return one_channel
    channels = np.moveaxis(numbers, axes.index("C"), -1)
    return names[channels.reshape(-1, length["C"])]


def jobs_of_stack(stack: str, fixed: str | None = None, channel: int | None = None) -> list[Job]:
    """Pair one fixed image with every page of a TIFF, or with every page of one channel.

    Args:
      stack: the TIFF.
      fixed: the fixed image; by default the first of these pages, which is also a moving image.
      channel: the channel that is registered, counted from 0; needed if there are several.

    Raises:
      OSError: the file cannot be opened.
      ValueError: as for `frames_of`; or there is no page, no such channel, no metadata of channels,
        or no channel is given for a file of several.
    """
    frames = frames_of(one_line_name(stack))
    if not frames.size:
        raise ValueError(f"--stack={stack} holds no pages")
    count = frames.shape[1]
    if channel is None and count > 1:
        raise ValueError(
            f"{stack} has {count} channels; say by which one it is registered, such as --channel=0"
        )
    if channel is not None and count == 1 and read_metadata(stack, _channels) != 1:
        raise ValueError(
            f"--channel={channel}: {stack} does not say which of its pages are frames of one "
            "channel, as ImageJ and OME do; leave it out for all pages, or list some in --pairs"
        )
    if (channel or 0) >= count:
        raise ValueError(f"{stack} has no channel {channel}, counted from 0; it has {count}")
    pages = frames[:, channel or 0]
    reference = pages[0] if fixed is None else one_line_name(fixed)
    return [Job(reference, page) for page in pages]


def read_metadata(
    path: str | os.PathLike[str], read: Callable[[tifffile.TiffFile], _T]
) -> _T | None:
    """Apply ``read`` to a TIFF; None if tifffile cannot read its tags, though OpenCV may."""
    try:
        with tifffile.TiffFile(path) as tiff:
            return read(tiff)
    except Exception:  # damaged tags make tifffile raise almost any exception
        return None


def _numbers(tiff: tifffile.TiffFile) -> tuple[str, np.ndarray]:
    """Axes of the pages, such as ``TC``, and an array of page numbers over them, -1 if missing."""
    series = tiff.series[0]
    before = series.axes.index("Y")
    kept = [k for k in range(before) if series.axes[k] != "S"]  # samples are within a page
    shape = [series.shape[k] for k in kept]
    numbers = np.array([-1 if page is None else page.index for page in series.pages])
    if series.dataoffset is not None and numbers.size == 1:  # only the first page has a header
        numbers = np.arange(np.prod(shape, dtype=int))
    return "".join(series.axes[k] for k in kept), numbers.reshape(shape)


def _channels(tiff: tifffile.TiffFile) -> int | None:
    """Number of channels in ImageJ's or OME's metadata; None without any, or of several files."""
    samples = tiff.pages.first.samplesperpixel  # the metadata counts samples as channels
    if text := tiff.ome_metadata:
        if len(set(re.findall(r'FileName="([^"]*)"', text))) > 1:
            return None
        return max(max(map(int, re.findall(r'SizeC="(\d+)"', text))) // samples, 1)
    imagej = tiff.imagej_metadata
    return None if imagej is None else max(imagej.get("channels", 1) // samples, 1)
