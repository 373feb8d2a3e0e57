"""Keep decoded image sets on disk, so that the next start is fast."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from absl import logging

from jaxreg.atomic import replacing


def user_folder() -> pathlib.Path:
    """Return the user's cache folder of jaxreg: ``$XDG_CACHE_HOME/jaxreg``."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(base).expanduser() / "jaxreg"


def cached(
    folders: Sequence[pathlib.Path],
    stem: str,
    fingerprint: str,
    shape: tuple[int, ...],
    build: Callable[[], np.ndarray],
) -> np.ndarray:
    """Read a uint8 array from the first folder that has it, or build it and write it to one.

    The file is ``<stem>-<fingerprint>.npy``, so an array of another fingerprint is never read. It
    is written under a temporary name and renamed when complete, and older files of the same stem
    are removed. A damaged file is replaced.

    Args:
      folders: folders to read from. The first one that is writable is written to.
      stem: names the array, such as "train-32".
      fingerprint: text that changes with anything the array is made from.
      shape: shape of the array; a file of another shape counts as damaged.
      build: makes the array.
    """
    name = f"{stem}-{fingerprint}.npy"
    for folder in folders:
        array = _read(folder / name, shape)
        if array is not None:
            return array
    array = build()
    for folder in folders:
        try:
            _write(folder, name, array)
        except OSError as error:
            logging.info("Cannot keep %s in %s: %s", name, folder, error)
            continue
        for old in folder.glob(f"{stem}-*.npy"):
            if old.name != name:
                old.unlink(missing_ok=True)
        break
    else:
        logging.warning("No folder can be written to keep %s; it is decoded at every start", stem)
    return array


def _read(path: pathlib.Path, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        return None
    except (ValueError, OSError, EOFError) as error:
        logging.warning("Passing over the damaged cache %s: %s", path, error)
        return None
    if array.shape != shape or array.dtype != np.uint8:
        logging.warning("Passing over the cache %s of shape %s", path, array.shape)
        return None
    return array


def _write(folder: pathlib.Path, name: str, array: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not folder.stat().st_mode & 0o222:  # root could write, but the owner does not want it
        raise PermissionError(f"{folder} is read-only")
    with replacing(folder / name) as file:
        np.save(file, array)
