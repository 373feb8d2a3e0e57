"""Register image files: one pair, or a stream of pairs in batches of equal shape."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np

import jaxreg
from jaxreg.alignment.files import Picture, check_finite, read_mask, read_picture
from jaxreg.alignment.pages import split_page
from jaxreg.alignment.table import COLUMNS, Job, job_of, one_line_name
from jaxreg.alignment.working import (
    Answer,
    WorkingPair,
    crop,
    crop_to_common,
    make_working,
    scale_back,
)
from jaxreg.command_line import describe
from jaxreg.direct.settings import WIDEST, DirectOptions, share_of_side
from jaxreg.geometry import RigidTransform

_READERS = 4  # threads that read files while the device computes
_AHEAD = 32  # largest number of pairs read ahead
_BATCH_PIXELS = 2**20  # largest total of the fixed images of one call
# Largest total of the fixed images read ahead, and of those waiting for others of their shape.
_WAITING_PIXELS = 2**23


@dataclasses.dataclass(frozen=True)
class Settings:
    """How pairs are registered.

    Attributes:
      method: name of a method, see `jaxreg.methods`.
      working_size: longest side at which images are registered, in pixels.
      max_shift: largest translation searched along an axis, in pixels of the files; None for a
        third of the shorter side.
      max_rotation: largest rotation searched either way, in degrees.
      crop: whether pairs of different size are cropped to the size they share.
      batch_size: largest number of pairs in a call.
      initial: known alignment ``(tx, ty, theta)`` of all pairs, in pixels of the files and degrees,
        which is refined instead of searching; or None.
      fixed_mask: image file of the mask for all fixed images (`read_mask`), or None.
      moving_mask: image file of the mask for all moving images, or None.

    Raises:
      OSError, ValueError: a mask cannot be read, or no pair could be registered with these.
    """

    method: str = "direct"
    working_size: int = 512
    max_shift: float | None = None
    max_rotation: float = 180.0
    crop: bool = False
    batch_size: int = 256
    initial: tuple[float, float, float] | None = None
    fixed_mask: str | None = None
    moving_mask: str | None = None

    def __post_init__(self):
        # Refuse what no pair could be registered with.
        chosen = DirectOptions(max_rotation=self.max_rotation)
        if self.max_shift is not None and not 0.0 < self.max_shift < math.inf:
            raise ValueError(f"--max_shift must be above 0 pixels, got {self.max_shift:g}")
        shifts = self.max_shift is not None
        known, bounded = self.initial is not None, shifts or chosen != DirectOptions()
        if self.method != "direct" and (self.masks or bounded or known):
            raise ValueError(
                "--max_shift, --max_rotation, --initial, --fixed_mask and --moving_mask are "
                "settings of --method=direct"
            )
        if known and (shifts or chosen.bounds_search):
            raise ValueError(
                "--max_shift and --max_rotation limit the search, which --initial replaces; "
                "leave out one"
            )
        for file in self.masks.values():
            _mask(file)

    def __str__(self) -> str:
        """The settings on which answers depend besides the method, as flags."""
        crop = "crop" if self.crop else "nocrop"
        turn = "" if self.max_rotation == 180.0 else f" --max_rotation={self.max_rotation:.6g}"
        shift = "" if self.max_shift is None else f" --max_shift={self.max_shift:.6g}"
        masks = "".join(
            f" --{name}={Path(one_line_name(file)).name}#{zlib.crc32(_mask(file).tobytes()):08x}"
            for name, file in self.masks.items()
        )
        known = ",".join(f"{v:.9g}" for v in self.initial or ())
        known = known and f" --initial={known}"
        return f"--working_size={self.working_size}{shift}{turn} --{crop}{known}{masks}"

    @property
    def masks(self) -> dict[str, str]:
        """Files of the masks that are given, by keywords of `jaxreg.register`."""
        files = {"fixed_mask": self.fixed_mask, "moving_mask": self.moving_mask}
        return {name: file for name, file in files.items() if file is not None}

    def options(self, pair: WorkingPair) -> dict[str, Any]:
        """Keywords of `jaxreg.register` for a pair, without its masks and initial transform."""
        searched = {"max_shift": self.limit(pair), "max_rotation": self.max_rotation}
        return {"method": self.method} | (searched if self.method == "direct" else {})

    def limit(self, pair: WorkingPair) -> float | None:
        """``max_shift`` in pixels of a working pair, or None for a third of its shorter side.

        A working image may be up to one pixel smaller than its file at this scale. So that a third
        or half of the file's side is not more of the working image's, it is cut to that.

        Raises:
          ValueError: ``max_shift`` is more than half of the file's shorter side.
        """
        if self.max_shift is None:
            return None
        share = share_of_side(self.max_shift, pair.size[::-1])
        widest = next(largest for largest in WIDEST if share <= largest)
        return min(self.max_shift / pair.scale, widest * min(pair.working_size))

    def known(self, scale: Any) -> dict[str, RigidTransform]:
        """The keyword ``initial`` of `jaxreg.register`, if set; ``scale`` as in `WorkingPair`."""
        if self.initial is None:
            return {}
        tx, ty, theta = self.initial
        return {"initial": RigidTransform(tx / scale, ty / scale, theta + 0.0 * scale)}


def load_pair(
    job: Job, settings: Settings, read_fixed: Callable[[str], Picture] = read_picture
) -> tuple[Picture, Picture, WorkingPair]:
    """Read a pair's files and prepare them.

    Args:
      job: the pair.
      settings: how it is registered.
      read_fixed: reads the fixed image; its result is not modified, so it may be cached.

    Returns:
      The fixed and the moving picture, cropped if the settings say so, and the pair to register.

    Raises:
      OSError, ValueError: a file cannot be read, or the pair cannot be registered.
    """
    fixed, moving = read_fixed(job.fixed), read_picture(job.moving)
    pictures = {"fixed_mask": fixed, "moving_mask": moving}
    masks = {name: _mask_of(pictures[name], name, file) for name, file in settings.masks.items()}
    check_finite(fixed.pixels, job.fixed, masks.get("fixed_mask"))
    check_finite(moving.pixels, job.moving, masks.get("moving_mask"))
    note: tuple[str, ...] = ()
    if settings.crop and fixed.size != moving.size:
        sizes = " and ".join("{}x{}".format(*picture.size) for picture in (fixed, moving))
        fixed, moving = crop_to_common(fixed, moving)
        masks = {name: crop(Picture(mask), fixed.size).pixels for name, mask in masks.items()}
        note = ("cropped from {} to {}x{}".format(sizes, *fixed.size),)
    pair = make_working(fixed, moving, settings.working_size, masks)
    settings.limit(pair)  # refuses one that is too large for these images
    return fixed, moving, dataclasses.replace(pair, notes=note + pair.notes)


def _mask(file: str) -> np.ndarray:
    """Read a mask, decoded once for all pairs."""
    return _mask_of_state(file, os.stat(split_page(file)[0]).st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _mask_of_state(file: str, changed: int) -> np.ndarray:
    del changed  # only a key of the cache: a changed file is read again
    return read_mask(file)


def _mask_of(picture: Picture, name: str, file: str) -> np.ndarray:
    """Read a mask; ValueError if it is not of the picture's size."""
    mask = _mask(file)
    if mask.shape != picture.pixels.shape[:2]:
        size = "{}x{}".format(*mask.shape[::-1])
        own = "{}x{}".format(*picture.size)
        raise ValueError(f"--{name} {file} must be of its image's size, {own}, got {size}")
    return mask


