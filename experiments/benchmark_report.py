"""Render the benchmark's record as Markdown and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments import notes
from experiments.plots import save
from experiments.rendering import NOTHING, markdown_table
from jaxreg.atomic import write_text

_TITLES = {
    "direct": "Direct registration",
    "growth": "Cost against the number of pairs",
    "sweep": "The 360-angle sweep",
    "lstm": "The LSTM",
    "compact": "The compact network",
    "training": "Training steps",
    "imports": "Imports",
}
Row = Mapping[str, Any]


def write_report(record_path: Path, record: Mapping[str, Any]) -> str:
    """Write the report and its plot beside the record; returns the report."""
    plot = record_path.with_suffix(".png")
    text = report(record, plot.name)
    write_text(record_path.with_suffix(".md"), text)
    draw(plot, _rows(record))
    return text


def _rows(record: Mapping[str, Any]) -> list[Row]:
    return [row for group in record["groups"].values() for row in group["rows"]]


def report(record: Mapping[str, Any], plot: str) -> str:
    """Render a record as Markdown.

    Args:
      record: a record of `experiments.benchmark`.
      plot: file name of the picture.
    """
    parts = ["# Benchmark", _caption(record), f"![throughput and distance from the floor]({plot})"]
    parts += ["## Side by side", _ratio_table(_rows(record))]
    for name in sorted(record["groups"], key=list(_TITLES).index):
        group = record["groups"][name]
        parts += [f"## {_TITLES[name]}", _table(group["rows"]), _origin(group)]
    parts += ["## The machine", _machine(record)]
    return "\n\n".join(parts) + "\n"


def _caption(record: Mapping[str, Any]) -> str:
    dry = "**A dry run at tiny settings: its numbers mean nothing.** " if record["quick"] else ""
    return dry + (
        "Made by `python -m experiments.benchmark`. Every function of a group and the probes of "
        "the machine were called in turn, several rounds, in one process. Times are of whole "
        "calls, the device waited for: the median over the rounds of the median call in each, and "
        "in brackets of the fastest. The floor is the larger of two times: the operations that the "
        "traced program must do over the rate of a large matrix product, and its inputs, weights "
        "and results, moved once, over the rate of a large copy or read. The rates are the best "
        "ones measured along with any group. The last column is median "
        "(the one in brackets) over floor. Memory: arguments, results and temporaries of the "
        "compiled program, or, where nothing is compiled, growth of the host's memory."
    )


def _table(rows: Sequence[Row]) -> str:
    header = ["method", "size", "precision", "pairs a call", "time", "pairs/s", "compile"]
    header += ["memory", "operations", "bytes", "floor", "x the floor", "note"]
    empty = [i for i in range(len(header)) if all(_cells(r)[i] in ("", NOTHING) for r in rows)]

    def kept(line: Sequence[str]) -> list[str]:
        return [cell for i, cell in enumerate(line) if i not in empty]

    return markdown_table(kept(header), [kept(_cells(row)) for row in rows])


def _cells(row: Row) -> list[str]:
    floor = row["floor"]
    times = f"{row['times_floor']:.3g} ({row['times_floor_quiet']:.3g})" if floor else NOTHING
    return [
        row["method"],
        str(row["size"] or ""),
        row["precision"],
        f"{row['batch']:,}" if row["batch"] else "",
        f"{seconds(row['median'])} ({seconds(row['quiet'])})",
        f"{row['pairs_per_second']:,.4g}" if row["batch"] else "",
        NOTHING if row["compile_seconds"] is None else seconds(row["compile_seconds"]),
        NOTHING if row["memory"] is None else quantity(row["memory"], "B"),
        quantity(row["operations"], "") if floor else NOTHING,
        quantity(row["bytes"], "B") if floor else NOTHING,
        f"{seconds(floor)}, {row['limit']}" if floor else NOTHING,
        times,
        row["note"],
    ]


def seconds(value: float) -> str:
    """Format a time in s, ms or µs.

    >>> seconds(0.0007), seconds(2.4), seconds(3.2e-6)
    ('0.7 ms', '2.4 s', '3.2 µs')
    """
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if value * factor >= (1.0 if unit == "s" else 0.1):
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"


def quantity(value: float, unit: str) -> str:
    """Format a number with a unit and its prefix.

    >>> quantity(867.6e6, "B"), quantity(12, "")
    ('868 MB', '12')
    """
    for prefix, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def ratios(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Compute ratios between rows: ``what``, and that of the ``median`` and ``quiet`` times."""

    def find(method: str, size: int | None = None, batch: int = 1) -> Row | None:
        fits = (r for r in rows if r["method"] == method and r["batch"] == batch)
        return next((r for r in fits if size in (None, r["size"])), None)

    found = []
    for size in sorted({r["size"] for r in rows}):
        slow, fast = find("naive fft loop", size), find("fft sweep", size)
        found.append(
            (f"{size}x{size}: sweep, how many times faster than the naive loop", slow, fast)
        )
    found.append(("LSTM, one pair: how many times faster than scanned cells",
                  find("LSTM, scanned"), find("LSTM")))  # fmt: skip
    found.append(("import jaxreg over import jax", find("import jaxreg", 0, 0),
                  find("import jax", 0, 0)))  # fmt: skip
    result = [
        {"what": what, **{m: slow[m] / fast[m] for m in ("median", "quiet")}}
        for what, slow, fast in found
        if slow is not None and fast is not None
    ]
    growth = sorted((r for r in rows if "growth" in r["method"]), key=lambda r: r["batch"])
    if len(growth) > 1:
        few, many = growth[0], growth[-1]
        what = f"register_batch: cost a pair of {many['batch']:,} over that of {few['batch']:,}"
        result.append({"what": what} | {
            m: many[m] / many["batch"] / (few[m] / few["batch"]) for m in ("median", "quiet")
        })  # fmt: skip
    return result


