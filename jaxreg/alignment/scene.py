"""A mask for the files of a run: what of them shows the scene."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from jaxreg.alignment.files import check_writable, read_picture, write_picture
from jaxreg.alignment.pages import is_one_of
from jaxreg.alignment.table import Job
from jaxreg.sensor import scene_mask

_MOST = 8  # images that are looked at
_LARGEST = 2**22  # px: as many as take most of a minute, and 1.5 GB


def write_scene_mask(path: str, jobs: Sequence[Job]) -> None:
    """Write the `scene_mask` of the images of some pairs, white where a pixel counts.

    Args:
      path: of a picture.
      jobs: the pairs; the first fixed image and a few of the moving ones are looked at, evenly.

    Raises:
      OSError, ValueError: a file cannot be read or written, they are of different size or too
        large, or path is one of them.
    """
    if is_one_of(path, itertools.chain(*jobs)):
        raise ValueError(f"--scene_mask={path} is one of the images to register")
    check_writable(path)
    moving = np.unique(np.linspace(0, len(jobs) - 1, _MOST).round().astype(int))
    names = dict.fromkeys([jobs[0].fixed, *(jobs[i].moving for i in moving)])
    pictures = {name: read_picture(name) for name in names}
    sizes = {"{}x{}".format(*picture.size): name for name, picture in pictures.items()}
    if len(sizes) > 1:
        one, other, *_ = (f"{size} ({name})" for size, name in sizes.items())
        raise ValueError(f"--scene_mask is for images of one size, got {one} and {other}")
    planes = [np.float32(p.pixels).reshape(*p.size[::-1], -1).mean(-1) for p in pictures.values()]
    if planes[0].size > _LARGEST or len(planes) < 2:
        raise ValueError(
            f"--scene_mask is for two or more images of up to {_LARGEST} pixels, got "
            f"{len(planes)} of {planes[0].size}"
        )
    write_picture(path, 255 * np.asarray(scene_mask(np.stack(planes)), np.uint8))
