"""Measure methods of registration on suites of image pairs.

    python -m jaxreg.evaluate --suites=cifar10,scene32+noise10 --methods=direct,fft,runs/lstm

prints a table, and writes all figures to --out (JSON) and the answer of every pair to a CSV file of
the same name. Suites: see jaxreg.evaluation.suites. Methods: see jaxreg.methods.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from jaxreg.atomic import check_replaceable
from jaxreg.command_line import complain, describe, end_by_exit, keep_compilations, run_command


def _flags() -> flags.FlagValues:
    """A flag set separate from absl's global one, so that names cannot clash with others'."""
    values = flags.FlagValues()
    flags.DEFINE_list("suites", ["photos32"], "Suites to measure on.", flag_values=values)
    flags.DEFINE_list("methods", ["direct"], "Methods to measure.", flag_values=values)
    flags.DEFINE_string("out", "results.json", "File of the figures.", flag_values=values)
    flags.DEFINE_integer("pairs", 3840, "Pairs of each suite.", 1, flag_values=values)
    seed = "Seed of images, transforms and noise."
    flags.DEFINE_integer("seed", 0, seed, 0, flag_values=values)
    flags.DEFINE_integer("batch_size", 256, "Pairs in a call.", 1, flag_values=values)
    flags.DEFINE_bool("no_timing", False, "Leave out the timing.", flag_values=values)
    flags.DEFINE_bool("help", False, "Show this help.", short_name="h", flag_values=values)
    return values


def _prepare(options: flags.FlagValues) -> tuple[dict, dict, dict]:
    """Load the suites, their sources and the methods, each by name.

    Raises:
      OSError, ValueError: one is missing or unknown, or --out cannot be written.
    """
    from jaxreg.evaluation.protocol import load_source
    from jaxreg.evaluation.suites import parse_suite
    from jaxreg.methods import find_method

    for name in ("suites", "methods"):
        if not options[name].value:
            raise ValueError(f"--{name} is empty")
    suites = {name: parse_suite(name) for name in options.suites}
    out = Path(os.path.expanduser(options.out))
    options["out"].value = os.fspath(out)
    if out.suffix == ".csv":
        raise ValueError(f"--out={out}: the figures are JSON; the CSV file goes beside it")
    check_replaceable(out)
    check_replaceable(out.with_suffix(".csv"))
    out.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(out.parent, os.W_OK):
        raise ValueError(f"--out={out} cannot be written")
    methods = {name: find_method(name) for name in options.methods}
    load = functools.cache(load_source)
    # Disturbed suites share the images of the plain one.
    sources = {name: load(parse_suite(suite.base)) for name, suite in suites.items()}
    return suites, sources, methods


def run(
    suites: Mapping[str, Any],
    sources: Mapping[str, Any],
    methods: Mapping[str, Any],
    options: flags.FlagValues,
    results: list[dict[str, Any]],
) -> list[str]:
    """Measure every method on every suite, and rewrite both files after each.

    Args:
      suites: suites by name, see `jaxreg.evaluation.protocol.parse_suite`.
      sources: by name of the suite, see `jaxreg.evaluation.protocol.load_source`.
      methods: by name, see `jaxreg.methods.find_method`.
      options: the command's flags.
      results: the figures of each suite and method are appended to it at once, so that they are
        there after an interruption.

    Returns:
      The reasons why suites or methods could not be measured.
    """
    from tqdm import tqdm

    from jaxreg.evaluation.harness import evaluate, figures, measure_time
    from jaxreg.evaluation.protocol import build_suite
    from jaxreg.evaluation.report import provenance, write_json, write_rows

    origin = provenance(seed=options.seed, pairs=options.pairs, batch_size=options.batch_size)
    raw: list[Any] = []
    failures: list[str] = []
    total = len(suites) * len(methods) * options.pairs
    with tqdm(total=total, unit="pair", disable=None) as bar:
        for suite_name, suite in suites.items():
            bar.set_description(f"{suite_name}: making pairs")
            try:
                data = build_suite(suite, options.pairs, options.seed, sources[suite_name])
            except ValueError as error:  # its images are too few or too small
                failures.append(describe(error))
                continue
            for name, estimator in methods.items():
                bar.set_description(f"{suite_name}: {name}")
                try:
                    rows = evaluate(estimator, data, options.batch_size, name, bar.update)
                    result = figures(rows)
                    if not options.no_timing:
                        result["time"] = measure_time(estimator, data)
                except Exception as error:  # methods may be anyone's code
                    reason = f"{type(error).__name__}: {describe(error)}"
                    failures.append(f"{name} on {suite_name}: {reason}")
                    continue
                raw.append(rows)
                results.append(result)
                write_json(options.out, results, origin)
                write_rows(Path(options.out).with_suffix(".csv"), raw)
    return failures


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, 2 if it cannot do all it is asked for, or 130 if interrupted."""
    return run_command("jaxreg.evaluate", _flags(), argv, __doc__, _evaluate)


def _evaluate(options: flags.FlagValues) -> int:
    prepared = _prepare(options)
    from jaxreg.evaluation.report import text_table

    results: list[dict[str, Any]] = []
    try:
        failures = run(*prepared, options, results)
    except KeyboardInterrupt:
        done = f"what was done is in {options.out}" if results else "nothing was written"
        complain("jaxreg.evaluate", f"stopped; {done}")
        return 130
    if results:
        print(text_table(results))
        print(f"\nfigures: {options.out}   raw rows: {Path(options.out).with_suffix('.csv')}")
    complain("jaxreg.evaluate", *failures)
    return 2 if failures else 0


if __name__ == "__main__":
    keep_compilations()
    end_by_exit()
    sys.exit(main())
