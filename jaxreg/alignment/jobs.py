"""Which pairs a command line asks for."""

from __future__ import annotations

import os
from collections.abc import Sequence

from absl import flags

from jaxreg.alignment.channels import jobs_of_stack
from jaxreg.alignment.files import read_picture
from jaxreg.alignment.movie import is_movie
from jaxreg.alignment.table import Job, jobs_of_folders, jobs_of_list, jobs_of_reference
from jaxreg.command_line import complain
from jaxreg.data.folder import SUFFIXES

_NAMED = 5  # files without a partner that are named; the others are counted


def jobs_asked_for(options: flags.FlagValues, files: Sequence[str]) -> tuple[list[Job], bool]:
    """Pairs to register, and whether they go into a table; ValueError if the flags conflict."""
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
    if in_pages or options.fixed is not None:  # one image for all, refused once
        read_picture(jobs[0].fixed)
    return jobs, True


def _check_many(options: flags.FlagValues) -> None:
    """Raise ValueError unless the flags of what is written are those for many pairs."""
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
    """Pairs of --moving_dir with --fixed_dir or --fixed; ValueError unless it is one of them."""
    if options.fixed is not None and options.fixed_dir is not None:
        raise ValueError("give --fixed, one file for all, or --fixed_dir, not both")
    if options.moving_dir is None or (options.fixed is None and options.fixed_dir is None):
        other = "--fixed" if options.fixed is not None else "--fixed_dir"
        raise ValueError(f"{other} and --moving_dir go together")
    if options.fixed is not None:
        return jobs_of_reference(options.fixed, options.moving_dir)
    jobs, alone = jobs_of_folders(options.fixed_dir, options.moving_dir)
    if alone:
        more = f" and {len(alone) - _NAMED} more" if len(alone) > _NAMED else ""
        complain("jaxreg.align", f"no partner for {', '.join(alone[:_NAMED])}{more}")
    return jobs
