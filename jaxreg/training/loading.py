"""Load trained networks by name, with the configuration of their training."""

from __future__ import annotations

import os

from jaxreg.models.trained import TrainedNetwork
from jaxreg.models.weights import read_weights
from jaxreg.network_files import SUFFIX, find_network, shipped_names
from jaxreg.training.configs import TrainConfig


def load(name: str | os.PathLike[str]) -> TrainedNetwork:
    """Load a trained network by its name, file or folder; see `jaxreg.load`."""
    if not isinstance(name, str | os.PathLike):
        raise ValueError(f"name must be a network's name, file or folder, got {name!r}")
    path = find_network(name)
    if path is None:
        raise ValueError(
            f"there is no trained network {os.fspath(name)!r}: expected "
            f"{', '.join(shipped_names())}, the --workdir of a jaxreg.train run, or a {SUFFIX} "
            "file of jaxreg.export"
        )
    if path.is_dir():
        from jaxreg.training.checkpoint import load_network  # here, as orbax takes long to import

        return load_network(path)
    return read_weights(path, TrainConfig.from_dict)
