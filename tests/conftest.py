"""The tests' processes share what XLA compiled: most of the suite's time is compilation."""

import os
import shutil
import tempfile

import pytest

_CACHE = "JAX_COMPILATION_CACHE_DIR"
_OWN = pytest.StashKey[str]()


def pytest_configure(config):
    """Before jax is imported, and before workers start, which inherit it."""
    if _CACHE not in os.environ:
        config.stash[_OWN] = os.environ[_CACHE] = tempfile.mkdtemp(prefix="jaxreg-tests-")


def pytest_unconfigure(config):
    if _OWN in config.stash:
        shutil.rmtree(config.stash[_OWN], ignore_errors=True)
