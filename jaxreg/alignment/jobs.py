"""Find the pairs that a command line asks to register."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Iterator, Sequence

from absl import flags

from jaxreg.alignment.channels import jobs_of_stack
from jaxreg.alignment.files import read_picture
from jaxreg.alignment.movie import is_movie
from jaxreg.alignment.table import Job, one_line_name
from jaxreg.command_line import complain
from jaxreg.data.folder import SUFFIXES

_NAMED = 5  # files without a partner that a message names


def jobs_asked_for(options: flags.FlagValues, files: Sequence[str]) -> tuple[list[Job], bool]:
    """Return the pairs to register, and whether their answers go into a table.

    Args:
      options: the flags of `jaxreg.align`.
      files: its arguments that are no flags.

    Raises:
      OSError, ValueError: a file or folder cannot be read, or the flags conflict.
    """
    in_folders = any(options[name].value is not None for name in ("fixed_dir", "moving_dir"))
    in_folders |= options.fixed is not None and options.stack is None
    in_pages, listed = options.stack is not None, options.pairs is not None
    if sum((len(files) > 0, in_folders, in_pages, listed)) != 1:
        raise ValueError(
            "give either two files, FIXED MOVING, or --moving_dir with --fixed_dir or --fixed, or "
            "--stack, or --pairs; --help tells more"
        )
    if options.channel is not None and not in_pages:
        raise ValueError("--channel is one of a --stack")
    if files:
        if len(files) != 2:
            raise ValueError(f"two files are registered, FIXED MOVING; got {len(files)}: {files}")
        if all(map(os.path.isdir, files)):
            raise ValueError("folders are registered by --fixed_dir and --moving_dir, see --help")
        return [Job(*files)], False
    _check_many(options)
    if listed:
        return jobs_of_list(options.pairs), True
    if in_pages:
        jobs = jobs_of_stack(options.stack, options.fixed, options.channel)
    else:
        jobs = _in_folders(options)
    if in_pages or options.fixed is not None:
        read_picture(jobs[0].fixed)  # an unreadable one is refused once, not in every row
    return jobs, True


def _check_many(options: flags.FlagValues) -> None:
    """Raise ValueError unless the flags for outputs suit many pairs."""
    if not options.out:
        raise ValueError("--out=TABLE.csv is needed for many pairs")
    if os.path.splitext(options.out)[1].lower() == ".json":
        raise ValueError(f"--out={options.out}: the table is CSV, such as drift.csv")
    if options.json:
        raise ValueError("--json is for one pair; many go into the table --out")
    kinds = {"out": "a table, such as drift.csv", "out_moving": "a folder or one .tif"}
    for name, what in (kinds | {"overlay": "a folder"}).items():
        path = options[name].value or ""
        if name == "out_moving" and is_movie(path):
            continue
        if os.path.splitext(path)[1].lower() in SUFFIXES and not os.path.exists(path):
            raise ValueError(f"--{name}={path} is named like a picture; of many pairs it is {what}")
    folders = [options[name].value for name in ("out_moving", "overlay")]
    if all(folders) and len(set(map(os.path.realpath, folders))) == 1:
        raise ValueError("--out_moving and --overlay name the same folder")


def _in_folders(options: flags.FlagValues) -> list[Job]:
    """Pair --moving_dir with --fixed_dir or --fixed; ValueError unless exactly one is given."""
    if options.fixed is not None and options.fixed_dir is not None:
        raise ValueError("give --fixed, one file for all, or --fixed_dir, not both")
    if options.moving_dir is None or (options.fixed is None and options.fixed_dir is None):
        other = "--fixed" if options.fixed is not None else "--fixed_dir"
        raise ValueError(f"{other} and --moving_dir go together")
    if options.fixed is not None:
        return jobs_of_reference(options.fixed, options.moving_dir)
    jobs, unpaired = jobs_of_folders(options.fixed_dir, options.moving_dir)
    if unpaired:
        complain("jaxreg.align", f"no partner for {first_names(unpaired)}")
    return jobs


def jobs_of_folders(fixed_dir: str, moving_dir: str) -> tuple[list[Job], list[str]]:
    """Pair the image files of two folders by name without suffix.

    Returns:
      The pairs, and the files without a partner, both in natural order of their names.

    Raises:
      ValueError: a folder does not exist, there is no pair, or two files of one folder share a
        name.
    """
    first, second = images_in(fixed_dir, "fixed_dir"), images_in(moving_dir, "moving_dir")
    jobs = [Job(first[name], second[name]) for name in first if name in second]
    if not jobs:
        raise ValueError(
            f"no image in {fixed_dir} ({len(first)} images) has a namesake in {moving_dir} "
            f"({len(second)} images); list them in --pairs"
        )
    unpaired = _natural_order(first.keys() ^ second.keys())
    return jobs, [first.get(name) or second[name] for name in unpaired]


def jobs_of_reference(fixed: str, moving_dir: str) -> list[Job]:
    """Pair one fixed image with every image file of a folder, in natural order of their names.

    Raises:
      ValueError: the folder does not exist or holds no image, or two images share a name.
    """
    found = images_in(moving_dir, "moving_dir")
    if not found:
        raise ValueError(f"--moving_dir={moving_dir} holds no images")
    reference = one_line_name(fixed)
    return [Job(reference, image) for image in found.values()]


def images_in(folder: str, flag: str) -> dict[str, str]:
    """Find a folder's image files by their names without suffix, in natural order.

    Args:
      folder: the folder.
      flag: the flag by which it was given, for errors.

    Raises:
      ValueError: the folder does not exist, or two images share a name.
    """
    if not os.path.isdir(folder):
        raise ValueError(f"--{flag}={folder} is no folder")
    found: dict[str, str] = {}
    for name in sorted(os.listdir(folder)):
        stem, suffix = os.path.splitext(name)
        path = os.path.join(folder, name)
        if suffix.lower() not in SUFFIXES or name.startswith(".") or os.path.isdir(path):
            continue
        if stem in found:
            raise ValueError(
                f"{found[stem]} and {path} share the name {stem!r}; pair them by --pairs=list.csv"
            )
        found[stem] = one_line_name(path)
    return {stem: found[stem] for stem in _natural_order(found)}


def _natural_order(names: Iterable[str]) -> list[str]:
    """Sort names, comparing digits in them as numbers.

    >>> _natural_order(["f10", "f9", "f09", "g1", "f"])
    ['f', 'f09', 'f9', 'f10', 'g1']
    """

    def key(name: str) -> tuple:
        parts = re.split(r"(\d+)", name)
        return [int(part) if k % 2 else part for k, part in enumerate(parts)], name

    return sorted(names, key=key)


def first_names(names: Sequence[str]) -> str:
    """List the first few names and count the others.

    >>> first_names("abcdefgh"), first_names("abc")
    ('a, b, c, d, e and 3 more', 'a, b, c')
    """
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def jobs_of_list(path: str) -> list[Job]:
    """Read pairs from a CSV file with the columns fixed and moving; the header is optional.

    Relative paths start at the list's folder.

    Raises:
      OSError: the list cannot be opened.
      ValueError: a line does not hold two paths, a pair is listed twice, or there is no pair.
    """
    folder = os.path.dirname(path)
    jobs: dict[Job, int] = {}
    for line, cells in _lines(path):
        header = [cell.lower() for cell in cells] == ["fixed", "moving"] and not jobs
        if header or not any(cells):
            continue
        if len(cells) != 2 or not all(cells):
            raise ValueError(
                f"{path}, line {line}: must be two paths, FIXED,MOVING, got {','.join(cells)!r}"
            )
        job = Job(*(one_line_name(os.path.join(folder, cell)) for cell in cells))
        if job in jobs:
            raise ValueError(f"{path}, line {line}: the same pair as in line {jobs[job]}")
        jobs[job] = line
    if not jobs:
        raise ValueError(f"{path} holds no pairs; write one FIXED,MOVING a line")
    return list(jobs)


def _lines(path: str) -> Iterator[tuple[int, list[str]]]:
    """Yield number and cells of each line of a CSV file.

    Raises:
      ValueError: a quote is left open, or the file is not UTF-8 text.
    """
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        for line, text in enumerate(file, 1):
            if "\0" in text:  # as in UTF-16, which some Windows programs write
                raise ValueError(f"{path}, line {line}: not a text in UTF-8; save it as one")
            try:
                (cells,) = csv.reader([text], strict=True)
                yield line, [cell.strip() for cell in cells]
            except csv.Error as error:
                raise ValueError(f"{path}, line {line}: {error}; is a quote left open?") from error