def align_pair(pair: WorkingPair, settings: Settings) -> Answer:
    """Register one pair; ValueError if the method refuses it."""
    given = {**pair.masks, **settings.known(pair.scale), **settings.options(pair)}
    registration = jaxreg.register(pair.fixed, pair.moving, **given)
    return scale_back(registration, pair.scale)


def align_jobs(jobs: Iterable[Job], settings: Settings) -> Iterator[list[dict[str, str]]]:
    """Register a stream of pairs; yields the table's rows of one batch after the other.

    A pair that cannot be read or registered gets a row that says why, and raises nothing. The rows
    are in the order of the pairs if all images have one shape.
    """
    # Keys are what the pairs of one call share: the shape, and the limit in working pixels.
    waiting: dict[tuple[tuple[int, ...], float | None], list[tuple[Job, WorkingPair]]] = {}
    failed: list[dict[str, str]] = []  # rows held back until those before them are there
    order: dict[Job, int] = {}

    def with_failed(rows: list[dict[str, str]]) -> list[dict[str, str]]:
        rows = sorted([*rows, *failed], key=lambda row: order[job_of(row)])
        failed.clear()
        return rows

    for job, pair in _read_ahead(jobs, settings):
        order[job] = len(order)
        if isinstance(pair, str):
            failed.append(failed_row(job, pair, settings))
            if not waiting:
                yield with_failed([])
            continue
        key = pair.fixed.shape, settings.limit(pair)
        group = waiting.setdefault(key, [])
        group.append((job, pair))
        if len(group) >= _full(pair.fixed.shape, settings):
            yield with_failed(_align_group(waiting.pop(key), settings))
        elif sum(s[0] * s[1] * len(g) for (s, _), g in waiting.items()) > _WAITING_PIXELS:
            fullest = max(waiting, key=lambda k: len(waiting[k]) / _full(k[0], settings))
            yield with_failed(_align_group(waiting.pop(fullest), settings))
    for group in waiting.values():
        yield with_failed(_align_group(group, settings))


