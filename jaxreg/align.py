"""Register two image files, or many pairs of them.

    python -m jaxreg.align FIXED MOVING --out=aligned.png --overlay=check.png

prints tx, ty (pixels) and theta (degrees) with their standard errors, the score and whether to
trust them. A pixel p of FIXED is found in MOVING at R(theta) (p - c) + c + (tx, ty), c the image
centre, x right, y down. --out gets FIXED warped by this: it looks like MOVING and keeps FIXED's
bit depth.

    python -m jaxreg.align --fixed_dir=a --moving_dir=b --out=table.csv
    python -m jaxreg.align --pairs=list.csv --out=table.csv

write one row a pair: files of two folders, paired by name, or a list of FIXED,MOVING paths
(relative to the list). A run that was stopped goes on where it stopped when started again; to try
failed pairs anew, delete their rows.

Exit status: 0 success; 1 registered, but not to be trusted (of many: not every pair is a success);
2 asked for what cannot be done; 3 an error of this program; 130 stopped by the keyboard.
"""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from jaxreg.command_line import keep_compilations

if TYPE_CHECKING:
    from jaxreg.alignment.batch import Settings
    from jaxreg.alignment.table import Job
    from jaxreg.alignment.working import Answer, WorkingPair

_STYLES = ["checkerboard", "red-cyan"]
_NAMED = 5  # files without a partner that are named; the others are counted


def _flags() -> flags.FlagValues:
    """A set of flags of its own, so that others' flags may have the same names."""
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # flags may follow the files
    text, number, switch = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_bool
    text("method", "direct", "A method of jaxreg.methods.", flag_values=values)
    text("out", None, "Aligned image; of many pairs: the table (CSV).", flag_values=values)
    text("overlay", None, "Picture of both, before and after.", flag_values=values)
    flags.DEFINE_enum("overlay_style", _STYLES[0], _STYLES, "Its style.", flag_values=values)
    switch("json", False, "Print JSON.", flag_values=values)
    switch("crop", False, "Crop both images to the size they share.", flag_values=values)
    number(
        *("working_size", 512, "Longer side that is registered, at most.", 8, 512),
        flag_values=values,
    )
    flags.DEFINE_float(
        *(
            "max_shift",
            1 / 3,
            "Largest shift along an axis, as a share of the shorter side",
            0,
            0.5,
        ),
        flag_values=values,
    )
    text("fixed_dir", None, "Folder of fixed images.", flag_values=values)
    text("moving_dir", None, "Folder of moving images, of the same names.", flag_values=values)
    text("pairs", None, "CSV file of pairs: FIXED,MOVING a line.", flag_values=values)
    number("batch_size", 256, "Pairs a call, at most.", 1, flag_values=values)
    switch("help", False, "Show this help.", short_name="h", flag_values=values)
    return values


def _jobs(options: flags.FlagValues, files: Sequence[str]) -> tuple[list[Job], bool]:
    """Pairs to register, and whether they go into a table; ValueError if the flags conflict."""
    from jaxreg.alignment.table import Job, jobs_of_folders, jobs_of_list

    folders = options.fixed_dir is not None or options.moving_dir is not None
    if (len(files) > 0) + folders + (options.pairs is not None) != 1:
        raise ValueError(
            "give either two files, FIXED MOVING, or --fixed_dir and --moving_dir, or --pairs; "
            "--help tells more"
        )
    if files:
        if len(files) != 2:
            raise ValueError(f"two files are registered, FIXED MOVING; got {len(files)}: {files}")
        return [Job(*files)], False
    if not options.out:
        raise ValueError("--out=TABLE.csv is needed for many pairs")
    for name in ("overlay", "json"):
        if options[name].value:
            raise ValueError(f"--{name} is for one pair; many go into the table --out")
    if options.pairs is not None:
        return jobs_of_list(options.pairs), True
    if options.fixed_dir is None or options.moving_dir is None:
        raise ValueError("--fixed_dir and --moving_dir go together")
    jobs, alone = jobs_of_folders(options.fixed_dir, options.moving_dir)
    if alone:
        more = f" and {len(alone) - _NAMED} more" if len(alone) > _NAMED else ""
        _say(f"no partner for {', '.join(alone[:_NAMED])}{more}")
    return jobs, True


