"""Compare other libraries with the direct method: accuracy and time on the same pairs.

    python -m experiments.peers                     # the table, from the record
    python -m experiments.peers --run               # measures everything: a quarter of an hour
    python -m experiments.peers --run --suites=scene32 --methods=direct,simpleitk,orb_x4

All methods register the same pairs through the harness. Then their calls with one pair, from NumPy
images to parameters, are timed in turn in one process, on the first --rounds pairs. A run replaces
the records of its suites in experiments/results/peers.json; the table is written to peers.md beside
it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments import notes
from experiments.records import RESULTS
from experiments.rendering import NOTHING, markdown_table, value
from jaxreg.atomic import write_text
from jaxreg.command_line import complain, keep_compilations, run_command
from jaxreg.result import Estimator

PairCall = Callable[[np.ndarray, np.ndarray], Any]
OURS = "direct"
SUITES = ("cifar10", "scene32", "scene32+noise10", "scene96")


@dataclasses.dataclass(frozen=True)
class Peer:
    """A method of another library.

    Attributes:
      label: name in the table.
      package: package that must be installed, or empty.
      pair: function of `baselines.peers` that registers one pair, or empty for feature methods.
      module: whether that function takes the imported package as its first argument.
    """

    label: str
    package: str = ""
    pair: str = ""
    module: bool = False


PEERS: dict[str, Peer] = {
    "simpleitk": Peer("SimpleITK, exhaustive start", "SimpleITK", "register_simpleitk", True),
    "ecc": Peer("OpenCV ECC, phase-correlation start", "cv2", "register_ecc"),
    "pystackreg": Peer(
        "pystackreg, phase-correlation start", "pystackreg", "register_pystackreg", True
    ),
    "skimage_polar": Peer("scikit-image, polar magnitudes", "skimage", "register_skimage_polar"),
    "orb_x4": Peer("ORB, enlarged 4x", "cv2"),
    "akaze_x4": Peer("AKAZE, enlarged 4x", "cv2"),
    "sift_x4": Peer("SIFT, enlarged 4x", "cv2"),
}


def _flags() -> flags.FlagValues:
    v = flags.FlagValues()
    flags.DEFINE_bool("run", False, "Measure anew.", flag_values=v)
    flags.DEFINE_list("suites", list(SUITES), "Suites to measure on.", flag_values=v)
    flags.DEFINE_list("methods", [OURS, *PEERS], "Methods to measure.", flag_values=v)
    flags.DEFINE_integer("pairs", 384, "Pairs of each suite.", 1, flag_values=v)
    flags.DEFINE_integer("seed", 0, "Of images and transforms.", 0, flag_values=v)
    flags.DEFINE_integer("batch_size", 96, "Pairs a call, for the accuracy.", 1, flag_values=v)
    flags.DEFINE_integer(
        "rounds", 24, "Turns of each method; each times the next pair.", 1, flag_values=v
    )
    flags.DEFINE_float("turn", 0.1, "Seconds of a turn.", 0.0, flag_values=v)
    flags.DEFINE_string("results", str(RESULTS), "Folder of record and table.", flag_values=v)
    flags.DEFINE_bool("help", False, "Show this help.", short_name="h", flag_values=v)
    return v


def missing_package(method: str) -> str:
    """Return the package that a method needs and is not installed, or an empty text."""
    package = PEERS[method].package if method in PEERS else ""
    try:
        there = not package or importlib.util.find_spec(package) is not None
    except ValueError:  # a module that replaces it has no spec
        there = package in sys.modules
    return "" if there else package


def pair_call(method: str) -> PairCall:
    """Return the function that is timed, from one pair ``(H, W, 3)`` to ``(tx, ty, theta)``.

    For the peers it is the library alone, without our judgement of its answer.
    """
    from baselines import peers
    from baselines.features import FeatureMethod
    from jaxreg.methods import find_method
    from jaxreg.registration import register

    estimator = find_method(method)
    if isinstance(estimator, FeatureMethod):
        return estimator.register
    peer = PEERS.get(method)
    if peer is not None and peer.pair:
        function = getattr(peers, peer.pair)
        if peer.module:
            package = importlib.import_module(peer.package)
            return functools.partial(function, package)
        return function

    def ours(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
        return np.asarray(register(fixed, moving, method=method).transform.as_array())

    return ours


def measure(
    suite: str, estimators: Mapping[str, Estimator], options: flags.FlagValues, command: str
) -> dict[str, Any]:
    """Measure accuracy and time of methods on a suite; returns the record."""
    from tqdm import tqdm

    from experiments.running import current_commit
    from experiments.timing import PairByPair, interleave, load_average
    from jaxreg.evaluation.harness import evaluate, figures
    from jaxreg.evaluation.protocol import build_suite
    from jaxreg.evaluation.report import provenance

    data = build_suite(suite, options.pairs, options.seed)
    results = {}
    for name, estimator in estimators.items():
        with tqdm(total=options.pairs, desc=f"{suite}: {name}", unit="pair", disable=None) as bar:
            rows = evaluate(estimator, data, options.batch_size, name, bar.update)
        results[name] = figures(rows)
    calls = {name: PairByPair(pair_call(name), data.fixed, data.moving) for name in estimators}
    load = load_average()
    total = options.rounds * len(calls)
    with tqdm(total=total, desc=f"{suite}: time", unit="turn", disable=None) as bar:
        times = interleave(list(calls.values()), options.rounds, options.turn, 50, bar.update)
    for name, seconds in zip(calls, times, strict=True):
        results[name]["time"] = dataclasses.asdict(seconds)
    origin = provenance(
        command=command,
        commit=current_commit(),
        pairs=options.pairs,
        seed=options.seed,
        rounds=options.rounds,
        load_average=load,
        packages=_package_versions(estimators),
    )
    return {"provenance": origin, "results": results}


def _package_versions(methods: Mapping[str, Any]) -> dict[str, str]:
    packages = {PEERS[m].package for m in methods if m in PEERS and PEERS[m].package}
    modules = {name: importlib.import_module(name) for name in sorted(packages)}
    return {name: str(getattr(m, "__version__", "unknown")) for name, m in modules.items()}


def run(options: flags.FlagValues, path: Path, command: str) -> list[str]:
    """Measure, and write the record after each suite; returns why methods are left out."""
    from jaxreg.evaluation.suites import parse_suite
    from jaxreg.methods import find_method

    for suite in options.suites:
        parse_suite(suite)
    lacking = {name: missing_package(name) for name in options.methods}
    estimators = {name: find_method(name) for name in options.methods if not lacking[name]}
    left_out = [
        f"{name} is left out: {package} is not installed; pip install 'jaxreg[peers]' brings it"
        for name, package in lacking.items()
        if package
    ]
    if not estimators:
        raise ValueError("; ".join(left_out) or "--methods is empty")
    record = read(path) if path.exists() else {"suites": {}}
    for suite in options.suites:
        measured = measure(suite, estimators, options, command)
        record["suites"][suite] = measured | {"left_out": left_out}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n")
    return left_out


def read(path: Path) -> dict[str, Any]:
    """Read the record.

    Raises:
      ValueError: there is none.
    """
    if not path.exists():
        raise ValueError(f"nothing is recorded in {path}: python -m experiments.peers --run")
    return json.loads(path.read_text())


def label(method: str) -> str:
    """Return a method's name in the table."""
    if method == OURS:
        return "**jaxreg, direct**"
    return PEERS[method].label if method in PEERS else method


