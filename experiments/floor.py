"""Compute the least time of a function: its operations and bytes over the rates of this machine.

Operations are counted from the traced program. Every floating-point addition, multiplication,
comparison or elementary function counts 1, each term of a matrix product or convolution 2, and a
Fourier transform ``5 n log2 n`` (a real one half of that). A loop counts as often as it is known to
run, or once if its length is unknown, and a branch as its cheapest side. All of these are lower
bounds. (XLA's own cost analysis counts each loop once, and no arithmetic in calls to libraries.)
Bytes are those that no program can avoid: inputs and weights read once, results written once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

# These only move data; all others count one operation for each element, even rounding and sorting.
_MOVES = frozenset(
    {
        *("reshape", "broadcast_in_dim", "transpose", "squeeze", "expand_dims", "concatenate"),
        *("stack", "pad", "rev", "slice", "dynamic_slice", "dynamic_update_slice", "gather"),
        *("scatter", "split", "select_n", "iota", "copy", "copy_p", "convert_element_type"),
        *("bitcast_convert_type", "stop_gradient", "device_put", "sharding_constraint"),
        "optimization_barrier",
    }
)
_SPECTRUM = 5.0  # operations of a complex Fourier transform, over n log2 n


@dataclasses.dataclass(frozen=True)
class Work:
    """The amount of work.

    Attributes:
      operations: number of floating-point operations.
      bytes: bytes read from and written to memory.
    """

    operations: float
    bytes: float

    def __mul__(self, times: float) -> Work:
        return Work(self.operations * times, self.bytes * times)


@dataclasses.dataclass(frozen=True)
class Rates:
    """The best measured rates of the machine.

    Attributes:
      copy: bytes a second of a large copy, counting both reads and writes.
      read: bytes a second of a large read.
      product: operations a second of a large matrix product, by precision.
      call: seconds of an empty compiled call, including the wait for the device.
    """

    copy: float
    read: float
    product: dict[str, float]
    call: float

    def floor(self, work: Work, precision: str) -> tuple[float, str]:
        """Return the least seconds, and what determines them: ``"arithmetic"`` or ``"memory"``.

        Raises:
          ValueError: the matrix product was not measured at that precision.

        >>> Rates(1e9, 2e9, {"float32": 1e10}, 1e-5).floor(Work(1e6, 1e6), "float32")
        (0.0005, 'memory')
        """
        if precision not in self.product:
            raise ValueError(f"no rate for {precision}: there are {', '.join(self.product)}")
        arithmetic = work.operations / self.product[precision]
        memory = work.bytes / max(self.copy, self.read)
        return max((arithmetic, "arithmetic"), (memory, "memory"))


def work_of(function: Callable[..., Any], *arguments: Any) -> Work:
    """Count operations and unavoidable bytes of a function of arrays (or of their shapes).

    >>> x = jax.ShapeDtypeStruct((100, 100), jnp.float32)
    >>> work_of(lambda a, b: a @ b, x, x)
    Work(operations=2000000.0, bytes=120000)
    """
    traced, results = jax.make_jaxpr(function, return_shape=True)(*arguments)
    return Work(count_operations(traced), size_in_bytes(arguments) + size_in_bytes(results))


def size_in_bytes(tree: Any) -> int:
    """Return the bytes of all arrays, or shapes, in a pytree."""
    leaves = [x for x in jax.tree.leaves(tree) if hasattr(x, "dtype")]
    return sum(math.prod(x.shape) * _item_size(x.dtype) for x in leaves)


def _item_size(dtype: Any) -> int:
    return 8 if jnp.issubdtype(dtype, jax.dtypes.prng_key) else dtype.itemsize


def count_operations(program: ClosedJaxpr | Jaxpr) -> float:
    """Count the floating-point operations of a traced program; see the module's docstring.

    >>> def ten_products(x):
    ...     return jax.lax.fori_loop(0, 10, lambda _, y: x @ y, x)
    >>> count_operations(jax.make_jaxpr(ten_products)(jnp.ones((10, 10))))
    20000.0
    """
    jaxpr = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    return float(sum(_operations(equation) for equation in jaxpr.eqns))


def _operations(equation: JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        return params["length"] * count_operations(params["jaxpr"])
    if name == "while":
        return count_operations(params["body_jaxpr"]) + count_operations(params["cond_jaxpr"])
    if name == "cond":
        return min(count_operations(branch) for branch in params["branches"])
    if name == "custom_linear_solve":
        return count_operations(params["jaxprs"].solve)
    if name in ("custom_jvp_call", "custom_vjp_call"):
        return count_operations(params["call_jaxpr"])
    inner = [p for p in params.values() if isinstance(p, (ClosedJaxpr, Jaxpr))]
    if inner and not name.startswith(("reduce", "scatter", "select_and")):
        return sum(count_operations(p) for p in inner)
    return _arithmetic(equation)


def _arithmetic(equation: JaxprEqn) -> float:
    """Count the operations of a primitive that contains no program."""
    name, params = equation.primitive.name, equation.params
    ins = [v.aval for v in equation.invars]
    out: Any = equation.outvars[0].aval
    if name in _MOVES or not any(_is_float(x) for x in [*ins, out]):
        return 0.0
    first: Any = ins[0]
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2.0 * out.size * math.prod(first.shape[d] for d in contracted)
    if name == "conv_general_dilated":
        kernel: Any = ins[1]
        outputs = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * out.size * kernel.size / outputs
    if name == "fft":
        return _fourier(params, first, out)
    if name.startswith("reduce_window"):
        return float(out.size * math.prod(params["window_dimensions"]))
    if name == "cholesky":
        return first.size * first.shape[-1] / 3.0
    if name in ("lu", "qr", "householder_product"):
        return first.size * min(first.shape[-2:]) * 2.0 / 3.0
    if name == "triangular_solve":
        return float(out.size * first.shape[-1])
    return float(max(out.size, *(x.size for x in ins if hasattr(x, "size"))))


def _fourier(params: Any, first: Any, out: Any) -> float:
    points = math.prod(params["fft_lengths"])
    real = params["fft_type"] in (jax.lax.FftType.RFFT, jax.lax.FftType.IRFFT)
    larger = max(first.size, out.size)  # of a real transform, the real side
    return larger * _SPECTRUM * math.log2(max(points, 2)) * (0.5 if real else 1.0)


def _is_float(value: Any) -> bool:
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, np.inexact)
