"""Measure the machine's best rates: a large copy, read and matrix product, and an empty call.

Each is measured in every available way, and the fastest counts, so that floors are not too high.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.compilation import at_precision, precisions
from experiments.floor import Rates
from experiments.timing import Seconds

Kind = Literal["copy", "read", "product", "call"]


@dataclasses.dataclass(frozen=True)
class Probe:
    """One way to measure a rate of the machine.

    Attributes:
      kind: the rate that it measures.
      name: the way in which it measures it.
      call: makes one call and waits for its result.
      amount: bytes or operations of a call.
      precision: precision of a matrix product.
    """

    kind: Kind
    name: str
    call: Callable[[], Any]
    amount: float
    precision: str = ""


def make_probes(megabytes: int, side: int) -> list[Probe]:
    """Make probes on arrays of ``megabytes`` MB, and on matrices ``(side, side)``."""
    array = jnp.ones((megabytes, 2**18), jnp.float32)
    vector = jnp.ones(2**18, jnp.float32)
    size = float(array.nbytes)
    found = [
        Probe("copy", "compiled x + 1", _compiled(lambda x: x + 1, array), 2 * size),
        Probe("read", "compiled sum", _compiled(jnp.sum, array), size),
        Probe("read", "compiled matrix times vector", _compiled(jnp.dot, array, vector), size),
        Probe("call", "compiled, nothing to do", _compiled(lambda x: x + 1, jnp.zeros(())), 1.0),
    ]
    if jax.default_backend() == "cpu":
        found += _host_probes(np.ones_like(array))
    matrix = jax.random.normal(jax.random.key(0), (side, side))
    for precision in precisions():
        with at_precision(precision):
            call = _compiled(jnp.dot, matrix, matrix)
        found.append(Probe("product", f"{side} x {side}", call, 2.0 * side**3, precision))
    if jax.default_backend() != "cpu":
        half = matrix.astype(jnp.bfloat16)
        product = _compiled(jnp.dot, half, half)
        found.append(Probe("product", f"{side}, bfloat16", product, 2.0 * side**3, "bfloat16"))
    return found


def _compiled(function: Callable[..., jax.Array], *arguments: jax.Array) -> Callable[[], Any]:
    program = jax.jit(function).lower(*arguments).compile()
    return lambda: program(*arguments).block_until_ready()


def _host_probes(array: np.ndarray) -> list[Probe]:
    """Probes with NumPy on all cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pool = ThreadPoolExecutor(cores)
    target = np.zeros_like(array)
    parts = list(zip(np.array_split(target, cores or 1), np.array_split(array, cores or 1),
                     strict=True))  # fmt: skip
    vector = np.ones(array.shape[1], array.dtype)

    def copy() -> None:
        list(pool.map(lambda pair: np.copyto(*pair), parts))

    def add() -> None:
        list(pool.map(lambda pair: pair[1].sum(), parts))

    return [
        Probe("copy", "NumPy's copyto", copy, 2.0 * array.nbytes),
        Probe("read", "NumPy's sum", add, float(array.nbytes)),
        Probe("read", "BLAS, matrix times vector", lambda: array @ vector, float(array.nbytes)),
    ]


def rates(probes: Sequence[Probe], seconds: Sequence[Seconds]) -> Rates:
    """Return the best rate of each kind, from the fastest call of each probe."""

    def best(kind: Kind, precision: str = "") -> float:
        return max(
            probe.amount / time.minimum
            for probe, time in zip(probes, seconds, strict=True)
            if (probe.kind, probe.precision) == (kind, precision)
        )

    product = {p.precision: best("product", p.precision) for p in probes if p.kind == "product"}
    return Rates(best("copy"), best("read"), product, 1.0 / best("call"))
