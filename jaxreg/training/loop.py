"""The training loop: the host's part, which counts, logs and saves."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from jaxreg.atomic import write_text
from jaxreg.geometry import RigidTransform
from jaxreg.pairs import Pairs
from jaxreg.training.batches import (
    TrainingImages,
    describe_images,
    load_held_out_images,
    load_training_images,
)
from jaxreg.training.checkpoint import Best, CheckpointStore, lock_workdir, settle_config
from jaxreg.training.configs import TrainConfig
from jaxreg.training.devices import (
    any_process,
    data_mesh,
    flag_of_first_process,
    place,
    same_on_all_processes,
    say,
)
from jaxreg.training.heldout import (
    Errors,
    constant_predictor,
    errors_of,
    held_out_pairs,
    make_estimate,
)
from jaxreg.training.initial import initial_arrays
from jaxreg.training.logs import METRICS_FILE, MetricsLog
from jaxreg.training.state import (
    TrainState,
    abstract_state,
    create_state,
    fresh_state,
    learning_rate_schedule,
)
from jaxreg.training.step import DispatchReport, compile_dispatch

SUMMARY_FILE = "summary.json"
_EXAMPLES_FILE = "examples.png"
_CURVE_FILE = "curve.png"
_EXAMPLES = 6  # held-out pairs in the picture of examples


class NonFiniteError(ArithmeticError):
    """The loss, its gradient or a weight is no longer finite."""


class Interrupted(Exception):
    """A signal ended the run; the state is saved.

    Attributes:
      signal: the signal's number.
    """

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.signal = number


@dataclasses.dataclass(frozen=True)
class Summary:
    """How a run ended.

    Attributes:
      step: number of steps done.
      trained: errors of the network on the held-out pairs.
      constant: errors of the best constant estimate on the same pairs.
      best: the best evaluation of the run.
      seconds: time spent in steps, over all starts of the run.
    """

    step: int
    trained: Errors
    constant: Errors
    best: Best
    seconds: float

    def __str__(self) -> str:
        return (
            f"after {self.step} steps: trained {self.trained}; best constant {self.constant} "
            f"({_share(self.trained.translation, self.constant.translation)} and "
            f"{_share(self.trained.rotation, self.constant.rotation)} of it)"
        )


def _share(error: float, constant: float) -> str:
    """The error as percentage of the constant's, which is zero for a single pair or no shifts."""
    return f"{error / constant:.0%}" if constant > 0 else "-"


def train(config: TrainConfig, workdir: str | Path) -> Summary:
    """Train a network, or continue a run that was interrupted.

    If the images are not those that the run began with, a `ChangedDataWarning` says so.

    Args:
      config: the configuration; to continue a run, that of the run.
      workdir: the run's folder. The run writes ``config.json``, ``checkpoints/``, ``metrics.csv``,
        ``tensorboard/``, ``examples.png``, ``curve.png`` and ``summary.json`` to it.

    Raises:
      CheckpointError: (a ValueError) the folder holds a run of another configuration, only
        unreadable checkpoints, or files of no run, or another run is training in it.
      NonFiniteError: loss, gradient or weights became non-finite; the last good state is saved.
      Interrupted: SIGTERM or SIGINT arrived; the state is saved.
      ValueError: processes have different configurations, an image source or ``init_from`` is not
        usable, or the ``metrics.csv`` of a run to continue is damaged.
      OSError: the folder cannot be written, or an image source or ``init_from`` cannot be read.
    """
    workdir = Path(os.path.expanduser(workdir))
    with lock_workdir(workdir), jax.enable_x64(False):  # float32, whatever the program's default
        return _train(config, workdir)


def _train(config: TrainConfig, workdir: Path) -> Summary:
    if not same_on_all_processes(json.dumps(config.to_dict())):  # else weights silently diverge
        raise ValueError("the processes were given different flags; all fields must be the same")
    settle_config(workdir, config, (METRICS_FILE, SUMMARY_FILE, _EXAMPLES_FILE, _CURVE_FILE))
    mesh = data_mesh(config.batch_size)
    images, pairs, data = _load(config, mesh)
    store = CheckpointStore(workdir, data=data)
    try:
        state, best = _start(config, mesh, store)
        run = _Run(config, workdir, mesh, images, pairs, store, best)
        with _signals() as arrived:
            return run.go(state, arrived)
    finally:
        store.close()


