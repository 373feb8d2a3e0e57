"""Recompute recorded rows from scratch, through the harness."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.records import Keypoints, Record, load_record, save_keypoints, save_record
from experiments.systems import System, method_of
from experiments.timing import load_average
from jaxreg.evaluation.harness import evaluate, measure_time
from jaxreg.evaluation.protocol import SuiteData, build_suite, load_source
from jaxreg.evaluation.report import provenance
from jaxreg.evaluation.suites import parse_suite
from jaxreg.methods import find_method
from jaxreg.result import Estimator

if TYPE_CHECKING:
    from jaxreg.models.trained import TrainedNetwork

KEYPOINT_IMAGES = 432  # the number over which the paper's Tables 3 and 6 average
_ROOT = Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Job:
    """Settings for recomputing rows.

    Attributes:
      results: folder of the records.
      pairs: number of pairs of each suite.
      seed: seed of images and transforms.
      batch_size: pairs in a call.
      timing: whether to measure the time too.
      folders: folders of checkpoints, see `experiments.systems.method_of`.
      commit: commit of the code, if there is no git repository; empty to ask git.
    """

    results: Path
    pairs: int = 3840
    seed: int = 0
    batch_size: int = 256
    timing: bool = True
    folders: Mapping[str, str] = dataclasses.field(default_factory=dict)
    commit: str = ""


def load_suite(job: Job, name: str) -> tuple[SuiteData, int]:
    """Make the pairs of a suite; also returns the number of images they are drawn from."""
    suite = parse_suite(name)
    source = load_source(suite)
    return build_suite(suite, job.pairs, job.seed, source), len(source)


def load_method(system: System, suite: str, job: Job) -> tuple[str, Estimator, dict | None]:
    """Return a system's name in the harness, its estimator, and how it was trained.

    Raises:
      ValueError: there is no such method, no usable checkpoint, or its images have another size.
    """
    method = method_of(system, suite, job.folders)
    if not system.configs and not os.path.isdir(method):
        return method, find_method(method), None
    from jaxreg.training.loading import load

    network = load(method)
    size = parse_suite(suite).size
    if network.image_size != size:
        raise ValueError(
            f"{method} takes images of {network.image_size} pixels, {suite} has {size}"
        )
    config = system.configs.get(size, "")
    return method, network.estimate, _training(network, config)


def run_system(
    system: System,
    suite: str,
    data: tuple[SuiteData, int],
    job: Job,
    progress: Callable[[int], Any] | None = None,
) -> Path:
    """Run a system on every pair of a suite, time it, and record both."""
    pairs, images = data
    method, estimator, training = load_method(system, suite, job)
    rows = evaluate(estimator, pairs, job.batch_size, nameless(method), progress)
    about = {
        **_origin(job),
        "pairs": len(rows.found),
        "batch_size": job.batch_size,
        "images": images,
        "training": training,
        "time": _time(estimator, pairs, job) if job.timing else None,
    }
    return save_record(job.results, system.name, Record(rows, about))


def time_system(system: System, suite: str, data: tuple[SuiteData, int], job: Job) -> Path:
    """Measure the time again and write it to existing rows."""
    record = load_record(job.results, suite, system.name)
    if record is None:
        raise ValueError(f"{system.name} on {suite} has no recorded rows to time")
    _, estimator, _ = load_method(system, suite, job)
    about = record.about | {"time": _time(estimator, data[0], job)}
    return save_record(job.results, system.name, Record(record.rows, about))


def run_keypoints(system: System, suite: str, data: tuple[SuiteData, int], job: Job) -> Path:
    """Count a feature method's keypoints in the first pairs of a suite, and record them."""
    from baselines.features import FeatureMethod, count_keypoints, match

    method = find_method(method_of(system, suite))
    if not isinstance(method, FeatureMethod):
        raise ValueError(f"{system.name} is no feature method: it has no keypoints")
    fixed, moving = (x[:KEYPOINT_IMAGES] for x in (data[0].fixed, data[0].moving))
    matches = [
        len(match(method.keypoints(f)[1], method.keypoints(m)[1], method.norm, method.ratio))
        for f, m in zip(fixed, moving, strict=True)
    ]
    counts = count_keypoints(method, fixed), count_keypoints(method, moving), np.array(matches)
    about = _origin(job) | {"images": len(fixed), "suite": suite, "method": system.name}
    return save_keypoints(job.results, suite, system.name, Keypoints(*counts, about))


def _time(estimator: Estimator, data: SuiteData, job: Job) -> dict[str, Any]:
    """Measure seconds a pair and throughput, with date, hardware, commit and load."""
    measured = measure_time(estimator, data)
    origin = _origin(job)
    where = {name: origin[name] for name in ("date", "hardware", "commit")}
    return {**measured, **where, "load_average": load_average()}


def _origin(job: Job) -> dict[str, Any]:
    command = command_line("experiments.tables", sys.argv[1:])
    return provenance(command=command, seed=job.seed, commit=job.commit or current_commit())


def command_line(module: str, arguments: Sequence[str]) -> str:
    """Return a command as it is recorded, without this machine's folders and without --results.

    >>> command_line("experiments.peers", ["--run", "--results=/home/me/peers"])
    'python -m experiments.peers --run'
    """
    kept, skip = [], False
    for argument in arguments:
        name = argument.lstrip("-").partition("=")[0]
        if not skip and name != "results":
            kept.append(argument)
        skip = argument in ("--results", "-results")
    return nameless(" ".join([f"python -m {module}", *kept]))


def current_commit() -> str:
    """Return the repository's commit, and the loaded modules that differ from it, if any."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(_ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    try:
        commit = git("rev-parse", "--short=12", "HEAD").strip()
        changed = {line[3:] for line in git("status", "--porcelain", "-uall").splitlines()}
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    used = {os.path.relpath(f, _ROOT) for f in files if f and Path(f).is_relative_to(_ROOT)}
    return commit + (
        f" with changes in {', '.join(sorted(used & changed))}" if used & changed else ""
    )


def nameless(text: str) -> str:
    """Remove the folders of absolute paths, which are particular to this machine, from a text.

    >>> nameless("--checkpoints=lstm_cifar10:/home/me/runs/lstm --pairs=384")
    '--checkpoints=lstm_cifar10:lstm --pairs=384'
    """
    return re.sub(r"(?<![\w.~-])/(?:[^/\s,:=]+/)+", "", text)


def _training(trained: TrainedNetwork, config_name: str) -> dict[str, Any]:
    """Describe how far a network was trained, and on which images."""
    from jaxreg.data import load_images
    from jaxreg.models.fields import network_to_dict
    from jaxreg.training.configs import CONFIGS

    config, named = trained.config, CONFIGS.get(config_name, trained.config)
    network = network_to_dict(config.network)
    planned = network_to_dict(named.network)
    images: dict[str, int | None] = {}
    for source in config.data:
        try:
            images[nameless(source)] = len(load_images(source, "train", config.image_size))
        except (OSError, ValueError):
            images[nameless(source)] = None  # the training set is not available here
    return {
        "configuration": config_name,
        "network": network,
        "network_changes": {k: v for k, v in network.items() if planned.get(k) != v},
        "parameters": trained.parameter_count,
        "step": trained.step,
        "batch_size": config.batch_size,
        "pairs_seen": trained.step * config.batch_size,
        "pairs_planned": named.steps * named.batch_size,
        "seconds": trained.training_seconds,
        "images": images,
        "init_from": nameless(config.init_from),
        "init_planned": named.init_from,
    }