def _full(shape: tuple[int, ...], settings: Settings) -> int:
    return min(max(_BATCH_PIXELS // (shape[0] * shape[1]), 1), settings.batch_size)


def _read_ahead(jobs: Iterable[Job], settings: Settings) -> Iterator[tuple[Job, WorkingPair | str]]:
    """Yield every job with its pair, or with the reason why it cannot be loaded."""
    # A fixed image that all pairs share is decoded once; the cache holds only one image.
    read_fixed = functools.lru_cache(maxsize=1)(read_picture)

    def load(job: Job) -> WorkingPair | str:
        try:
            return load_pair(job, settings, read_fixed)[2]
        except (OSError, ValueError, MemoryError, cv2.error) as error:
            return describe(error)

    most = min(_AHEAD, max(_WAITING_PIXELS // settings.working_size**2, _READERS))
    ahead: collections.deque[tuple[Job, concurrent.futures.Future]] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        try:
            for job in jobs:
                ahead.append((job, pool.submit(load, job)))
                if len(ahead) > most:
                    done, future = ahead.popleft()
                    yield done, future.result()
            while ahead:
                done, future = ahead.popleft()
                yield done, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _align_group(
    group: Sequence[tuple[Job, WorkingPair]], settings: Settings
) -> list[dict[str, str]]:
    """Register pairs of one shape and one limit; returns their rows."""
    pairs = [pair for _, pair in group]
    fixed, moving = (np.stack([getattr(p, name) for p in pairs]) for name in ("fixed", "moving"))
    masks = {name: np.stack([pair.masks[name] for pair in pairs]) for name in settings.masks}
    known = settings.known(np.array([pair.scale for pair in pairs]))
    try:
        batch = jaxreg.register_batch(fixed, moving, **(masks | known | settings.options(pairs[0])))
    except ValueError as error:
        if len(group) == 1:
            return [failed_row(group[0][0], describe(error), settings)]
        # Register them one by one: a pair that is refused must not cost the others their answer.
        return [row for item in group for row in _align_group([item], settings)]
    batch = jax.tree.map(np.asarray, batch)  # copied from the device in one go
    return [
        _row(job, pair, scale_back(batch[index], pair.scale), settings)
        for index, (job, pair) in enumerate(group)
    ]


def _row(job: Job, pair: WorkingPair, answer: Answer, settings: Settings) -> dict[str, str]:
    errors = answer.standard_errors or (None,) * 3
    numbers = (answer.tx, answer.ty, answer.theta, *errors, answer.score)
    sizes = (*pair.size, *pair.working_size)
    cells = [
        *(job.fixed, job.moving, settings.method, str(settings)),
        *map(str, sizes),
        *("" if number is None else format(number, ".9g") for number in numbers),
        "true" if answer.success else "false",
        "; ".join(answer.reasons),
        "" if answer.found else "no answer",
    ]
    return dict(zip(COLUMNS, cells, strict=True))


def failed_row(job: Job, reason: str, settings: Settings) -> dict[str, str]:
    """Make the row of a pair that could not be registered."""
    row = dict.fromkeys(COLUMNS, "")
    row |= {"fixed": job.fixed, "moving": job.moving}
    row |= {"method": settings.method, "settings": str(settings)}
    return row | {"success": "false", "error": reason}
