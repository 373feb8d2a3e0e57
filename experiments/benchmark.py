"""Time everything, and compare it with the least time that this machine needs (the floor).

    python -m experiments.benchmark                       # CPU or GPU, found by itself
    python -m experiments.benchmark --groups=direct,sweep
    python -m experiments.benchmark --only_render         # the report again, from the record
    python -m experiments.benchmark --quick               # a dry run at tiny settings

The functions of a group are timed in turn, together with the probes of the machine. Writes
experiments/results/benchmark_PLATFORM.json, .md and .png; the records of groups that are not run
are kept. For other libraries see experiments.peers.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.records import RESULTS
from jaxreg.command_line import run_command


def _flags() -> flags.FlagValues:
    v = flags.FlagValues()
    flags.DEFINE_list("groups", [], "What to time; all by default.", flag_values=v)
    flags.DEFINE_list("sizes", ["32", "96"], "Sizes of the images.", flag_values=v)
    flags.DEFINE_list("batches", [], "Pairs at once.", flag_values=v)
    flags.DEFINE_list("counts", [], "Pairs in a call, to see its cost grow.", flag_values=v)
    flags.DEFINE_integer("hidden", 3000, "Units of the LSTM.", 1, flag_values=v)
    flags.DEFINE_list("training", [], "Configurations whose steps are timed.", flag_values=v)
    flags.DEFINE_list("training_batches", [], "Pairs in a step; 0: as configured.", flag_values=v)
    flags.DEFINE_integer("rounds", 7, "Turns of each function.", 1, flag_values=v)
    flags.DEFINE_float("turn", 0.1, "Seconds of a turn.", 0.0, flag_values=v)
    flags.DEFINE_integer("megabytes", 512, "Size of the probes' arrays.", 1, flag_values=v)
    flags.DEFINE_integer("side", 0, "Of the probes' matrices; 0: to suit.", 0, flag_values=v)
    flags.DEFINE_bool("quick", False, "A dry run: its numbers mean nothing.", flag_values=v)
    flags.DEFINE_bool("only_render", False, "Time nothing.", flag_values=v)
    flags.DEFINE_string("results", str(RESULTS), "Folder of record and report.", flag_values=v)
    flags.DEFINE_bool("help", False, "Show this help.", short_name="h", flag_values=v)
    return v


# A dry run: every group, with little work.
_QUICK: dict[str, Any] = {
    "sizes": (32,),
    "batches": (2,),
    "counts": (2,),
    "hidden": 16,
    "training": ("lstm512_cifar10",),
    "training_batches": (4,),
    "checks": 2,
    "pairs": 4,
    "rounds": 2,
    "turn": 0.0,
}
_ON_GPU: dict[str, Any] = {
    "batches": (1, 16, 256, 4096, 16384),
    "counts": (1000, 10_000, 100_000, 1_000_000),
    "training": ("lstm_cifar10", "resnext_fc_cifar10", "compact32"),
    "training_batches": (0, 1024, 4096),
}


def _settings(options: flags.FlagValues) -> Any:
    """Make `experiments.cases.BenchmarkSettings` from the flags; ValueError if one is invalid."""
    import jax

    from experiments.cases import BenchmarkSettings
    from jaxreg.training.configs import CONFIGS

    values: dict[str, Any] = {} if jax.default_backend() == "cpu" else dict(_ON_GPU)
    values |= {"hidden": options.hidden, "rounds": options.rounds, "turn": options.turn}
    if options.quick:
        values |= _QUICK
    for name, least in (("sizes", 8), ("batches", 1), ("counts", 1), ("training_batches", 0)):
        if options[name].present:
            values[name] = _numbers(name, options[name].value or (), least)
    if options.training:
        values["training"] = tuple(options.training)
        unknown = [name for name in options.training if name not in CONFIGS]
        if unknown:
            raise ValueError(f"--training={unknown[0]}: there are {', '.join(CONFIGS)}")
    return BenchmarkSettings(**values)


def _numbers(name: str, texts: Sequence[str], least: int) -> tuple[int, ...]:
    if not texts or not all(t.isdigit() and int(t) >= least for t in texts):
        raise ValueError(f"--{name} takes whole numbers from {least} on, got {','.join(texts)!r}")
    return tuple(sorted(map(int, texts)))


def _imports(_: Any) -> Iterator[Any]:
    """Imports of packages in a fresh Python process."""
    from experiments.cases import Case
    from experiments.floor import Work

    for module in ("jax", "jaxreg"):
        command = [sys.executable, "-c", f"import {module}"]

        def call(command: Sequence[str] = command) -> None:
            subprocess.run(command, check=True)

        yield Case(f"import {module}", 0, 0, call, Work(0.0, 0.0))


def groups() -> dict[str, Callable[[Any], Iterator[Any]]]:
    """Return all groups of cases by name; each makes its cases from the settings."""
    from experiments.cases import GROUPS

    return {**GROUPS, "imports": _imports}


def run_group(name: str, settings: Any, probes: Sequence[Any], command: str) -> dict[str, Any]:
    """Time a group's functions and the probes in turn, and return the group's record."""
    import jax
    from tqdm import tqdm

    from experiments.probes import rates
    from experiments.running import current_commit
    from experiments.timing import interleave, load_average
    from jaxreg.evaluation.report import provenance

    cases = list(groups()[name](settings))
    calls = [probe.call for probe in probes] + [case.call for case in cases]
    bar = tqdm(total=settings.rounds * len(calls), desc=name, unit="turn", disable=None)
    with bar:
        seconds = interleave(calls, settings.rounds, settings.turn, progress=bar.update)
    found = rates(probes, seconds[: len(probes)])
    rows = [_row(c, s) for c, s in zip(cases, seconds[len(probes) :], strict=True)]
    origin = provenance(
        command=command,
        commit=current_commit(),
        load_average=load_average(),
        rounds=settings.rounds,
        hidden=settings.hidden,
    )
    memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    ways = [
        {"kind": p.kind, "name": p.name, "precision": p.precision, "amount": p.amount,
         **dataclasses.asdict(s)}
        for p, s in zip(probes, seconds[: len(probes)], strict=True)
    ]  # fmt: skip
    return {
        "provenance": origin,
        "rates": dataclasses.asdict(found),
        "probes": ways,
        "device_peak_bytes": memory,
        "rows": rows,
    }


def _row(case: Any, seconds: Any) -> dict[str, Any]:
    """One row of the record, without its floor."""
    return {
        "method": case.method,
        "precision": case.precision,
        "size": case.size,
        "batch": case.batch,
        **dataclasses.asdict(seconds),
        "pairs_per_second": case.batch / seconds.median,
        "operations": case.work.operations,
        "bytes": case.work.bytes,
        "compile_seconds": case.compile_seconds,
        "memory": case.memory,
        "note": case.note,
    }


def set_floors(record: dict[str, Any]) -> None:
    """Set every row's floor, from the best rates that were measured with any group."""
    from experiments.floor import Rates, Work

    seen = [group["rates"] for group in record["groups"].values()]
    best = Rates(
        max(r["copy"] for r in seen),
        max(r["read"] for r in seen),
        {p: max(r["product"][p] for r in seen) for p in seen[0]["product"]},
        min(r["call"] for r in seen),
    )
    for row in (row for group in record["groups"].values() for row in group["rows"]):
        floor, limit = 0.0, ""
        if row["precision"]:
            floor, limit = best.floor(Work(row["operations"], row["bytes"]), row["precision"])
        row |= {"floor": floor, "limit": limit}
        for name, time in (("times_floor", "median"), ("times_floor_quiet", "quiet")):
            row[name] = row[time] / floor if floor else None