def _load(config: TrainConfig, mesh: Mesh) -> tuple[TrainingImages, Pairs, dict[str, list[int]]]:
    """Load the images to the devices; returns also the held-out pairs, and `describe_images`."""
    images, held_out = load_training_images(config), load_held_out_images(config)
    data = describe_images(images, held_out)
    return place(mesh, images), held_out_pairs(config, held_out, mesh), data


def _start(config: TrainConfig, mesh: Mesh, store: CheckpointStore) -> tuple[TrainState, Best]:
    """Restore the newest state on disk, or create one."""
    restored = store.restore(abstract_state(config, mesh))
    if restored is not None:
        say(f"going on from step {int(restored[0].step)}")
        return restored
    if not config.init_from:
        return create_state(config, mesh), Best()
    arrays = initial_arrays(config)
    say(f"weights from {config.init_from}")
    return place(mesh, fresh_state(config, *arrays)), Best()


def next_stop(step: int, config: TrainConfig) -> int:
    """Return the step at which the dispatch that starts after ``step`` ends.

    Stops depend on the step alone, so a resumed run makes the same ones. The first step is a
    dispatch of its own, so that errors show early, and an evaluation follows it.

    >>> from jaxreg.training.configs import CONFIGS
    >>> config = CONFIGS["lstm_cifar10"].override(["--steps_per_dispatch=4", "--steps=10"])
    >>> next_stop(0, config), next_stop(1, config), next_stop(8, config)
    (1, 4, 10)
    """
    if step == 0:
        return 1
    every = (config.steps_per_dispatch, config.eval_every, config.save_every)
    return min([(step // n + 1) * n for n in every] + [config.steps])


class _Run:
    """One start of a run: what all its dispatches use, and the best evaluation so far."""

    def __init__(
        self,
        config: TrainConfig,
        workdir: Path,
        mesh: Mesh,
        images: TrainingImages,
        pairs: Pairs,
        store: CheckpointStore,
        best: Best,
    ):
        self.config, self.workdir, self.mesh = config, workdir, mesh
        self.images, self.pairs, self.store, self.best = images, pairs, store, best
        self.estimate = make_estimate(config, mesh)
        self.rate = learning_rate_schedule(config)
        self.truth: RigidTransform = jax.device_get(pairs.transform)
        self.last: tuple[int, Errors, RigidTransform] | None = None
        self.saved_at = time.monotonic()

    def go(self, state: TrainState, arrived: list[int]) -> Summary:
        """Train from ``state`` to the last step, and write the results.

        Args:
          state: the state to start from.
          arrived: signals received so far, see `_signals`.
        """
        config, step = self.config, int(state.step)
        constant = errors_of(constant_predictor(self.truth), self.truth, config.translation_weight)
        say(
            f"{sum(x.size for x in jax.tree.leaves(state.weights)):,} weights, {self.images}, "
            f"{self.mesh.size} {self.mesh.devices.flat[0].device_kind} device(s); "
            f"best constant: {constant}"
        )
        log = MetricsLog(self.workdir, step) if jax.process_index() == 0 else None
        try:
            if step < config.steps:
                state = self._steps(state, log, arrived)
            errors, estimate = self._evaluated(state)
            seconds = log.seconds if log else 0.0
            summary = Summary(int(state.step), errors, constant, self.best, seconds)
        finally:
            if log:
                log.close()
        # All processes compute on their devices; only the first one writes.
        few, answers = jax.tree.map(lambda x: x[:_EXAMPLES], (self.pairs, estimate))
        if log:
            self._finish(jax.device_get(few), answers, summary)
        return summary

    def _steps(self, state: TrainState, log: MetricsLog | None, arrived: list[int]) -> TrainState:
        config, step = self.config, int(state.step)
        started = time.perf_counter()
        dispatch = compile_dispatch(config, self.mesh, state, self.images)
        say(f"compiled in {time.perf_counter() - started:.1f} s")
        bar = tqdm(
            total=config.steps,
            initial=step,
            unit="step",
            disable=jax.process_index() > 0 or None,  # None: also if the output is no terminal
            dynamic_ncols=True,
        )
        with bar:
            while step < config.steps:
                self._leave_if_asked(state, arrived)
                stop = next_stop(step, config)
                started = time.perf_counter()
                count = place(self.mesh, np.int32(stop - step))
                state, report = dispatch(state, self.images, count)
                report = jax.device_get(report)  # waits for the device
                seconds = time.perf_counter() - started
                if not report.finite:
                    raise self._non_finite(state, report)
                values = self._values(report, stop, stop - step)
                if stop == 1 or stop % config.eval_every == 0 or stop == config.steps:
                    errors, _ = self._evaluated(state)
                    values |= {f"eval_{k}": v for k, v in dataclasses.asdict(errors).items()}
                    say(f"step {stop}: held out {errors}")
                if log:
                    log.write(stop, values, seconds)
                rate = (stop - step) / seconds
                bar.set_postfix_str(
                    f"{rate * config.batch_size:.0f} pairs/s, "
                    f"{values['train_translation']:.3f} px, {values['train_rotation']:.2f} deg"
                )
                bar.update(stop - step)
                step = stop
                self._save_if_due(state, step)
        return state

    def _values(self, report: DispatchReport, stop: int, count: int) -> dict[str, float]:
        sums = report.sums
        return {
            "train_loss": float(sums.loss) / count,
            "train_translation": float(sums.translation) / count,
            "train_rotation": float(sums.rotation) / count,
            "gradient_norm": float(sums.gradient_norm) / count,
            "learning_rate": float(self.rate(stop - 1)),
        }

    def _evaluated(self, state: TrainState) -> tuple[Errors, RigidTransform]:
        """Evaluate on the held-out pairs, once for each step: errors, and estimates on the host."""
        step = int(state.step)
        if self.last is None or self.last[0] != step:
            estimate = self.estimate(state, self.pairs)
            errors = errors_of(estimate, self.truth, self.config.translation_weight)
            self.last = (step, errors, estimate)
            if errors.loss < self.best.loss:
                self.best = Best(step, errors.loss)
        return self.last[1:]

    def _save(self, state: TrainState) -> None:
        self.store.save(state, self.best)
        self.saved_at = time.monotonic()

    def _save_if_due(self, state: TrainState, step: int) -> None:
        overdue = time.monotonic() - self.saved_at > 60 * self.config.save_minutes
        late = flag_of_first_process(overdue)  # clocks differ
        if late or step % self.config.save_every == 0 or step == self.config.steps:
            self._save(state)

    def _leave_if_asked(self, state: TrainState, arrived: list[int]) -> None:
        if any_process(bool(arrived)):
            number = arrived[0] if arrived else signal.SIGTERM
            self._save(state)
            raise Interrupted(
                number,
                f"{signal.Signals(number).name}: saved at step {int(state.step)} in "
                f"{self.workdir}; the same command goes on from there",
            )

    def _non_finite(self, state: TrainState, report: DispatchReport) -> NonFiniteError:
        good = int(state.step)
        self._save(state)
        loss, norm = float(report.last.loss), float(report.last.gradient_norm)
        only_after = ", the norm of the weights after it is not finite"
        what = only_after if np.isfinite(loss + norm) else ""
        return NonFiniteError(
            f"non-finite at step {good + 1}: loss {loss}, gradient norm {norm}{what}; "
            f"the state after step {good} is saved in {self.workdir}. "
            "A lower learning_rate or a clip_norm may help, in another workdir"
        )

    def _finish(self, few: Pairs, answers: RigidTransform, summary: Summary) -> None:
        """Write the pictures and the summary."""
        from jaxreg.training.pictures import write_curve, write_examples

        write_examples(self.workdir / _EXAMPLES_FILE, few, answers)
        write_curve(self.workdir / _CURVE_FILE, self.workdir, summary.constant)
        text = json.dumps(dataclasses.asdict(summary), indent=2)
        write_text(self.workdir / SUMMARY_FILE, text + "\n")
        say(f"checkpoint, metrics and pictures: {self.workdir}")
        say(str(summary))


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT, so that they do not end the program; a second SIGINT does."""
    arrived: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield arrived  # Python delivers signals to the main thread only
        return

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        say(f"{signal.Signals(number).name}: saving after the steps under way")

    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
