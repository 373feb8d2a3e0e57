"""Trained networks in a single file each, such as the ones that come with the package.

A file is safetensors: the weights that are used (the moving average where there is one) and the
statistics, with the training's configuration in its metadata. Nothing else is needed to rebuild the
network, and reading one needs no checkpoint library.
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

_KEY = "jaxreg"  # of the metadata


def is_trained_network(path: Path) -> bool:
    """Whether this is a file that `write_weights` wrote, by its metadata alone."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return _KEY in (file.metadata() or {})
    except safetensors.SafetensorError:
        return False


def write_weights(
    network: TrainedNetwork, path: Path, dtype: Literal["float32", "float16"] = "float32"
) -> None:
    """Write a trained network into a single file.

    Args:
      network: what to write, with the configuration of its training.
      path: the file, made anew.
      dtype: of its floating-point numbers; ``"float16"`` halves the file and rounds them.

    Raises:
      ValueError: a number is too large for the dtype.
    """
    about = {"config": to_dict(network.config), "step": network.step, "seconds": network.seconds}
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
    """The trained network of a file that `write_weights` wrote.

    Args:
      path: the file.
      config_of: what makes the configuration of its training of a dictionary; left as one if
        nobody will ask.

    Raises:
      ValueError: the file is no such file, or does not fit the network that it names.
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
    # Also when the first call is being traced, for the arrays outlive the trace.
    with jax.ensure_compile_time_eval():
        leaves = [jax.device_put(leaf) for leaf in leaves]
    weights, statistics = jax.tree.unflatten(jax.tree.structure(tuple(expected)), leaves)
    parts = structure, weights, statistics
    return TrainedNetwork(network, parts, config, about["step"], about["seconds"])


def _about(metadata: dict[str, str]) -> dict[str, Any]:
    """Configuration, steps and seconds of the training that the metadata of a file tell of."""
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
