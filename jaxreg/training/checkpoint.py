"""Write and read a run's checkpoints. The only module that uses orbax.

A working folder holds ``config.json`` and ``checkpoints/STEP/``. A checkpoint is written under
a temporary name and renamed when complete, and it holds a checksum of every file. So a checkpoint
that is incomplete or damaged is detected, and the one before it is used. Weights, statistics,
averages and optimiser are separate items: to use a network, only what it needs is read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxreg.atomic import lock, replacing
from jaxreg.models.network import Tree, network_structure
from jaxreg.models.trained import TrainedNetwork
from jaxreg.training.configs import TrainConfig, changed_fields
from jaxreg.training.devices import (
    flag_of_first_process,
    mesh_of,
    place,
    value_of_first_process,
)
from jaxreg.training.logs import read_seconds
from jaxreg.training.seals import (
    CheckpointError,
    DamagedError,
    UnfinishedError,
    check_seal,
    seal,
)
from jaxreg.training.state import TrainState, abstract_state

CONFIG_FILE = "config.json"
CHECKPOINT_FOLDER = "checkpoints"
_PARTS = ("weights", "statistics", "average", "average_statistics", "optimizer")
_KEPT = 2  # checkpoints; the older one is used if the newer one is damaged
_LOCK = ".lock"  # never removed, else two runs could lock two files of this name
_CONCURRENT_GB = 1  # limit on what is transferred to or from the disk at once


class DamagedCheckpointWarning(UserWarning):
    """A checkpoint could not be read and an older one is used."""


class ChangedDataWarning(UserWarning):
    """A run goes on with other images than it began with."""


@dataclasses.dataclass(frozen=True)
class Best:
    """The best evaluation so far: its step, and the loss on the held-out pairs."""

    step: int = -1
    loss: float = float("inf")


@contextlib.contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
    """Make a working folder if need be, and lock it against other runs within the context.

    Raises:
      CheckpointError: another run is training in it.
    """
    with contextlib.ExitStack() as held:
        locked = True
        if jax.process_index() == 0:
            workdir.mkdir(parents=True, exist_ok=True)
            locked = lock(held.enter_context((workdir / _LOCK).open("a")))
        if not flag_of_first_process(locked):
            raise CheckpointError(f"another run is training in {workdir}")
        yield


def settle_config(workdir: Path, config: TrainConfig, outputs: Iterable[str] = ()) -> None:
    """Write the configuration to a working folder, or compare it with the one in the folder.

    While the folder has no checkpoint yet, its configuration is replaced, so that a mistake in the
    first command can be corrected.

    Args:
      workdir: the folder.
      config: the configuration.
      outputs: names of other files that the run will write.

    Raises:
      CheckpointError: the folder holds a run that this configuration cannot continue
        (`changed_fields`); the fields that differ are named. Or it holds files of these names, or
        checkpoints, but no configuration.
    """
    path = workdir / CONFIG_FILE
    trained = any(step.name.isdigit() for step in (workdir / CHECKPOINT_FOLDER).glob("*"))
    if path.exists():
        changes = changed_fields(read_config(workdir), config)
        if trained and changes:
            raise CheckpointError(
                f"{workdir} holds a run of another configuration ({'; '.join(changes)}): "
                "give its own fields, or another --workdir"
            )
    else:
        found = [name for name in outputs if (workdir / name).exists()]
        found += [CHECKPOINT_FOLDER] if trained else []
        if found:
            raise CheckpointError(
                f"{workdir} holds {', '.join(found)} without a {CONFIG_FILE} of a jaxreg.train "
                "run: give another --workdir"
            )
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write((json.dumps(config.to_dict(), indent=2) + "\n").encode())


def read_config(folder: Path) -> TrainConfig:
    """Read the configuration of a working folder; CheckpointError if it holds none."""
    path = folder / CONFIG_FILE
    if not path.exists():
        what = "does not exist" if not folder.exists() else f"holds no {CONFIG_FILE}"
        raise CheckpointError(f"{folder} {what}: it is no folder of a jaxreg.train run")
    try:
        return TrainConfig.from_dict(json.loads(path.read_text()))
    except ValueError as error:
        raise CheckpointError(f"{path} is none of a jaxreg.train run: {error}") from error


class CheckpointStore:
    """The checkpoints of one working folder, of which the newest two are kept.

    Args:
      workdir: the folder.
      read_only: whether the folder is left as it is.
      data: number and checksum of the run's images, see
        `jaxreg.training.batches.describe_images`; saved with each checkpoint.
    """

    def __init__(
        self, workdir: Path, read_only: bool = False, data: Mapping[str, list[int]] | None = None
    ):
        self._folder = (workdir / CHECKPOINT_FOLDER).absolute()
        self._data = data
        self._read_only = read_only
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=None if read_only else _KEPT,
                # A save in the background would need a copy of the state: its arrays are donated.
                enable_async_checkpointing=False,
                cleanup_tmp_directories=not read_only,
                create=not read_only,
                save_root_metadata=False,
                single_host_load_and_broadcast=True,  # as in `_check`
            ),
            item_handlers={part: _array_handler() for part in _PARTS}
            | {"about": ocp.JsonCheckpointHandler()},
        )

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, the newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def save(self, state: TrainState, best: Best) -> None:
        """Write a checkpoint of this state, unless its step has one, and delete the oldest.

        Raises:
          OSError: the checkpoint cannot be written.
        """
        step = int(state.step)
        if step in self.steps():
            return
        parts = {part: _flat(getattr(state, part)) for part in _PARTS}
        parts = {part: arrays for part, arrays in parts.items() if arrays}
        about = {
            "step": step,
            "key": np.asarray(jax.random.key_data(state.key)).tolist(),
            "key_type": str(jax.random.key_impl(state.key)),
            "best": dataclasses.asdict(best) if best.step >= 0 else None,
            "data": dict(self._data or {}),
        }
        items: dict[str, Any] = {p: ocp.args.PyTreeSave(arrays) for p, arrays in parts.items()}
        arguments = ocp.args.Composite(about=ocp.args.JsonSave(about), **items)
        try:
            self._manager.save(step, args=arguments)
            self._manager.wait_until_finished()
            if jax.process_index() == 0:
                seal(self._folder / str(step))
        except (OSError, ValueError) as error:  # tensorstore's error on a full disk is the latter
            raise OSError(f"no checkpoint written at step {step}: {error}") from error

    def restore(self, abstract: TrainState) -> tuple[TrainState, Best] | None:
        """Restore the newest complete checkpoint; None if there is none.

        A newer one that is damaged is skipped with a warning. It is deleted once an older one is
        read, so that the run can write its step again. A lone checkpoint that is incomplete is
        deleted too. A `ChangedDataWarning` says if the run had other images.

        Args:
          abstract: shapes, dtypes and shardings of the state's arrays.

        Raises:
          CheckpointError: there are checkpoints, but none can be read.
        """
        found = self._first_whole(lambda step: self._read_state(step, abstract))
        step, result = found or (-1, None)
        for newer in self.steps():
            if newer > step:
                self._manager.delete(newer)
        return result

    def restore_network(self, abstract: TrainState) -> tuple[int, Tree, Tree]:
        """Read the step, the weights and the statistics of the newest complete checkpoint.

        They are the moving averages if the run keeps them. Nothing else is read.

        Raises:
          CheckpointError: no checkpoint can be read.
        """
        averaged = jax.tree.leaves(abstract.average)
        parts = ("average", "average_statistics") if averaged else ("weights", "statistics")

        def read(step: int) -> tuple[Tree, Tree]:
            trees, _ = self._read(step, {part: getattr(abstract, part) for part in parts})
            return trees[parts[0]], trees[parts[1]]

        found = self._first_whole(read)
        if found is None:
            raise CheckpointError(
                f"{self._folder.parent} holds no checkpoint yet: the run has not saved one"
            )
        return found[0], *found[1]

    def close(self) -> None:
        """Release the folder."""
        self._manager.close()

    def _first_whole(self, read: Any) -> Any:
        """Return ``(step, read(step))`` of the newest checkpoint that can be read, or None."""
        listed = self.steps()
        try:
            return self._first_whole_of(listed, read)
        except CheckpointError:
            self._manager.reload()
            if self.steps() == listed:
                raise
        # A running training has deleted those meanwhile and saved others.
        return self._first_whole_of(self.steps(), read)

    def _first_whole_of(self, steps: list[int], read: Any) -> Any:
        failures: dict[int, DamagedError] = {}
        for step in steps:
            try:
                result = read(step)
            except DamagedError as error:
                failures[step] = error
                continue
            for failed, failure in failures.items():
                # A reader may have found the checkpoint that a run is just writing.
                if self._read_only and isinstance(failure, UnfinishedError):
                    continue
                warnings.warn(
                    f"damaged checkpoint passed over (step {failed}: {failure}); using step {step}",
                    DamagedCheckpointWarning,
                    stacklevel=5,
                )
            return step, result
        # A run that was killed at its first save leaves one incomplete checkpoint, as good as none.
        unfinished = all(isinstance(failure, UnfinishedError) for failure in failures.values())
        if failures and not (unfinished and len(failures) == 1):
            reasons = "; ".join(f"step {step}: {failure}" for step, failure in failures.items())
            raise CheckpointError(f"no checkpoint in {self._folder} can be read ({reasons})")
        return None

    def _read_state(self, step: int, abstract: TrainState) -> tuple[TrainState, Best]:
        trees, about = self._read(step, {part: getattr(abstract, part) for part in _PARTS})
        key = jax.random.wrap_key_data(jnp.uint32(about["key"]), impl=about["key_type"])
        small = {"step": np.asarray(about["step"], np.int32), "key": key}
        small = place(abstract.step.sharding.mesh, small)  # type: ignore[attr-defined]
        best = Best(**about["best"]) if about["best"] else Best()
        self._compare_data(about.get("data", {}))  # checkpoints of older versions have none
        return TrainState(**small, **trees), best

    def _compare_data(self, saved: Mapping[str, list[int]]) -> None:
        """Warn, in the first process, if the images are not those of a checkpoint."""
        changes = []
        for name, (count, checksum) in (self._data or {}).items():
            before, *rest = saved.get(name, (count, checksum))
            if (before, *rest) != (count, checksum):
                how = " with other contents" if before == count else ""
                changes.append(f"{name}: {before:,} -> {count:,}{how}")
        if changes and jax.process_index() == 0:
            text = f"the run goes on with other data than so far ({'; '.join(changes)})"
            warnings.warn(text, ChangedDataWarning, stacklevel=2)

    def _read(self, step: int, abstract: dict[str, Tree]) -> tuple[dict[str, Tree], dict]:
        """Check and read the named parts of a checkpoint, and its ``about``."""
        wanted = {part: _flat(tree) for part, tree in abstract.items()}
        items: dict[str, Any] = {
            part: ocp.args.PyTreeRestore(
                item=arrays, restore_args=ocp.checkpoint_utils.construct_restore_args(arrays)
            )
            for part, arrays in wanted.items()
            if arrays
        }
        try:
            self._check(step, {"about", *items})
            restored = self._manager.restore(
                step, args=ocp.args.Composite(about=ocp.args.JsonRestore(), **items)
            )
        except FileNotFoundError as error:  # a running training deleted it after it was listed
            raise DamagedError(f"it was removed meanwhile ({error})") from error
        about = restored["about"]
        trees = dict(abstract)
        for part in items:
            leaves = [restored[part][name] for name in wanted[part]]
            trees[part] = jax.tree.unflatten(jax.tree.structure(abstract[part]), leaves)
        return trees, about

    def _check(self, step: int, parts: Iterable[str]) -> None:
        """Let the first process run `check_seal`, and raise its error in all processes.

        All must read the same step, but a network file system may show them different files.
        """
        problem: Exception | None = None
        if jax.process_index() == 0:
            try:
                check_seal(self._folder / str(step), parts)
            except (DamagedError, OSError) as error:
                problem = error
        problem = value_of_first_process(problem)
        if problem is not None:
            raise problem


def _array_handler() -> ocp.PyTreeCheckpointHandler:
    return ocp.PyTreeCheckpointHandler(
        use_compression=False,  # it takes most of the time, and hardly shrinks float weights
        save_concurrent_gb=_CONCURRENT_GB,
        restore_concurrent_gb=_CONCURRENT_GB,
    )


def _flat(tree: Tree) -> dict[str, Any]:
    """Return a pytree's arrays by path, such as ``0.mu.lstm.kernel``, in the tree's order."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def load_network(folder: str | os.PathLike) -> TrainedNetwork:
    """Load the trained network of a working folder.

    The newest complete checkpoint is used, and the moving average of the weights if the run keeps
    one. The optimiser's state is not read.

    Args:
      folder: the ``--workdir`` of a `jaxreg.train` run, which may still be running.

    Raises:
      CheckpointError: (a ValueError) it is no such folder, or has no usable checkpoint yet.
    """
    folder = Path(folder)
    config = read_config(folder)
    if not (folder / CHECKPOINT_FOLDER).exists():
        raise CheckpointError(f"{folder} holds no checkpoint yet: the run has not saved one")
    store = CheckpointStore(folder, read_only=True)
    try:
        # Processes restore together, on all their devices; then each has a network of its own.
        mesh = mesh_of(jax.device_count() if jax.process_count() > 1 else 1)
        # Arrays even if the first call is being traced: they outlive the trace.
        with jax.ensure_compile_time_eval():
            step, *arrays = store.restore_network(abstract_state(config, mesh))
    finally:
        store.close()
    weights, statistics = jax.tree.map(lambda array: array.addressable_data(0), arrays)
    parts = network_structure(config.network)[0], weights, statistics
    return TrainedNetwork(config.network, parts, config, step, read_seconds(folder, step))
