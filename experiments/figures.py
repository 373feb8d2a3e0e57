"""Draw the paper's Figures 3 to 11, and three of our own, from recorded rows.

    python -m experiments.figures                     # whatever rows are recorded
    python -m experiments.figures --figure=4,7
    python -m experiments.figures --figure=direct,cdf,risk

3: original, transformed and aligned images of CIFAR-10 (needs the image set); 4 to 11: prediction
against truth, for one method and suite each; `direct`: the same for the library's own method;
`cdf`: the share of pairs below an error, for all methods; `risk`: the share of wrong answers among
the most confident ones on scenes, for methods that estimate their confidence. The figures are
written to experiments/results/figures. The rows come from `python -m experiments.tables
--run=...`. The command names the figures that lack rows; its exit status is 2 if --figure named
them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from experiments import notes, paper, plots
from experiments.records import RESULTS, Record, load_record, recorded_systems
from experiments.systems import FURTHER_SYSTEMS, PAPER_SYSTEMS, find_system, recorded_system
from jaxreg.command_line import complain, describe, keep_compilations, run_command
from jaxreg.evaluation.harness import Rows

NAMES = (*map(str, range(3, 12)), "direct", "cdf", "risk")
SUITE_TITLES = {
    "cifar10": "CIFAR-10",
    "random32": "random 32x32",
    "stl10": "STL-10",
    "random96": "random 96x96",
    "scene32": "scenes 32x32",
    "scene96": "scenes 96x96",
}
_RISK_SUITES = ("scene32", "scene96")
_RISK_SYSTEMS = ("compact", "compact-refine", "direct")
_QUALITATIVE = ("lstm", "fft", "direct")  # the first one is in the paper's Fig. 3
_EXAMPLES = 6  # pairs in Fig. 3


class MissingError(LookupError):
    """The rows or images of a figure are missing; says how to get them."""


def _record(results: Path, suite: str, system: str) -> Record:
    record = load_record(results, suite, system)
    if record is None:
        raise MissingError(f"no rows of {system} on {suite}: {notes.RUN}={system} --suites={suite}")
    return record


def scatter(results: Path, folder: Path, name: str, system: str, suite: str) -> Path:
    """Draw prediction against truth of one system on one suite, Figs. 4 to 11."""
    record = _record(results, suite, system)
    number = f"Fig. {name}. " if name.isdigit() else ""
    title = f"{number}{find_system(system).label} on {SUITE_TITLES[suite]}"
    training = record.about.get("training")
    note = notes.training_note(training).replace("**", "") if training else ""
    file = f"figure_{name}.png" if number else f"scatter_{system}_{suite}.png"
    return plots.scatter(folder / file, record.rows, title, note)


def qualitative(results: Path, folder: Path, system: str) -> Path:
    """Draw the first pairs of CIFAR-10, Fig. 3."""
    from jaxreg.evaluation.protocol import build_suite

    record = _record(results, "cifar10", system)
    try:
        data = build_suite("cifar10", _EXAMPLES, record.about["seed"])
    except (OSError, ValueError, ImportError) as error:
        raise MissingError(f"the images of CIFAR-10: {describe(error)}") from error
    label = find_system(system).label
    suffix = "" if system == _QUALITATIVE[0] else f"_{system}"
    return plots.qualitative(folder / f"figure_3{suffix}.png", data, record.rows, label)


def error_cdf(results: Path, folder: Path, suite: str) -> Path:
    """Draw the share of pairs below each error, for every recorded system of a suite."""
    known = [system.name for system in (*PAPER_SYSTEMS, *FURTHER_SYSTEMS)]
    names = recorded_systems(results, suite)
    if not names:
        raise MissingError(f"no rows on {suite}: {notes.RUN}=fft --suites={suite}")
    names.sort(key=lambda name: known.index(name) if name in known else len(known))
    rows: dict[str, Rows] = {}
    for name in names:
        record = _record(results, suite, name)
        label = recorded_system(name, record.rows.method).label
        rows[f"{label} ({name})" if label in rows else label] = record.rows
    return plots.error_cdf(folder / f"errors_{suite}.png", rows, SUITE_TITLES[suite])


def risk(results: Path, folder: Path, suite: str) -> Path:
    """Draw the share of wrong answers among the most confident, see `plots.risk`."""
    names = [name for name in _RISK_SYSTEMS if name in recorded_systems(results, suite)]
    if not names:
        raise MissingError(f"no rows on {suite}: {notes.RUN}=compact --suites={suite}")
    rows = {find_system(name).label: _record(results, suite, name).rows for name in names}
    return plots.risk(folder / f"risk_{suite}.png", rows, SUITE_TITLES[suite])


def write_figures(results: Path, names: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Draw figures below ``results/figures``.

    Returns:
      The files, and for each figure that could not be drawn the reason.
    """
    folder = results / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    jobs: list[tuple[Callable[..., Path], tuple[str, ...], str]] = []
    for name in names:
        if name == "3":
            jobs += [(qualitative, (system,), f"3 ({system})") for system in _QUALITATIVE]
        elif name == "cdf":
            jobs += [(error_cdf, (suite,), f"cdf ({suite})") for suite in paper.SUITES]
        elif name == "risk":
            jobs += [(risk, (suite,), f"risk ({suite})") for suite in _RISK_SUITES]
        elif name == "direct":
            jobs += [(scatter, (name, name, suite), f"{name} ({suite})") for suite in paper.SUITES]
        else:
            jobs.append((scatter, (name, *paper.SCATTER_FIGURES[int(name)]), name))
    written, skipped = [], []
    for draw, arguments, what in jobs:
        try:
            written.append(draw(results, folder, *arguments))
        except MissingError as error:
            skipped.append(f"figure {what} left out: {error}")
    return written, skipped


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_list("figure", [], f"Figures, of {', '.join(NAMES)}.", flag_values=values)
    flags.DEFINE_string("results", os.fspath(RESULTS), "Folder of the rows.", flag_values=values)
    flags.DEFINE_bool("help", False, "Show this help.", short_name="h", flag_values=values)
    return values


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 where it cannot do what was asked for."""
    return run_command("experiments.figures", _flags(), argv, __doc__, _figures)


def _figures(options: flags.FlagValues) -> int:
    unknown = [name for name in options.figure if name not in NAMES]
    if unknown:
        raise ValueError(f"--figure={unknown[0]}: there are {', '.join(NAMES)}")
    if not Path(options.results).is_dir():
        raise ValueError(f"--results={options.results}: there is no such folder")
    written, skipped = write_figures(Path(options.results), options.figure or NAMES)
    for path in written:
        print(path)
    complain("experiments.figures", *skipped)
    return 2 if options.figure and skipped else 0


if __name__ == "__main__":
    keep_compilations()
    sys.exit(main())