def _recorded(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """Return the record, with the groups of this machine only.

    Raises:
      ValueError: groups of another machine are not among ``names``, which are timed now.
    """
    from jaxreg.evaluation.report import provenance

    record = _read(path) if path.exists() else {"groups": {}}
    here = provenance()["hardware"]
    recorded = record["groups"]
    own = {name: g for name, g in recorded.items() if g["provenance"]["hardware"] == here}
    lost = [name for name in recorded if name not in own and name not in names]
    if lost:
        raise ValueError(
            f"{', '.join(lost)} in {path} were recorded on another machine: run all groups, or "
            "give another folder as --results"
        )
    return record | {"groups": own}


def _run(options: flags.FlagValues, path: Path, command: str) -> None:
    import jax

    from experiments.probes import make_probes
    from jaxreg.atomic import write_text

    # Compile times shall be those of a first start.
    jax.config.update("jax_enable_compilation_cache", False)
    known = list(groups())
    names = options.groups or known
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"--groups={unknown[0]}: there are {', '.join(known)}")
    settings = _settings(options)
    side = options.side or (256 if options.quick else 2048 if _on_cpu() else 8192)
    probes = make_probes(4 if options.quick else options.megabytes, side)
    record = _recorded(path, names)
    record["quick"] = bool(options.quick)
    for name in names:
        record["groups"][name] = run_group(name, settings, probes, command)
        set_floors(record)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(record, indent=1) + "\n")


def _on_cpu() -> bool:
    import jax

    return jax.default_backend() == "cpu"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 where it cannot do what was asked for."""
    arguments = list(sys.argv if argv is None else argv)

    def measure(options: flags.FlagValues) -> int:
        import jax

        from experiments import benchmark_report

        name = f"benchmark_{'quick_' if options.quick else ''}{jax.default_backend()}"
        path = Path(options.results) / f"{name}.json"
        if not options.only_render:
            from experiments.running import command_line

            _run(options, path, command_line("experiments.benchmark", arguments[1:]))
        elif not path.exists():
            raise ValueError(f"nothing is recorded in {path}; leave out --only_render")
        print(benchmark_report.write_report(path, _read(path)))
        return 0

    return run_command("experiments.benchmark", _flags(), arguments, __doc__, measure)


if __name__ == "__main__":
    sys.exit(main())
