"""The tests' processes share what XLA compiled: most of the suite's time is compilation."""

import os
import shutil
import tempfile

import filelock
import numpy as np
import pytest

_CACHE = "JAX_COMPILATION_CACHE_DIR"
_OWN = pytest.StashKey[str]()
# What takes longest comes first, or else one process would end long before the others. The first
# three do not wait for one another: only one of them needs `batch_program`, and the second, the
# examples of jaxreg.registration, compiles the other program that the first one runs.
_LONGEST = (
    *("test_registration", "registration", "test_train", "test_loop", "test_direct"),
    *("test_honesty", "test_masks", "test_shifts", "test_processes", "test_benchmark"),
    *("test_gradients", "test_align", "test_learned", "test_finishing", "test_resnext"),
    *("test_compact", "test_recipes"),
)


def pytest_configure(config):
    """Before jax is imported, and before workers start, which inherit it."""
    if _CACHE not in os.environ:
        config.stash[_OWN] = os.environ[_CACHE] = tempfile.mkdtemp(prefix="jaxreg-tests-")
    # Small programs too, for they are many; but the smallest are made sooner than found.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    if hasattr(config.option, "loadscopereorder"):  # xdist would go by the number of tests
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Files in the order of `_LONGEST`, and then the others as they were."""
    place = {name: number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_unconfigure(config):
    if _OWN in config.stash:
        shutil.rmtree(config.stash[_OWN], ignore_errors=True)


def _compiled_once(name, **options):
    """Has one process compile a program that tests of several files run; the others wait."""
    from jaxreg import register_batch  # not before `pytest_configure`
    from tests.registration_support import COUNT, SIZE

    cache = os.environ[_CACHE]
    os.makedirs(cache, exist_ok=True)
    with filelock.FileLock(os.path.join(cache, f"{name}.lock")):
        register_batch(*np.zeros((2, COUNT, SIZE, SIZE, 3), np.float32), **options)


@pytest.fixture(scope="session")
def batch_program():
    """The program that most tests of registration run."""
    _compiled_once("batch_program")


@pytest.fixture(scope="session")
def far_and_upright_program():
    """That of other settings."""
    from tests.compilation_support import quickly_compiled
    from tests.registration_support import FAR_AND_UPRIGHT

    with quickly_compiled():
        _compiled_once("far_and_upright_program", **FAR_AND_UPRIGHT)
