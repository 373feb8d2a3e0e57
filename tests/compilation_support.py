"""How tests have XLA compile what they run once or twice."""

import contextlib

import jax


@contextlib.contextmanager
def quickly_compiled():
    """Compiles large programs in half the time; as a decorator, for a test or a fixture.

    LLVM optimises next to nothing, which leaves a program that is the same but for rounding, and
    runs more slowly. Not where bits are compared, nor for what many tests run.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
