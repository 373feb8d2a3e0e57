"""Register two image files, or many pairs of them.

    python -m jaxreg.align FIXED MOVING --out_moving=aligned.png --overlay=check.png

prints tx, ty (pixels) and theta (degrees) with their standard errors, the score and whether to
trust them. A pixel p of FIXED is found in MOVING at R(theta) (p - c) + c + (tx, ty), c the image
centre, x right, y down. --out_moving gets MOVING brought onto FIXED: it looks like FIXED and keeps
MOVING's bit depth. --out gets FIXED made to look like MOVING, and keeps FIXED's bit depth.
Metadata, such as pixel sizes or colour profiles, is not kept.
Both are written whether the answer is to be trusted or not; the exit status tells.

    python -m jaxreg.align --fixed_dir=a --moving_dir=b --out=table.csv
    python -m jaxreg.align --fixed=first.png --moving_dir=b --out=table.csv --out_moving=aligned
    python -m jaxreg.align --stack=movie.tif --out=table.csv --out_moving=aligned
    python -m jaxreg.align --pairs=list.csv --out=table.csv

write one row a pair: files of two folders, paired by name; one file with every file of a folder;
the first page of a TIFF, or --fixed, with every page; or a list of FIXED,MOVING paths (relative to
the list). Here --out_moving is a folder (made if missing) that gets each MOVING warped back, under
its own name (of a page, movie_0003.tif); where its format could not keep its pixels, as .png or
.tif. Pairs that failed have none there, so that those of a movie may have gaps: one warped wrongly
would be worse than none, and that of an earlier run is removed. Or it is one TIFF, written at the
end: --out_moving=steady.tif has all of them for its pages, black where a pair failed, with the
size of pixels that the first file tells. --overlay is another folder, of a .png each, also of
failed pairs but for those without numbers in the table. A run that was stopped
goes on where it stopped when started again, unless images of its rows are newer than the table; to
try failed pairs anew, delete their rows. Rows come in the order of names (f2 before f10), lines or
pages, unless sizes are mixed or a later run adds some; their names begin at the table's folder, or
at the root where they were given so.

Of a movie of several channels, as ImageJ and OME tell, --channel=0 says by which it is registered;
the corrected TIFF has all of them.

    python -m jaxreg.align --apply=table.csv --stack=other.tif --out_moving=other_steady.tif

registers nothing, but moves other pictures of the same views, such as another channel, as a table
says: all channels of another TIFF frame by frame, or the images of another --moving_dir by their
names. They must be as large as those that were registered.

--initial=TX,TY,THETA is an alignment known beforehand, within a sixteenth of the shorter side and
10 degrees, of all pairs: it is improved in place of a search.

What does not belong to the picture, such as dust, text or dead pixels, is left out by masks,
--fixed_mask and --moving_mask: images as large, dark (below half of their brightest) where a pixel
does not count. --scene_mask=mask.png writes one and uses it for both: without a constant border
that all images have alike, such as letterbox bars or a round field of view, and hot pixels.

Pixels may be integers of 8 to 32 bits or floats; beyond 16 bits, pictures are as exact as float32.
Wherever an image is asked for, 'movie.tif[3]' is the fourth page of a TIFF of any size.

Exit status: 0 success; 1 registered, but not to be trusted (of many: not every pair is a success);
2 asked for what cannot be done; 3 an error here; 130 stopped by the keyboard, 143 by SIGTERM.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from jaxreg.alignment import STYLES
from jaxreg.command_line import complain, end_by_exit, keep_compilations, printable

if TYPE_CHECKING:
    import numpy as np

    from jaxreg.alignment.batch import Settings
    from jaxreg.alignment.moved import MovedPictures
    from jaxreg.alignment.table import Job, Table


def _flags() -> flags.FlagValues:
    """A set of flags of its own, so that others' flags may have the same names."""
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # flags may follow the files
    text, number, switch = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_bool
    text("method", "direct", "A method of jaxreg.methods.", flag_values=values)
    text("out", None, "FIXED made to look like MOVING; of many: the table.", flag_values=values)
    moved = "MOVING brought onto FIXED; of many: a folder, or one TIFF."
    text("out_moving", None, moved, flag_values=values)
    text("apply", None, "A table, by which other pictures are moved.", flag_values=values)
    text("overlay", None, "Picture of before and after; of many: a folder.", flag_values=values)
    flags.DEFINE_enum("overlay_style", STYLES[0], list(STYLES), "Its style.", flag_values=values)
    switch("json", False, "Print JSON.", flag_values=values)
    switch("crop", False, "Crop both images to the size they share.", flag_values=values)
    size = "Longer side that is registered, at most."
    number("working_size", 512, size, 8, 2048, flag_values=values)
    shift = "Largest shift searched along an axis, in pixels of the files, up to half of the "
    shift += "shorter side; by default a third of it."
    flags.DEFINE_float("max_shift", None, shift, flag_values=values)
    turn = "Largest rotation searched, either way, in degrees; 0 looks for shifts alone."
    flags.DEFINE_float("max_rotation", 180.0, turn, 0, 180, flag_values=values)
    known = "TX,TY,THETA known beforehand, improved in place of a search."
    text("initial", None, known, flag_values=values)
    mask = "Image of {}'s size whose dark pixels do not count; one for all pairs."
    text("fixed_mask", None, mask.format("FIXED"), flag_values=values)
    text("moving_mask", None, mask.format("MOVING"), flag_values=values)
    found = "Where a mask of what shows the scene is written, which is used for both."
    text("scene_mask", None, found, flag_values=values)
    one = "One fixed image for all of --moving_dir or --stack."
    text("fixed", None, one, flag_values=values)
    text("fixed_dir", None, "Folder of fixed images.", flag_values=values)
    text("moving_dir", None, "Folder of moving images, named as --fixed_dir's.", flag_values=values)
    text("stack", None, "TIFF whose pages are the moving images.", flag_values=values)
    number(
        "channel", None, "Channel of --stack, from 0, that is registered.", 0, flag_values=values
    )
    text("pairs", None, "CSV file of pairs: FIXED,MOVING a line.", flag_values=values)
    number("batch_size", 256, "Pairs a call, at most.", 1, flag_values=values)
    switch("help", False, "Show this help.", short_name="h", flag_values=values)
    return values