def _align_two(job: Job, settings: Settings, options: flags.FlagValues) -> int:
    """One pair: answer on the screen, pictures in files."""
    from jaxreg.alignment.batch import align_pair, load_pair
    from jaxreg.alignment.files import check_writable, write_picture
    from jaxreg.alignment.pictures import overlay, warp_pixels

    fixed, moving, pair = load_pair(job, settings)
    targets = [(options.out, fixed.pixels), (options.overlay, None)]
    for target, pixels in targets:
        if target is None:
            continue
        check_writable(target, pixels)
        if os.path.exists(target) and any(os.path.samefile(target, f) for f in job):
            raise ValueError(f"{target} is one of the images to register; write to another file")
    if options.out and options.overlay:  # neither need exist yet
        paths = [os.path.abspath(target) for target, _ in targets]
        if paths[0] == paths[1]:
            raise ValueError("--out and --overlay name the same file")
    answer = align_pair(pair, settings)
    if options.out:
        write_picture(options.out, warp_pixels(fixed.pixels, answer.transform))
    if options.overlay:
        picture = overlay(fixed.pixels, moving.pixels, answer.transform, options.overlay_style)
        write_picture(options.overlay, picture)
    report = _report(job, pair, answer, settings, options)
    print(json.dumps(report, allow_nan=False) if options.json else _text(report))
    return 0 if answer.success else 1


def _report(
    job: Job, pair: WorkingPair, answer: Answer, settings: Settings, options: flags.FlagValues
) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {
        **{"fixed": job.fixed, "moving": job.moving, "method": settings.method},
        **{"size": list(pair.size), "working_size": list(pair.working_size)},
        **{"tx": plain(answer.tx), "ty": plain(answer.ty), "theta": plain(answer.theta)},
        "standard_errors": plain(answer.standard_errors),
        "covariance": plain(answer.covariance),
        **{"score": plain(answer.score), "success": answer.success, "found": answer.found},
        "notes": list(pair.notes),
        **{"out": options.out, "overlay": options.overlay},
    }


def _text(report: dict[str, Any]) -> str:
    units = {"tx": "px", "ty": "px", "theta": "degrees"}
    errors = report["standard_errors"] or [None] * 3
    lines = []
    for (name, unit), error in zip(units.items(), errors, strict=True):
        spread = "" if error is None else f" +- {error:.2g}"
        lines.append(f"{name:<8} {round(report[name], 4) + 0.0:.4f}{spread} {unit}")
    score = "unknown" if report["score"] is None else f"{report['score']:.4f}"
    lines.append(f"{'score':<8} {score}")
    trust = "yes" if report["success"] else "no: do not trust this answer"
    lines.append(f"{'success':<8} {trust if report['found'] else 'no: the method found no answer'}")
    size, working = ("{}x{}".format(*report[name]) for name in ("size", "working_size"))
    lines.append(f"{'size':<8} {size}, registered at {working}")
    lines += [f"{'note':<8} {note}" for note in report["notes"]]
    if report["out"]:
        lines.append(f"{'out':<8} {report['out']}: fixed, warped to look like moving")
    if report["overlay"]:
        lines.append(f"{'overlay':<8} {report['overlay']}: before and after")
    return "\n".join(lines)


def _align_many(jobs: Sequence[Job], settings: Settings, options: flags.FlagValues) -> int:
    """Many pairs: one row each in the table."""
    from tqdm import tqdm

    from jaxreg.alignment.batch import align_jobs
    from jaxreg.alignment.table import Table

    with Table(options.out, settings.method, str(settings)) as table:
        todo = [job for job in jobs if job not in table.rows]
        if len(todo) < len(jobs):
            _say(f"{len(jobs) - len(todo)} of {len(jobs)} pairs are in {options.out} already")
        with tqdm(total=len(jobs), initial=len(jobs) - len(todo), unit="pair", disable=None) as bar:
            for rows in align_jobs(todo, settings):
                table.add(rows)
                bar.update(len(rows))
                for row in rows:
                    if row["error"]:
                        named = row["fixed"] in row["error"] or row["moving"] in row["error"]
                        name = "" if named else f"{row['fixed']}, {row['moving']}: "
                        with bar.external_write_mode(sys.stderr):
                            _say(name + row["error"])
        good = sum(table.rows[job] for job in jobs)
    print(f"{good} of {len(jobs)} pairs registered with success; table: {options.out}")
    return 0 if good == len(jobs) else 1


def _say(message: str) -> None:
    print(f"jaxreg.align: {message}", file=sys.stderr)


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
        from jaxreg.methods import find_method

        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # errors are ours to tell
        jobs, many = _jobs(options, files)
        find_method(options.method)
        names = ("method", "working_size", "max_shift", "crop", "batch_size")
        chosen: dict[str, Any] = {name: options[name].value for name in names}
        settings = Settings(**chosen)
        if many:
            return _align_many(jobs, settings, options)
        return _align_two(jobs[0], settings, options)
    except (flags.Error, ValueError, OSError, ImportError) as error:
        from jaxreg.alignment.files import describe

        _say(describe(error))
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
    sys.exit(main())
