"""Make the paper's Tables 1 to 6, its numbers beside ours, and one of our own, from recorded rows.

    python -m experiments.tables                    # all tables, in seconds
    python -m experiments.tables --table=3
    python -m experiments.tables --table=disturbances
    python -m experiments.tables --run=fft,sift --suites=cifar10,random32
    python -m experiments.tables --run=lstm --checkpoints=lstm_cifar10:runs/my_lstm
    python -m experiments.tables --run=keypoints
    python -m experiments.tables --run=direct,compact --suites=cifar10+noise10,scene32

Without --run the tables are made from the rows in experiments/results/; with it, the named rows are
recomputed first. Rows have names: akaze, orb, surf, sift, fft, resnext_fc, resnext_lstm, lstm, each
feature method's _x4, direct, compact, lstm256, lstm512, any other name that
`python -m jaxreg.evaluate --methods=` takes, and `keypoints` for Tables 3 and 6. The table
`disturbances` has the rows on scenes and on disturbed suites. A network comes with the package
(compact) or from the checkpoint folder runs/CONFIGURATION, unless --checkpoints names another.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments import disturbances, paper, rendering
from experiments.records import RESULTS
from experiments.systems import FEATURES, find_system, parse_folders
from jaxreg.atomic import write_text
from jaxreg.command_line import complain, describe, keep_compilations, run_command

_TABLES = (*map(str, paper.TABLES), "disturbances")


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_list(
        "table", [], "Tables to make, of 1 to 6 and disturbances; default: all.", flag_values=values
    )
    flags.DEFINE_list("run", [], "Rows to recompute first.", flag_values=values)
    flags.DEFINE_list(
        "suites", list(paper.SUITES), "Suites to recompute them on.", flag_values=values
    )
    flags.DEFINE_list(
        "checkpoints", [], "CONFIGURATION:FOLDER of trained networks.", flag_values=values
    )
    flags.DEFINE_string("results", str(RESULTS), "Folder of rows and tables.", flag_values=values)
    flags.DEFINE_integer("pairs", 3840, "Pairs of each suite.", 1, flag_values=values)
    flags.DEFINE_integer("seed", 0, "Of images and transforms.", 0, flag_values=values)
    flags.DEFINE_integer("batch_size", 256, "Pairs a call.", 1, flag_values=values)
    flags.DEFINE_bool("no_timing", False, "Leave out the timing.", flag_values=values)
    flags.DEFINE_bool(
        "only_timing", False, "Time the rows anew and keep their answers.", flag_values=values
    )
    flags.DEFINE_string("commit", "", "Of the code, where git cannot tell.", flag_values=values)
    flags.DEFINE_bool("help", False, "Show this help.", short_name="h", flag_values=values)
    return values


def _check(options: flags.FlagValues) -> None:
    unknown = [t for t in options.table if t not in _TABLES]
    if unknown:
        raise ValueError(f"--table={unknown[0]}: there are 1 to 6 and disturbances")
    if not options.run and not Path(options.results).is_dir():
        raise ValueError(f"--results={options.results}: there is no such folder")
    if options.no_timing and options.only_timing:
        raise ValueError("--no_timing and --only_timing exclude each other")
    parse_folders(options.checkpoints)
    if options.run:
        from jaxreg.evaluation.suites import parse_suite

        for suite in options.suites:
            parse_suite(suite)


def _run(options: flags.FlagValues) -> list[str]:
    """Recompute the named rows; returns the reasons for those that fail."""
    from tqdm import tqdm

    from experiments import running

    job = running.Job(
        Path(options.results),
        options.pairs,
        options.seed,
        options.batch_size,
        not options.no_timing,
        parse_folders(options.checkpoints),
        options.commit,
    )
    failures = []
    for suite in options.suites:
        try:
            data = running.load_suite(job, suite)
        except (ValueError, OSError, ImportError) as error:  # its images are not available
            failures.append(f"{suite}: {describe(error)}")
            continue
        for name in options.run:
            bar = tqdm(total=options.pairs, unit="pair", desc=f"{suite}: {name}", disable=None)
            with bar:
                try:
                    if name == "keypoints":
                        for feature in FEATURES:
                            running.run_keypoints(find_system(feature), suite, data, job)
                    elif options.only_timing:
                        running.time_system(find_system(name), suite, data, job)
                    else:
                        running.run_system(find_system(name), suite, data, job, bar.update)
                except OSError:  # rows that cannot be written
                    raise
                except (ValueError, ImportError) as error:  # no checkpoint yet, or no package
                    failures.append(f"{name} on {suite}: {describe(error)}")
                except Exception as error:  # a method may be a user's code
                    reason = f"{type(error).__name__}: {describe(error)}"
                    failures.append(f"{name} on {suite}: {reason}")
    return failures


def write_tables(results: Path, names: Sequence[str]) -> str:
    """Make tables from recorded rows, as Markdown and CSV files in ``results/tables``.

    Returns:
      The Markdown of all.
    """
    folder = results / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    texts = []
    for name in names:
        if name == "disturbances":
            texts.append(disturbances.table(results))
            write_text(folder / f"{name}.md", texts[-1])
            continue
        made = rendering.render(results, paper.TABLES[int(name)])
        write_text(folder / f"table_{name}.md", made.markdown)
        write_text(folder / f"table_{name}.csv", made.csv)
        texts.append(made.markdown)
    write_text(folder / "provenance.md", rendering.provenance_table(results))
    return "\n".join(texts)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 where it cannot do what was asked for."""
    return run_command("experiments.tables", _flags(), argv, __doc__, _tables)


def _tables(options: flags.FlagValues) -> int:
    _check(options)
    failures = _run(options) if options.run else []
    print(write_tables(Path(options.results), options.table or _TABLES))
    complain("experiments.tables", *failures)
    return 2 if failures else 0


if __name__ == "__main__":
    keep_compilations()
    sys.exit(main())