def _align_two(job: Job, settings: Settings, options: flags.FlagValues) -> int:
    """One pair: answer on the screen, pictures in files."""
    from jaxreg.alignment.batch import align_pair, load_pair
    from jaxreg.alignment.files import write_picture
    from jaxreg.alignment.pictures import overlay, warp_pixels
    from jaxreg.alignment.report import report_of, text_of

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
    """Raise ValueError unless all pictures, given by their flags, can be written."""
    from jaxreg.alignment.files import check_writable
    from jaxreg.alignment.pages import split_page

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
        other = taken.setdefault(os.path.realpath(target), name)  # neither need exist yet
        if other != name:
            raise ValueError(f"--{other} and --{name} name the same file")


def _align_many(jobs: Sequence[Job], settings: Settings, options: flags.FlagValues) -> int:
    """Many pairs: one row each in the table."""
    from tqdm import tqdm

    from jaxreg.alignment.batch import align_jobs
    from jaxreg.alignment.moved import MovedPictures, OverlayPictures
    from jaxreg.alignment.movie import MovedMovie, folder_or_movie
    from jaxreg.alignment.table import Table, job_of

    files = jobs, options.out, settings.masks.values()
    moved = folder_or_movie(options.out_moving, *files) if options.out_moving else None
    pictures = [moved] if isinstance(moved, MovedPictures) else []
    if options.overlay:
        pictures.append(OverlayPictures(options.overlay_style, options.overlay, *files))
    with Table(options.out, settings.method, str(settings)) as table:
        todo = []
        for job in jobs:
            if job.absolute() in table.rows:
                table.check_unchanged(job)
            else:
                todo.append(job)
        if len(todo) < len(jobs):
            _say(f"{len(jobs) - len(todo)} of {len(jobs)} pairs are in {options.out} already")
        for kind in pictures:
            _catch_up(kind, table, jobs)
        with tqdm(total=len(jobs), initial=len(jobs) - len(todo), unit="pair", disable=None) as bar:
            for rows in align_jobs(todo, settings):
                for kind in pictures:  # before the rows: a pair with one is not looked at again
                    kind.write(rows)
                table.add(rows)
                bar.update(len(rows))
                for row in rows:
                    if row["error"]:
                        named = row["fixed"] in row["error"] or row["moving"] in row["error"]
                        name = "" if named else f"{row['fixed']}, {row['moving']}: "
                        with bar.external_write_mode(sys.stderr):
                            _say(name + row["error"])
        good = sum(table.rows[job.absolute()] for job in jobs)
        if isinstance(moved, MovedMovie):
            row_of = {job_of(row): row for row in table.stored(jobs)}
            moved.write(_of_all_channels([row_of[job] for job in jobs], options.stack))
    shown = f"; pictures of these: {options.out_moving}" if options.out_moving else ""
    shown += f"; overlays: {options.overlay}" if options.overlay else ""
    end = f"{good} of {len(jobs)} pairs registered with success; table: {options.out}{shown}"
    print(printable(end))
    return 0 if good == len(jobs) else 1


