"""Read and write trained networks as single files, such as those that come with the package.

The files are safetensors. They hold the weights (their moving average where the run keeps one) and
the statistics, and in their metadata the configuration of the training. Nothing else is needed to
rebuild the network, and no checkpoint library is needed to read it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import safetensors
from safetensors.numpy import save

from jaxreg.atomic import replacing
from jaxreg.models.fields import network_from_dict, to_dict
from jaxreg.models.network import Tree, network_structure
from jaxreg.models.trained import TrainedNetwork

_KEY = "jaxreg"  # under which the metadata hold what `_about` returns


def is_trained_network(path: Path) -> bool:
    """Whether `write_weights` wrote this file; only its metadata are read.

    Raises:
      ValueError: it is damaged, or no safetensors file.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return _KEY in (file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise ValueError(f"{str(path)!r} is not a safetensors file: {error}") from error


def write_weights(
    network: TrainedNetwork, path: Path, dtype: Literal["float32", "float16"] = "float32"
) -> None:
    """Write a trained network to a single file.

    Args:
      network: the network; its ``config`` must be the dataclass, not a dictionary.
      path: the file; one that exists is replaced.
      dtype: dtype of the floating-point arrays in the file. ``"float16"`` halves its size and
        rounds the weights.

    Raises:
      ValueError: a weight is too large for the dtype.
    """
    about = {
        "config": to_dict(network.config),
        "step": network.step,
        "seconds": network.training_seconds,
    }
    arrays = {name: np.asarray(leaf) for name, leaf in _named(network.arrays).items()}
    for name, array in arrays.items():
        if array.dtype.kind == "f":
            largest = np.abs(array).max(initial=0.0)
            if largest > np.finfo(dtype).max:
                raise ValueError(f"{name} is up to {largest:.0f}, too large for {dtype}")
            arrays[name] = array.astype(dtype)
    with replacing(path) as file:
        file.write(save(arrays, {_KEY: json.dumps(about)}))


def read_weights(path: Path, config_of: Callable[[dict[str, Any]], Any] = dict) -> TrainedNetwork:
    """Read a trained network from a file that `write_weights` wrote.

    Args:
      path: the file.
      config_of: converts the stored dictionary to the configuration of the training. By default
        the network's ``config`` is the dictionary.

    Raises:
      ValueError: `write_weights` did not write the file, or its arrays do not fit its network.
      FileNotFoundError: there is no such file.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            about = _about(file.metadata() or {})
            config = config_of(about["config"])
            network = network_from_dict(about["config"]["network"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is no file of a trained network: {error}") from error
    structure, *expected = network_structure(network)
    wanted = _named(tuple(expected))
    shapes = {name: array.shape for name, array in arrays.items()}
    if shapes != {name: leaf.shape for name, leaf in wanted.items()}:
        raise ValueError(f"{path} does not hold the weights of {network}")
    leaves = [arrays[name].astype(leaf.dtype) for name, leaf in wanted.items()]
    # Arrays even if the first call is being traced: they outlive the trace.
    with jax.ensure_compile_time_eval():
        leaves = [jax.device_put(leaf) for leaf in leaves]
    weights, statistics = jax.tree.unflatten(jax.tree.structure(tuple(expected)), leaves)
    parts = structure, weights, statistics
    return TrainedNetwork(network, parts, config, about["step"], about["seconds"])


def _about(metadata: dict[str, str]) -> dict[str, Any]:
    """Return ``config``, ``step`` and ``seconds`` of the training from a file's metadata."""
    if _KEY not in metadata:
        raise ValueError(f"it has no {_KEY} metadata; was it written by jaxreg.export?")
    about = json.loads(metadata[_KEY])
    missing = {"config", "step", "seconds"}.difference(about if isinstance(about, dict) else ())
    if missing:
        raise ValueError(f"its metadata lack {', '.join(sorted(missing))}")
    return about


def _named(arrays: Tree) -> dict[str, Any]:
    """Leaves of ``(weights, statistics)`` by names such as ``weights.last.kernel``, in order."""
    named = {}
    for part, tree in zip(("weights", "statistics"), arrays, strict=True):
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            named[f"{part}.{jax.tree_util.keystr(path, simple=True, separator='.')}"] = leaf
    return named