def _ratio_table(rows: Sequence[Row]) -> str:
    lines = [
        [r["what"], f"{r['median']:.3g}", f"{r['quiet']:.3g}"]
        for r in ratios(rows)
    ]  # fmt: skip
    best = [
        r for r in rows if r["batch"] == 1 and r["floor"] and not r["method"].startswith("naive")
    ]
    lines += [
        [f"{r['method']}, {r['size']}x{r['size']}, {r['precision']}, one pair: x the floor",
         f"{r['times_floor']:.3g}", f"{r['times_floor_quiet']:.3g}"]
        for r in best
    ]  # fmt: skip
    return markdown_table(["ratio", "of medians", "of fastest calls"], lines)


def _origin(group: Mapping[str, Any]) -> str:
    about = group["provenance"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    load = about["load_average"]
    return (
        f"{about['date'][:16].replace('T', ' ')} UTC, {notes.hardware(about)}, commit "
        f"{about['commit']}, {about['rounds']} rounds"
        + ("" if load is None else f", load average {load:.1f}")
        + f"; {versions}; `{about['command']}`"
    )


def _machine(record: Mapping[str, Any]) -> str:
    """A table of the rates that were measured with each group."""
    lines = []
    for name, group in record["groups"].items():
        r = group["rates"]
        products = ", ".join(f"{p} {quantity(v, 'FLOP/s')}" for p, v in r["product"].items())
        lines.append(
            [
                name,
                quantity(r["copy"], "B/s"),
                quantity(r["read"], "B/s"),
                products,
                seconds(r["call"]),
            ]
        )
    header = ["measured with", "large copy", "large read", "large matrix product", "empty call"]
    return markdown_table(header, lines)


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Plot throughput against batch size, and the times of single pairs over the floor."""
    figure = Figure(figsize=(13, 5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    curves: dict[str, list[Row]] = {}
    for row in rows:
        if row["floor"] and "training" not in row["method"]:
            label = f"{row['method']}, {row['size']}x{row['size']}, {row['precision']}"
            curves.setdefault(label, []).append(row)
    shown = {label: c for label, c in curves.items() if len(c) > 1}
    for k, (label, curve) in enumerate(shown.items()):
        curve = sorted(curve, key=lambda r: r["batch"])
        batch = [r["batch"] for r in curve]
        colour = f"C{k % 10}"
        left.plot(batch, [r["pairs_per_second"] for r in curve], "o-", color=colour, label=label)
        floors = [r["batch"] / r["floor"] for r in curve]
        left.plot(batch, floors, ":", color=colour)
    left.set(xscale="log", yscale="log", xlabel="pairs a call", ylabel="pairs a second")
    left.set_title("Throughput; dotted: at the floor", fontsize=10)
    left.grid(linewidth=0.3)
    if shown:  # outside: anywhere inside it could hide a point
        figure.legend(loc="outside lower center", ncols=4, fontsize=7, frameon=False)
    single = [row for row in rows if row["floor"] and row["batch"] == 1]
    names = [f"{r['method']}, {r['size']}x{r['size']}, {r['precision']}" for r in single]
    right.barh(range(len(single)), [r["times_floor"] for r in single])
    right.set_yticks(range(len(single)), names, fontsize=7)
    right.set(xscale="log", xlabel="times the floor")
    right.invert_yaxis()
    right.set_title("One pair", fontsize=10)
    right.axvline(1.0, color="black", linewidth=0.8)
    save(figure, path)
