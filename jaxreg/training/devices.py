"""Where things live on the devices: the one place that knows of more than one.

Training is data-parallel: each device holds the whole state and the whole image set, and works on
its part of every batch. With one device all of this does nothing. Several processes, on one host or
many, are joined first (`join_processes`); each then sees the devices of all.
"""

from __future__ import annotations

import pickle
import zlib
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"


def join_processes(
    coordinator: str | None = None, count: int | None = None, index: int | None = None
) -> None:
    """Make this process one of several that train together; before anything touches a device.

    Args:
      coordinator: ``host:port`` of the first process, on which it listens. Without it, all three
        are taken from the cluster (Slurm, Open MPI, Kubernetes, Cloud TPU).
      count: how many processes there are.
      index: which of them this is, from 0.

    Raises:
      ValueError: an argument is missing or unfit, or no cluster is recognised.
      OSError: the others cannot be reached.
    """
    if coordinator is not None:
        host, colon, port = coordinator.rpartition(":")
        if not (host and colon and port.isdigit()):
            raise ValueError(f"coordinator must be host:port, got {coordinator!r}")
        if count is None or index is None or not 0 <= index < count:
            raise ValueError(
                "with a coordinator, processes must say how many there are and process_id which "
                f"this is, from 0; got {count} and {index}"
            )
    elif (count, index) != (None, None):
        raise ValueError("processes and process_id need the coordinator's host:port")
    try:
        jax.distributed.initialize(coordinator, count, index)
    except RuntimeError as error:
        raise OSError(f"the processes did not come together: {error}") from error


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
    """A pytree's arrays put on every device of the mesh, whole.

    With several processes each must hold the same arrays; they are not sent around.
    """
    where = replicated(mesh)
    if jax.process_count() == 1:
        return jax.device_put(tree, where)

    def one(leaf: Any) -> jax.Array:
        if jax.dtypes.issubdtype(getattr(leaf, "dtype", np.int32), jax.dtypes.prng_key):
            data = one(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, where, lambda index: host[index])

    return jax.tree.map(one, tree)


def agreed(flag: bool) -> bool:
    """The first process's value, for what the processes may see differently, such as a clock."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.asarray(flag)))


def from_first(value: Any) -> Any:
    """What the first process has, be it an exception; what the others have is not looked at."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    own = np.frombuffer(pickle.dumps(value), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(own.size)))
    told = multihost_utils.broadcast_one_to_all(np.resize(own, size))  # all of one shape
    return pickle.loads(np.asarray(told, np.uint8).tobytes())


def alike(text: str) -> bool:
    """Whether the text is the same in all of the processes."""
    if jax.process_count() == 1:
        return True
    from jax.experimental import multihost_utils

    checksums = multihost_utils.process_allgather(np.uint32(zlib.crc32(text.encode())))
    return bool((checksums == checksums[0]).all())


def anywhere(flag: bool) -> bool:
    """Whether it holds in any of the processes."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())
