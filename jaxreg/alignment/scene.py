"""Write a mask of the pixels that show the scene in the images of a run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from jaxreg.alignment.files import check_writable, read_picture, write_picture
from jaxreg.alignment.pages import is_one_of
from jaxreg.alignment.table import Job
from jaxreg.sensor import scene_mask

_MOST = 8  # moving images that are examined
_LARGEST = 2**22  # pixels of an image, which take most of a minute and 1.5 GB


def write_scene_mask(path: str, jobs: Sequence[Job]) -> None:
    """Write the `scene_mask` of the pairs' images as a picture, white where a pixel counts.

    Args:
      path: file of the mask.
      jobs: the pairs; the first fixed image and up to eight evenly spaced moving ones are
        examined.

    Raises:
      OSError, ValueError: a file cannot be read or written, the images differ in size or are too
        large or too few, or ``path`` is one of them.
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
