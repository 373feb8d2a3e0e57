"""Load the weights that a run starts from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from jaxreg.models.network import Tree, network_structure, split_network
from jaxreg.models.weights import is_trained_network
from jaxreg.training.configs import TrainConfig, changed_fields
from jaxreg.training.devices import say
from jaxreg.training.loading import load


def initial_arrays(config: TrainConfig) -> list[Tree]:
    """Load the weights and statistics that ``init_from`` names.

    Raises:
      ValueError: it is not readable, or its weights do not fit the network.
      OSError: there is no such file, or ``imagenet`` cannot be fetched.
    """
    if _published(config.init_from):
        from jaxreg.models.pretrained import load_pretrained

        network = config.network.build(nnx.Rngs(config.seed))
        try:
            _, *arrays = split_network(load_pretrained(network, config.init_from))
        except ValueError as error:
            raise ValueError(f"init_from: {error}") from error
        return arrays
    source = load(config.init_from)
    _, *expected = network_structure(config.network)
    arrays = [*source.arrays]
    if jax.tree.map(np.shape, expected) != jax.tree.map(np.shape, arrays):
        raise ValueError(
            f"init_from={config.init_from} holds {source.config.network}, "
            f"whose weights do not fit {config.network}"
        )
    here = dataclasses.replace(source.config, network=config.network)
    if changes := changed_fields(source.config, here):
        say(f"init_from={config.init_from} is of another network, {'; '.join(changes)}")
    return arrays


def _published(source: str) -> bool:
    """Whether ``source`` names published weights, not a network that jaxreg trained."""
    if not source.endswith((".safetensors", ".pth", ".pt")):
        return source == "imagenet"
    path = Path(source).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"init_from={source}: there is no such file")
    try:
        return path.suffix != ".safetensors" or not is_trained_network(path)
    except ValueError as error:
        raise ValueError(f"init_from: {error}") from error
