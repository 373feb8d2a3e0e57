"""Register two image files, or many pairs of them.

    python -m jaxreg.align FIXED MOVING --out_moving=aligned.png --overlay=check.png

prints tx, ty (pixels) and theta (degrees) with their standard errors, the score, and whether the
answer can be trusted. A pixel p of FIXED is found in MOVING at R(theta) (p - c) + c + (tx, ty), c
the image centre, x right, y down. --out_moving writes MOVING warped to look like FIXED, with
MOVING's bit depth. --out writes FIXED warped to look like MOVING, with FIXED's bit depth. Metadata,
such as pixel sizes or colour profiles, is not kept. Both are written whether the answer can be
trusted or not; the exit status says which.

    python -m jaxreg.align --fixed_dir=a --moving_dir=b --out=table.csv
    python -m jaxreg.align --fixed=first.png --moving_dir=b --out=table.csv --out_moving=aligned
    python -m jaxreg.align --stack=movie.tif --out=table.csv --out_moving=aligned
    python -m jaxreg.align --pairs=list.csv --out=table.csv

write one row for each pair: files of two folders, paired by name; one file with every file of a
folder; the first page of a TIFF, or --fixed, with every page; or a list of FIXED,MOVING paths
(relative to the list). Rows come in the natural order of names (f2 before f10), lines or pages,
unless sizes are mixed or a later run adds some. Relative paths in a table start at its folder.

--out_moving is then a folder (created if missing) that gets each MOVING warped to look like FIXED,
under its own name (of a page, movie_0003.tif), or as .png or .tif if its format cannot store the
pixels. Failed pairs have no picture, since one warped wrongly would be worse than none, and one of
an earlier run is removed. Or it is one TIFF, written at the end: --out_moving=steady.tif has a page
for every pair, black if the pair failed, and keeps the pixel size of the first file. --overlay is
another folder, of .png files, also of failed pairs unless the table has no numbers for them.

A run that was stopped continues where it stopped when started again, unless images of its rows are
newer than the table. To try failed pairs again, delete their rows.

If ImageJ's or OME's metadata says that a movie has several channels, --channel=0 chooses the one
that is registered; the corrected TIFF has all of them.

    python -m jaxreg.align --apply=table.csv --stack=other.tif --out_moving=other_steady.tif

registers nothing, but moves other pictures of the same views, such as another channel, by the
answers of a table: all channels of another TIFF frame by frame, or the images of another
--moving_dir by their names. They must be as large as those that were registered.

--initial=TX,TY,THETA is a known alignment of all pairs, accurate to a sixteenth of the shorter side
and 10 degrees, which is refined instead of searching.

Masks leave out what does not belong to the picture, such as dust, text or dead pixels:
--fixed_mask and --moving_mask are images of the same size, dark (below half of their brightest
pixel) where a pixel does not count. --scene_mask=mask.png writes a mask and uses it for both: it
leaves out hot pixels, and a constant border that all images share, such as letterbox bars or the
surroundings of a round field of view.

Pixels may be integers of 8 to 32 bits or floats; beyond 16 bits, pictures are as exact as float32.
Wherever an image is given, 'movie.tif[3]' is the fourth page of a TIFF of any size.

Exit status: 0 success; 1 registered, but not to be trusted (of many: not every pair is a success);
2 asked for what cannot be done; 3 an error here; 130 stopped by the keyboard, 143 by SIGTERM.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from jaxreg.alignment import STYLES
from jaxreg.command_line import (
    ERRORS,
    complain,
    end_by_exit,
    fail,
    keep_compilations,
    read_arguments,
    run_command,
)

if TYPE_CHECKING:
    from jaxreg.alignment.batch import Settings
    from jaxreg.alignment.table import Job


def _flags() -> flags.FlagValues:
    """A flag set separate from absl's global one, so that names cannot clash with others'."""
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # flags may follow the files
    text, number, switch = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_bool
    text("method", "direct", "A method of jaxreg.methods.", flag_values=values)
    fixed = "FIXED warped to look like MOVING; for many pairs: the table."
    text("out", None, fixed, flag_values=values)
    moved = "MOVING warped to look like FIXED; for many pairs: a folder, or one TIFF."
    text("out_moving", None, moved, flag_values=values)
    text("apply", None, "A table whose answers move other pictures.", flag_values=values)
    both = "Picture of before and after; for many pairs: a folder."
    text("overlay", None, both, flag_values=values)
    flags.DEFINE_enum("overlay_style", STYLES[0], list(STYLES), "Its style.", flag_values=values)
    switch("json", False, "Print JSON.", flag_values=values)
    switch("crop", False, "Crop both images to the size they share.", flag_values=values)
    size = "Longest side at which images are registered, in pixels."
    number("working_size", 512, size, 8, 2048, flag_values=values)
    shift = "Largest shift searched along an axis, in pixels of the files, up to half of the "
    shift += "shorter side; by default a third of it."
    flags.DEFINE_float("max_shift", None, shift, flag_values=values)
    turn = "Largest rotation searched, either way, in degrees; 0 searches only shifts."
    flags.DEFINE_float("max_rotation", 180.0, turn, 0, 180, flag_values=values)
    known = "A known alignment TX,TY,THETA, refined instead of searching."
    text("initial", None, known, flag_values=values)
    mask = "Image of {}'s size whose dark pixels do not count; one for all pairs."
    text("fixed_mask", None, mask.format("FIXED"), flag_values=values)
    text("moving_mask", None, mask.format("MOVING"), flag_values=values)
    found = "File to write a mask of the scene to, which is used for both."
    text("scene_mask", None, found, flag_values=values)
    one = "One fixed image for all of --moving_dir or --stack."
    text("fixed", None, one, flag_values=values)
    text("fixed_dir", None, "Folder of fixed images.", flag_values=values)
    text("moving_dir", None, "Folder of moving images, named as --fixed_dir's.", flag_values=values)
    text("stack", None, "TIFF whose pages are the moving images.", flag_values=values)
    channel = "Channel of --stack that is registered, counted from 0."
    number("channel", None, channel, 0, flag_values=values)
    text("pairs", None, "CSV file of pairs, FIXED,MOVING in each line.", flag_values=values)
    number("batch_size", 256, "Largest number of pairs in a call.", 1, flag_values=values)
    switch("help", False, "Show this help.", short_name="h", flag_values=values)
    return values


def _numbers(initial: str | None) -> tuple[float, ...] | None:
    """Parse --initial; ValueError unless it is three finite numbers."""
    if initial is None:
        return None
    try:
        tx, ty, theta = map(float, initial.split(","))
    except ValueError:
        tx = ty = theta = math.nan
    if not all(map(math.isfinite, (tx, ty, theta))):
        raise ValueError(f"--initial must be three numbers, TX,TY,THETA, got {initial!r}")
    return tx, ty, theta


def _settings(options: flags.FlagValues, jobs: Sequence[Job]) -> Settings:
    """Collect the settings from the flags; finds and writes the mask of --scene_mask first."""
    from jaxreg.alignment.batch import Settings
    from jaxreg.alignment.scene import write_scene_mask

    names = [field.name for field in dataclasses.fields(Settings)]
    chosen: dict[str, Any] = {name: options[name].value for name in names}
    chosen["initial"] = _numbers(options.initial)
    if options.scene_mask is not None:
        if options.fixed_mask is not None or options.moving_mask is not None:
            raise ValueError("--scene_mask takes the place of --fixed_mask and --moving_mask")
        write_scene_mask(options.scene_mask, jobs)
        chosen["fixed_mask"] = chosen["moving_mask"] = options.scene_mask
    return Settings(**chosen)


def _align(options: flags.FlagValues, *files: str) -> int:
    """Run the command with its flags and the files; returns the exit status."""
    import cv2

    from jaxreg.alignment.jobs import jobs_asked_for
    from jaxreg.alignment.run import align_many, align_two, apply_table
    from jaxreg.methods import find_method

    # Their messages would come beside the error in one line that is printed here.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    for name in options:
        if options[name].value == "":  # such as a shell's variable that is not set
            raise ValueError(f"--{name} is empty")
    if options.apply is not None:
        return apply_table(options, files)
    jobs, many = jobs_asked_for(options, files)
    find_method(options.method)
    if not many:
        return align_two(jobs[0], _settings(options, jobs), options)
    try:
        return align_many(jobs, _settings(options, jobs), options)
    except KeyboardInterrupt:
        complain("jaxreg.align", "stopped; the same command goes on with the pairs that are left")
        return 130


def _failed(name: str, error: BaseException) -> int:
    """Print an error or an interruption; returns the exit status."""
    if isinstance(error, ERRORS):
        return fail(name, error)
    if isinstance(error, KeyboardInterrupt):
        complain(name, "stopped")
        return 130
    traceback.print_exception(error)
    return 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status, see the module's text."""
    name, options, errors = "jaxreg.align", _flags(), (Exception, KeyboardInterrupt)
    return run_command(
        name, options, argv, __doc__, _align, read=read_arguments, errors=errors, failed=_failed
    )


if __name__ == "__main__":
    keep_compilations()
    end_by_exit()
    sys.exit(main())
