"""Compile the benchmark's functions at each precision of the platform, and time the compilation."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax

# Precisions of float32 matrix products: the name here -> JAX's name. The first is JAX's default on
# the platform; on an NVIDIA GPU that is TF32.
_PRECISIONS: dict[str, dict[str, str | None]] = {
    "cpu": {"float32": None},
    "gpu": {"TF32": None, "float32": "highest", "bfloat16": "bfloat16"},
    "tpu": {"bfloat16": None, "float32": "highest"},
}


def precisions() -> dict[str, str | None]:
    """Return the precisions of this platform, the default one first, with JAX's names."""
    return _PRECISIONS.get(jax.default_backend(), _PRECISIONS["cpu"])


def at_precision(name: str) -> contextlib.AbstractContextManager:
    """Return a context in which matrix products are traced at a precision of `precisions`."""
    value = precisions()[name]
    return contextlib.nullcontext() if value is None else jax.default_matmul_precision(value)


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled function, the seconds of its compilation and the bytes of its memory."""

    run: Callable[..., Any]
    seconds: float
    memory: int | None

    def on(self, *arguments: Any) -> Callable[[], Any]:
        """Put arguments on the device; return a function that calls with them and waits."""
        arguments = jax.block_until_ready(jax.device_put(arguments))
        return lambda: jax.block_until_ready(self.run(*arguments))


def compile_for(
    function: Callable[..., Any],
    *arguments: Any,
    precision: str = "",
    options: dict[str, bool | str] | None = None,
) -> Program:
    """Compile a function for arguments (or their shapes), and time the compilation."""
    with at_precision(precision) if precision else contextlib.nullcontext():
        start = time.perf_counter()
        # A new function each time, so that no cache holds its trace.
        compiled = jax.jit(lambda *a: function(*a)).lower(*arguments).compile(options)
        return Program(compiled, time.perf_counter() - start, program_memory(compiled))


def program_memory(compiled: jax.stages.Compiled) -> int | None:
    """Return the bytes of a compiled program's arguments, results and temporaries, if known."""
    found = compiled.memory_analysis()
    if found is None:
        return None
    total = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
    return int(total - found.alias_size_in_bytes)
