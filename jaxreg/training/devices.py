"""Place the arrays of a training on its devices, and let its processes agree.

Training is data-parallel: each device holds the whole state and the whole image set, and works on
its part of every batch. With one device these functions do nothing. Several processes, on one or
more hosts, must first be joined (`join_processes`); each then sees the devices of all.
"""

from __future__ import annotations

import pickle
import zlib
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

DATA_AXIS = "data"  # the mesh's only axis, over which batches are spread


def join_processes(
    coordinator: str | None = None, count: int | None = None, index: int | None = None
) -> None:
    """Join this process with others to train together. Call it before anything uses a device.

    Args:
      coordinator: ``host:port`` at which the first process listens. Without it, all three arguments
        are taken from the cluster (Slurm, Open MPI, Kubernetes, Cloud TPU).
      count: number of processes.
      index: index of this process, from 0.

    Raises:
      ValueError: an argument is missing or invalid, or no cluster is recognised.
      OSError: the other processes cannot be reached.
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
    """Make a mesh of as many devices as divide a batch evenly, along the axis ``"data"``.

    Raises:
      ValueError: there are several processes, and not all their devices can share the batch evenly.
    """
    available = jax.device_count()
    count = max(n for n in range(1, available + 1) if batch_size % n == 0)
    if jax.process_count() > 1 and count != available:
        raise ValueError(
            f"batch_size must be a multiple of the {available} devices, got {batch_size}"
        )
    return mesh_of(count)


def mesh_of(count: int) -> Mesh:
    """Make a mesh of the first ``count`` devices, along the axis ``"data"``."""
    devices = jax.devices()[:count]
    return jax.make_mesh((count,), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding that puts the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh, batch: Any) -> Any:
    """Spread the leading axis of a pytree's arrays over the devices; inside ``jit`` only."""
    if mesh.size == 1:
        return batch
    sharding = NamedSharding(mesh, PartitionSpec(DATA_AXIS))
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, sharding), batch)


def place(mesh: Mesh, tree: Any) -> Any:
    """Put a pytree's arrays, each whole, on every device of the mesh.

    Several processes must each hold the same arrays, as these are not sent from one to another.
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


def flag_of_first_process(flag: bool) -> bool:
    """Return the first process's flag, where processes may see different ones (as by clocks)."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.asarray(flag)))


def value_of_first_process(value: Any) -> Any:
    """Return the first process's value (any picklable object); the others are ignored."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    own = np.frombuffer(pickle.dumps(value), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(own.size)))
    first = multihost_utils.broadcast_one_to_all(np.resize(own, size))  # shapes must be equal
    return pickle.loads(np.asarray(first, np.uint8).tobytes())


def same_on_all_processes(text: str) -> bool:
    """Whether all processes hold the same text."""
    if jax.process_count() == 1:
        return True
    from jax.experimental import multihost_utils

    checksums = multihost_utils.process_allgather(np.uint32(zlib.crc32(text.encode())))
    return bool((checksums == checksums[0]).all())


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def say(text: str) -> None:
    """Print a line above the progress bar, in the first process only."""
    if jax.process_index() == 0:
        tqdm.write(text)