def _of_all_channels(
    rows: Sequence[Mapping[str, str]], stack: str | None
) -> Sequence[Mapping[str, str]]:
    """The rows of a corrected movie, for its channels are moved alike."""
    if stack is None:
        return rows
    from jaxreg.alignment.applied import for_every_channel
    from jaxreg.alignment.channels import frames_of

    return for_every_channel(rows, frames_of(stack))


def _catch_up(pictures: MovedPictures, table: Table, jobs: Sequence[Job]) -> None:
    """Make the pictures fit the rows of earlier runs, which were not asked for these."""
    from jaxreg.alignment.table import job_of

    rows = table.stored(jobs)
    off = [job_of(row) for row in rows if pictures.shows(row) != pictures.has(job_of(row))]
    missing = sum(not pictures.has(job) for job in off)
    if missing:
        _say(f"{missing} of them have no picture in {pictures.folder} yet; written now")
    if off:
        pictures.write(table.stored(off))


def _apply(options: flags.FlagValues, files: Sequence[str]) -> int:
    """Other pictures, moved as a table says."""
    from jaxreg.alignment.applied import rows_for_folder, rows_for_stack
    from jaxreg.alignment.movie import folder_or_movie
    from jaxreg.alignment.table import is_success, job_of

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


def _numbers(initial: str | None) -> tuple[float, ...] | None:
    """What --initial says; ValueError unless it is three numbers."""
    if initial is None:
        return None
    try:
        tx, ty, theta = map(float, initial.split(","))
    except ValueError:
        tx = ty = theta = math.nan
    if not all(map(math.isfinite, (tx, ty, theta))):
        raise ValueError(f"--initial must be three numbers, TX,TY,THETA, got {initial!r}")
    return tx, ty, theta


def _say(message: object) -> None:
    complain("jaxreg.align", message)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status, see the module's text."""
    options, many = _flags(), False
    try:
        files = options(list(sys.argv if argv is None else argv))[1:]
        if options.help:
            print(f"{__doc__}\n{options.get_help()}")
            return 0
        import cv2

        from jaxreg.alignment.batch import Settings
        from jaxreg.alignment.jobs import jobs_asked_for
        from jaxreg.alignment.scene import write_scene_mask
        from jaxreg.methods import find_method

        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # errors are ours to tell
        logging.getLogger("tifffile").setLevel(logging.CRITICAL)
        for name in options:
            if options[name].value == "":  # as of a shell's variable that is not set
                raise ValueError(f"--{name} is empty")
        if options.apply is not None:
            return _apply(options, files)
        jobs, many = jobs_asked_for(options, files)
        find_method(options.method)
        names = [field.name for field in dataclasses.fields(Settings)]
        chosen: dict[str, Any] = {name: options[name].value for name in names}
        chosen["initial"] = _numbers(options.initial)
        if options.scene_mask is not None:
            if options.fixed_mask is not None or options.moving_mask is not None:
                raise ValueError("--scene_mask takes the place of --fixed_mask and --moving_mask")
            write_scene_mask(options.scene_mask, jobs)
            chosen["fixed_mask"] = chosen["moving_mask"] = options.scene_mask
        settings = Settings(**chosen)
        if many:
            return _align_many(jobs, settings, options)
        return _align_two(jobs[0], settings, options)
    except (flags.Error, ValueError, OSError, ImportError) as error:
        _say(error)
        return 2
    except KeyboardInterrupt:
        _say(
            "stopped; the same command goes on with the pairs that are left" if many else "stopped"
        )
        return 130
    except Exception:
        traceback.print_exc()
        return 3


if __name__ == "__main__":
    keep_compilations()
    end_by_exit()
    sys.exit(main())