def render(record: Mapping[str, Any]) -> str:
    """Render a record as a Markdown table, with a row for each suite and method."""
    header = ["suite", "method", "px median", "px mean", "px 95%", "degrees median"]
    header += ["degrees mean", "degrees 95%", "no answer", "gross errors"]
    header += ["ms a pair, median (quiet)", "direct is faster by, medians (quiet)"]
    body = []
    for suite, part in record["suites"].items():
        results = part["results"]
        for method, f in results.items():
            body.append([suite, label(method), *_accuracy(f), *_time(f, results.get(OURS))])
    remarks = sorted({text for part in record["suites"].values() for text in part["left_out"]})
    parts = ["# Other libraries on the same pairs", _CAPTION, markdown_table(header, body)]
    parts += [f"{text}." for text in remarks]
    parts += ["Where it comes from:", _origins(record)]
    return "\n\n".join(parts) + "\n"


_CAPTION = (
    "Made by `python -m experiments.peers`. Errors are those of the answered pairs: L1 translation "
    "error in pixels, rotation error in degrees. Gross errors (of all pairs): rotation off by more "
    "than 5 degrees, or translation by more than 2 px (4 px at 96x96). Each peer has an equal "
    "search over rotations and translations and the best settings we found. Time: one pair, NumPy "
    "images in, parameters out; the methods were called in turn in one process, several rounds, "
    "each round all with the suite's next pair, so that only its first pairs are timed: the median "
    "over the rounds of the median call in each, and in brackets of the fastest. Each runs as many "
    "threads as each library takes by itself (SimpleITK one, which is its fastest here), the "
    "peers without our judging of their answers."
)


def _accuracy(f: Mapping[str, Any]) -> list[str]:
    names = ("median", "mean", "p95")
    errors = [value(f[q][n]) for q in ("translation", "rotation") for n in names]
    return [*errors, f"{100 * f['no_answer']:.2f}%", f"{100 * f['gross']:.2f}%"]


def _time(f: Mapping[str, Any], ours: Mapping[str, Any] | None) -> list[str]:
    time = f["time"]
    own = f"{1e3 * time['median']:.3g} ({1e3 * time['quiet']:.3g})"
    if ours is None or f is ours:
        return [own, NOTHING]
    times = [time[name] / ours["time"][name] for name in ("median", "quiet")]
    return [own, f"{times[0]:.3g} ({times[1]:.3g})"]


def _origins(record: Mapping[str, Any]) -> str:
    header = ["suite", "pairs", "seed", "date", "commit", "hardware", "versions", "load average"]
    body = []
    for suite, part in record["suites"].items():
        about = part["provenance"]
        about = about | {"versions": about["versions"] | about["packages"]}
        load = about["load_average"]
        cells = [suite, *notes.origin(about), NOTHING if load is None else f"{load:.1f}"]
        body.append([*cells, f"`{about['command']}`"])
    return markdown_table([*header, "command"], body)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 where it cannot do what was asked for."""
    arguments = list(sys.argv if argv is None else argv)

    def compare(options: flags.FlagValues) -> int:
        path = Path(options.results) / "peers.json"
        left_out: list[str] = []
        if options.run:
            from experiments.running import command_line

            left_out = run(options, path, command_line("experiments.peers", arguments[1:]))
        text = render(read(path))
        write_text(path.with_suffix(".md"), text)
        print(text)
        complain("experiments.peers", *left_out)
        return 0

    return run_command("experiments.peers", _flags(), arguments, __doc__, compare)


if __name__ == "__main__":
    keep_compilations()
    sys.exit(main())
