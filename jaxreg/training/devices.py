"""Where things live on the devices: the one place that knows of more than one.

Training is data-parallel: each device holds the whole state and the whole image set, and works on
its part of every batch. With one device all of this does nothing.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"


def data_mesh(batch_size: int) -> Mesh:
    """A mesh of as many devices as divide the batch evenly, along the axis ``"data"``.

    Raises:
      ValueError: with several processes, if the batch cannot be spread over all their devices.
    """
    devices = jax.devices()
    count = max(n for n in range(1, len(devices) + 1) if batch_size % n == 0)
    if jax.process_count() > 1 and count != len(devices):
        raise ValueError(
            f"batch_size must be a multiple of the {len(devices)} devices, got {batch_size}"
        )
    return jax.make_mesh(
        (count,), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices[:count]
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh, batch: Any) -> Any:
    """Inside ``jit``: the leading axis of every array of a pytree is spread over the devices."""
    if mesh.size == 1:
        return batch
    sharding = NamedSharding(mesh, PartitionSpec(DATA_AXIS))
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, sharding), batch)


def place(mesh: Mesh, tree: Any) -> Any:
    """A pytree's arrays put on every device of the mesh, whole."""
    return jax.device_put(tree, replicated(mesh))


def agreed(flag: bool) -> bool:
    """The first process's word on a question of which each may see another answer (clocks)."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.asarray(flag)))
