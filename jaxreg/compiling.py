"""How XLA is to compile, for CPUs, programs of many kernels that take a microsecond each.

On its own it makes a tree of kernels of every sum, for the sake of precision, and otherwise adds
in the order that is written, which no vector unit can. Of a few thousand values neither matters.
"""

from __future__ import annotations

_FEW = 2**16  # values of an image up to which sums in any order are precise enough
_SUMS = {
    "xla_cpu_enable_fast_math": True,  # sums in any order, products and sums fused; but
    "xla_cpu_fast_math_honor_nans": True,
    "xla_cpu_fast_math_honor_infs": True,
    "xla_cpu_fast_math_honor_division": True,
    "xla_cpu_fast_math_honor_functions": True,
}
_TREES, _THREADS = "tree_reduction_rewriter", "cpu-parallel-task-assigner"


def cpu_options(values: int, threads: bool = True) -> dict[str, bool | str]:
    """Compiler options of a program for CPUs.

    Args:
      values: of an image, pixels times channels.
      threads: whether its loops may be split over threads.

    >>> cpu_options(2**20, threads=False)
    {'xla_disable_hlo_passes': 'cpu-parallel-task-assigner'}
    """
    few = values <= _FEW
    left_out = [_TREES] * few + [_THREADS] * (not threads)
    return (_SUMS if few else {}) | {"xla_disable_hlo_passes": ",".join(left_out)}
