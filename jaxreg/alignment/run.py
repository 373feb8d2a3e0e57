"""Carry out `python -m jaxreg.align`: register one pair or many, or apply a table to pictures.

The functions take the command's flags and return its exit status: 0 if every answer can be trusted,
else 1.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from absl import flags
from tqdm import tqdm

from jaxreg.alignment.applied import for_every_channel, rows_for_folder, rows_for_stack
from jaxreg.alignment.batch import Settings, align_jobs, align_pair, load_pair
from jaxreg.alignment.channels import frames_of
from jaxreg.alignment.files import check_writable, write_picture
from jaxreg.alignment.moved import MovedPictures, OverlayPictures
from jaxreg.alignment.movie import MovedMovie, folder_or_movie
from jaxreg.alignment.pages import split_page
from jaxreg.alignment.pictures import overlay, warp_pixels
from jaxreg.alignment.report import report_of, text_of
from jaxreg.alignment.table import Job, Table, is_success, job_of
from jaxreg.command_line import complain, printable


def align_two(job: Job, settings: Settings, options: flags.FlagValues) -> int:
    """Register one pair: print the answer and write the pictures.

    Raises:
      OSError, ValueError: a file cannot be read or written, or the pair cannot be registered.
    """
    fixed, moving, pair = load_pair(job, settings)
    first, second = fixed.pixels, moving.pixels
    targets = {name: options[name].value for name in ("out", "out_moving", "overlay")}
    _check_targets(targets, {"out": first, "out_moving": second}, job, settings)
    answer = align_pair(pair, settings)
    if options.out:
        write_picture(options.out, warp_pixels(first, answer.transform))
    if options.out_moving:
        write_picture(options.out_moving, warp_pixels(second, answer.transform, back=True))
    if options.overlay:
        picture = overlay(first, second, answer.transform, options.overlay_style)
        write_picture(options.overlay, picture)
    report = report_of(job, pair, answer, settings.method, targets)
    print(json.dumps(report, allow_nan=False) if options.json else printable(text_of(report)))
    return 0 if answer.success else 1


def _check_targets(
    targets: Mapping[str, str | None],
    pixels: Mapping[str, np.ndarray],
    job: Job,
    settings: Settings,
) -> None:
    """Raise ValueError unless all pictures can be written.

    Args:
      targets: paths by the flags that give them, None if not asked for.
      pixels: the images whose shape and dtype the pictures have, by the same flags.
      job: the pair, whose files must not be overwritten.
      settings: the settings, whose masks must not be overwritten.
    """
    inputs = {split_page(name)[0]: "one" for name in job}
    inputs = {split_page(name)[0]: "a mask" for name in settings.masks.values()} | inputs
    taken: dict[str, str] = {}
    for name, target in targets.items():
        if not target:
            continue
        check_writable(target, pixels.get(name))
        for file, what in inputs.items():
            if os.path.exists(target) and os.path.samefile(target, file):
                raise ValueError(
                    f"{target} is {what} of the images to register; write to another file"
                )
        other = taken.setdefault(os.path.realpath(target), name)  # the files need not exist yet
        if other != name:
            raise ValueError(f"--{other} and --{name} name the same file")


def align_many(jobs: Sequence[Job], settings: Settings, options: flags.FlagValues) -> int:
    """Register many pairs: append a row for each to the table, and write the pictures.

    Raises:
      OSError, ValueError: the table or a picture cannot be written, or would overwrite an input.
    """
    files = jobs, options.out, settings.masks.values()
    moved = folder_or_movie(options.out_moving, *files) if options.out_moving else None
    folders = [moved] if isinstance(moved, MovedPictures) else []
    if options.overlay:
        folders.append(OverlayPictures(options.overlay_style, options.overlay, *files))
    with Table(options.out, settings.method, str(settings)) as table:
        todo = _without_row(jobs, table)
        done = len(jobs) - len(todo)
        if done:
            _say(f"{done} of {len(jobs)} pairs are in {options.out} already")
        for folder in folders:
            _catch_up(folder, table, jobs)
        with tqdm(total=len(jobs), initial=done, unit="pair", disable=None) as bar:
            for rows in align_jobs(todo, settings):
                for folder in folders:  # first, since pairs that have a row are skipped later
                    folder.write(rows)
                table.add(rows)
                bar.update(len(rows))
                _report_errors(rows, bar)
        good = sum(table.success_of[job.absolute()] for job in jobs)
        if isinstance(moved, MovedMovie):
            moved.write(_rows_of_movie(jobs, table, options.stack))
    shown = f"; pictures of these: {options.out_moving}" if options.out_moving else ""
    shown += f"; overlays: {options.overlay}" if options.overlay else ""
    end = f"{good} of {len(jobs)} pairs registered with success; table: {options.out}{shown}"
    print(printable(end))
    return 0 if good == len(jobs) else 1


def _without_row(jobs: Sequence[Job], table: Table) -> list[Job]:
    """Select the pairs that have no row yet; ValueError if a file is newer than its row."""
    todo = []
    for job in jobs:
        if job.absolute() in table.success_of:
            table.check_unchanged(job)
        else:
            todo.append(job)
    return todo


def _catch_up(pictures: MovedPictures, table: Table, jobs: Sequence[Job]) -> None:
    """Write or remove pictures of rows from earlier runs, which may have written others or none."""
    rows = table.stored(jobs)
    off = [job_of(row) for row in rows if pictures.shows(row) != pictures.has(job_of(row))]
    missing = sum(not pictures.has(job) for job in off)
    if missing:
        _say(f"{missing} of them have no picture in {pictures.folder} yet; written now")
    if off:
        pictures.write(table.stored(off))


def _report_errors(rows: Sequence[Mapping[str, str]], bar: tqdm) -> None:
    """Print the errors of new rows above the progress bar."""
    for row in rows:
        if row["error"]:
            named = row["fixed"] in row["error"] or row["moving"] in row["error"]
            name = "" if named else f"{row['fixed']}, {row['moving']}: "
            with bar.external_write_mode(sys.stderr):
                _say(name + row["error"])


def _rows_of_movie(
    jobs: Sequence[Job], table: Table, stack: str | None
) -> Sequence[Mapping[str, str]]:
    """One row for each page of the corrected movie: all channels of a frame are moved alike."""
    row_of = {job_of(row): row for row in table.stored(jobs)}
    rows = [row_of[job] for job in jobs]
    return rows if stack is None else for_every_channel(rows, frames_of(stack))


def apply_table(options: flags.FlagValues, files: Sequence[str]) -> int:
    """Move other pictures by the answers of a table; register nothing.

    Args:
      options: the command's flags.
      files: its other arguments, of which there must be none.

    Raises:
      OSError, ValueError: the flags conflict, the pictures do not fit the table, or a file cannot
        be read or written.
    """
    known = ("apply", "stack", "moving_dir", "out_moving")
    if files or any(options[name].present for name in options if name not in known):
        raise ValueError("--apply goes with --stack or --moving_dir and --out_moving, nothing else")
    if (options.stack is None) == (options.moving_dir is None) or options.out_moving is None:
        raise ValueError("--apply needs --stack or --moving_dir, and --out_moving")
    if options.stack is not None:
        rows = rows_for_stack(options.apply, options.stack)
    else:
        rows = rows_for_folder(options.apply, options.moving_dir)
    jobs = [job_of(row) for row in rows]
    folder_or_movie(options.out_moving, jobs, options.apply).write(rows)
    good = sum(map(is_success, rows))
    end = f"{good} of {len(rows)} pictures moved, those of a trusted answer: {options.out_moving}"
    print(printable(end))
    return 0 if good == len(rows) else 1


def _say(message: str) -> None:
    complain("jaxreg.align", message)
